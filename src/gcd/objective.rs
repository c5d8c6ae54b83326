//! Losses beside the policy's: one a variant of GCD that does not judge in words.
//!
//! Judgments in words are rows of the policy's own loss ([`super::Judged::samples`]). The others read the final hidden states of
//! labelled actions: the value head's cross-entropy, and those that [`super::auxiliary_losses`] lists.

use super::judgment::Accuracy;
use super::label::Label;
use std::ops::Range;

/// A loss of the embeddings of labelled actions. An action's embedding is the mean of the final hidden states of some of its tokens.
pub trait AuxiliaryLoss {
    /// The name of its metric.
    fn metric(&self) -> &'static str;

    /// The tokens, among those of an action, that its embedding is the mean of. Not empty.
    fn embedded(&self, action: &Range<usize>) -> Range<usize>;

    /// The loss of embeddings `[actions, hidden]` and its gradient. A loss that has weights adds up their gradient.
    fn evaluate(&mut self, embeddings: &[f32], labels: &[Label]) -> LossValue;
}

/// What a loss came to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LossValue {
    /// The loss, its weight included.
    pub loss: f64,
    /// How well it classifies, where it does.
    pub accuracy: Option<Accuracy>,
    /// The gradient by the embeddings, `[actions, hidden]`; `None` where the policy is not to learn from it.
    pub d_embeddings: Option<Vec<f32>>,
}
