//! Forward pass and cross-entropy: logits, hidden states, log-probs, entropies, RoPE tables, the loss and its gradient.

use super::inputs::InputBatch;
use super::tensors::Tensors;
use super::{echo, sketch, zeros_like};
use crate::device;
use crate::forest::Forest;
use crate::model::{Activations, Model, Params, SavedActivations};
use crate::ops::grouped_logprob::TokenGrad;
use crate::train::learner::Learner;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub struct ForwardOutputs {
    pub json: Map<String, Value>,
    pub grads: Params,
}

/// Log-probs, entropies, the loss and its gradient, where the learner computes them; RoPE tables.
pub fn compute(
    learner: &mut Learner,
    batch: &InputBatch,
    raw: &Value,
    tensors: &mut Tensors,
) -> device::Result<ForwardOutputs> {
    let forest = extended(batch);
    for (i, path) in forest.paths.iter().enumerate() {
        let (mut logprob, entropy) = learner.logprobs(&forest, &path[1..], 1.0)?;
        logprob.pop();
        if !logprob.is_empty() {
            tensors.insert_f32(format!("seq{i}.logprobs"), &[logprob.len()], logprob);
        }
        tensors.insert_f32(format!("seq{i}.entropy"), &[entropy.len()], entropy);
    }
    let longest = batch.sequences.iter().map(Vec::len).max().unwrap_or(0);
    let config = learner.architecture();
    let tables = config.rope_tables(longest);
    let half = config.head_dim / 2;
    tensors.insert_f32("rope.inv_freq", &[half], tables.inv_freq);
    tensors.insert_f32("rope.cos", &[longest, half], tables.cos);
    tensors.insert_f32("rope.sin", &[longest, half], tables.sin);

    let loss = cross_entropy(learner, batch)?;
    let grads = learner.take_grads()?;
    tensors.insert_f64("ce.sketch", &[grads.layout.entries.len(), sketch::COLUMNS], sketch::of(&grads));
    let mut json = echo(raw, &["sequences", "prompt_lens", "pad_id", "logits_sequence"]);
    json.insert("ce_loss".into(), json!(loss as f32));
    json.insert("completion_tokens".into(), json!(masks(batch).iter().flatten().filter(|m| **m).count()));
    Ok(ForwardOutputs { json, grads })
}

/// One more token behind each sequence (it sees all, and nothing sees it) gives the entropy at the last position too.
fn extended(batch: &InputBatch) -> Forest {
    let extended: Vec<Vec<u32>> = batch.sequences.iter().map(|s| [s.as_slice(), &[0]].concat()).collect();
    Forest::new(&extended)
}

/// The completion tokens of each sequence; its first token has no log-prob.
fn masks(batch: &InputBatch) -> Vec<Vec<bool>> {
    let mask = |(s, prompt): (&Vec<u32>, &usize)| (0..s.len()).map(|t| t >= (*prompt).max(1)).collect();
    batch.sequences.iter().zip(&batch.prompt_lens).map(mask).collect()
}

/// Mean of −log p over the completion tokens of a batch; adds its gradient to the learner's.
pub fn cross_entropy(learner: &mut Learner, batch: &InputBatch) -> device::Result<f64> {
    let masks = masks(batch);
    let pairs: Vec<(&[u32], &[bool])> = batch.sequences.iter().zip(&masks).map(|(s, m)| (&s[..], &m[..])).collect();
    learner.cross_entropy(&pairs)
}

/// Logits of one sequence; `stored` models also give its hidden states. On the CPU.
pub fn states(model: &Model, batch: &InputBatch, stored: bool, tensors: &mut Tensors) {
    let (vocab, hidden) = (model.config.vocab_size, model.config.hidden_size);
    let forest = extended(batch);
    let mut acts = Activations::default();
    model.forward(&forest, SavedActivations::LayerInputs, &mut acts);
    let path = &forest.paths[batch.logits_sequence];
    let path = &path[..path.len() - 1];
    let rows =
        |x: &[f32]| -> Vec<f32> { path.iter().flat_map(|n| &x[*n as usize * hidden..][..hidden]).copied().collect() };
    let normed = rows(&acts.hidden);
    tensors.insert_f32("logits", &[path.len(), vocab], model.logits(&normed));
    if stored {
        let layers = model.config.num_hidden_layers;
        let mut states: Vec<f32> = acts.residual_stream()[..layers].iter().flat_map(|x| rows(x)).collect();
        states.extend(normed);
        tensors.insert_f32("hidden_states", &[layers + 1, path.len(), hidden], states);
    }
}

/// The padding token's row of the embedding's gradient `grads`, and of the head's part of it (0 when untied), which is all that
/// is left when the row gets no gradient as an input. On the CPU.
pub fn padding(model: &Model, batch: &InputBatch, grads: &Params) -> Value {
    let forest = Forest::new(&batch.sequences);
    let mut terms: BTreeMap<u32, f64> = BTreeMap::new();
    for (path, mask) in forest.paths.iter().zip(masks(batch)) {
        path.iter().zip(mask).filter(|(_, m)| *m).for_each(|(node, _)| *terms.entry(*node).or_default() += 1.0);
    }
    let tokens = terms.values().sum::<f64>();
    terms.values_mut().for_each(|t| *t /= tokens.max(1.0));
    let (mut acts, mut of_head) = (Activations::default(), zeros_like(model));
    model.forward(&forest, SavedActivations::Nothing, &mut acts);
    head_gradient(model, &forest, &terms, &acts, &mut of_head);
    let hidden = model.config.hidden_size;
    let row = |p: &Params| {
        l2(&p.get("model.embed_tokens.weight").unwrap_or_default()[batch.pad_id as usize * hidden..][..hidden])
    };
    json!({ "pad_row_grad_l2": row(grads), "pad_row_grad_l2_if_config_pad_token_id_set": row(&of_head) })
}

/// Adds the gradient of Σ weight · −log p over `terms` (node → weight) by the head; the gradient by the final hidden states.
fn head_gradient(
    model: &Model,
    forest: &Forest,
    terms: &BTreeMap<u32, f64>,
    acts: &Activations,
    grads: &mut Params,
) -> Vec<f32> {
    let nodes: Vec<u32> = terms.keys().copied().collect();
    let weights: Vec<f64> = terms.values().copied().collect();
    let mut token = |i: usize, _: f32, _: f32| TokenGrad { logprob: -weights[i] as f32, entropy: 0.0 };
    let mut d_hidden = Vec::new();
    model.head_backward(forest, acts, &nodes, 1.0, &mut token, &mut d_hidden, grads);
    d_hidden
}

/// The gradient of Σ weight · −log p over `terms` (node → weight). On the CPU.
pub fn gradient(model: &Model, forest: &Forest, terms: &BTreeMap<u32, f64>) -> Params {
    let (mut acts, mut grads) = (Activations::default(), zeros_like(model));
    model.forward(forest, SavedActivations::All, &mut acts);
    let mut d_hidden = head_gradient(model, forest, terms, &acts, &mut grads);
    model.backward(forest, &mut acts, &mut d_hidden, &mut grads);
    grads
}

pub fn l2(x: &[f32]) -> f64 {
    x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}
