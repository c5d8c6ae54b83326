//! Where the words of a turn stand among the control tokens: in the compact format, or as a model's chat template has it.
//!
//! A chat template speaks of whole conversations, a prompter of what a turn adds. So a frame is found by rendering stand-ins, the
//! words of a turn are rendered where the stand-in stood, and a template whose turns do not add up to its conversations is refused.
//! What the agent wrote stays as it was sampled, white space too, also where a template would trim it.

use super::error::PromptError;
use crate::model::Message;
use crate::model::tokenizer::{Piece, TURN_END, TURN_START, Tokenizer};

/// Stand-ins whose places in the rendered template are looked up; any text that no template contains will do.
const OBSERVATION: &str = "UNCOUPLE-OBSERVATION";
const ANSWER: &str = "UNCOUPLE-ANSWER";

/// The compact format as a chat template: what `PromptLayout::compact` makes of observations and commands.
pub const COMPACT_TEMPLATE: &str = "{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>{{ message['content'] }}\
    <|im_end|>{% else %}{{ message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}";

/// Turns of the longest conversation that is tried: a template that counts turns or forgets old ones shows itself before.
const MANY: usize = 64;

const REWRITES: &str = "it writes what was said differently once there is more";

/// The text around what the agent is told.
pub(super) struct Frame {
    before: String,
    after: String,
    /// What a chat template is shown before the words, and how it renders that. `None`: there is no chat template to ask.
    said: Option<(Vec<Message>, String)>,
    /// The frame goes on where a turn ended, and begins with the end token of that turn.
    follows: bool,
}

/// The frames of a format, and the token that ends a turn.
pub(super) struct PromptLayout {
    /// Around what opens a sequence.
    pub first: Frame,
    /// Around what goes on with one, or why nothing does.
    pub next: Result<Frame, &'static str>,
    pub end: u32,
}

impl PromptLayout {
    pub fn compact(tokenizer: &Tokenizer) -> Result<PromptLayout, PromptError> {
        let end = tokenizer.id(TURN_END).ok_or(PromptError::NoToken(TURN_END))?;
        tokenizer.id(TURN_START).ok_or(PromptError::NoToken(TURN_START))?;
        let frame =
            |before: &str, follows| Frame { before: before.into(), after: TURN_START.into(), said: None, follows };
        Ok(PromptLayout { first: frame("", false), next: Ok(frame(TURN_END, true)), end })
    }

    /// The frames of a chat template, whose answers look like `answers`. With `whole` a conversation of any length must be what its
    /// turns add up to; else only the answer to a question about a turn.
    pub fn chat(tokenizer: &Tokenizer, answers: &[String], whole: bool) -> Result<PromptLayout, PromptError> {
        let first = frame(tokenizer, Vec::new(), String::new())?.map_err(PromptError::Single)?;
        let (end, end_text) = turn_end(tokenizer)?;
        let said = vec![Message::new("user", OBSERVATION), Message::new("assistant", ANSWER)];
        let read = format!("{}{OBSERVATION}{}{ANSWER}", first.before, first.after);
        let next = match frame(tokenizer, said, read) {
            Ok(Ok(next)) if !next.before.starts_with(&end_text) => {
                Err("it closes an answer differently once there is more")
            }
            Ok(next) => next.map(|next| Frame { follows: true, ..next }),
            // A template may refuse a second question.
            Err(e) if whole => return Err(e),
            Err(_) => Err("it refuses a second question"),
        };
        let next = match next {
            Ok(next) => adds_up(tokenizer, &first, &next, answers, whole)?.map(|()| next),
            unknown => unknown,
        };
        match next {
            Err(reason) if whole => Err(PromptError::Template(reason)),
            next => Ok(PromptLayout { first, next, end }),
        }
    }
}

/// What a template writes around a user's words after it was shown `said`, which it renders as `read`.
fn frame(tokenizer: &Tokenizer, said: Vec<Message>, read: String) -> Result<Result<Frame, &'static str>, PromptError> {
    let mut talk = said.clone();
    talk.push(Message::new("user", OBSERVATION));
    let text = tokenizer.render(&talk, true)?;
    let Some(rest) = text.strip_prefix(&read) else { return Ok(Err(REWRITES)) };
    Ok(match rest.split_once(OBSERVATION) {
        None => Err("it leaves out what the user says"),
        Some((_, after)) if after.contains(OBSERVATION) => Err("it repeats what the user says"),
        Some((before, after)) => {
            let (before, after) = (before.into(), after.into());
            Ok(Frame { before, after, said: Some((said, read)), follows: false })
        }
    })
}

/// The control token with which a template closes an answer, and its text.
fn turn_end(tokenizer: &Tokenizer) -> Result<(u32, String), PromptError> {
    let talk = [Message::new("user", OBSERVATION), Message::new("assistant", ANSWER)];
    let text = tokenizer.render(&talk, false)?;
    let after = text.split_once(ANSWER).map_or("", |(_, after)| after);
    match tokenizer.encode(after)?.first() {
        Some(id) if tokenizer.is_control(*id) => Ok((*id, tokenizer.decode(&[*id], false)?)),
        _ => Err(PromptError::Single("it does not close an answer with a special token")),
    }
}

/// Whether the turns of conversations put together are what the template renders of the whole.
fn adds_up(
    tokenizer: &Tokenizer,
    first: &Frame,
    next: &Frame,
    answers: &[String],
    whole: bool,
) -> Result<Result<(), &'static str>, PromptError> {
    let numbered = |count: usize| (0..count).map(|i| format!("room {i}.")).collect::<Vec<_>>();
    let texts = |list: [&str; 3]| list.map(String::from).to_vec();
    let mut conversations = vec![(numbered(2), "it changes an answer once there is more")];
    if whole {
        conversations.extend([
            (numbered(3), "its third turn is not written like its second"),
            (texts(["a", "a", "a"]), "it writes what is said again differently"),
            (texts([" a\n", "\n\tb ", " c\n\n"]), "it changes white space in what was said earlier"),
            (texts(["a", "", "c"]), "it changes what follows an empty message"),
            (numbered(MANY), "it changes a long conversation"),
        ]);
    }
    for (said, reason) in conversations {
        for answer in answers {
            let (mut talk, mut turns) = (Vec::new(), String::new());
            for (i, text) in said.iter().enumerate() {
                if i > 0 {
                    talk.push(Message::new("assistant", answer));
                    turns.push_str(answer);
                }
                let frame = if i == 0 { first } else { next };
                let Some((before, text_as_rendered, after)) = frame.around(tokenizer, text)? else {
                    return Ok(Err(reason));
                };
                turns.extend([&before[..], &text_as_rendered, &after]);
                talk.push(Message::new("user", text));
            }
            if tokenizer.render(&talk, true)? != turns {
                return Ok(Err(reason));
            }
        }
    }
    Ok(Ok(()))
}

impl Frame {
    /// The tokens of `words` in their frame, but for the end token of the turn before. `own` is the part of the words that is
    /// the prompt's own; all else is text of others.
    pub fn encode(&self, tokenizer: &Tokenizer, words: &str, own: &str) -> Result<Vec<u32>, PromptError> {
        let Some((before, words, after)) = self.around(tokenizer, words)? else {
            return Err(PromptError::Single("it writes an observation differently from others"));
        };
        let mut pieces = vec![Piece::Frame(&before)];
        match words.split_once(own).filter(|_| !own.is_empty()) {
            Some((ahead, rest)) => pieces.extend([Piece::Text(ahead), Piece::Frame(own), Piece::Text(rest)]),
            None => pieces.push(Piece::Text(&words)),
        }
        pieces.push(Piece::Frame(&after));
        let mut tokens = tokenizer.encode_pieces(&pieces)?;
        if self.follows {
            tokens.remove(0);
        }
        Ok(tokens)
    }

    /// What stands before the words, the words as the template writes them, and what stands after them; `None` where it writes
    /// these words differently from others.
    fn around(&self, tokenizer: &Tokenizer, words: &str) -> Result<Option<(String, String, String)>, PromptError> {
        let Some((said, read)) = &self.said else {
            return Ok(Some((self.before.clone(), words.into(), self.after.clone())));
        };
        let mut talk = said.clone();
        talk.push(Message::new("user", words));
        let text = tokenizer.render(&talk, true)?;
        let rest = text.strip_prefix(&read[..]);
        // A template may leave an empty message out; then all that it writes is its own.
        if words.trim().is_empty() {
            return Ok(rest.map(|rest| (rest.into(), String::new(), String::new())));
        }
        let inner = rest.and_then(|rest| rest.strip_prefix(&self.before[..])?.strip_suffix(&self.after[..]));
        Ok(inner.map(|words| (self.before.clone(), words.into(), self.after.clone())))
    }
}
