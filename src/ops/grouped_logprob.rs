//! Grouped log-prob: the head's matrix product, log-softmax, gather, entropy, loss gradient and both gradients of the head, in
//! one pass over chunks of rows. `[tokens, vocab]` logits never exist.
//!
//! With l = h Wᵀ / T, p = softmax(l) and H = −Σ p ln p: ∂logp_c/∂l_v = 1[v = c] − p_v and ∂H/∂l_v = −p_v (ln p_v + H).

pub(crate) mod case;
pub(crate) mod cuda;

use super::linear::{self, RightFactor};
use super::residual;
use crate::device::Dtype;
use crate::device::cpu::{Mat, Product, bf16, exp, simd};
use rayon::prelude::*;

/// Logits held at a time, elements.
const CHUNK_LOGITS: usize = 16 << 20;
/// Rows of a chunk: fewer waste the matrix product that forms dW, more the cache.
const CHUNK_ROWS: std::ops::RangeInclusive<usize> = 64..=1024;
/// Rows of one task: a quarter of a chunk's within these bounds, whatever the number of cores.
const TASK_ROWS: std::ops::RangeInclusive<usize> = 64..=256;
/// Vocabulary entries of one dW task.
const TILE: usize = 512;

/// Gradient of the loss with respect to one scored token's log-prob and to the entropy of its distribution.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TokenGrad {
    /// By the log-prob.
    pub logprob: f32,
    /// By the entropy.
    pub entropy: f32,
}

/// A token to score: `token` as the successor of hidden state `row`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Index of the hidden state.
    pub row: u32,
    /// The token that follows.
    pub token: u32,
}

/// The head `[vocab, hidden]` and what it reads.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// The weight `[vocab, hidden]`.
    pub weight: &'a [f32],
    /// `[rows, hidden]`
    pub hidden: &'a [f32],
    /// Width of the hidden states.
    pub width: usize,
    /// What logits are divided by.
    pub temperature: f32,
    /// Of the products.
    pub dtype: Dtype,
}

/// Gradients that the backward pass adds to.
pub struct HeadGrads<'a> {
    /// `[vocab, hidden]`, or empty where it is not wanted.
    pub weight: &'a mut [f32],
    /// `[rows, hidden]`
    pub hidden: &'a mut [f32],
}

/// Log-prob and entropy (nats) of each target, in the order given.
pub fn forward(head: Head<'_>, targets: &[Target]) -> (Vec<f32>, Vec<f32>) {
    let (mut logprob, mut entropy) = (vec![0.0; targets.len()], vec![0.0; targets.len()]);
    run(head, targets, None, &mut |i, lp, h| {
        (logprob[i], entropy[i]) = (lp, h);
        TokenGrad::default()
    });
    (logprob, entropy)
}

/// Calls `loss(i, logprob, entropy)` once for each target, serially, in a fixed order (by row), and adds the gradients.
pub fn forward_backward(
    head: Head<'_>,
    targets: &[Target],
    grads: HeadGrads<'_>,
    loss: &mut dyn FnMut(usize, f32, f32) -> TokenGrad,
) {
    run(head, targets, Some(grads), loss)
}

/// One row that is read: its targets are `order[first .. first + count]`.
#[derive(Clone, Copy, Default)]
struct ScoredRow {
    row: usize,
    first: usize,
    count: usize,
    entropy: f32,
}

/// The rows that targets read, ascending, and the targets in their order.
fn rows_of(targets: &[Target]) -> (Vec<ScoredRow>, Vec<usize>) {
    let mut order: Vec<usize> = (0..targets.len()).collect();
    order.sort_by_key(|&i| targets[i].row);
    let mut rows: Vec<ScoredRow> = Vec::new();
    for (at, &i) in order.iter().enumerate() {
        match rows.last_mut() {
            Some(last) if last.row == targets[i].row as usize => last.count += 1,
            _ => rows.push(ScoredRow { row: targets[i].row as usize, first: at, count: 1, entropy: 0.0 }),
        }
    }
    (rows, order)
}

/// Rows whose logits are held at once.
pub(crate) fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_LOGITS / vocab).clamp(*CHUNK_ROWS.start(), *CHUNK_ROWS.end())
}

fn run(
    head: Head<'_>,
    targets: &[Target],
    mut grads: Option<HeadGrads<'_>>,
    loss: &mut dyn FnMut(usize, f32, f32) -> TokenGrad,
) {
    let vocab = head.weight.len() / head.width;
    let (mut rows, order) = rows_of(targets);
    let (mut logits, mut hidden) = (Vec::new(), Vec::new());
    let (w, shape) = (Mat::transposed(head.weight, head.width), (head.width, vocab));
    let packed = (head.dtype == Dtype::Bf16).then(|| bf16::Packed::new(w, shape));
    let factor = grads.as_ref().map(|_| RightFactor::new(head.dtype, head.weight, head.width));
    for rows in rows.chunks_mut(chunk_rows(vocab)) {
        let first = rows[0].first;
        let count: usize = rows.iter().map(|r| r.count).sum();
        logits.resize(rows.len() * vocab, 0.0f32);
        hidden.resize(rows.len() * head.width, 0.0f32);
        let order = &order[first..first + count];
        let mut chunk = Chunk { head, packed: packed.as_ref(), vocab, targets, order, first, rows };
        let logprob = chunk.forward(&mut logits, &mut hidden);
        let token_grads: Vec<TokenGrad> = chunk.losses(&logprob, loss);
        if let (Some(grads), Some(factor)) = (&mut grads, &factor) {
            chunk.backward(&token_grads, &mut logits, (&hidden, factor), grads);
        }
    }
}

/// Some of the rows, whose logits are held at once.
struct Chunk<'a> {
    head: Head<'a>,
    /// The transposed weight, in bf16.
    packed: Option<&'a bf16::Packed>,
    vocab: usize,
    targets: &'a [Target],
    /// The chunk's targets, in the order of its rows; the first of them is number `first` of all.
    order: &'a [usize],
    first: usize,
    rows: &'a mut [ScoredRow],
}

impl Chunk<'_> {
    fn task_rows(&self) -> usize {
        self.rows.len().div_ceil(4).next_multiple_of(bf16::PANEL).clamp(*TASK_ROWS.start(), *TASK_ROWS.end())
    }

    /// Gathers the rows into `hidden`, and turns their logits into probabilities; the log-prob of each target.
    fn forward(&mut self, logits: &mut [f32], hidden: &mut [f32]) -> Vec<f32> {
        let (head, vocab, width) = (self.head, self.vocab, self.head.width);
        let (targets, order, first, packed, each) =
            (self.targets, self.order, self.first, self.packed, self.task_rows());
        let mut logprob = vec![0.0f32; order.len()];
        let mut tasks = Vec::new();
        let mut out = &mut logprob[..];
        let blocks = self.rows.chunks_mut(each).zip(logits.chunks_mut(each * vocab));
        for ((rows, logits), hidden) in blocks.zip(hidden.chunks_mut(each * width)) {
            let (own, rest) = std::mem::take(&mut out).split_at_mut(rows.iter().map(|r| r.count).sum());
            out = rest;
            tasks.push((rows, logits, hidden, own));
        }
        tasks.into_par_iter().for_each(|(rows, logits, hidden, mut logprob)| {
            for (r, h) in rows.iter().zip(hidden.chunks_exact_mut(width)) {
                h.copy_from_slice(&head.hidden[r.row * width..][..width]);
            }
            let product = Product::new(head.dtype, (rows.len(), vocab, width)).alpha(1.0 / head.temperature);
            let h = Mat::rows(hidden, width);
            match packed {
                Some(w) => product.run_packed(logits, vocab, h, w.columns()),
                None => product.run(logits, vocab, h, Mat::transposed(head.weight, width)),
            }
            for (r, l) in rows.iter_mut().zip(logits.chunks_exact_mut(vocab)) {
                let (own, rest) = logprob.split_at_mut(r.count);
                logprob = rest;
                for (out, &i) in own.iter_mut().zip(&order[r.first - first..][..r.count]) {
                    *out = l[targets[i].token as usize];
                }
                let (max, log_sum, entropy) = softmax(l);
                own.iter_mut().for_each(|x| *x = (*x - max) - log_sum);
                r.entropy = entropy;
            }
        });
        logprob
    }

    /// Asks for the gradient of each target, serially.
    fn losses(&self, logprob: &[f32], loss: &mut dyn FnMut(usize, f32, f32) -> TokenGrad) -> Vec<TokenGrad> {
        let rows = self.rows.iter().flat_map(|r| std::iter::repeat_n(r.entropy, r.count));
        self.order.iter().zip(logprob).zip(rows).map(|((&i, &lp), entropy)| loss(i, lp, entropy)).collect()
    }

    /// Turns probabilities into the gradients of logits, and adds those of the weights and of the hidden states.
    fn backward(
        &self,
        token_grads: &[TokenGrad],
        logits: &mut [f32],
        (hidden, weight): (&[f32], &RightFactor<'_>),
        grads: &mut HeadGrads<'_>,
    ) {
        let (head, vocab, width, each) = (self.head, self.vocab, self.head.width, self.task_rows());
        let blocks = self.rows.par_chunks(each).zip(logits.par_chunks_mut(each * vocab));
        let d_hidden: Vec<Vec<f32>> = blocks
            .map(|(rows, logits)| {
                for (r, p) in rows.iter().zip(logits.chunks_exact_mut(vocab)) {
                    let own = r.first - self.first..r.first - self.first + r.count;
                    let g = &token_grads[own.clone()];
                    let tokens = self.order[own].iter().map(|&i| self.targets[i].token as usize);
                    logits_grad(p, tokens.zip(g), g, r.entropy, 1.0 / head.temperature);
                }
                let mut d = vec![0.0; rows.len() * width];
                linear::backward_input(logits, weight, &mut d);
                d
            })
            .collect();
        for (r, d) in self.rows.iter().zip(d_hidden.iter().flat_map(|d| d.chunks_exact(width))) {
            residual::forward(&mut grads.hidden[r.row * width..][..width], d);
        }
        if grads.weight.is_empty() {
            return;
        }
        let hidden = RightFactor::new(head.dtype, hidden, width);
        grads.weight.par_chunks_mut(TILE * width).enumerate().for_each(|(tile, dw)| {
            linear::backward_weight(logits, vocab, tile * TILE, &hidden, dw);
        });
    }
}

/// Replaces logits by probabilities; returns the maximum, the log of the sum of exp(l − maximum), and the entropy. Maximum and
/// log-sum stay apart: added up in f32, a likely token's small log-prob would drown in a large logit's last bits.
fn softmax(l: &mut [f32]) -> (f32, f32, f32) {
    simd(
        #[inline(always)]
        || {
            let max = l.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
            let (mut sum, mut weighted) = ([0.0f32; 16], [0.0f32; 16]);
            let mut chunks = l.chunks_exact_mut(16);
            for c in &mut chunks {
                for i in 0..16 {
                    let x = c[i] - max;
                    c[i] = exp(x);
                    sum[i] += c[i];
                    weighted[i] = c[i].mul_add(x, weighted[i]);
                }
            }
            for x in chunks.into_remainder() {
                let shifted = *x - max;
                *x = exp(shifted);
                sum[0] += *x;
                weighted[0] += *x * shifted;
            }
            let (sum, weighted) = (sum.iter().sum::<f32>(), weighted.iter().sum::<f32>());
            let inv = 1.0 / sum;
            l.iter_mut().for_each(|p| *p *= inv);
            (max, sum.ln(), sum.ln() - weighted * inv)
        },
    )
}

/// Replaces the probabilities `p` of one row by the gradient of its logits (before the temperature's 1/T, which is `scale`).
fn logits_grad<'a>(
    p: &mut [f32],
    targets: impl Iterator<Item = (usize, &'a TokenGrad)>,
    grads: &[TokenGrad],
    entropy: f32,
    scale: f32,
) {
    let total: f32 = grads.iter().map(|g| g.logprob).sum();
    let d_entropy: f32 = grads.iter().map(|g| g.entropy).sum();
    if d_entropy == 0.0 {
        let k = -total * scale;
        p.iter_mut().for_each(|p| *p *= k);
    } else {
        for p in p.iter_mut() {
            let log_p = if *p > 0.0 { p.ln() } else { 0.0 };
            *p *= -scale * (total + d_entropy * (log_p + entropy));
        }
    }
    for (token, g) in targets {
        p[token] += g.logprob * scale;
    }
}
