//! Generative Classification Disentanglement: labels of actions, and the policy's own judgments of them.
//! Knows no device: it sees numbers, episodes and sampled answers.

pub mod contrast;
pub mod critic;
pub mod judge;
pub mod judgment;
pub mod label;
pub mod theory;

pub use judge::{Judge, JudgeError};
pub use judgment::{Accuracy, Judged, Pair, judge};
pub use label::{Agreement, Asked, Label, LabelCounts};
