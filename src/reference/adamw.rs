//! Three AdamW steps on cross-entropy.

use super::forward::cross_entropy;
use super::inputs::AdamWInputs;
use super::tensors::Tensors;
use super::{echo, sketch};
use crate::config::Optim;
use crate::device;
use crate::model::Params;
use crate::train::learner::Learner;
use serde_json::{Value, json};

pub struct AdamWOutputs {
    pub json: Value,
    /// After the last step.
    pub params: Params,
    /// Distance from the first parameters after each step.
    pub update_l2: Vec<f64>,
}

/// Trains the learner, whose moments are 0.
pub fn compute(
    learner: &mut Learner,
    inputs: &AdamWInputs,
    raw: &Value,
    tensors: &mut Tensors,
) -> device::Result<AdamWOutputs> {
    let optim = Optim {
        beta1: inputs.betas[0],
        beta2: inputs.betas[1],
        eps: inputs.eps,
        weight_decay: inputs.weight_decay,
        clip: inputs.clip,
        ..Optim::default()
    };
    let first = learner.export()?.params.flat.clone();
    let (mut steps, mut update_l2) = (Vec::new(), Vec::new());
    for (k, batch) in inputs.batches.iter().enumerate() {
        let loss = cross_entropy(learner, batch)?;
        let norm = learner.step(&optim, inputs.lr)?.grad_norm;
        steps.push(json!({ "loss": loss as f32, "grad_norm_before_clip": norm as f32 }));
        let export = learner.export()?;
        let params = &*export.params;
        let shape = [params.layout.entries.len(), sketch::COLUMNS];
        tensors.insert_f64(format!("adamw.step{}.sketch", k + 1), &shape, sketch::of(params));
        let moved = params.flat.iter().zip(&first);
        update_l2.push(moved.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt());
    }
    let mut json = echo(raw, &["lr", "betas", "eps", "weight_decay", "clip", "batches"]);
    json.insert("no_decay".into(), "norm weights and biases".into());
    json.insert("steps".into(), steps.into());
    Ok(AdamWOutputs { json: json.into(), params: learner.export()?.params.into_owned(), update_l2 })
}
