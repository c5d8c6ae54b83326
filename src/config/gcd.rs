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
    /// A linear classifier of the policy's hidden states in place of written judgments; its gradient flows on into the policy.
    ValueHead,
    /// The same classifier, but nothing flows into the policy.
    Isolated,
}

impl GcdMode {
    /// Whether a value head judges.
    pub fn has_critic(self) -> bool {
        matches!(self, GcdMode::ValueHead | GcdMode::Isolated)
    }
}

/// Who says whether an action was good or bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelSource {
    /// Bad when the action repeats, comes back, changes nothing or is not understood.
    Loop,
    /// Good when the environment's own shortest plan gets shorter, else bad.
    Oracle,
    /// What a model behind a chat endpoint says (`[judge]`).
    Judge,
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

/// What the reward of a judgment is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Baseline {
    /// The mean of the same pair's judgments. Where these agree they teach nothing: a policy that has come to say one thing of
    /// everything says it for ever.
    Pair,
    /// The mean of all judgments of the iteration, half of which are of bad actions where the labels allow.
    Batch,
}

/// Labels, judgments, and their term of the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gcd {
    /// What GCD adds to GRPO.
    pub mode: GcdMode,
    /// Labelled actions judged in an iteration, as many good ones as bad ones where the labels allow.
    pub pairs: u32,
    /// Judgments of each.
    pub judgments: u32,
    /// Weight of the judgments' term of the loss. At 1 its gradient drowns the policy's on the embedded games.
    pub lambda: f32,
    /// What the reward of a judgment is compared with.
    pub baseline: Baseline,
    /// Sources of labels, in their order.
    pub labels: Vec<LabelSource>,
    /// What becomes of an action about which the sources disagree.
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
            mode: GcdMode::Generate,
            pairs: 60,
            judgments: 4,
            lambda: 0.4,
            baseline: Baseline::Batch,
            labels: vec![LabelSource::Loop, LabelSource::Oracle],
            disagreement: Disagreement::First,
            cycle: 4,
            max_tokens: 32,
            cold_start: 2,
        }
    }
}
