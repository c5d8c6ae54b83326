//! Generative Classification Disentanglement: labels of actions, and the policy's own judgments of them.
//! Knows no device: it sees numbers, episodes and sampled answers.

pub mod judgment;
pub mod label;

pub use judgment::{Accuracy, Judged, Pair, judge};
pub use label::{Agreement, Label, LabelCounts};
