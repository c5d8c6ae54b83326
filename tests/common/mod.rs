//! Small models and a plain f64 Qwen2 to hold the real one against; the same for single ops in `numeric`.
#![allow(dead_code)]

pub mod dense;
pub mod numeric;
pub mod planned;
pub mod runs;
pub mod scripted;

use half::bf16;
use std::sync::Arc;
use uncouple::model::families::{Family, QWEN2};
use uncouple::model::params::Layout;
use uncouple::model::{Architecture, Model, Params};
use uncouple::ops::philox;

/// Two layers, 4 heads of 8; vocabulary 50.
pub fn tiny_config(tied: bool, kv_heads: usize) -> Architecture {
    Architecture {
        family: &QWEN2,
        vocab_size: 50,
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: kv_heads,
        head_dim: 8,
        intermediate_size: 40,
        max_position_embeddings: 256,
        rms_norm_eps: 1e-6,
        rope_theta: 10000.0,
        rope_scaling: None,
        tie_word_embeddings: tied,
    }
}

/// Uniform weights: matrices in ±0.3, norms around 1, biases not 0.
pub fn random_model(config: Architecture, seed: u64) -> Model {
    let layout = Arc::new(Layout::new(&config));
    let mut params = Params::zeros(layout.clone());
    for entry in &layout.entries {
        for i in entry.range.clone() {
            let u = philox::uniform(philox::block(seed, 1, i as u64)[0]) * 2.0 - 1.0;
            params.flat[i] = if entry.name.contains("norm") { 1.0 + 0.3 * u } else { 0.3 * u };
        }
    }
    Model::new(config, params)
}

/// `n` random token ids below `vocab`.
pub fn tokens(seed: u64, n: usize, vocab: usize) -> Vec<u32> {
    (0..n).map(|i| philox::block(seed, 2, i as u64)[0] % vocab as u32).collect()
}

/// An arbitrary loss weight of a token at a position.
pub fn weight(token: u32, position: u32) -> f32 {
    ((token * 7 + position * 3) % 11) as f32 / 11.0 - 0.4
}

/// Two layers, 2 heads of 64, 1 of keys and values; vocabulary 96. For a GPU and the CPU: both start from numbers that bf16 holds.
pub fn narrow(tied: bool) -> Model {
    narrow_of(&QWEN2, tied)
}

/// The same of another family; norm weights are not 1, and those of queries and keys differ.
pub fn narrow_of(family: &'static Family, tied: bool) -> Model {
    let config = Architecture {
        family,
        vocab_size: 96,
        hidden_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 64,
        intermediate_size: 72,
        max_position_embeddings: 256,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        rope_scaling: None,
        tie_word_embeddings: tied,
    };
    let mut params = Params::random(&config, 3);
    for entry in params.layout.clone().entries.iter().filter(|e| e.name.ends_with("k_norm.weight")) {
        params.flat[entry.range.clone()].iter_mut().enumerate().for_each(|(i, w)| *w = 0.75 + i as f32 / 64.0);
    }
    params.flat.iter_mut().for_each(|w| *w = bf16::from_f32(*w).to_f32());
    Model::new(config, params)
}
