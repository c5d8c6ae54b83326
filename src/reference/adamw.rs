//! Three AdamW steps on cross-entropy.

use super::forward::{cross_entropy, l2};
use super::inputs::{AdamWInputs, Batch};
use super::tensors::Tensors;
use super::{echo, sketch, zeros_like};
use crate::model::recipe::Stream;
use crate::model::{Model, Params};
use crate::ops::adamw::{self, AdamW};
use serde_json::{Value, json};

pub struct AdamWOutputs {
    pub json: Value,
    /// After the last step.
    pub params: Params,
    /// Distance from the first parameters after each step.
    pub update_l2: Vec<f64>,
}

/// State after one step.
struct Step {
    loss: f64,
    norm: f64,
    params: Params,
}

pub fn compute(model: &Model, inputs: &AdamWInputs, raw: &Value, tensors: &mut Tensors) -> AdamWOutputs {
    let steps = run(model, inputs, 0.0);
    let shape = [model.params.layout.entries.len(), sketch::COLUMNS];
    for (k, step) in steps.iter().enumerate() {
        tensors.insert_f64(format!("adamw.step{}.sketch", k + 1), &shape, sketch::of(&step.params));
    }
    let json_of = |s: &Step| json!({ "loss": s.loss as f32, "grad_norm_before_clip": s.norm as f32 });
    let mut json = echo(raw, &["lr", "betas", "eps", "weight_decay", "clip", "batches"]);
    json.insert("no_decay".into(), "norm weights and biases".into());
    json.insert("steps".into(), steps.iter().map(json_of).collect());
    let update_l2 = steps.iter().map(|s| distance(&s.params, &model.params)).collect();
    let params = steps.into_iter().next_back().map_or_else(|| model.params.clone(), |s| s.params);
    AdamWOutputs { json: json.into(), params, update_l2 }
}

/// How far a step's results move when its gradients carry noise.
pub struct StepNoise {
    pub loss: f64,
    pub norm: f64,
    /// Relative l2 distance of the updates.
    pub update: f64,
}

/// Repeats the steps with every gradient tensor disturbed by `rel` times its norm, in a fixed pseudo-random direction.
///
/// AdamW's first steps move every element by about the learning rate, whatever its gradient's size: an element whose
/// gradient happens to be as small as its rounding error moves arbitrarily. One reference run in f32 may by luck move as
/// f64 did, so its distance from f64 alone does not tell how far another correct run may be.
pub fn noise(model: &Model, inputs: &AdamWInputs, rel: f64) -> Vec<StepNoise> {
    let pairs = run(model, inputs, 0.0).into_iter().zip(run(model, inputs, rel));
    pairs
        .map(|(a, b)| StepNoise {
            loss: (a.loss - b.loss).abs(),
            norm: (a.norm - b.norm).abs(),
            update: distance(&a.params, &b.params) / distance(&a.params, &model.params),
        })
        .collect()
}

fn run(model: &Model, inputs: &AdamWInputs, noise: f64) -> Vec<Step> {
    let mut trained = model.clone();
    let (mut m, mut v) = (zeros_like(model), zeros_like(model));
    let layout = model.params.layout.clone();
    let step = |(k, batch): (usize, &Batch)| {
        let mut ce = cross_entropy(&trained, batch);
        if noise > 0.0 {
            for e in &layout.entries {
                disturb(&mut ce.grads.flat[e.range.clone()], &e.name, k, noise);
            }
        }
        let norm = adamw::grad_norm(&ce.grads.flat);
        let o = AdamW {
            lr: inputs.lr,
            beta1: inputs.betas[0],
            beta2: inputs.betas[1],
            eps: inputs.eps,
            weight_decay: inputs.weight_decay,
            grad_scale: adamw::clip_scale(norm, inputs.clip),
            step: k as u32 + 1,
        };
        for e in &layout.entries {
            let r = e.range.clone();
            let (p, g) = (&mut trained.params.flat[r.clone()], &ce.grads.flat[r.clone()]);
            adamw::step(&o, e.decay, p, g, &mut m.flat[r.clone()], &mut v.flat[r]);
        }
        Step { loss: ce.loss, norm, params: trained.params.clone() }
    };
    inputs.batches.iter().enumerate().map(step).collect()
}

/// Adds ± `rel` times the tensor's root mean square to each element.
fn disturb(grad: &mut [f32], name: &str, step: usize, rel: f64) {
    let size = (rel * l2(grad) / (grad.len() as f64).sqrt()) as f32;
    let signs = Stream::new(name, step as u64 + 1);
    for (i, g) in grad.iter_mut().enumerate() {
        *g += if signs.hash(i) & 1 == 1 { size } else { -size };
    }
}

fn distance(a: &Params, b: &Params) -> f64 {
    a.flat.iter().zip(&b.flat).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}
