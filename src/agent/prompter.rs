//! From observations to tokens. Token in, token out: what was sampled is kept as sampled, and only new text is tokenised and
//! appended, so an episode is one ever-growing sequence.

use super::action::{Refusal, parse, parse_tagged};
use super::tag::Tag;
use crate::config::{Format, Prompt};
use crate::env::Observation;
use crate::model::tokenizer::{END_OF_TEXT, Message, TURN_END, TURN_START, Tokenizer, TokenizerError};

const PLAIN_INSTRUCTION: &str =
    "You act in a text world. Answer each observation with one command and nothing else.\n\n";
const THINK_INSTRUCTION: &str = "You act in a text world. Answer each observation with your reasoning inside \
     <think></think>, then one command inside <action></action>, and nothing else.\n\n";
const TAGGED_INSTRUCTION: &str = "You act in a text world. Begin each answer with a tag: <planning> where you lay out the way to the \
     goal, <explore> where you look for something new, <reflection> where you mend a step that failed, <monitor> where you go on as \
     planned. One command follows, and nothing else.\n\n";
const TAGGED_THINK_INSTRUCTION: &str = "You act in a text world. Answer each observation with your reasoning inside one pair of tags: \
     <planning></planning> where you lay out the way to the goal, <explore></explore> where you look for something new, \
     <reflection></reflection> where you mend a step that failed, <monitor></monitor> where you go on as planned; then one command \
     inside <action></action>, and nothing else.\n\n";

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
    tags: bool,
    /// Around the first observation, and around each later one (which follows the end token of a turn).
    first: Frame,
    next: Frame,
    end: u32,
    end_of_text: Option<u32>,
    /// What stands before the first observation.
    suggestions: String,
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
        let (first, next) = match (config.format, config.tags) {
            (Format::Compact, _) => (compact(), compact()),
            (Format::Chat, false) => chat(&tokenizer, PLAIN_INSTRUCTION)?,
            (Format::Chat, true) => chat(&tokenizer, TAGGED_INSTRUCTION)?,
            (Format::Think, false) => chat(&tokenizer, THINK_INSTRUCTION)?,
            (Format::Think, true) => chat(&tokenizer, TAGGED_THINK_INSTRUCTION)?,
        };
        let end_of_text = tokenizer.id(END_OF_TEXT);
        let (admissible, tags) = (config.admissible, config.tags);
        let suggestions = String::new();
        Ok(Prompter { tokenizer, format: config.format, admissible, tags, first, next, end, end_of_text, suggestions })
    }

    /// From now on every episode begins with these sentences; without any, as if there had never been some.
    pub fn suggest(&mut self, sentences: &[String]) {
        self.suggestions = lead(sentences);
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens of an episode up to the agent's first token.
    pub fn first(&self, observation: &Observation) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.first, &self.suggestions, observation)
    }

    /// The same under other suggestions.
    pub fn first_under(&self, sentences: &[String], observation: &Observation) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.first, &lead(sentences), observation)
    }

    /// Tokens from the end of a turn (its end token not included) to the next turn's first token.
    pub fn next(&self, observation: &Observation) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.next, "", observation)
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
        let command = if self.tags { parse_tagged(self.format, &text) } else { parse(self.format, &text) };
        Ok(Action { command, text })
    }

    /// The tokens in which a command is taught: a whole turn, its end token included. `tag` is what it begins with where
    /// `prompt.tags` is on.
    pub fn teach(&self, tag: Tag, command: &str) -> Result<Vec<u32>, TokenizerError> {
        self.say(&turn_text(self.format, self.tags.then_some(tag), command))
    }

    /// The tokens of a whole turn that is not a command: its text as it is, and the end token.
    pub fn say(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = self.tokenizer.encode(text)?;
        tokens.push(self.end);
        Ok(tokens)
    }

    fn encode(&self, frame: &Frame, lead: &str, observation: &Observation) -> Result<Vec<u32>, TokenizerError> {
        let mut text = format!("{lead}{}", observation.text);
        if self.admissible && !observation.admissible.is_empty() {
            text += &format!("\nCommands: {}.", observation.admissible.join(", "));
        }
        // What an environment says must not open or close turns.
        let text = text.replace("<|", "< |");
        self.tokenizer.encode(&format!("{}{text}{}", frame.before, frame.after))
    }
}

/// Suggestions as they stand before the first observation.
pub fn lead(sentences: &[String]) -> String {
    if sentences.is_empty() { String::new() } else { format!("advice: {}\n", sentences.join(" ")) }
}

/// The text of a turn that gives a command.
pub fn turn_text(format: Format, tag: Option<Tag>, command: &str) -> String {
    match (format, tag.map(Tag::name)) {
        (Format::Compact | Format::Chat, None) => command.into(),
        (Format::Compact | Format::Chat, Some(tag)) => format!("<{tag}> {command}"),
        (Format::Think, None) => format!("<think></think><action>{command}</action>"),
        (Format::Think, Some(tag)) => format!("<{tag}></{tag}><action>{command}</action>"),
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
