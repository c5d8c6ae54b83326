//! Which of a turn's tokens say its command.

use super::Tag;
use crate::config::{Format, Prompt};
use crate::model::tokenizer::{Tokenizer, TokenizerError};
use std::ops::Range;

/// Those of `turn` (the tokens that the agent wrote, without the end of the turn) that hold a character of its parsed `command`,
/// which begins where `prompt` says. All that say anything where it does not: the turn could not be read.
///
/// # Errors
/// If the tokenizer cannot decode the tokens.
pub fn command_tokens(
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    turn: &[u32],
    command: &str,
) -> Result<Range<usize>, TokenizerError> {
    let text = tokenizer.decode(turn, false)?;
    let bytes = within(prompt, &text, command);
    // The tokens before `at` are those of this much of the text. A token may hold a part of a character: it begins where that does.
    let mut starts = Vec::with_capacity(turn.len());
    for at in 0..turn.len() {
        starts.push(common_prefix(tokenizer.decode(&turn[..at], false)?.as_bytes(), text.as_bytes()));
    }
    let first = starts.iter().position(|start| *start >= bytes.start).unwrap_or(turn.len());
    let begins_there = starts.get(first) == Some(&bytes.start);
    let first = if begins_there { first } else { first.saturating_sub(1) };
    let end = starts.iter().position(|start| *start >= bytes.end).unwrap_or(turn.len());
    Ok(first..end.max(first))
}

/// The command in a turn whose format nobody tells, and the format that it seems to have: inside `<action>…</action>` where the
/// turn ends so, else what follows its tag.
pub fn guessed_command(text: &str) -> (Prompt, &str) {
    let format = if text.trim_end().ends_with("</action>") { Format::Think } else { Format::Compact };
    let prompt = Prompt { format, tags: Tag::split(text).is_some(), ..Prompt::default() };
    let rest = text[start(&prompt, text)..].trim();
    let command = if format == Format::Think { rest.trim_end_matches("</action>").trim() } else { rest };
    (prompt, command)
}

/// The bytes of `text` that are `command`, whatever its case.
fn within(prompt: &Prompt, text: &str, command: &str) -> Range<usize> {
    let at = start(prompt, text);
    let begin = text.len() - text[at..].trim_start().len();
    match prefix(&text[begin..], command) {
        Some(length) if length > 0 => begin..begin + length,
        _ => text.len() - text.trim_start().len()..text.trim_end().len(),
    }
}

/// Where the command of a turn begins, white space aside.
fn start(prompt: &Prompt, text: &str) -> usize {
    const ACTION: &str = "<action>";
    match prompt.format {
        Format::Think => text.rfind(ACTION).map_or(0, |at| at + ACTION.len()),
        Format::Compact | Format::Chat if prompt.tags => {
            Tag::split(text).map_or(0, |(_, rest)| text.len() - rest.len())
        }
        Format::Compact | Format::Chat => 0,
    }
}

/// Length of the beginning of `text` that is `command` but for its case.
fn prefix(text: &str, command: &str) -> Option<usize> {
    let mut wanted = command.chars().flat_map(char::to_lowercase).peekable();
    for (at, c) in text.char_indices() {
        if wanted.peek().is_none() {
            return Some(at);
        }
        if !c.to_lowercase().all(|lower| wanted.next() == Some(lower)) {
            return None;
        }
    }
    wanted.peek().is_none().then_some(text.len())
}

fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
