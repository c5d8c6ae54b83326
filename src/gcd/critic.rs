//! A value head in place of written judgments: a linear classifier of the hidden state in which an action ends.
//!
//! With logit z = w·h + b and p(good) = 1 / (1 + exp(−z)): loss = scale · mean over pairs of −ln p(label), ∂loss/∂z =
//! scale · (p(good) − y) / pairs, where y is 1 for good and 0 for bad.

use super::judgment::Accuracy;
use super::label::{Label, share};

/// What a value head says of labelled pairs, and the gradient of its loss.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Classified {
    /// The mean cross-entropy, in nats.
    pub loss: f64,
    /// How many pairs were classified as their labels say.
    pub accuracy: Accuracy,
    /// `[hidden]`
    pub d_weight: Vec<f32>,
    /// The gradient by the head's bias.
    pub d_bias: f32,
    /// `[pairs, hidden]`
    pub d_hidden: Vec<f32>,
}

/// Classifies the hidden states `[pairs, hidden]`; the head answers good where its logit is above 0.
///
/// # Panics
/// When there is not one label for each hidden state.
pub fn classify(weight: &[f32], bias: f32, hidden: &[f32], labels: &[Label], scale: f32) -> Classified {
    assert_eq!(hidden.len(), labels.len() * weight.len(), "value head: one hidden state for each label");
    let each = f64::from(scale) / labels.len().max(1) as f64;
    let (mut loss, mut d_bias) = (0.0, 0.0);
    let (mut d_weight, mut d_hidden) = (vec![0.0f64; weight.len()], Vec::with_capacity(hidden.len()));
    // Right answers and answers to good and to bad actions.
    let mut counts = [[0; 2]; 2];
    for (h, &label) in hidden.chunks_exact(weight.len()).zip(labels) {
        let dot: f64 = weight.iter().zip(h).map(|(w, h)| f64::from(*w) * f64::from(*h)).sum();
        let logit = dot + f64::from(bias);
        let (sign, class) = if label == Label::Good { (1.0, 0) } else { (-1.0, 1) };
        // −ln σ(x), which does not overflow.
        let x = sign * logit;
        loss += each * ((-x.abs()).exp().ln_1p() - x.min(0.0));
        let d = -each * sign / (1.0 + x.exp());
        d_bias += d;
        d_weight.iter_mut().zip(h).for_each(|(dw, h)| *dw += d * f64::from(*h));
        d_hidden.extend(weight.iter().map(|w| (d * f64::from(*w)) as f32));
        counts[class][0] += usize::from((logit > 0.0) == (label == Label::Good));
        counts[class][1] += 1;
    }
    let [good, bad] = counts;
    let accuracy = Accuracy {
        all: share(good[0] + bad[0], good[1] + bad[1]),
        good: share(good[0], good[1]),
        bad: share(bad[0], bad[1]),
        unparsable: None,
    };
    let d_weight = d_weight.into_iter().map(|d| d as f32).collect();
    Classified { loss, accuracy, d_weight, d_bias: d_bias as f32, d_hidden }
}
