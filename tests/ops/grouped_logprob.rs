//! Grouped log-prob against f64 logits that are written out in full.

use crate::common;

use common::numeric::{added, assert_close, assert_gradient, below, dot, values, wide};
use uncouple::device::Dtype;
use uncouple::ops::grouped_logprob::{Head, HeadGrads, Target, TokenGrad, forward, forward_backward};

struct Case {
    rows: usize,
    vocab: usize,
    width: usize,
    temperature: f32,
    /// Size of the weights: the larger, the sharper the distributions.
    scale: f32,
    targets: Vec<Target>,
    weights: Vec<TokenGrad>,
}

/// `count` targets on random rows in random order, some rows several times, some never.
fn case(rows: usize, vocab: usize, width: usize, temperature: f32, count: usize) -> Case {
    let seed = (rows * vocab) as u64;
    let target = |i: usize| Target { row: below(seed, i, rows) as u32, token: below(seed + 1, i, vocab) as u32 };
    let weights = values(seed + 2, 2 * count, 1.0);
    let weight = |i: usize| TokenGrad { logprob: weights[2 * i], entropy: weights[2 * i + 1] };
    Case {
        rows,
        vocab,
        width,
        temperature,
        scale: 1.0,
        targets: (0..count).map(target).collect(),
        weights: (0..count).map(weight).collect(),
    }
}

/// Log-probs of the row's whole vocabulary.
fn log_softmax(weight: &[f64], hidden: &[f64], temperature: f64) -> Vec<f64> {
    let l: Vec<f64> = weight.chunks(hidden.len()).map(|w| dot(w, hidden) / temperature).collect();
    let max = l.iter().copied().fold(f64::MIN, f64::max);
    let lse = max + l.iter().map(|l| (l - max).exp()).sum::<f64>().ln();
    l.iter().map(|l| l - lse).collect()
}

fn entropy(log_p: &[f64]) -> f64 {
    -log_p.iter().map(|l| l.exp() * l).sum::<f64>()
}

impl Case {
    fn row<'a>(&self, hidden: &'a [f64], target: &Target) -> &'a [f64] {
        &hidden[target.row as usize * self.width..][..self.width]
    }

    fn reference(&self, weight: &[f64], hidden: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let score = |t: &Target| {
            let log_p = log_softmax(weight, self.row(hidden, t), f64::from(self.temperature));
            (log_p[t.token as usize], entropy(&log_p))
        };
        self.targets.iter().map(score).unzip()
    }

    fn objective(&self, weight: &[f64], hidden: &[f64]) -> f64 {
        let (logprob, entropy) = self.reference(weight, hidden);
        let terms = self.weights.iter().zip(logprob.iter().zip(entropy));
        terms.map(|(w, (l, h))| f64::from(w.logprob) * l + f64::from(w.entropy) * h).sum()
    }

    /// Gradients of the objective: head, hidden.
    fn reference_gradient(&self, weight: &[f64], hidden: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut d_weight, mut d_hidden) = (vec![0.0; weight.len()], vec![0.0; hidden.len()]);
        for (t, g) in self.targets.iter().zip(&self.weights) {
            let h = self.row(hidden, t);
            let log_p = log_softmax(weight, h, f64::from(self.temperature));
            let entropy = entropy(&log_p);
            let d_h = &mut d_hidden[t.row as usize * self.width..][..self.width];
            for (v, l) in log_p.iter().enumerate() {
                let hit = if v == t.token as usize { 1.0 } else { 0.0 };
                let d = f64::from(g.logprob) * (hit - l.exp()) - f64::from(g.entropy) * l.exp() * (l + entropy);
                let d = d / f64::from(self.temperature);
                for j in 0..self.width {
                    d_weight[v * self.width + j] += d * h[j];
                    d_h[j] += d * weight[v * self.width + j];
                }
            }
        }
        (d_weight, d_hidden)
    }

    fn check(&self, tolerance: f64) {
        let what = format!("{} rows, vocab {}, {} targets", self.rows, self.vocab, self.targets.len());
        let (weight, hidden) =
            (values(1, self.vocab * self.width, self.scale), values(2, self.rows * self.width, self.scale));
        let head = Head {
            weight: &weight,
            hidden: &hidden,
            width: self.width,
            temperature: self.temperature,
            dtype: Dtype::F32,
        };
        let (logprob, entropies) = forward(head, &self.targets);
        let (w, h) = (wide(&weight), wide(&hidden));
        let (want_logprob, want_entropy) = self.reference(&w, &h);
        assert_close(&format!("{what}: logprob"), &logprob, &want_logprob, tolerance);
        assert_close(&format!("{what}: entropy"), &entropies, &want_entropy, tolerance);

        let (before_w, before_h) = (values(3, w.len(), 1e-3), values(4, h.len(), 1e-3));
        let (mut d_w, mut d_h) = (before_w.clone(), before_h.clone());
        let mut calls = Vec::new();
        forward_backward(head, &self.targets, HeadGrads { weight: &mut d_w, hidden: &mut d_h }, &mut |i, l, e| {
            assert_eq!((l, e), (logprob[i], entropies[i]), "{what}: both passes agree");
            calls.push(i);
            self.weights[i]
        });
        assert!(calls.is_sorted_by_key(|&i| self.targets[i].row), "{what}: loss is called by row");
        calls.sort_unstable();
        assert!(calls.into_iter().eq(0..self.targets.len()), "{what}: loss is called once per target");
        let (want_w, want_h) = self.reference_gradient(&w, &h);
        assert_close(&format!("{what}: head"), &added(&d_w, &before_w), &want_w, tolerance);
        assert_close(&format!("{what}: hidden"), &added(&d_h, &before_h), &want_h, tolerance);
        assert_gradient(&format!("{what}: head"), |w| self.objective(w, &h), &w, &want_w);
        assert_gradient(&format!("{what}: hidden"), |h| self.objective(&w, h), &h, &want_h);
    }
}

#[test]
fn ragged_shapes_and_temperatures() {
    case(1, 2, 1, 1.0, 1).check(1e-5);
    case(1, 37, 8, 1.0, 9).check(1e-5);
    case(257, 37, 24, 0.7, 257).check(1e-5);
    case(70, 300, 17, 1.3, 200).check(1e-5);
    case(5, 513, 64, 1.0, 64).check(1e-5);
}

/// More rows than a chunk holds, by its limit of 1024 rows and by its limit of logits (64 rows of the larger vocabulary).
#[test]
fn chunk_borders() {
    case(1500, 19, 8, 1.0, 2500).check(1e-5);
    let mut wide = case(65, (8 << 20) / 64 + 3, 1, 1.0, 66);
    wide.targets.iter_mut().enumerate().for_each(|(i, t)| t.row = (65 - i as u32) % 65);
    wide.check(1e-5);
}

#[test]
fn log_prob_alone() {
    let mut c = case(40, 33, 8, 1.0, 60);
    c.weights.iter_mut().for_each(|w| w.entropy = 0.0);
    c.check(1e-5);
}

#[test]
fn entropy_alone() {
    let mut c = case(40, 33, 8, 0.9, 60);
    c.weights.iter_mut().for_each(|w| w.logprob = 0.0);
    c.check(1e-5);
}

/// Logits hundreds apart: most probabilities are 0 in f32, and p ln p must be 0 there.
#[test]
fn sharp_distributions() {
    let mut c = case(50, 65, 16, 0.5, 80);
    c.scale = 8.0;
    // A logit near 1000 is only known to about 1e-4, and so is its distribution.
    c.check(1e-3);
}

/// The log-prob of a likely token keeps its bits however large its logit is.
#[test]
fn small_log_prob_under_a_large_logit() {
    let head = Head { weight: &[300.0, 290.0], hidden: &[1.0], width: 1, temperature: 1.0, dtype: Dtype::F32 };
    let (logprob, _) = forward(head, &[Target { row: 0, token: 0 }]);
    assert_close("logprob", &logprob, &[-(-10f64).exp().ln_1p()], 1e-2);
}

#[test]
fn no_targets() {
    let head = Head { weight: &[1.0; 6], hidden: &[1.0; 4], width: 2, temperature: 1.0, dtype: Dtype::F32 };
    assert_eq!(forward(head, &[]), (vec![], vec![]));
    let (mut d_w, mut d_h) = ([0.5; 6], [0.5; 4]);
    let grads = HeadGrads { weight: &mut d_w, hidden: &mut d_h };
    forward_backward(head, &[], grads, &mut |_, _, _| unreachable!("nothing to score"));
    assert_eq!((d_w, d_h), ([0.5; 6], [0.5; 4]));
}
