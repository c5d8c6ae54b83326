//! All cosines of per-sample gradients: what they cost as samples become more, and longer.

use super::{model, tokens};
use crate::coupling::gram::{Grams, StateAction, cosines};
use crate::model::SavedActivations;
use serde::Serialize;
use std::time::Instant;

/// One size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Growth {
    /// Number of samples.
    pub samples: usize,
    /// Tokens of each.
    pub length: usize,
    /// Fastest of two calls that recompute activations.
    pub seconds: f64,
    /// Matrices whose products come from slabs of gradients.
    pub slab: usize,
    /// Matrices whose products come from pairs of tokens.
    pub ghost: usize,
}

/// Samples and their length.
const SIZES: [(usize, usize); 8] =
    [(4, 64), (4, 256), (16, 64), (16, 256), (16, 512), (16, 1024), (32, 256), (64, 256)];

fn samples(count: usize, length: usize) -> Vec<StateAction> {
    (0..count as u64).map(|i| StateAction { tokens: tokens(i, length), action: 1 }).collect()
}

/// The peer's size, 16 samples of 256 tokens.
pub fn call() -> Box<dyn FnMut()> {
    let (model, samples) = (model(), samples(16, 256));
    Box::new(move || {
        let grams = Grams::new(&model, &samples, SavedActivations::All).expect("the samples fit");
        cosines(&grams.sum(|_| true), samples.len());
    })
}

pub fn growth() -> Vec<Growth> {
    let model = model();
    let row = |(count, length): (usize, usize)| {
        let samples = samples(count, length);
        let (mut seconds, mut methods) = (f64::INFINITY, [0; 2]);
        for _ in 0..2 {
            let began = Instant::now();
            methods = Grams::new(&model, &samples, SavedActivations::LayerInputs).expect("the samples fit").methods;
            seconds = seconds.min(began.elapsed().as_secs_f64());
        }
        Growth { samples: count, length, seconds, slab: methods[0], ghost: methods[1] }
    };
    SIZES.into_iter().map(row).collect()
}
