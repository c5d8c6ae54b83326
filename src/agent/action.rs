//! Reading a command out of what the agent wrote. Strict: anything doubtful is refused, with the reason, and counted.

use super::Tag;
use crate::config::Format;

/// Longest command, in characters.
const MAX_COMMAND: usize = 200;

/// Why no command could be read from a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The turn has no end token within its limit.
    Unfinished,
    /// There is no text.
    Empty,
    /// The command is longer than 200 characters.
    TooLong,
    /// The command has more than one line, or other control characters.
    NotOneLine,
    /// The turn does not start with a tag.
    NoTag,
    /// The turn does not start with `<think>…</think>`.
    NoThought,
    /// The thought is not followed by one `<action>…</action>` and nothing else.
    NoAction,
}

impl Refusal {
    /// Short name for logs and tables.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::Unfinished => "unfinished",
            Refusal::Empty => "empty",
            Refusal::TooLong => "too-long",
            Refusal::NotOneLine => "not-one-line",
            Refusal::NoTag => "no-tag",
            Refusal::NoThought => "no-thought",
            Refusal::NoAction => "no-action",
        }
    }
}

/// The command in a finished turn's text (without its end token).
pub fn parse(format: Format, text: &str) -> Result<String, Refusal> {
    let text = text.trim();
    if text.is_empty() {
        return Err(Refusal::Empty);
    }
    match format {
        Format::Compact | Format::Chat => checked(text),
        Format::Think => checked(action_after(text.strip_prefix("<think>").and_then(|t| t.split_once("</think>")))?),
    }
}

/// The command in the text of a finished turn that must begin with a [`Tag`]. In the formats without reasoning the command follows
/// it; else the tag stands in for `think`.
pub fn parse_tagged(format: Format, text: &str) -> Result<String, Refusal> {
    let (tag, rest) = Tag::split(text.trim()).ok_or(Refusal::NoTag)?;
    match format {
        Format::Compact | Format::Chat => checked(rest.trim()),
        Format::Think => checked(action_after(rest.split_once(&format!("</{}>", tag.name())))?),
    }
}

fn checked(command: &str) -> Result<String, Refusal> {
    if command.is_empty() {
        Err(Refusal::Empty)
    } else if command.chars().any(char::is_control) {
        Err(Refusal::NotOneLine)
    } else if command.chars().count() > MAX_COMMAND {
        Err(Refusal::TooLong)
    } else {
        Ok(command.to_owned())
    }
}

/// The command of ` <action>…</action>` after a thought.
fn action_after<'a>(thought: Option<(&'a str, &'a str)>) -> Result<&'a str, Refusal> {
    let (_, rest) = thought.ok_or(Refusal::NoThought)?;
    let command = rest.trim_start().strip_prefix("<action>").and_then(|t| t.strip_suffix("</action>"));
    match command {
        Some(c) if !c.contains("<action>") && !c.contains("</action>") => Ok(c.trim()),
        _ => Err(Refusal::NoAction),
    }
}
