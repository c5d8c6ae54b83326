//! From observations to tokens. Token in, token out: what was sampled is kept as sampled, and only new text is tokenised and
//! appended, so an episode is one ever-growing sequence.

use super::action::{Refusal, parse};
use crate::config::{Format, Prompt};
use crate::env::Observation;
use crate::model::tokenizer::{END_OF_TEXT, Message, TURN_END, TURN_START, Tokenizer, TokenizerError};

const PLAIN_INSTRUCTION: &str =
    "You act in a text world. Answer each observation with one command and nothing else.\n\n";
const THINK_INSTRUCTION: &str = "You act in a text world. Answer each observation with your reasoning inside \
     <think></think>, then one command inside <action></action>, and nothing else.\n\n";

/// Stand-ins whose places in the rendered template are looked up; any text that no template contains will do.
const OBSERVATION: &str = "UNCOUPLE-OBSERVATION";
const ANSWER: &str = "UNCOUPLE-ANSWER";

/// Why a tokenizer cannot serve as the agent's.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("the tokenizer has no {0} token, which prompt.format needs; use a model whose tokenizer knows ChatML")]
    NoToken(&'static str),
    #[error("the chat template cannot be continued turn by turn ({0}); set prompt.format = \"compact\"")]
    Template(&'static str),
}

/// The fixed text around an observation.
struct Frame {
    before: String,
    after: String,
}

/// Lays out observations for the model and reads its commands.
pub struct Prompter {
    tokenizer: Tokenizer,
    format: Format,
    admissible: bool,
    /// Around the first observation, and around each later one (which follows the end token of a turn).
    first: Frame,
    next: Frame,
    end: u32,
    end_of_text: Option<u32>,
}

/// What a turn's tokens say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// Everything the agent wrote in the turn.
    pub text: String,
    pub command: Result<String, Refusal>,
}

impl Prompter {
    pub fn new(tokenizer: Tokenizer, config: &Prompt) -> Result<Prompter, PromptError> {
        let end = tokenizer.id(TURN_END).ok_or(PromptError::NoToken(TURN_END))?;
        tokenizer.id(TURN_START).ok_or(PromptError::NoToken(TURN_START))?;
        let (first, next) = match config.format {
            Format::Compact => (compact(), compact()),
            Format::Chat => chat(&tokenizer, PLAIN_INSTRUCTION)?,
            Format::Think => chat(&tokenizer, THINK_INSTRUCTION)?,
        };
        let end_of_text = tokenizer.id(END_OF_TEXT);
        Ok(Prompter { tokenizer, format: config.format, admissible: config.admissible, first, next, end, end_of_text })
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens of an episode up to the agent's first token.
    pub fn first(&self, observation: &Observation) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.first, observation)
    }

    /// Tokens from the end of a turn (its end token not included) to the next turn's first token.
    pub fn next(&self, observation: &Observation) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.next, observation)
    }

    /// The token that ends a turn.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Whether the turn ends with this token: the end token itself, or the end of the whole text.
    pub fn ends_turn(&self, token: u32) -> bool {
        token == self.end || Some(token) == self.end_of_text
    }

    /// Reads the tokens of a finished turn, its end token not included.
    pub fn read(&self, turn: &[u32]) -> Result<Action, TokenizerError> {
        let text = self.tokenizer.decode(turn, false)?;
        Ok(Action { command: parse(self.format, &text), text })
    }

    /// The tokens in which a command is taught: a whole turn, its end token included.
    pub fn teach(&self, command: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = match self.format {
            Format::Compact | Format::Chat => self.tokenizer.encode(command)?,
            Format::Think => self.tokenizer.encode(&format!("<think></think><action>{command}</action>"))?,
        };
        tokens.push(self.end);
        Ok(tokens)
    }

    /// The tokens of a whole turn that is not a command: its text as it is, and the end token.
    pub fn say(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = self.tokenizer.encode(text)?;
        tokens.push(self.end);
        Ok(tokens)
    }

    fn encode(&self, frame: &Frame, observation: &Observation) -> Result<Vec<u32>, TokenizerError> {
        let mut text = observation.text.clone();
        if self.admissible && !observation.admissible.is_empty() {
            text += &format!("\nCommands: {}.", observation.admissible.join(", "));
        }
        // What an environment says must not open or close turns.
        let text = text.replace("<|", "< |");
        self.tokenizer.encode(&format!("{}{text}{}", frame.before, frame.after))
    }
}

fn compact() -> Frame {
    Frame { before: String::new(), after: TURN_START.into() }
}

/// The frames of a chat template, found by rendering it on stand-ins.
fn chat(tokenizer: &Tokenizer, instruction: &str) -> Result<(Frame, Frame), PromptError> {
    let user = || Message::new("user", format!("{instruction}{OBSERVATION}"));
    let opening = tokenizer.render(&[user()], true)?;
    let talk = [user(), Message::new("assistant", ANSWER), Message::new("user", OBSERVATION)];
    let whole = tokenizer.render(&talk, true)?;
    let rest = whole
        .strip_prefix(&opening)
        .and_then(|w| w.strip_prefix(ANSWER))
        .ok_or(PromptError::Template("it writes the history differently once there is an answer"))?;
    let rest =
        rest.strip_prefix(TURN_END).ok_or(PromptError::Template("it does not close an answer with <|im_end|>"))?;
    let frame = |text: &str| {
        let (before, after) = text.split_once(OBSERVATION)?;
        Some(Frame { before: before.into(), after: after.into() })
    };
    let lost = || PromptError::Template("it leaves out what the user says");
    Ok((frame(&opening).ok_or_else(lost)?, frame(rest).ok_or_else(lost)?))
}
