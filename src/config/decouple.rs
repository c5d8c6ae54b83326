//! Other cures of gradient coupling than GCD, to compare it with.

use serde::{Deserialize, Serialize};

/// What keeps good and bad actions from pulling at each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecoupleMethod {
    /// Nothing.
    None,
    /// Where they disagree, the gradients of positive and of negative advantages are projected off each other (PCGrad).
    Pcgrad,
    /// A supervised contrastive loss on the hidden states of labelled actions, good against bad.
    Contrastive,
}

impl DecoupleMethod {
    /// Whether it is a loss of labelled actions.
    pub fn is_loss(self) -> bool {
        !matches!(self, DecoupleMethod::None | DecoupleMethod::Pcgrad)
    }
}

/// Decoupling by other means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decouple {
    /// What keeps good and bad actions from pulling at each other.
    pub method: DecoupleMethod,
    /// Temperature of the contrastive loss.
    pub temperature: f32,
    /// Weight of the contrastive loss.
    pub weight: f32,
}

impl Default for Decouple {
    fn default() -> Self {
        Decouple { method: DecoupleMethod::None, temperature: 0.1, weight: 0.02 }
    }
}
