//! From observations to tokens. Token in, token out: what was sampled is kept as sampled, and only new text is tokenised and
//! appended, so an episode is one ever-growing sequence; or, with a windowed history or where admissible commands are listed, a
//! sequence for each turn.

use super::action::{CommandReader, Refusal};
use super::episode::Turn;
use super::error::PromptError;
use super::layout::{Frame, PromptLayout};
use super::memory::Shown;
use super::tag::Tag;
use super::template::{Exchange, Scene, Template};
use crate::config::{Format, History, Prompt};
use crate::env::Observation;
use crate::model::tokenizer::{END_OF_TEXT, Piece, Tokenizer, TokenizerError};

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

/// Lays out observations for the model and reads its commands.
pub struct Prompter {
    tokenizer: Tokenizer,
    reader: CommandReader,
    admissible: bool,
    template: Template,
    history: History,
    instruction: &'static str,
    layout: PromptLayout,
    end_of_text: Option<u32>,
    /// What stands before the first observation.
    suggestions: Vec<String>,
}

/// What a turn's tokens say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// Everything the agent wrote in the turn.
    pub text: String,
    /// The command, or why there is none.
    pub command: Result<String, Refusal>,
    /// How many of the turn's tokens come before what is not thought or tag.
    pub thought: usize,
}

impl Prompter {
    /// A prompter of this tokenizer and these settings.
    ///
    /// # Errors
    /// If the tokenizer lacks a token that the format needs, its chat template cannot frame a turn, or
    /// `prompt.template` cannot be read.
    pub fn new(tokenizer: Tokenizer, config: &Prompt) -> Result<Prompter, PromptError> {
        let instruction = match (config.format, config.tags) {
            (Format::Compact, _) => "",
            (Format::Chat, false) => PLAIN_INSTRUCTION,
            (Format::Chat, true) => TAGGED_INSTRUCTION,
            (Format::Think, false) => THINK_INSTRUCTION,
            (Format::Think, true) => TAGGED_THINK_INSTRUCTION,
        };
        let layout = match config.format {
            Format::Compact => PromptLayout::compact(&tokenizer)?,
            Format::Chat | Format::Think => {
                PromptLayout::chat(&tokenizer, &sample_answers(config), config.history == History::Full)?
            }
        };
        Ok(Prompter {
            end_of_text: tokenizer.id(END_OF_TEXT),
            tokenizer,
            reader: CommandReader::new(config),
            admissible: config.admissible,
            template: Template::load(&config.template)?,
            history: config.history,
            instruction,
            layout,
            suggestions: Vec::new(),
        })
    }

    /// From now on every episode begins with these sentences; without any, as if there had never been some.
    pub fn suggest(&mut self, sentences: &[String]) {
        self.suggestions = sentences.to_vec();
    }

    /// The sentences that episodes begin with.
    pub fn suggestions(&self) -> &[String] {
        &self.suggestions
    }

    /// The tokenizer of the policy.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens of an episode up to the agent's first token.
    ///
    /// # Errors
    /// If the text cannot be tokenised, or the template of `prompt.template` fails.
    pub fn first(&self, observation: &Observation) -> Result<Shown, PromptError> {
        self.next_under(&self.suggestions, &[], observation)
    }

    /// Tokens from the end of a turn (its end token not included) to the next turn's first token; or all of the sequence up to
    /// there, with a windowed history. `past` are the turns so far.
    ///
    /// # Errors
    /// As [`Prompter::first`].
    pub fn next(&self, past: &[Exchange<'_>], observation: &Observation) -> Result<Shown, PromptError> {
        self.next_under(&self.suggestions, past, observation)
    }

    /// The same under other suggestions; without a past, the tokens that an episode begins with.
    ///
    /// # Errors
    /// As [`Prompter::first`].
    pub fn next_under(
        &self,
        sentences: &[String],
        past: &[Exchange<'_>],
        observation: &Observation,
    ) -> Result<Shown, PromptError> {
        let admissible = if self.admissible { &observation.admissible[..] } else { &[] };
        let now = self.turn_under(sentences, past, observation, admissible)?;
        let later = match self.history {
            History::Window(_) => Vec::new(),
            History::Full if admissible.is_empty() => now.clone(),
            History::Full => self.turn_under(sentences, past, observation, &[])?,
        };
        Ok(Shown { now, later })
    }

    fn turn_under(
        &self,
        sentences: &[String],
        past: &[Exchange<'_>],
        observation: &Observation,
        admissible: &[String],
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
            admissible,
        })?;
        if opening { self.encode(&self.layout.first, &text) } else { self.go_on(&text, PromptError::Template) }
    }

    /// Tokens from the end of a turn (its end token not included) to the answer to `text`, which is no observation.
    ///
    /// # Errors
    /// [`PromptError::Judgments`], for every text, where the chat template has no place for a question about a turn.
    pub fn encode_question(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        self.go_on(text, PromptError::Judgments)
    }

    /// Tokens up to the answer to `text`, which is all that is said.
    ///
    /// # Errors
    /// If the text cannot be tokenised.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        self.encode(&self.layout.first, &format!("{}{text}", self.instruction))
    }

    /// Turns as a history tells them.
    pub fn past<'a>(&self, turns: &'a [Turn]) -> Vec<Exchange<'a>> {
        let action = |turn: &Turn| turn.command.clone().unwrap_or_else(|| "(unreadable)".into());
        turns.iter().map(|turn| Exchange { observation: &turn.observation, action: action(turn) }).collect()
    }

    /// The token that ends a turn.
    pub fn end(&self) -> u32 {
        self.layout.end
    }

    /// Whether the turn ends with this token: the end token itself, or the end of the whole text.
    pub fn ends_turn(&self, token: u32) -> bool {
        token == self.end() || Some(token) == self.end_of_text
    }

    /// Reads the tokens of a finished turn, its end token not included.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the tokens.
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
    ///
    /// # Errors
    /// If the text cannot be tokenised.
    pub fn encode_action(&self, tag: Tag, command: &str) -> Result<Vec<u32>, TokenizerError> {
        let (before, after) = turn_frame(self.reader.format, self.reader.tags.then_some(tag));
        self.turn(&[Piece::Frame(&before), Piece::Text(command), Piece::Frame(after)])
    }

    /// The tokens of a whole turn that is not a command: its text as it is, and the end token.
    ///
    /// # Errors
    /// If the text cannot be tokenised.
    pub fn encode_turn(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.turn(&[Piece::Text(text)])
    }

    fn turn(&self, pieces: &[Piece<'_>]) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = self.tokenizer.encode_pieces(pieces)?;
        tokens.push(self.end());
        Ok(tokens)
    }

    fn go_on(&self, words: &str, refusal: fn(&'static str) -> PromptError) -> Result<Vec<u32>, PromptError> {
        self.encode(self.layout.next.as_ref().map_err(|reason| refusal(reason))?, words)
    }

    /// What an environment says must not open or close turns: of the words only the instruction may hold control tokens, such as
    /// the tags of thoughts.
    fn encode(&self, frame: &Frame, words: &str) -> Result<Vec<u32>, PromptError> {
        frame.encode(&self.tokenizer, words, self.instruction.trim())
    }
}

/// Suggestions as the default template puts them before the first observation.
pub fn lead(sentences: &[String]) -> String {
    if sentences.is_empty() { String::new() } else { format!("advice: {}\n", sentences.join(" ")) }
}

/// The text of a turn that gives a command.
pub fn turn_text(format: Format, tag: Option<Tag>, command: &str) -> String {
    let (before, after) = turn_frame(format, tag);
    format!("{before}{command}{after}")
}

/// What stands before and after the command of a turn.
fn turn_frame(format: Format, tag: Option<Tag>) -> (String, &'static str) {
    match (format, tag.map(Tag::name)) {
        (Format::Compact | Format::Chat, None) => (String::new(), ""),
        (Format::Compact | Format::Chat, Some(tag)) => (format!("<{tag}> "), ""),
        (Format::Think, None) => ("<think></think><action>".into(), "</action>"),
        (Format::Think, Some(tag)) => (format!("<{tag}></{tag}><action>"), "</action>"),
    }
}

/// Answers as the agent may give them: with an empty thought, and with one.
fn sample_answers(config: &Prompt) -> Vec<String> {
    let answer = turn_text(config.format, config.tags.then_some(Tag::Planning), "go north");
    let thoughtful = answer.replacen("></", ">It is\nnorth.</", 1);
    vec![answer, thoughtful]
}
