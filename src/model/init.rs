//! Random initialisation of a fresh model.

use super::params::{Layout, TensorEntry};
use super::recipe::WeightStream;
use super::{Architecture, Params};
use crate::ops::philox;
use std::sync::Arc;

impl Params {
    /// Fresh weights: normal with deviation √(2 / 5h) (Nguyen & Salazar 2019; 0.02 at h = 1000), divided by sqrt(2 layers) for the two matrices per layer whose outputs add
    /// up in the residual stream; norms 1, biases 0. A pure function of shape and seed.
    pub fn random(config: &Architecture, seed: u64) -> Params {
        let std = (0.4 / config.hidden_size as f32).sqrt();
        let residual_std = std / (2.0 * config.num_hidden_layers as f32).sqrt();
        let mut params = Params::zeros(Arc::new(Layout::new(config)));
        let layout = params.layout.clone();
        for entry in &layout.entries {
            let values = &mut params.flat[entry.range.clone()];
            match kind(entry) {
                TensorKind::Bias => {}
                TensorKind::Norm => values.fill(1.0),
                TensorKind::Weight => fill_normal(values, std, seed, &entry.name),
                TensorKind::Residual => fill_normal(values, residual_std, seed, &entry.name),
            }
        }
        params
    }
}

enum TensorKind {
    Bias,
    Norm,
    Weight,
    Residual,
}

fn kind(entry: &TensorEntry) -> TensorKind {
    if entry.name.ends_with(".bias") {
        TensorKind::Bias
    } else if entry.name.ends_with("norm.weight") {
        TensorKind::Norm
    } else if entry.name.ends_with("o_proj.weight") || entry.name.ends_with("down_proj.weight") {
        TensorKind::Residual
    } else {
        TensorKind::Weight
    }
}

/// Each tensor draws from a stream of its own, named after it, so that no tensor's values depend on another's size.
fn fill_normal(values: &mut [f32], std: f32, seed: u64, name: &str) {
    let stream = WeightStream::new(name, 0).hash(0);
    for (index, quad) in values.chunks_mut(4).enumerate() {
        for (value, normal) in quad.iter_mut().zip(philox::normals(philox::block(seed, stream, index as u64))) {
            *value = std * normal;
        }
    }
}
