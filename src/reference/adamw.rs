//! Three AdamW steps on cross-entropy.

use super::forward::cross_entropy;
use super::inputs::AdamWInputs;
use super::tensors::Tensors;
use super::{echo, sketch, zeros_like};
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

pub fn compute(model: &Model, inputs: &AdamWInputs, raw: &Value, tensors: &mut Tensors) -> AdamWOutputs {
    let mut trained = model.clone();
    let (mut m, mut v) = (zeros_like(model), zeros_like(model));
    let (mut steps, mut update_l2) = (Vec::new(), Vec::new());
    for (k, batch) in inputs.batches.iter().enumerate() {
        let ce = cross_entropy(&trained, batch);
        let norm = adamw::grad_norm(&ce.grads.flat);
        steps.push(json!({ "loss": ce.loss as f32, "grad_norm_before_clip": norm as f32 }));
        let o = AdamW {
            lr: inputs.lr,
            beta1: inputs.betas[0],
            beta2: inputs.betas[1],
            eps: inputs.eps,
            weight_decay: inputs.weight_decay,
            grad_scale: adamw::clip_scale(norm, inputs.clip),
            step: k as u32 + 1,
        };
        let layout = trained.params.layout.clone();
        for e in &layout.entries {
            let r = e.range.clone();
            let (p, g) = (&mut trained.params.flat[r.clone()], &ce.grads.flat[r.clone()]);
            adamw::step(&o, e.decay, p, g, &mut m.flat[r.clone()], &mut v.flat[r]);
        }
        let shape = [layout.entries.len(), sketch::COLUMNS];
        tensors.insert_f64(format!("adamw.step{}.sketch", k + 1), &shape, sketch::of(&trained.params));
        let moved = trained.params.flat.iter().zip(&model.params.flat);
        update_l2.push(moved.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt());
    }
    let mut json = echo(raw, &["lr", "betas", "eps", "weight_decay", "clip", "batches"]);
    json.insert("no_decay".into(), "norm weights and biases".into());
    json.insert("steps".into(), steps.into());
    AdamWOutputs { json: json.into(), params: trained.params, update_l2 }
}
