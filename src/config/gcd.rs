//! Generative Classification Disentanglement: the policy judges its own actions.

use serde::{Deserialize, Serialize};

/// What GCD adds to GRPO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GcdMode {
    /// Nothing.
    Off,
    /// Judgments written by the policy itself.
    Generate,
}

/// Who says whether an action was good or bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelSource {
    /// Bad when the action repeats, comes back, changes nothing or is not understood.
    Loop,
    /// Good when the environment's own shortest plan gets shorter, else bad.
    Oracle,
}

/// What becomes of an action about which the sources disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disagreement {
    /// Its label is unknown.
    Unknown,
    /// The first source that has a label is believed.
    First,
}

/// Labels, judgments, and their term of the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gcd {
    pub mode: GcdMode,
    /// Labelled actions judged in an iteration, as many good ones as bad ones where the labels allow.
    pub pairs: u32,
    /// Judgments of each.
    pub judgments: u32,
    /// Weight of the judgments' term of the loss.
    pub lambda: f32,
    /// Sources of labels, in their order.
    pub labels: Vec<LabelSource>,
    pub disagreement: Disagreement,
    /// Longest cycle, in turns, that `loop` looks for.
    pub cycle: u32,
    /// Most tokens of a judgment.
    pub max_tokens: u32,
    /// Judgments of its actions taught with each demonstration of the cold start, good and bad by turns (0: none).
    pub cold_start: u32,
}

impl Default for Gcd {
    fn default() -> Self {
        Gcd {
            mode: GcdMode::Off,
            pairs: 30,
            judgments: 8,
            lambda: 1.0,
            labels: vec![LabelSource::Loop, LabelSource::Oracle],
            disagreement: Disagreement::First,
            cycle: 4,
            max_tokens: 32,
            cold_start: 2,
        }
    }
}
