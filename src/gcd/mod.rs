//! Generative Classification Disentanglement: labels of actions, and the policy's own judgments of them.
//! Knows no device: it sees numbers, episodes and sampled answers.
//!
//! # Ablations and baselines
//! All by configuration; everything else stays as it is, seeds and games included.
//!
//! | key | value | what it is |
//! |---|---|---|
//! | `gcd.mode` | `off` | GRPO alone |
//! | | `generate` | GCD: the policy writes judgments ([`judgment`]) |
//! | | `value-head` | in their place a linear classifier of the hidden state in which an action ends ([`critic`]), with cross-entropy against the label; its gradient flows on into the policy |
//! | | `isolated` | the same classifier on detached hidden states |
//! | `gcd.labels`, `gcd.lambda`, `gcd.pairs`, `gcd.judgments` | | sources of labels, weight of the term, M and N |
//! | `gcd.baseline` | `pair`, `batch` | what a judgment's reward is compared with |
//! | `decouple.method` | `pcgrad` | the gradients of positive and of negative advantages are projected off each other where they disagree ([`crate::ops::pcgrad`]) |
//! | | `contrastive` | good against bad actions by the mean hidden state of their tokens ([`contrast`]), with `decouple.weight` and `decouple.temperature` |
//! | `grpo.step_advantage` | `gigpo` | plus the advantage of a turn among those at the same observation |
//! | | `tags` | plus the advantage of a turn's tag reward (RLVMR), with `prompt.tags = true` |
//!
//! An isolated critic learns to tell good actions from bad ones without shaping the actor: if GCD were only about having a
//! critic, it would do as well. In full it would be a second model. Ours is the part of one that shows in this trainer: a head
//! that reads the policy's hidden states and sends nothing back. Its gradient is clipped by its own norm and its optimizer steps
//! are counted apart, so that the policy's weights are, bit for bit, those of GRPO alone; what it adds is the measure of how far
//! labels can be read off the policy as it is.

pub mod contrast;
pub mod critic;
pub mod judge;
pub mod judgment;
pub mod label;
pub(crate) mod objective;
pub mod suggestion;
pub mod theory;

pub use judge::{Judge, JudgeError};
pub use judgment::{Accuracy, Judged, Pair, judge};
pub use label::{Agreement, Flaw, JudgeLabels, Label, LabelCounts, Labelled};
pub use objective::{AuxiliaryLoss, LossValue};
pub use suggestion::Suggestion;

use crate::config::Config;

/// The configured losses beside the policy's that have no weights of their own.
pub fn auxiliary_losses(config: &Config) -> Vec<Box<dyn AuxiliaryLoss + '_>> {
    [contrast::configured(config)].into_iter().flatten().collect()
}
