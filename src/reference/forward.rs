//! Forward pass and cross-entropy: logits, hidden states, log-probs, entropies, RoPE tables, the loss and its gradient.

use super::inputs::Batch;
use super::tensors::Tensors;
use super::{echo, sketch, zeros_like};
use crate::forest::Forest;
use crate::model::{Activations, Keep, Model, Params};
use crate::ops::grouped_logprob::TokenGrad;
use crate::ops::rope;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub struct ForwardOutputs {
    pub json: Value,
    pub grads: Params,
}

/// `stored` models also give their hidden states.
pub fn compute(model: &Model, batch: &Batch, stored: bool, raw: &Value, tensors: &mut Tensors) -> ForwardOutputs {
    let (vocab, hidden) = (model.config.vocab_size, model.config.hidden_size);
    // One more token behind each sequence (it sees all, and nothing sees it) asks for the entropy at the last position too.
    let extended: Vec<Vec<u32>> = batch.sequences.iter().map(|s| [s.as_slice(), &[0]].concat()).collect();
    let forest = Forest::new(&extended);
    let mut acts = Activations::default();
    model.forward(&forest, Keep::LayerInputs, &mut acts);
    for (i, path) in forest.paths.iter().enumerate() {
        let (mut logprob, entropy) = model.logprobs(&forest, &acts, &path[1..], 1.0);
        logprob.pop();
        if !logprob.is_empty() {
            tensors.insert_f32(format!("seq{i}.logprobs"), &[logprob.len()], logprob);
        }
        tensors.insert_f32(format!("seq{i}.entropy"), &[entropy.len()], entropy);
    }

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

    let longest = batch.sequences.iter().map(Vec::len).max().unwrap_or(0);
    let tables = rope::Tables::new(model.config.rope_theta, model.config.head_dim, longest);
    let half = model.config.head_dim / 2;
    tensors.insert_f32("rope.inv_freq", &[half], tables.inv_freq);
    tensors.insert_f32("rope.cos", &[longest, half], tables.cos);
    tensors.insert_f32("rope.sin", &[longest, half], tables.sin);

    let ce = cross_entropy(model, batch);
    tensors.insert_f64("ce.sketch", &[ce.grads.layout.entries.len(), sketch::COLUMNS], sketch::of(&ce.grads));
    let pad_row = |grads: &[f32]| l2(&grads[batch.pad_id as usize * hidden..][..hidden]);
    let embedding = |p: &Params| pad_row(p.get("model.embed_tokens.weight").unwrap_or_default());
    let mut json = echo(raw, &["sequences", "prompt_lens", "pad_id", "logits_sequence"]);
    json.insert("ce_loss".into(), json!(ce.loss as f32));
    json.insert("completion_tokens".into(), json!(ce.tokens));
    json.insert(
        "padding_idx_effect".into(),
        json!({
            "pad_row_grad_l2": embedding(&ce.grads),
            "pad_row_grad_l2_if_config_pad_token_id_set": pad_row(&ce.head_embedding),
        }),
    );
    ForwardOutputs { json: json.into(), grads: ce.grads }
}

/// Mean of −log p over the completion tokens of a batch, and its gradient.
pub struct CrossEntropy {
    pub loss: f64,
    pub tokens: usize,
    pub grads: Params,
    /// The embedding's gradient before the backward pass reached the input side: the head's part of it (0 when untied).
    pub head_embedding: Vec<f32>,
}

pub fn cross_entropy(model: &Model, batch: &Batch) -> CrossEntropy {
    let forest = Forest::new(&batch.sequences);
    let mut terms: BTreeMap<u32, f64> = BTreeMap::new();
    for (path, prompt) in forest.paths.iter().zip(&batch.prompt_lens) {
        for node in path.iter().skip((*prompt).max(1)) {
            *terms.entry(*node).or_default() += 1.0;
        }
    }
    let tokens = terms.values().sum::<f64>();
    terms.values_mut().for_each(|t| *t /= tokens.max(1.0));
    let (mut loss, mut head_embedding) = (0.0, Vec::new());
    let grads = gradient(model, &forest, &terms, Some(&mut head_embedding), &mut loss);
    CrossEntropy { loss, tokens: tokens as usize, grads, head_embedding }
}

/// Adds Σ weight · −log p over `terms` (node → weight) to `loss`, and returns its gradient.
pub fn gradient(
    model: &Model,
    forest: &Forest,
    terms: &BTreeMap<u32, f64>,
    head_embedding: Option<&mut Vec<f32>>,
    loss: &mut f64,
) -> Params {
    let nodes: Vec<u32> = terms.keys().copied().collect();
    let weights: Vec<f64> = terms.values().copied().collect();
    let mut token = |i: usize, logprob: f32, _entropy: f32| {
        *loss -= weights[i] * f64::from(logprob);
        TokenGrad { logprob: -weights[i] as f32, entropy: 0.0 }
    };
    let mut acts = Activations::default();
    model.forward(forest, Keep::All, &mut acts);
    let mut grads = zeros_like(model);
    let mut d_hidden = Vec::new();
    model.head_backward(forest, &acts, &nodes, 1.0, &mut token, &mut d_hidden, &mut grads);
    if let Some(out) = head_embedding {
        *out = grads.get("model.embed_tokens.weight").unwrap_or_default().to_vec();
    }
    model.backward(forest, &mut acts, &mut d_hidden, &mut grads);
    grads
}

pub fn l2(x: &[f32]) -> f64 {
    x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}
