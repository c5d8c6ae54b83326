//! Measuring gradient coupling during training.

use serde::{Deserialize, Serialize};

/// The coupling of a fixed set of samples, measured now and then during GRPO and at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Coupling {
    /// Measure every this many iterations (0: off).
    pub every: u32,
    /// Samples of the probe set, half of positive and half of negative mean advantage.
    pub samples: u32,
    /// Which tokens of an action a sample's gradient is of.
    pub tokens: ActionTokens,
}

/// The tokens of an action whose mean log-prob a gradient is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActionTokens {
    /// Those that hold a character of the parsed command. Not what every turn shares: thoughts, tags, `<action>`, the end of the turn.
    /// Of a turn whose command could not be read, all but the end of the turn.
    Action,
    /// All that the agent wrote in the turn, its end included.
    All,
}

impl Default for Coupling {
    fn default() -> Self {
        Coupling { every: 10, samples: 16, tokens: ActionTokens::Action }
    }
}
