//! What kind of step a turn says it is: `<planning>`, `<explore>`, `<reflection>` or `<monitor>` (RLVMR, Zhang et al. 2025).

use super::Turn;

/// The tag that a turn begins with, where `prompt.tags` is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tag {
    /// Lays out how to reach the goal.
    Planning,
    /// Looks for something new.
    Explore,
    /// Mends a step that failed.
    Reflection,
    /// Goes on with what was planned.
    Monitor,
}

impl Tag {
    /// All tags, in the order of their declaration.
    pub const ALL: [Tag; 4] = [Tag::Planning, Tag::Explore, Tag::Reflection, Tag::Monitor];

    /// The tag as it is written in a prompt.
    pub fn name(self) -> &'static str {
        match self {
            Tag::Planning => "planning",
            Tag::Explore => "explore",
            Tag::Reflection => "reflection",
            Tag::Monitor => "monitor",
        }
    }

    /// The tag that a text begins with, and what follows it.
    pub fn split(text: &str) -> Option<(Tag, &str)> {
        let (name, rest) = text.trim_start().strip_prefix('<')?.split_once('>')?;
        Tag::ALL.into_iter().find(|tag| tag.name() == name).map(|tag| (tag, rest))
    }

    /// The tag that a demonstration gives `command` after the turns `before`, the last of which was understood or not: a plan
    /// comes first, a failure is reflected upon, and what was not tried yet explores.
    pub fn taught(before: &[&str], understood: bool, command: &str) -> Tag {
        match before {
            [] => Tag::Planning,
            _ if !understood => Tag::Reflection,
            _ if !before.contains(&command) => Tag::Explore,
            _ => Tag::Monitor,
        }
    }

    /// Reward of turn `at` for being what its tag says; `None` without a tag, or when it was not understood. A plan earns what
    /// the episode was `paid`; the others 1 or 0: exploring when the command was not given and understood before, reflection when the
    /// turn before was not understood and the command is another one; monitoring never.
    pub fn reward(turns: &[Turn], at: usize, paid: f64) -> Option<(Tag, f64)> {
        let turn = &turns[at];
        let (tag, _) = Tag::split(&turn.action).filter(|_| turn.valid)?;
        let earned = match tag {
            Tag::Planning => return Some((tag, paid)),
            Tag::Explore => !turns[..at].iter().any(|t| t.valid && t.command() == turn.command()),
            Tag::Reflection => at > 0 && !turns[at - 1].valid && turns[at - 1].command() != turn.command(),
            Tag::Monitor => false,
        };
        Some((tag, f64::from(u8::from(earned))))
    }
}
