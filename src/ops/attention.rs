//! Causal grouped-query attention over a forest: o_i = Σ_j softmax_j(q_i·k_j / √d) v_j over the keys j ≤ i < reach[j].
//!
//! The packed order makes visibility a few intervals: a *run* is a stretch of tokens each of which is the child of the one
//! before, and a run sees its ancestors' intervals in full and itself causally. So no mask is ever read, nothing invisible is
//! computed, and the largest scratch is one query block against its own keys.
//!
//! Backward, with P the softmax, dP = dO Vᵀ and δ_i = dO_i·O_i: dS = P ∘ (dP − δ), dQ = dS K/√d, dK = dSᵀ Q/√d, dV = Pᵀ dO.

pub mod cuda;

use super::residual;
use crate::device::cpu::{Mat, exp, gemm, prefetch, simd};
use rayon::prelude::*;
use std::ops::Range;

/// Query rows of one task.
const QUERIES: usize = 64;
/// Tokens of one backward task: fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 1024;

/// Sizes of an attention layer. Rows of `qkv` are `[heads q | kv_heads k | kv_heads v]`, each `head_dim` wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Shape {
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }
    /// Length of a row of `qkv`.
    pub fn qkv_dim(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// A maximal stretch of packed tokens in which each is the child of the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    tokens: Range<usize>,
    /// The intervals of packed tokens that every token of the run sees besides the run itself.
    ancestors: Vec<Range<usize>>,
}

/// The runs of a forest: computed once per batch, read by every layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Visibility {
    runs: Vec<Run>,
}

impl Visibility {
    /// From `reach` alone (see [`crate::forest`]): token t + 1 is a child of t iff t + 1 < reach[t].
    pub fn new(reach: &[u32]) -> Visibility {
        let mut runs: Vec<Run> = Vec::new();
        let mut open: Vec<Range<usize>> = Vec::new();
        let mut start = 0;
        while start < reach.len() {
            let mut end = start + 1;
            while end < reach.len() && (end as u32) < reach[end - 1] {
                end += 1;
            }
            // What stays visible of each open interval is the part whose subtree reaches into this run.
            while let Some(last) = open.last_mut() {
                while last.end > last.start && reach[last.end - 1] as usize <= start {
                    last.end -= 1;
                }
                if last.end == last.start {
                    open.pop()
                } else {
                    break;
                };
            }
            runs.push(Run { tokens: start..end, ancestors: open.clone() });
            open.push(start..end);
            start = end;
        }
        Visibility { runs }
    }

    /// Consecutive runs of about [`CHUNK`] tokens each.
    fn chunks(&self) -> Vec<&[Run]> {
        let (mut chunks, mut first, mut tokens) = (Vec::new(), 0, 0);
        for (i, run) in self.runs.iter().enumerate() {
            tokens += run.tokens.len();
            if tokens >= CHUNK || i + 1 == self.runs.len() {
                chunks.push(&self.runs[first..=i]);
                (first, tokens) = (i + 1, 0);
            }
        }
        chunks
    }
}

/// The query rows `rows` of a run and the key intervals they read, in order; the last interval is the run's own.
struct Block {
    rows: Range<usize>,
    keys: Vec<Range<usize>>,
    total: usize,
}

impl Run {
    fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        self.tokens.clone().step_by(QUERIES).map(|start| {
            let rows = start..(start + QUERIES).min(self.tokens.end);
            let mut keys = self.ancestors.clone();
            keys.push(self.tokens.start..rows.end);
            Block { total: keys.iter().map(|k| k.len()).sum(), rows, keys }
        })
    }
}

impl Block {
    /// Keys seen by the block's `i`-th query.
    fn visible(&self, i: usize) -> usize {
        self.total - (self.rows.len() - 1 - i)
    }

    /// `s[rows, total] = scale · Q Kᵀ` for one head.
    fn scores(&self, s: &mut [f32], q: Mat<'_>, kv: &[f32], stride: usize, d: usize, scale: f32) {
        let mut at = 0;
        for keys in &self.keys {
            let k = Mat::transposed(&kv[keys.start * stride..], stride);
            gemm((self.rows.len(), keys.len(), d), &mut s[at..], self.total, false, scale, q, k);
            at += keys.len();
        }
    }
}

/// `qkv` `[tokens, qkv_dim]` (rotated) to `out` `[tokens, heads · head_dim]`. `softmax` `[tokens, heads, 2]` keeps each row's
/// maximum and the inverse of its sum: their f32 log-sum-exp would cost the backward pass several bits where scores are large.
/// Parallel over query blocks.
pub fn forward(qkv: &[f32], shape: Shape, visibility: &Visibility, out: &mut [f32], softmax: &mut [f32]) {
    let (mut tasks, mut out, mut softmax) = (Vec::new(), out, softmax);
    for block in visibility.runs.iter().flat_map(Run::blocks) {
        let (o, rest) = std::mem::take(&mut out).split_at_mut(block.rows.len() * shape.q_dim());
        let (l, tail) = std::mem::take(&mut softmax).split_at_mut(block.rows.len() * shape.heads * 2);
        (out, softmax) = (rest, tail);
        tasks.push((block, o, l));
    }
    tasks
        .into_par_iter()
        .for_each_init(Vec::new, |s, (block, out, softmax)| forward_block(qkv, shape, &block, s, out, softmax));
}

fn forward_block(qkv: &[f32], shape: Shape, block: &Block, s: &mut Vec<f32>, out: &mut [f32], softmax: &mut [f32]) {
    let (d, stride, rows) = (shape.head_dim, shape.qkv_dim(), block.rows.len());
    s.resize(rows * block.total, 0.0);
    for h in 0..shape.heads {
        let kv_head = h / shape.group();
        let q = Mat::rows(&qkv[block.rows.start * stride + h * d..], stride);
        block.scores(s, q, &qkv[(shape.heads + kv_head) * d..], stride, d, shape.scale());
        simd(
            #[inline(always)]
            || {
                for (i, row) in s.chunks_exact_mut(block.total).enumerate() {
                    let (row, hidden) = row.split_at_mut(block.visible(i));
                    hidden.fill(0.0);
                    let max = max(row);
                    let sum = exp_sum(row, max);
                    let inv = 1.0 / sum;
                    softmax[(i * shape.heads + h) * 2..][..2].copy_from_slice(&[max, inv]);
                    row.iter_mut().for_each(|p| *p *= inv);
                }
            },
        );
        let mut at = 0;
        for (n, keys) in block.keys.iter().enumerate() {
            let v = Mat::rows(&qkv[keys.start * stride + (shape.heads + shape.kv_heads + kv_head) * d..], stride);
            gemm(
                (rows, d, keys.len()),
                &mut out[h * d..],
                shape.q_dim(),
                n > 0,
                1.0,
                Mat::rows(&s[at..], block.total),
                v,
            );
            at += keys.len();
        }
    }
}

/// Gradient of `qkv` (overwritten, still rotated). Parallel over chunks of runs and kv heads; each task sums the gradient of the
/// keys it reads in a private buffer, and the buffers are added in a fixed order.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    d_out: &[f32],
    qkv: &[f32],
    out: &[f32],
    softmax: &[f32],
    shape: Shape,
    visibility: &Visibility,
    d_qkv: &mut [f32],
) {
    let (d, stride) = (shape.head_dim, shape.qkv_dim());
    let chunks = visibility.chunks();
    let tasks: Vec<_> = chunks.iter().flat_map(|&runs| (0..shape.kv_heads).map(move |kv| (runs, kv))).collect();
    let grads: Vec<_> =
        tasks.into_par_iter().map(|(runs, kv)| backward_chunk(d_out, qkv, out, softmax, shape, runs, kv)).collect();
    d_qkv.par_chunks_mut(stride).for_each(|row| row[shape.q_dim()..].fill(0.0));
    for (i, g) in grads.iter().enumerate() {
        let kv = i % shape.kv_heads;
        let width = shape.group() * d;
        for (row, t) in g.dq.chunks_exact(width).zip(g.queries.clone()) {
            d_qkv[t * stride + kv * width..][..width].copy_from_slice(row);
        }
        for (t, row) in g.keys.iter().cloned().flatten().zip(g.dkv.chunks_exact(2 * d)) {
            for (part, at) in row.chunks_exact(d).zip([shape.heads + kv, shape.heads + shape.kv_heads + kv]) {
                residual::forward(&mut d_qkv[t * stride + at * d..][..d], part);
            }
        }
    }
}

/// Gradients of one chunk of runs and one kv head.
struct ChunkGrads {
    queries: Range<usize>,
    /// `[queries, group · head_dim]`
    dq: Vec<f32>,
    /// The key intervals that `dkv` covers, ascending and disjoint.
    keys: Vec<Range<usize>>,
    /// `[keys, 2 head_dim]`: dK, then dV
    dkv: Vec<f32>,
}

impl ChunkGrads {
    fn new(runs: &[Run], shape: Shape) -> ChunkGrads {
        let queries = runs[0].tokens.start..runs[runs.len() - 1].tokens.end;
        let mut all: Vec<_> = runs.iter().flat_map(|r| r.ancestors.iter().cloned()).chain([queries.clone()]).collect();
        all.sort_by_key(|r| r.start);
        let mut keys: Vec<Range<usize>> = Vec::new();
        for r in all {
            match keys.last_mut() {
                Some(last) if r.start <= last.end => last.end = last.end.max(r.end),
                _ => keys.push(r),
            }
        }
        let covered: usize = keys.iter().map(|k| k.len()).sum();
        let dq = vec![0.0; queries.len() * shape.group() * shape.head_dim];
        ChunkGrads { queries, dq, keys, dkv: vec![0.0; covered * 2 * shape.head_dim] }
    }

    /// Row of `dkv` that belongs to key `t`.
    fn row(&self, t: usize) -> usize {
        self.keys.iter().take_while(|k| k.start <= t).map(|k| k.end.min(t) - k.start).sum()
    }
}

fn backward_chunk(
    d_out: &[f32],
    qkv: &[f32],
    out: &[f32],
    softmax: &[f32],
    shape: Shape,
    runs: &[Run],
    kv: usize,
) -> ChunkGrads {
    let (d, stride, q_dim) = (shape.head_dim, shape.qkv_dim(), shape.q_dim());
    let width = shape.group() * d;
    let mut g = ChunkGrads::new(runs, shape);
    let (mut p, mut ds) = (Vec::new(), Vec::new());
    for block in runs.iter().flat_map(Run::blocks) {
        let rows = block.rows.len();
        p.resize(rows * block.total, 0.0);
        ds.resize(rows * block.total, 0.0);
        for h in kv * shape.group()..(kv + 1) * shape.group() {
            let q = Mat::rows(&qkv[block.rows.start * stride + h * d..], stride);
            let (o_at, o_end) = (block.rows.start * q_dim + h * d, (block.rows.end - 1) * q_dim + (h + 1) * d);
            let (d_o, o) = (&d_out[o_at..o_end], &out[o_at..o_end]);
            block.scores(&mut p, q, &qkv[(shape.heads + kv) * d..], stride, d, shape.scale());
            let v_at = (shape.heads + shape.kv_heads + kv) * d;
            block.scores(&mut ds, Mat::rows(d_o, q_dim), &qkv[v_at..], stride, d, 1.0);
            simd(
                #[inline(always)]
                || {
                    for (i, (p, ds)) in
                        p.chunks_exact_mut(block.total).zip(ds.chunks_exact_mut(block.total)).enumerate()
                    {
                        let seen = block.visible(i);
                        p[seen..].fill(0.0);
                        ds[seen..].fill(0.0);
                        let row = (block.rows.start + i) * shape.heads + h;
                        let (max, inv) = (softmax[row * 2], softmax[row * 2 + 1]);
                        let delta: f32 =
                            d_o[i * q_dim..][..d].iter().zip(&o[i * q_dim..][..d]).map(|(a, b)| a * b).sum();
                        for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
                            *p = exp(*p - max) * inv;
                            *ds = *p * (*ds - delta);
                        }
                    }
                },
            );
            let dq_at = (block.rows.start - g.queries.start) * width + (h - kv * shape.group()) * d;
            let mut at = 0;
            for (n, keys) in block.keys.iter().enumerate() {
                let k = Mat::rows(&qkv[keys.start * stride + (shape.heads + kv) * d..], stride);
                let ds_n = Mat::rows(&ds[at..], block.total);
                gemm((rows, d, keys.len()), &mut g.dq[dq_at..], width, n > 0, shape.scale(), ds_n, k);
                let row = g.row(keys.start) * 2 * d;
                let shape_kv = (keys.len(), d, rows);
                let ds_t = Mat::transposed(&ds[at..], block.total);
                gemm(shape_kv, &mut g.dkv[row..], 2 * d, true, shape.scale(), ds_t, q);
                let p_t = Mat::transposed(&p[at..], block.total);
                gemm(shape_kv, &mut g.dkv[row + d..], 2 * d, true, 1.0, p_t, Mat::rows(d_o, q_dim));
                at += keys.len();
            }
        }
    }
    g
}

/// One query against a paged cache (decoding): `q` `[group, head_dim]` are the query heads of one kv head, `pages` yields
/// (keys, values) of consecutive pages: keys `[head_dim, PAGE]` (so that scores vectorise over tokens), values
/// `[PAGE, head_dim]`. `len` keys are visible. `out` `[group, head_dim]`; `scores` is scratch.
pub fn decode<'a, const PAGE: usize>(
    q: &[f32],
    head_dim: usize,
    len: usize,
    pages: impl Iterator<Item = (&'a [f32], &'a [f32])> + Clone,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let padded = len.next_multiple_of(PAGE);
    scores.resize(2 * padded, 0.0);
    simd(
        #[inline(always)]
        || {
            // Two heads share what is loaded, and keep two sums going.
            for (q, out) in q.chunks(2 * head_dim).zip(out.chunks_mut(2 * head_dim)) {
                let (pages, scores) = (pages.clone(), &mut scores[..padded * (q.len() / head_dim)]);
                if q.len() == head_dim {
                    decode_heads::<1, PAGE>(q, head_dim, len, pages, scores, out);
                } else {
                    decode_heads::<2, PAGE>(q, head_dim, len, pages, scores, out);
                }
            }
        },
    )
}

#[inline(always)]
fn decode_heads<'a, const HEADS: usize, const PAGE: usize>(
    q: &[f32],
    head_dim: usize,
    len: usize,
    pages: impl Iterator<Item = (&'a [f32], &'a [f32])> + Clone,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let scale = 1.0 / (head_dim as f32).sqrt();
    let padded = scores.len() / HEADS;
    let seen = pages.take(padded / PAGE);
    let mut ahead = seen.clone().skip(1).map(|(keys, _)| keys).chain(seen.clone().take(1).map(|(_, values)| values));
    for (page, (keys, _)) in seen.clone().enumerate() {
        let ahead = ahead.next().unwrap_or_default();
        let mut sum = [[0.0f32; PAGE]; HEADS];
        for (j, k) in keys.as_chunks::<PAGE>().0.iter().enumerate() {
            prefetch(ahead.get(j * PAGE..(j + 1) * PAGE).unwrap_or_default());
            for h in 0..HEADS {
                let q = q[h * head_dim + j] * scale;
                for i in 0..PAGE {
                    sum[h][i] = k[i].mul_add(q, sum[h][i]);
                }
            }
        }
        for h in 0..HEADS {
            scores[h * padded + page * PAGE..][..PAGE].copy_from_slice(&sum[h]);
        }
    }
    for scores in scores.chunks_exact_mut(padded) {
        let scores = &mut scores[..len];
        let max = max(scores);
        let inv = 1.0 / exp_sum(scores, max);
        scores.iter_mut().for_each(|p| *p *= inv);
    }
    if head_dim.is_multiple_of(32) {
        weigh::<HEADS, PAGE, 32>(scores, head_dim, len, seen, out);
    } else {
        weigh::<HEADS, PAGE, 2>(scores, head_dim, len, seen, out);
    }
}

/// `out = probs · values`, page by page, `WIDTH` columns at a time: they stay in registers over a page's keys.
#[inline(always)]
fn weigh<'a, const HEADS: usize, const PAGE: usize, const WIDTH: usize>(
    probs: &[f32],
    head_dim: usize,
    len: usize,
    pages: impl Iterator<Item = (&'a [f32], &'a [f32])> + Clone,
    out: &mut [f32],
) {
    let padded = probs.len() / HEADS;
    out.fill(0.0);
    let mut ahead = pages.clone().skip(1).map(|(_, values)| values);
    for (page, (_, values)) in pages.enumerate() {
        let (first, ahead) = (page * PAGE, ahead.next().unwrap_or_default());
        for column in (0..head_dim).step_by(WIDTH) {
            let mut sum = [[0.0f32; WIDTH]; HEADS];
            for h in 0..HEADS {
                sum[h].copy_from_slice(&out[h * head_dim + column..][..WIDTH]);
            }
            for (i, v) in values.chunks_exact(head_dim).take(len - first).enumerate() {
                let (v, at) = (&v[column..column + WIDTH], i * head_dim + column);
                prefetch(ahead.get(at..at + WIDTH).unwrap_or_default());
                for h in 0..HEADS {
                    let p = probs[h * padded + first + i];
                    for c in 0..WIDTH {
                        sum[h][c] = v[c].mul_add(p, sum[h][c]);
                    }
                }
            }
            for h in 0..HEADS {
                out[h * head_dim + column..][..WIDTH].copy_from_slice(&sum[h]);
            }
        }
    }
}

#[inline(always)]
fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = x.chunks_exact(16);
    let tail = chunks.remainder().iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    for c in chunks {
        for i in 0..16 {
            lanes[i] = if c[i] > lanes[i] { c[i] } else { lanes[i] };
        }
    }
    lanes.iter().fold(tail, |a, b| a.max(*b))
}

/// Replaces x by exp(x − max) and returns the sum.
#[inline(always)]
fn exp_sum(x: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let mut chunks = x.chunks_exact_mut(16);
    for c in &mut chunks {
        for i in 0..16 {
            c[i] = exp(c[i] - max);
            lanes[i] += c[i];
        }
    }
    let mut tail = 0.0;
    for x in chunks.into_remainder() {
        *x = exp(*x - max);
        tail += *x;
    }
    lanes.iter().sum::<f32>() + tail
}
