//! Low-rank adapters beside frozen weights.

use serde::{Deserialize, Serialize};

/// The linear maps of a layer, as Hugging Face names them, in the order in which they are computed.
pub const LORA_TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Low-rank adapters (LoRA): the model stays as it is, and what is trained are two small matrices beside each of its linear maps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank of the adapters (0: none, all weights are trained); a multiple of 8 with `--device cuda`.
    pub rank: usize,
    /// What the adapters add is multiplied by this over the rank.
    pub alpha: f32,
    /// The linear maps of every layer that have an adapter, as Hugging Face names them.
    pub targets: Vec<String>,
}

impl Lora {
    /// Whether adapters are trained, and nothing else.
    pub fn is_on(&self) -> bool {
        self.rank > 0
    }

    /// What the product of the adapters' matrices is multiplied by.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank.max(1) as f32
    }

    /// Whether the same linear maps have an adapter.
    pub fn adapts_as(&self, other: &Lora) -> bool {
        LORA_TARGETS.iter().all(|target| self.adapts(target) == other.adapts(target))
    }

    /// Whether this linear map has an adapter.
    pub fn adapts(&self, target: &str) -> bool {
        self.targets.iter().any(|of| of == target)
    }
}

impl Default for Lora {
    fn default() -> Self {
        Lora { rank: 0, alpha: 32.0, targets: LORA_TARGETS.map(String::from).to_vec() }
    }
}
