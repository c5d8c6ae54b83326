//! A supervised contrastive loss of actions' embeddings, good against bad (Khosla et al. 2020, InfoNCE form).
//!
//! With unit vectors z, s_ij = z_i·z_j / temperature, P_i the others with i's label, and n the pairs that have one:
//! loss = weight / n · Σ_i −1/|P_i| Σ_{p ∈ P_i} ln( exp s_ip / Σ_{a ≠ i} exp s_ia ). Without both labels there is nothing to
//! contrast: the loss is 0.

use super::label::Label;
use super::objective::{AuxiliaryLoss, LossValue};
use crate::config::{Config, Decouple, DecoupleMethod};
use std::ops::Range;

/// The contrastive loss of all tokens of an action.
struct Contrast<'a>(&'a Decouple);

/// The loss, where `decouple.method` is this one.
pub(super) fn configured(config: &Config) -> Option<Box<dyn AuxiliaryLoss + '_>> {
    let asked = config.decouple.method == DecoupleMethod::Contrastive;
    asked.then(|| Box::new(Contrast(&config.decouple)) as _)
}

impl AuxiliaryLoss for Contrast<'_> {
    fn metric(&self) -> &'static str {
        "decouple/contrastive_loss"
    }

    fn embedded(&self, action: &Range<usize>) -> Range<usize> {
        action.clone()
    }

    fn evaluate(&mut self, embeddings: &[f32], labels: &[Label]) -> LossValue {
        let (loss, gradient) = contrast(embeddings, labels, self.0);
        LossValue { loss, accuracy: None, d_embeddings: Some(gradient) }
    }
}

/// The loss of embeddings `[pairs, width]`, and its gradient by them.
///
/// # Panics
/// When the embeddings are not those of the labels.
pub fn contrast(embeddings: &[f32], labels: &[Label], config: &Decouple) -> (f64, Vec<f32>) {
    let n = labels.len();
    if !(labels.contains(&Label::Good) && labels.contains(&Label::Bad)) {
        return (0.0, vec![0.0; embeddings.len()]);
    }
    let width = embeddings.len() / n;
    assert_eq!(embeddings.len(), n * width, "contrastive loss: one embedding for each label");
    let (mut units, mut norms) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for row in embeddings.chunks_exact(width) {
        let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        units.push(row.iter().map(|x| f64::from(*x) / norm).collect::<Vec<f64>>());
        norms.push(norm);
    }
    let others = |i: usize| (0..n).filter(move |&j| j != i);
    let alike = |i: usize| others(i).filter(|&j| labels[j] == labels[i]).count();
    let anchors = (0..n).filter(|&i| alike(i) > 0).count().max(1) as f64;
    let each = f64::from(config.weight) / anchors;
    let temperature = f64::from(config.temperature);
    let (mut loss, mut d_units) = (0.0, vec![vec![0.0; width]; n]);
    for i in 0..n {
        let positives = alike(i);
        if positives == 0 {
            continue;
        }
        let score: Vec<f64> = units.iter().map(|z| dot(&units[i], z) / temperature).collect();
        let most = others(i).map(|j| score[j]).fold(f64::NEG_INFINITY, f64::max);
        let log_sum = most + others(i).map(|j| (score[j] - most).exp()).sum::<f64>().ln();
        for j in others(i) {
            let target = if labels[j] == labels[i] { 1.0 / positives as f64 } else { 0.0 };
            loss += each * target * (log_sum - score[j]);
            let d = each * ((score[j] - log_sum).exp() - target) / temperature;
            for k in 0..width {
                d_units[i][k] += d * units[j][k];
                d_units[j][k] += d * units[i][k];
            }
        }
    }
    // Back through the division by the norm: what points along the vector changes nothing.
    let rows = d_units.iter().zip(&units).zip(norms);
    let gradient = rows.flat_map(|((d, z), norm)| {
        let along = dot(d, z);
        d.iter().zip(z).map(move |(d, z)| ((d - along * z) / norm) as f32).collect::<Vec<f32>>()
    });
    (loss, gradient.collect())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
