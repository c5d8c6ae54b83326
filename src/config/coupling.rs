//! Measuring gradient coupling during training.

use serde::{Deserialize, Serialize};

/// The coupling of a fixed set of samples, measured now and then during GRPO and at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Coupling {
    /// Measure every this many iterations (0: off).
    pub every: u32,
    /// Samples of the probe set, half of positive and half of negative advantage.
    pub samples: u32,
}

impl Default for Coupling {
    fn default() -> Self {
        Coupling { every: 10, samples: 16 }
    }
}
