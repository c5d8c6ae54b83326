//! The models of `bench step` and `bench decode`: Qwen2.5's shapes with random weights, and what they must compute.

use crate::model::families::QWEN2;
use crate::model::params::Layout;
use crate::model::{Architecture, Model, Params};
use crate::ops::case::randoms;
use rayon::prelude::*;
use std::sync::Arc;

/// A model's shape under its name.
#[derive(Debug, Clone)]
pub struct ModelShape {
    pub name: &'static str,
    pub config: Architecture,
}

/// Layers, hidden, heads, kv heads, width of a head, ffn: those of benches/peers/gpu_peers.py.
const QWEN2_5: [(&str, [usize; 6]); 3] = [
    ("0.5B", [24, 896, 14, 2, 64, 4864]),
    ("1.5B", [28, 1536, 12, 2, 128, 8960]),
    ("3B", [36, 2048, 16, 2, 128, 11008]),
];

impl ModelShape {
    /// Qwen2.5's three smallest, for contexts of `context` tokens.
    pub fn qwen2_5(context: usize) -> Vec<ModelShape> {
        QWEN2_5.iter().map(|(name, sizes)| ModelShape::new(name, *sizes, 151_936, context)).collect()
    }

    /// One that a simulated device gets through.
    pub fn tiny() -> ModelShape {
        ModelShape::new("tiny", [1, 64, 1, 1, 64, 32], 40, 64)
    }

    /// Layers, hidden, heads, kv heads, width of a head, ffn.
    pub fn new(name: &'static str, sizes: [usize; 6], vocab_size: usize, context: usize) -> ModelShape {
        let [num_hidden_layers, hidden_size, num_attention_heads, num_key_value_heads, head_dim, intermediate_size] =
            sizes;
        let config = Architecture {
            family: &QWEN2,
            vocab_size,
            hidden_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            intermediate_size,
            max_position_embeddings: context,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            rope_scaling: None,
            tie_word_embeddings: true,
        };
        ModelShape { name, config }
    }

    /// Weights of the size that trained ones have; each million repeats, as making more would take longer than using them.
    pub(super) fn model(&self) -> Model {
        let mut params = Params::zeros(Arc::new(Layout::new(&self.config)));
        let some = randoms(7, 1 << 20);
        for entry in &params.layout.clone().entries {
            params.flat[entry.range.clone()].par_chunks_mut(some.len()).for_each(|weights| {
                weights.iter_mut().zip(&some).for_each(|(w, x)| *w = if entry.decay { 0.02 * x } else { 1.0 });
            });
        }
        Model::new(self.config.clone(), params)
    }

    /// Weights that every token is multiplied by: all but the embedding's rows and the norms; the head's are among them.
    pub(super) fn multiplied(&self) -> usize {
        let c = &self.config;
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let layer = c.hidden_size * (2 * q + 2 * kv + 3 * c.intermediate_size);
        c.num_hidden_layers * layer + c.vocab_size * c.hidden_size
    }

    /// Flops of a training step on `batch` sequences of `length`: three products of each weight and token, and of each query and the
    /// keys that it sees, recomputation not counted.
    pub(super) fn step_flops(&self, batch: usize, length: usize) -> f64 {
        let c = &self.config;
        let pairs = (batch * length * (length + 1) / 2) as f64;
        let attention = 4.0 * pairs * (c.num_hidden_layers * c.num_attention_heads * c.head_dim) as f64;
        6.0 * (self.multiplied() * batch * length) as f64 + 3.0 * attention
    }

    /// Bytes that a decoding step reads at least: the weights, and the keys and values of `batch` contexts.
    pub(super) fn decode_bytes(&self, batch: usize, context: usize) -> usize {
        let c = &self.config;
        2 * self.multiplied() + batch * context * 4 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
    }
}
