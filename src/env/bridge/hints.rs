//! What another process tells of an episode beyond what it shows the agent.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Longest command of a demonstrator, characters.
const LONGEST_COMMAND: usize = 1000;

/// What a worker knows of where the episode stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Hints {
    /// A command of one who knows the way.
    #[serde(default, deserialize_with = "expert")]
    pub expert: Option<String>,
    /// Fewest steps from here to the goal.
    #[serde(default, deserialize_with = "distance")]
    pub distance: Option<u32>,
}

/// A command as an agent could give it, or nothing.
pub(super) fn expert<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let told = Option::<String>::deserialize(from);
    let command = told.map_err(|e| D::Error::custom(format!("expert must be a command, a string: {e}")))?;
    match command.as_deref() {
        Some(text) if text.trim().is_empty() => Err(D::Error::custom("expert is empty; leave it out, or say null")),
        Some(text) if text.contains(['\n', '\r']) => Err(D::Error::custom("expert must be a command of one line")),
        Some(text) if text.chars().count() > LONGEST_COMMAND => {
            Err(D::Error::custom(format!("expert has more than {LONGEST_COMMAND} characters")))
        }
        _ => Ok(command),
    }
}

/// A number of steps, or nothing.
pub(super) fn distance<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    let told = Option::<u32>::deserialize(from);
    told.map_err(|e| D::Error::custom(format!("distance must be a number of steps, a whole number from 0: {e}")))
}
