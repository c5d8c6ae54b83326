//! Inner products of per-sample gradients, `gram[i, j] = ⟨g_i, g_j⟩`, without holding the gradients.
//!
//! B samples lie one behind the other in the rows of a batch, sample i ending before row `ends[i]`. The gradient of a matrix
//! `[out, in]` is dW_i = Σ_{t ∈ i} dy_tᵀ x_t, and there are two exact methods for all products of two of them (N rows in all):
//!
//! | method | flops | |
//! |---|---|---|
//! | slab | 2·N·in·out + 2·B²·in·out | dW_i for a tile of rows at a time, of all samples, then the tile's Gram matrix |
//! | ghost | N²·(in + out) | Σ over pairs of rows of (x_t · x_s)(dy_t · dy_s), tile by tile of the symmetric half |
//!
//! Products are in f32, what they are summed up in is f64.

pub(crate) mod case;
pub(crate) mod cuda;

use super::linear::{self, RightFactor, WeightGrad};
use crate::device::Dtype;
use crate::device::cpu::{Mat, Product, bf16, exp, simd};
use rayon::prelude::*;
use std::ops::Range;

/// One of two exact methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GramMethod {
    /// Multiplies the gradients themselves, slab by slab.
    Materialized,
    /// Multiplies activations and output gradients of pairs of tokens.
    Ghost,
}

/// Flops of a method, for a matrix `[out, in]`.
pub fn flops(method: GramMethod, rows: usize, samples: usize, in_features: usize, out: usize) -> f64 {
    let [n, b, i, o] = [rows, samples, in_features, out].map(|x| x as f64);
    match method {
        GramMethod::Materialized => 2.0 * (n + b * b) * i * o,
        GramMethod::Ghost => n * n * (i + o),
    }
}

/// The method of fewer flops.
pub fn cheaper(rows: usize, samples: usize, in_features: usize, out: usize) -> GramMethod {
    let cost = |method| flops(method, rows, samples, in_features, out);
    if cost(GramMethod::Ghost) < cost(GramMethod::Materialized) { GramMethod::Ghost } else { GramMethod::Materialized }
}

/// Entries of a Gram matrix: (i, j, value); what is above the diagonal stands for both halves.
pub type GramEntries = Vec<(usize, usize, f64)>;

/// Adds parts, in order, to a matrix `[samples, samples]`.
pub fn add_parts(gram: &mut [f64], samples: usize, parts: &[(usize, usize, f64)]) {
    for &(i, j, value) in parts {
        gram[i * samples + j] += value;
        if i != j {
            gram[j * samples + i] += value;
        }
    }
}

/// Rows of one side of a ghost tile.
const GHOST: usize = 256;
/// Elements of a slab tile, of all samples together.
const SLAB: usize = 1 << 18;
/// Length of a product that f32 sums up by itself.
const DEPTH: usize = 2048;

/// The tiles of a batch's rows that [`ghost`] is called with.
pub fn ghost_tiles(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let tiles = rows.div_ceil(GHOST);
    (0..tiles).flat_map(move |p| (p..tiles).map(move |q| (p, q)))
}

/// The tiles of a matrix's rows `columns` (of `dy`) that [`slab`] is called with.
pub fn slab_tiles(columns: Range<usize>, in_features: usize, samples: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (SLAB / (in_features * samples).max(1)).clamp(1, 256);
    columns.clone().step_by(step).map(move |at| at..(at + step).min(columns.end))
}

/// What tile `(p, q)` of pairs of rows adds, for each group of `dy`'s columns (which share `x`).
pub fn ghost(g: WeightGrad<'_>, groups: &[Range<usize>], ends: &[usize], (p, q): (usize, usize)) -> Vec<GramEntries> {
    let total = g.x.len() / g.in_features;
    let block = |at: usize| at * GHOST..((at + 1) * GHOST).min(total);
    let (rows, cols) = (block(p), block(q));
    let (m, n) = (rows.len(), cols.len());
    let product = |data: &[f32], stride: usize, columns: &Range<usize>, out: &mut [f32]| {
        let a = Mat::rows(&data[rows.start * stride + columns.start..], stride);
        let b = Mat::transposed(&data[cols.start * stride + columns.start..], stride);
        Product::new(Dtype::F32, (m, n, columns.len())).run(out, n, a, b);
    };
    let (mut xx, mut yy) = (vec![0.0; m * n], vec![0.0; m * n]);
    product(g.x, g.in_features, &(0..g.in_features), &mut xx);
    let weighted = |columns| {
        product(g.dy, g.out, columns, &mut yy);
        pair_sums(&xx, &yy, n, &runs(ends, &rows), &runs(ends, &cols), p == q)
    };
    groups.iter().map(weighted).collect()
}

/// The samples of some rows, with their rows counted from the first.
fn runs(ends: &[usize], rows: &Range<usize>) -> Vec<(usize, Range<usize>)> {
    let first = ends.partition_point(|end| *end <= rows.start);
    let start = |i: usize| if i == 0 { 0 } else { ends[i - 1] };
    (first..ends.len())
        .take_while(|&i| start(i) < rows.end)
        .map(|i| (i, start(i).max(rows.start) - rows.start..ends[i].min(rows.end) - rows.start))
        .filter(|(_, r)| !r.is_empty())
        .collect()
}

/// Σ xx · yy over every pair of runs. A tile off the diagonal stands for its mirror image, too.
fn pair_sums(
    xx: &[f32],
    yy: &[f32],
    width: usize,
    rows: &[(usize, Range<usize>)],
    cols: &[(usize, Range<usize>)],
    diagonal: bool,
) -> GramEntries {
    let mut part = Vec::new();
    for (i, r) in rows {
        for (j, c) in cols.iter().filter(|(j, _)| !diagonal || i <= j) {
            let row = |t: usize| t * width + c.start..t * width + c.end;
            let sum: f64 = r.clone().map(|t| f64::from(dot(&xx[row(t)], &yy[row(t)]))).sum();
            part.push((*i, *j, if i == j && !diagonal { 2.0 * sum } else { sum }));
        }
    }
    part
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    simd(
        #[inline(always)]
        || {
            let mut lanes = [0.0f32; 16];
            let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
            let tail: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(a, b)| a * b).sum();
            for (a, b) in a16.zip(b16) {
                for i in 0..16 {
                    lanes[i] = a[i].mul_add(b[i], lanes[i]);
                }
            }
            lanes.iter().sum::<f32>() + tail
        },
    )
}

/// What the rows of W that belong to `columns` of `dy` add.
pub fn slab(g: WeightGrad<'_>, columns: Range<usize>, ends: &[usize]) -> GramEntries {
    let mut slab = Vec::new();
    fill_slab(g, columns, ends, &mut slab);
    gram(&slab, ends.len())
}

/// dW of the rows `columns`, sample by sample: `[samples, columns * in]`.
fn fill_slab(g: WeightGrad<'_>, columns: Range<usize>, ends: &[usize], slab: &mut Vec<f32>) {
    let size = columns.len() * g.in_features;
    slab.clear();
    slab.resize(ends.len() * size, 0.0);
    let mut start = 0;
    for (dw, &end) in slab.chunks_exact_mut(size).zip(ends) {
        if end > start {
            let (dy, x) = (&g.dy[start * g.out..end * g.out], &g.x[start * g.in_features..end * g.in_features]);
            linear::backward_weight(dy, g.out, columns.start, &RightFactor::new(Dtype::F32, x, g.in_features), dw);
        }
        start = end;
    }
}

/// All inner products of the rows of `g` `[samples, n]`.
pub fn gram(g: &[f32], samples: usize) -> GramEntries {
    let n = g.len() / samples.max(1);
    let (mut sum, mut product) = (vec![0.0f64; samples * samples], vec![0.0; samples * samples]);
    for at in (0..n).step_by(DEPTH) {
        let (a, b) = (Mat::rows(&g[at..], n), Mat::transposed(&g[at..], n));
        Product::new(Dtype::F32, (samples, samples, DEPTH.min(n - at))).run(&mut product, samples, a, b);
        sum.iter_mut().zip(&product).for_each(|(s, p)| *s += f64::from(*p));
    }
    (0..samples).flat_map(|i| (i..samples).map(move |j| (i, j))).map(|(i, j)| (i, j, sum[i * samples + j])).collect()
}

/// An embedding's gradients by sample: only the rows of tokens that occur, each once per sample, by ascending token.
#[derive(Default)]
pub struct InputGrads {
    /// Elements of a row.
    pub width: usize,
    /// (token, sample) of each row.
    pub of: Vec<(u32, usize)>,
    /// `[rows, width]`
    pub d: Vec<f32>,
}

impl InputGrads {
    /// `d` `[tokens, width]` is the gradient of the rows that `tokens` read.
    pub fn new(tokens: &[u32], d: &[f32], width: usize, ends: &[usize]) -> InputGrads {
        let mut order: Vec<(u32, usize, usize)> =
            tokens.iter().enumerate().map(|(at, t)| (*t, ends.partition_point(|end| *end <= at), at)).collect();
        order.sort_unstable();
        let mut sums = InputGrads { width, of: Vec::new(), d: Vec::new() };
        for (token, sample, at) in order {
            if sums.of.last() != Some(&(token, sample)) {
                sums.of.push((token, sample));
                sums.d.resize(sums.d.len() + width, 0.0);
            }
            let last = sums.d.len() - width;
            sums.d[last..].iter_mut().zip(&d[at * width..]).for_each(|(sum, d)| *sum += d);
        }
        sums
    }

    fn row(&self, at: usize) -> &[f32] {
        &self.d[at * self.width..][..self.width]
    }

    /// The rows of some tokens.
    fn of_tokens(&self, tokens: &Range<usize>) -> Range<usize> {
        let at = |token: usize| self.of.partition_point(|(t, _)| (*t as usize) < token);
        at(tokens.start)..at(tokens.end)
    }

    /// What the embedding's gradients alone add.
    pub fn gram(&self) -> GramEntries {
        let mut part = Vec::new();
        let mut first = 0;
        for same in self.of.chunk_by(|a, b| a.0 == b.0) {
            for (p, (_, i)) in same.iter().enumerate() {
                for (q, (_, j)) in same.iter().enumerate().skip(p) {
                    part.push((*i, *j, f64::from(dot(self.row(first + p), self.row(first + q)))));
                }
            }
            first += same.len();
        }
        part
    }
}

/// The head, and the hidden states that it scored; a row's loss is `scale` · (−log p(target)).
pub struct HeadRows<'a> {
    /// `[vocab, width]`
    pub weight: &'a [f32],
    /// Width of the hidden states.
    pub width: usize,
    /// `[rows, width]`, sample by sample
    pub hidden: &'a [f32],
    /// The scored token of each row.
    pub target: &'a [u32],
    /// Its log-prob, in nats.
    pub logprob: &'a [f32],
    /// The factor of its loss.
    pub scale: &'a [f32],
    /// Where the rows of each sample end.
    pub ends: &'a [usize],
    /// Of the products that made the log-probs.
    pub dtype: Dtype,
}

impl HeadRows<'_> {
    fn vocab(&self) -> usize {
        self.weight.len() / self.width
    }

    /// Of each row, ln Σ exp(logit).
    fn log_sums(&self) -> Vec<f32> {
        let rows = self.hidden.chunks_exact(self.width).zip(self.target).zip(self.logprob);
        let own = |h: &[f32], token: u32| -> f64 {
            let w = &self.weight[token as usize * self.width..][..self.width];
            match self.dtype {
                Dtype::F32 => h.iter().zip(w).map(|(h, w)| f64::from(*h) * f64::from(*w)).sum(),
                Dtype::Bf16 => {
                    h.iter().zip(w).map(|(h, w)| f64::from(bf16::round(*h)) * f64::from(bf16::round(*w))).sum()
                }
            }
        };
        rows.map(|((h, token), logprob)| (own(h, *token) - f64::from(*logprob)) as f32).collect()
    }

    /// Gradients of the logits of `tokens`, of some rows: `[rows, tokens]`.
    fn logit_grads(&self, log_sums: &[f32], rows: Range<usize>, tokens: &Range<usize>, d: &mut Vec<f32>) {
        let n = tokens.len();
        d.resize(rows.len() * n, 0.0);
        let h = Mat::rows(&self.hidden[rows.start * self.width..], self.width);
        let w = Mat::transposed(&self.weight[tokens.start * self.width..], self.width);
        Product::new(self.dtype, (rows.len(), n, self.width)).run(d, n, h, w);
        for (row, d) in rows.zip(d.chunks_exact_mut(n)) {
            let (log_sum, scale) = (log_sums[row], self.scale[row]);
            simd(
                #[inline(always)]
                || d.iter_mut().for_each(|l| *l = scale * exp(*l - log_sum)),
            );
            if let Some(at) = (self.target[row] as usize).checked_sub(tokens.start).filter(|at| *at < n) {
                d[at] -= scale;
            }
        }
    }

    /// The method that [`HeadRows::gram`] takes.
    pub fn method(&self) -> GramMethod {
        cheaper(self.target.len(), self.ends.len(), self.width, self.vocab())
    }

    /// The Gram matrix `[samples, samples]` of the head's gradients; with `tied`, of their sums with the embedding's.
    /// Logit gradients exist for some tokens of the vocabulary at a time.
    pub fn gram(&self, tied: Option<&InputGrads>) -> Vec<f64> {
        match self.method() {
            GramMethod::Materialized => self.by_slabs(tied),
            GramMethod::Ghost => self.by_pairs(tied),
        }
    }

    fn by_slabs(&self, tied: Option<&InputGrads>) -> Vec<f64> {
        let (samples, log_sums) = (self.ends.len(), self.log_sums());
        let tiles: Vec<Range<usize>> = slab_tiles(0..self.vocab(), self.width, samples).collect();
        let tile = |(d, slab): &mut (Vec<f32>, Vec<f32>), tokens: &Range<usize>| {
            self.logit_grads(&log_sums, 0..self.target.len(), tokens, d);
            let g = WeightGrad { dy: d, out: tokens.len(), first: 0, x: self.hidden, in_features: self.width };
            fill_slab(g, 0..tokens.len(), self.ends, slab);
            for at in tied.map_or(0..0, |inputs| inputs.of_tokens(tokens)) {
                let Some(inputs) = tied else { break };
                let (token, sample) = inputs.of[at];
                let row = (sample * tokens.len() + token as usize - tokens.start) * self.width;
                slab[row..].iter_mut().zip(inputs.row(at)).for_each(|(sum, d)| *sum += d);
            }
            gram(slab, samples)
        };
        let parts: Vec<GramEntries> = tiles.par_iter().map_init(Default::default, tile).collect();
        let mut sum = vec![0.0; samples * samples];
        parts.iter().for_each(|part| add_parts(&mut sum, samples, part));
        sum
    }

    fn by_pairs(&self, tied: Option<&InputGrads>) -> Vec<f64> {
        let (rows, samples, log_sums) = (self.target.len(), self.ends.len(), self.log_sums());
        let mut sum = vec![0.0; samples * samples];
        if let Some(inputs) = tied {
            add_parts(&mut sum, samples, &inputs.gram());
        }
        if rows == 0 {
            return sum;
        }
        // dy · dy of every pair of rows, summed over the vocabulary. The rows are fewer than twice `width`.
        let mut yy = vec![0.0f32; rows * rows];
        let mut d = Vec::new();
        let whole = 0..rows;
        for first in (0..self.vocab()).step_by(DEPTH) {
            let tokens = first..(first + DEPTH).min(self.vocab());
            let n = tokens.len();
            let blocks: Vec<Range<usize>> = whole.clone().step_by(64).map(|at| at..(at + 64).min(rows)).collect();
            d.resize(rows * n, 0.0);
            d.par_chunks_mut(64 * n).zip(&blocks).for_each_init(Vec::new, |own, (d, rows)| {
                self.logit_grads(&log_sums, rows.clone(), &tokens, own);
                d.copy_from_slice(own);
            });
            yy.par_chunks_mut(64 * rows).zip(&blocks).for_each(|(yy, own)| {
                let (a, b) = (Mat::rows(&d[own.start * n..], n), Mat::transposed(&d, n));
                Product::new(Dtype::F32, (own.len(), rows, n)).accumulate(true).run(yy, rows, a, b);
            });
            let Some(inputs) = tied else { continue };
            for part in self.cross(inputs, &tokens, &d) {
                // ⟨input_i, head_j⟩ and its mirror image; both belong to one entry where i = j.
                part.iter().for_each(|&(i, j, value)| {
                    sum[i * samples + j] += value;
                    sum[j * samples + i] += value;
                });
            }
        }
        let xx = self.hidden_products();
        let all = runs(self.ends, &whole);
        add_parts(&mut sum, samples, &pair_sums(&xx, &yy, rows, &all, &all, true));
        sum
    }

    /// x · x of every pair of rows.
    fn hidden_products(&self) -> Vec<f32> {
        let (rows, width) = (self.target.len(), self.width);
        let mut xx = vec![0.0f32; rows * rows];
        xx.par_chunks_mut(64 * rows).enumerate().for_each(|(block, xx)| {
            let (m, own) = (xx.len() / rows, Mat::rows(&self.hidden[block * 64 * width..], width));
            Product::new(Dtype::F32, (m, rows, width)).run(xx, rows, own, Mat::transposed(self.hidden, width));
        });
        xx
    }

    /// ⟨input gradients, head gradients⟩ over `tokens`, whose logit gradients `d` `[rows, tokens]` are.
    fn cross(&self, inputs: &InputGrads, tokens: &Range<usize>, d: &[f32]) -> Vec<GramEntries> {
        let (rows, n) = (self.target.len(), tokens.len());
        let found: Vec<usize> = inputs.of_tokens(tokens).collect();
        let block = |at: &[usize]| {
            let mut dots = vec![0.0f32; at.len() * rows];
            let e = Mat::rows(&inputs.d[at[0] * self.width..], self.width);
            let hidden = Mat::transposed(self.hidden, self.width);
            Product::new(Dtype::F32, (at.len(), rows, self.width)).run(&mut dots, rows, e, hidden);
            let mut part = Vec::new();
            for (&at, dots) in at.iter().zip(dots.chunks_exact(rows)) {
                let (token, i) = inputs.of[at];
                for (j, span) in runs(self.ends, &(0..rows)) {
                    let column = span.clone().map(|s| d[s * n + token as usize - tokens.start]);
                    let value = dots[span].iter().zip(column).map(|(x, d)| f64::from(*x) * f64::from(d)).sum();
                    part.push((i, j, value));
                }
            }
            part
        };
        found.par_chunks(64).map(block).collect()
    }
}
