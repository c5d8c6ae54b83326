//! Reading a command out of what the agent wrote. Strict: anything doubtful is refused, with the reason, and counted.

use super::Tag;
use crate::config::{Format, Normalize, Prompt};

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

/// How commands are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandReader {
    /// The form in which the agent writes: `prompt.format`.
    pub format: Format,
    /// A turn must begin with a [`Tag`]; with reasoning the tag stands in for `think`.
    pub tags: bool,
    /// A command is its first line, in lower case, without a full stop at its end.
    pub normalize: bool,
}

impl CommandReader {
    /// A reader for the prompts of this configuration.
    pub fn new(config: &Prompt) -> CommandReader {
        let normalize = match config.normalize {
            Normalize::Auto => config.format != Format::Compact,
            Normalize::On => true,
            Normalize::Off => false,
        };
        CommandReader { format: config.format, tags: config.tags, normalize }
    }

    /// The command in a finished turn's text (without its end token), and the byte up to which the text is thought or tag.
    ///
    /// # Errors
    /// If the text holds no command in the configured format, or one that is too long or of several lines.
    pub fn command(&self, text: &str) -> Result<(usize, String), Refusal> {
        let text = text.trim_end();
        if text.is_empty() && !self.tags {
            return Err(Refusal::Empty);
        }
        let after = self.after_thought(text)?;
        let command = match self.format {
            Format::Compact | Format::Chat => after.trim(),
            Format::Think => action(after)?,
        };
        let command = if self.normalize { normalized(command) } else { command.to_owned() };
        Ok((text.len() - after.len(), checked(command)?))
    }

    /// What follows the tag or the thought that a turn must begin with.
    fn after_thought<'a>(&self, text: &'a str) -> Result<&'a str, Refusal> {
        let (opened, tag) = match self.tags {
            true => Tag::split(text).map(|(tag, rest)| (rest, tag.name())).ok_or(Refusal::NoTag)?,
            false => (text, "think"),
        };
        if self.format != Format::Think {
            return Ok(opened);
        }
        let opened = if self.tags { Some(opened) } else { opened.trim_start().strip_prefix("<think>") };
        let (_, after) = opened.and_then(|t| t.split_once(&format!("</{tag}>"))).ok_or(Refusal::NoThought)?;
        Ok(after)
    }
}

/// The first line that says anything, in lower case, without a full stop at its end.
fn normalized(command: &str) -> String {
    let line = command.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.strip_suffix('.').unwrap_or(line).trim_end().to_lowercase()
}

fn checked(command: String) -> Result<String, Refusal> {
    if command.is_empty() {
        Err(Refusal::Empty)
    } else if command.chars().any(char::is_control) {
        Err(Refusal::NotOneLine)
    } else if command.chars().count() > MAX_COMMAND {
        Err(Refusal::TooLong)
    } else {
        Ok(command)
    }
}

/// The command of ` <action>…</action>`.
fn action(after: &str) -> Result<&str, Refusal> {
    let command = after.trim_start().strip_prefix("<action>").and_then(|t| t.strip_suffix("</action>"));
    match command {
        Some(c) if !c.contains("<action>") && !c.contains("</action>") => Ok(c.trim()),
        _ => Err(Refusal::NoAction),
    }
}
