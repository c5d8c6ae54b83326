//! From observations to tokens. Token in, token out: what was sampled is kept as sampled, and only new text is tokenised and
//! appended, so an episode is one ever-growing sequence; or, with a windowed history, a sequence for each turn.

use super::action::{Reader, Refusal};
use super::episode::Turn;
use super::tag::Tag;
use super::template::{Exchange, Scene, Template};
use crate::config::{Format, History, Prompt};
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

/// Why prompts cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("the tokenizer has no {0} token, which prompt.format needs; use a model whose tokenizer knows ChatML")]
    NoToken(&'static str),
    #[error("the chat template cannot be continued turn by turn ({0}); set prompt.format = \"compact\"")]
    Template(&'static str),
    #[error("prompt.template = {name:?} is neither built in ({built_in}) nor a file that can be read: {source}")]
    NoTemplate { name: String, built_in: String, source: std::io::Error },
    #[error("prompt.template: {0:#}")]
    Words(#[from] minijinja::Error),
}

/// The fixed text around what the agent is told.
struct Frame {
    before: String,
    after: String,
}

/// Lays out observations for the model and reads its commands.
pub struct Prompter {
    tokenizer: Tokenizer,
    reader: Reader,
    admissible: bool,
    template: Template,
    history: History,
    instruction: &'static str,
    /// Around what opens a sequence, and around what goes on with one (which follows the end token of a turn).
    first: Frame,
    next: Frame,
    end: u32,
    end_of_text: Option<u32>,
    /// What stands before the first observation.
    suggestions: Vec<String>,
}

/// What a turn's tokens say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// Everything the agent wrote in the turn.
    pub text: String,
    pub command: Result<String, Refusal>,
    /// How many of the turn's tokens come before what is not thought or tag.
    pub thought: usize,
}

impl Prompter {
    pub fn new(tokenizer: Tokenizer, config: &Prompt) -> Result<Prompter, PromptError> {
        let end = tokenizer.id(TURN_END).ok_or(PromptError::NoToken(TURN_END))?;
        tokenizer.id(TURN_START).ok_or(PromptError::NoToken(TURN_START))?;
        let instruction = match (config.format, config.tags) {
            (Format::Compact, _) => "",
            (Format::Chat, false) => PLAIN_INSTRUCTION,
            (Format::Chat, true) => TAGGED_INSTRUCTION,
            (Format::Think, false) => THINK_INSTRUCTION,
            (Format::Think, true) => TAGGED_THINK_INSTRUCTION,
        };
        let (first, next) = if config.format == Format::Compact { (compact(), compact()) } else { chat(&tokenizer)? };
        Ok(Prompter {
            end_of_text: tokenizer.id(END_OF_TEXT),
            tokenizer,
            reader: Reader::new(config),
            admissible: config.admissible,
            template: Template::load(&config.template)?,
            history: config.history,
            instruction,
            first,
            next,
            end,
            suggestions: Vec::new(),
        })
    }

    /// From now on every episode begins with these sentences; without any, as if there had never been some.
    pub fn suggest(&mut self, sentences: &[String]) {
        self.suggestions = sentences.to_vec();
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether every turn begins a sequence of its own, so that [`Prompter::next`] is all that the agent reads in it.
    pub fn renews(&self) -> bool {
        self.history != History::Full
    }

    /// Tokens of an episode up to the agent's first token.
    pub fn first(&self, observation: &Observation) -> Result<Vec<u32>, PromptError> {
        self.next_under(&self.suggestions, &[], observation)
    }

    /// Tokens from the end of a turn (its end token not included) to the next turn's first token; or all of the sequence up to
    /// there, where every turn has its own. `past` are the turns so far.
    pub fn next(&self, past: &[Exchange<'_>], observation: &Observation) -> Result<Vec<u32>, PromptError> {
        self.next_under(&self.suggestions, past, observation)
    }

    /// The same under other suggestions; without a past, the tokens that an episode begins with.
    pub fn next_under(
        &self,
        sentences: &[String],
        past: &[Exchange<'_>],
        observation: &Observation,
    ) -> Result<Vec<u32>, PromptError> {
        let (windowed, seen) = match self.history {
            History::Full => (false, 0),
            History::Window(turns) => (true, turns.min(past.len())),
        };
        let opening = windowed || past.is_empty();
        let text = self.template.render(&Scene {
            instruction: self.instruction,
            opening,
            windowed,
            suggestions: sentences,
            step: past.len(),
            first: past.first().map_or(&observation.text, |turn| turn.observation),
            history: &past[past.len() - seen..],
            actions: past.iter().map(|turn| &turn.action[..]).collect(),
            observation: &observation.text,
            admissible: if self.admissible { &observation.admissible } else { &[] },
        })?;
        Ok(self.encode(if opening { &self.first } else { &self.next }, &text)?)
    }

    /// Tokens from the end of a turn (its end token not included) to the answer to `text`, which is no observation.
    pub fn ask(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.next, text)
    }

    /// Tokens up to the answer to `text`, which is all that is said.
    pub fn ask_alone(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.first, &format!("{}{text}", self.instruction))
    }

    /// Turns as a history tells them.
    pub fn past<'a>(&self, turns: &'a [Turn]) -> Vec<Exchange<'a>> {
        let action = |turn: &Turn| turn.command.clone().unwrap_or_else(|| "(unreadable)".into());
        turns.iter().map(|turn| Exchange { observation: &turn.observation, action: action(turn) }).collect()
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
        let (at, command) = match self.reader.command(&text) {
            Ok((at, command)) => (at, Ok(command)),
            Err(refusal) => (0, Err(refusal)),
        };
        Ok(Action { thought: self.tokens_within(turn, at)?, command, text })
    }

    /// How many of the first tokens make up no more than so many bytes of text.
    fn tokens_within(&self, turn: &[u32], bytes: usize) -> Result<usize, TokenizerError> {
        let (mut fits, mut beyond) = (0, turn.len() + 1);
        while bytes > 0 && fits + 1 < beyond {
            let middle = (fits + beyond) / 2;
            match self.tokenizer.decode(&turn[..middle], false)?.len() <= bytes {
                true => fits = middle,
                false => beyond = middle,
            }
        }
        Ok(fits)
    }

    /// The tokens in which a command is taught: a whole turn, its end token included. `tag` is what it begins with where
    /// `prompt.tags` is on.
    pub fn teach(&self, tag: Tag, command: &str) -> Result<Vec<u32>, TokenizerError> {
        self.say(&turn_text(self.reader.format, self.reader.tags.then_some(tag), command))
    }

    /// The tokens of a whole turn that is not a command: its text as it is, and the end token.
    pub fn say(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = self.tokenizer.encode(text)?;
        tokens.push(self.end);
        Ok(tokens)
    }

    fn encode(&self, frame: &Frame, text: &str) -> Result<Vec<u32>, TokenizerError> {
        // What an environment says must not open or close turns.
        let text = text.replace("<|", "< |");
        self.tokenizer.encode(&format!("{}{text}{}", frame.before, frame.after))
    }
}

/// Suggestions as the default template puts them before the first observation.
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
fn chat(tokenizer: &Tokenizer) -> Result<(Frame, Frame), PromptError> {
    let user = || Message::new("user", OBSERVATION);
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
