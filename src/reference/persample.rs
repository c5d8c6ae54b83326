//! Per-sample gradients of −A · mean log p, and how they couple.

use super::forward;
use super::inputs::PerSample;
use super::tensors::Tensors;
use super::{echo, sketch};
use crate::coupling::gram::{cosines, projections};
use crate::coupling::{Grams, SampleError, StateAction};
use crate::forest::Forest;
use crate::model::{Model, Params, SavedActivations};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub fn compute(model: &Model, inputs: &PerSample, raw: &Value, tensors: &mut Tensors) -> Result<Value, SampleError> {
    let n = inputs.advantages.len();
    let batch = inputs.batch.sequences.iter().zip(&inputs.batch.prompt_lens);
    let samples: Vec<_> = batch.map(|(s, prompt)| StateAction { tokens: s.clone(), action: *prompt }).collect();
    let grams = Grams::new(model, &samples, SavedActivations::All)?;
    let weighted: Vec<Params> = (0..n).map(|i| gradient(model, inputs, i, f64::from(inputs.advantages[i]))).collect();
    for (i, g) in weighted.iter().enumerate() {
        let shape = [g.layout.entries.len(), sketch::COLUMNS];
        tensors.insert_f64(format!("persample.sample{i}.sketch"), &shape, sketch::of(g));
    }
    let unweighted = inner_per_tensor(grams.clone());
    let advantages: Vec<f64> = inputs.advantages.iter().map(|a| f64::from(*a)).collect();
    let per_tensor = inner_per_tensor(grams.weighted(&advantages));
    let inner = total(per_tensor.iter().map(|(_, k)| k), n);
    let inner_unweighted = total(unweighted.iter().map(|(_, k)| k), n);
    let (cosine, cosine_unweighted) = (cosines(&inner, n), cosines(&inner_unweighted, n));
    let projection = projections(&inner, n);

    let side = |keep: fn(f32) -> bool| (0..n).filter(|i| keep(inputs.advantages[*i])).collect::<Vec<usize>>();
    let (positive, negative) = (side(|a| a > 0.0), side(|a| a < 0.0));
    let means = |m: &[f64]| means(m, n, &positive, &negative);
    let mut json = echo(raw, &["sequences", "prompt_lens", "advantages"]);
    json.insert("positive".into(), json!(positive));
    json.insert("negative".into(), json!(negative));
    json.insert("cosine_means".into(), means(&cosine));
    json.insert("cosine_unweighted_means".into(), means(&cosine_unweighted));
    json.insert("inner_means".into(), means(&inner));
    json.insert("projection_means".into(), means(&projection));
    json.insert("inner_by_layer".into(), grouped(&per_tensor, n, layer_of));
    json.insert("inner_by_kind".into(), grouped(&per_tensor, n, |name| kind_of(name).into()));

    let all = per_tensor.iter().flat_map(|(_, k)| k.iter().copied()).collect();
    tensors.insert_f64("persample.inner_per_tensor", &[per_tensor.len(), n, n], all);
    for (name, matrix) in [
        ("inner", inner),
        ("inner_unweighted", inner_unweighted),
        ("cosine", cosine),
        ("cosine_unweighted", cosine_unweighted),
        ("projection", projection),
    ] {
        tensors.insert_f64(format!("persample.{name}"), &[n, n], matrix);
    }
    Ok(json.into())
}

/// Gradient of −`advantage` · mean log p over the completion of sequence `i`.
fn gradient(model: &Model, inputs: &PerSample, i: usize, advantage: f64) -> Params {
    let forest = Forest::new(&inputs.batch.sequences[i..=i]);
    let completion: Vec<u32> = forest.paths[0].iter().copied().skip(inputs.batch.prompt_lens[i].max(1)).collect();
    let weight = advantage / completion.len().max(1) as f64;
    let terms: BTreeMap<u32, f64> = completion.into_iter().map(|node| (node, weight)).collect();
    forward::gradient(model, &forest, &terms)
}

/// The inner products of each tensor's gradients, by name.
fn inner_per_tensor(grams: Grams) -> Vec<(String, Vec<f64>)> {
    let mut all: Vec<_> = grams.tensors.into_iter().map(|t| (t.name, t.gram)).collect();
    all.sort_by(|a: &(String, Vec<f64>), b| a.0.cmp(&b.0));
    all
}

fn total<'a>(matrices: impl Iterator<Item = &'a Vec<f64>>, n: usize) -> Vec<f64> {
    let mut sum = vec![0.0; n * n];
    for matrix in matrices {
        sum.iter_mut().zip(matrix).for_each(|(s, x)| *s += x);
    }
    sum
}

/// By the signs of the advantages.
fn means(matrix: &[f64], n: usize, positive: &[usize], negative: &[usize]) -> Value {
    json!({
        "pp": mean(matrix, n, positive, positive),
        "nn": mean(matrix, n, negative, negative),
        "pn": mean(matrix, n, positive, negative),
        "np": mean(matrix, n, negative, positive),
    })
}

/// Mean over the pairs of two different samples; `null` when there is none.
fn mean(matrix: &[f64], n: usize, rows: &[usize], columns: &[usize]) -> Option<f64> {
    let pairs: Vec<f64> =
        rows.iter().flat_map(|i| columns.iter().filter(move |j| i != *j).map(move |j| matrix[i * n + j])).collect();
    (!pairs.is_empty()).then(|| pairs.iter().sum::<f64>() / pairs.len() as f64)
}

/// Sums of the per-tensor matrices by `group`, as nested lists.
fn grouped(per_tensor: &[(String, Vec<f64>)], n: usize, group: impl Fn(&str) -> String) -> Value {
    let mut groups: BTreeMap<String, Vec<&Vec<f64>>> = BTreeMap::new();
    for (name, matrix) in per_tensor {
        groups.entry(group(name)).or_default().push(matrix);
    }
    let nested = |m: Vec<f64>| m.chunks(n).map(<[f64]>::to_vec).collect::<Vec<_>>();
    groups.into_iter().map(|(k, v)| (k, json!(nested(total(v.into_iter(), n))))).collect::<Map<_, _>>().into()
}

fn layer_of(name: &str) -> String {
    match name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()) {
        Some(layer) => format!("layer.{layer}"),
        None if name == "model.norm.weight" => "final_norm".into(),
        None => kind_of(name).into(),
    }
}

fn kind_of(name: &str) -> &'static str {
    match name {
        "model.embed_tokens.weight" => "embed",
        "lm_head.weight" => "lm_head",
        _ if name.ends_with(".bias") => "bias",
        _ if name.ends_with("norm.weight") => "norm",
        _ if name.contains(".self_attn.") => "attn",
        _ => "mlp",
    }
}
