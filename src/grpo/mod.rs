//! GRPO: group advantages and the policy loss. Knows no device: it sees numbers and forests.

mod loss;
pub use loss::{LossReport, Normaliser, PolicyLoss, Sample};
