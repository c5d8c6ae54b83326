//! Causal grouped-query attention over a forest: o_i = Σ_j softmax_j(q_i·k_j / √d) v_j over the keys with `j ≤ i < reach[j]`.
//!
//! The packed order makes visibility a few intervals: a *run* is a stretch of tokens each of which is the child of the one
//! before, and a run sees its ancestors' intervals in full and itself causally. So no mask is ever read, nothing invisible is
//! computed, and the largest scratch is one query block against one tile of keys.
//!
//! Backward, with P the softmax, dP = dO Vᵀ and δ_i = dO_i·O_i: dS = P ∘ (dP − δ), dQ = dS K/√d, dK = dSᵀ Q/√d, dV = Pᵀ dO.

pub(crate) mod case;
pub(crate) mod cuda;

use super::residual;
use crate::device::Dtype;
use crate::device::cpu::{Mat, Product, exp, simd};
use rayon::prelude::*;
use std::ops::Range;

/// Query rows of a block.
pub(super) const QUERIES: usize = 64;
/// Keys of a tile: its scores, and what they are made of, stay in the second-level cache.
pub(super) const KEYS: usize = 384;
/// Most tasks of a backward pass, and the fewest (query, key) pairs worth one. Each task of a long sequence has a buffer for nearly
/// all of its keys.
const TASKS: usize = 32;
const MIN_WORK: usize = 1 << 16;

/// Sizes of an attention layer. Rows of `qkv` are `[heads q | kv_heads k | kv_heads v]`, each `head_dim` wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Shape {
    /// Length of a row of queries.
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }
    /// Length of a row of `qkv`.
    pub fn qkv_dim(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
    pub(crate) fn group(&self) -> usize {
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
    /// From `reach` alone (see [`crate::forest`]): token t + 1 is a child of t iff `t + 1 < reach[t]`.
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
    /// The keys in tiles, each with the number of keys before it.
    fn tiles(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let tiles = self
            .keys
            .iter()
            .flat_map(|keys| keys.clone().step_by(KEYS).map(move |start| start..(start + KEYS).min(keys.end)));
        tiles.scan(0, |before, tile| {
            let at = *before;
            *before += tile.len();
            Some((at, tile))
        })
    }

    /// Keys among the `total` that the block's `i`-th query sees.
    fn visible(&self, i: usize) -> usize {
        self.total - (self.rows.len() - 1 - i)
    }

    fn work(&self) -> usize {
        self.rows.len() * self.total
    }
}

/// A tile of keys of one kv head: keys `[head_dim, len]`, values `[len, head_dim]`.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub keys: Mat<'a>,
    pub values: Mat<'a>,
    pub len: usize,
}

impl<'a> Tile<'a> {
    /// The keys and values of the rows `tile` of `qkv`.
    pub fn of_rows(qkv: &'a [f32], shape: Shape, kv: usize, tile: &Range<usize>) -> Tile<'a> {
        let (d, stride) = (shape.head_dim, shape.qkv_dim());
        let row = &qkv[tile.start * stride..];
        let keys = Mat::transposed(&row[(shape.heads + kv) * d..], stride);
        let values = Mat::rows(&row[(shape.heads + shape.kv_heads + kv) * d..], stride);
        Tile { keys, values, len: tile.len() }
    }
}

/// Copies the heads of `kv` from `rows` rows of `x`, `stride` apart, one head's rows behind the other's: one matrix product then
/// serves all heads that share keys.
fn stack(x: &[f32], stride: usize, shape: Shape, kv: usize, rows: usize, stacked: &mut Vec<f32>) {
    let d = shape.head_dim;
    stacked.clear();
    for h in kv * shape.group()..(kv + 1) * shape.group() {
        (0..rows).for_each(|i| stacked.extend_from_slice(&x[i * stride + h * d..][..d]));
    }
}

/// Softmax attention of the stacked queries of one kv head, a tile of keys at a time: sums are scaled again whenever a greater
/// score turns up.
pub(super) struct Online {
    dtype: Dtype,
    q: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
    /// Of each row: its greatest score so far, and the sum of exp(score - greatest).
    stats: Vec<[f32; 2]>,
}

impl Online {
    /// Whose products are of factors in `dtype`.
    pub fn new(dtype: Dtype) -> Online {
        Online { dtype, q: Vec::new(), scores: Vec::new(), out: Vec::new(), stats: Vec::new() }
    }

    /// Begins with `rows` rows of `qkv`.
    pub fn begin(&mut self, qkv: &[f32], shape: Shape, kv: usize, rows: usize) {
        stack(qkv, shape.qkv_dim(), shape, kv, rows, &mut self.q);
        self.out.clear();
        self.out.resize(self.q.len(), 0.0);
        self.stats.clear();
        self.stats.resize(rows * shape.group(), [f32::NEG_INFINITY, 0.0]);
    }

    /// Adds a tile, of which query `i` sees the first `visible(i)` keys or all.
    pub fn add(&mut self, shape: Shape, rows: usize, tile: Tile<'_>, visible: impl Fn(usize) -> usize) {
        let (d, n, stacked) = (shape.head_dim, tile.len, self.stats.len());
        self.scores.resize(stacked * n, 0.0);
        let scores = &mut self.scores[..stacked * n];
        let product = Product::new(self.dtype, (stacked, n, d)).alpha(shape.scale());
        product.run(scores, n, Mat::rows(&self.q, d), tile.keys);
        let rows =
            scores.chunks_exact_mut(n).zip(self.out.chunks_exact_mut(d)).zip(&mut self.stats).zip((0..rows).cycle());
        simd(
            #[inline(always)]
            || {
                for (((row, out), stats), i) in rows {
                    let (row, hidden) = row.split_at_mut(visible(i).min(n));
                    hidden.fill(0.0);
                    let [before, sum] = *stats;
                    let max = max(row).max(before);
                    let again = exp(before - max);
                    if again != 1.0 {
                        out.iter_mut().for_each(|x| *x *= again);
                    }
                    *stats = [max, sum * again + exp_sum(row, max)];
                }
            },
        );
        let product = Product::new(self.dtype, (stacked, d, n)).accumulate(true);
        product.run(&mut self.out, d, Mat::rows(&self.scores, n), tile.values);
    }

    /// The outputs, stacked, `[group · rows, head_dim]`.
    pub fn finish(&mut self, shape: Shape) -> &[f32] {
        for (out, [_, sum]) in self.out.chunks_exact_mut(shape.head_dim).zip(&self.stats) {
            let inv = 1.0 / sum;
            out.iter_mut().for_each(|x| *x *= inv);
        }
        &self.out
    }
}

/// `qkv` `[tokens, qkv_dim]` (rotated) to `out` `[tokens, heads · head_dim]`. `softmax` `[tokens, heads, 2]` keeps each row's
/// maximum and the inverse of its sum, products are of factors in `dtype`: their f32 log-sum-exp would cost the backward pass several bits where scores are large.
/// Parallel over query blocks.
pub fn forward(dtype: Dtype, qkv: &[f32], shape: Shape, visibility: &Visibility, out: &mut [f32], softmax: &mut [f32]) {
    let (mut tasks, mut out, mut softmax) = (Vec::new(), out, softmax);
    for block in visibility.runs.iter().flat_map(Run::blocks) {
        let (o, rest) = std::mem::take(&mut out).split_at_mut(block.rows.len() * shape.q_dim());
        let (l, tail) = std::mem::take(&mut softmax).split_at_mut(block.rows.len() * shape.heads * 2);
        (out, softmax) = (rest, tail);
        tasks.push((block, o, l));
    }
    tasks.into_par_iter().for_each_init(
        || Online::new(dtype),
        |online, (block, out, softmax)| {
            let rows = block.rows.len();
            for kv in 0..shape.kv_heads {
                online.begin(&qkv[block.rows.start * shape.qkv_dim()..], shape, kv, rows);
                for (at, tile) in block.tiles() {
                    let visible = |i| block.visible(i).saturating_sub(at);
                    online.add(shape, rows, Tile::of_rows(qkv, shape, kv, &tile), visible);
                }
                online.finish(shape);
                for (n, (from, [max, sum])) in online.out.chunks_exact(shape.head_dim).zip(&online.stats).enumerate() {
                    let (i, h) = (n % rows, kv * shape.group() + n / rows);
                    out[i * shape.q_dim() + h * shape.head_dim..][..shape.head_dim].copy_from_slice(from);
                    softmax[(i * shape.heads + h) * 2..][..2].copy_from_slice(&[*max, 1.0 / sum]);
                }
            }
        },
    );
}

/// What the backward pass reads.
#[derive(Clone, Copy)]
struct Saved<'a> {
    dtype: Dtype,
    d_out: &'a [f32],
    qkv: &'a [f32],
    out: &'a [f32],
    softmax: &'a [f32],
    shape: Shape,
}

/// Gradient of `qkv` (overwritten, still rotated). Parallel over parts of the query blocks, of about equal work, and kv heads; each
/// task sums the gradient of the keys it reads in a private buffer, and the buffers are added in a fixed order.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    dtype: Dtype,
    d_out: &[f32],
    qkv: &[f32],
    out: &[f32],
    softmax: &[f32],
    shape: Shape,
    visibility: &Visibility,
    d_qkv: &mut [f32],
) {
    let saved = Saved { dtype, d_out, qkv, out, softmax, shape };
    let blocks: Vec<Block> = visibility.runs.iter().flat_map(Run::blocks).collect();
    let parts = parts(&blocks, shape.kv_heads);
    let tasks: Vec<_> = parts.iter().flat_map(|&part| (0..shape.kv_heads).map(move |kv| (part, kv))).collect();
    let tasks = tasks.into_par_iter().with_max_len(1);
    let grads: Vec<PartGrads> =
        tasks.map_init(Scratch::default, |scratch, (blocks, kv)| backward_part(saved, blocks, kv, scratch)).collect();
    d_qkv.par_chunks_mut(QUERIES * shape.qkv_dim()).enumerate().for_each(|(i, rows)| {
        let first = i * QUERIES;
        rows.chunks_exact_mut(shape.qkv_dim()).for_each(|row| row[shape.q_dim()..].fill(0.0));
        grads.iter().for_each(|part| part.add_to(rows, first, shape));
    });
}

/// Consecutive blocks of about equal work. How many parts does not depend on the number of threads, so neither do the sums.
fn parts(blocks: &[Block], kv_heads: usize) -> Vec<&[Block]> {
    let all: usize = blocks.iter().map(Block::work).sum();
    let share = all.div_ceil(TASKS.div_ceil(kv_heads)).max(MIN_WORK);
    let (mut parts, mut first, mut work) = (Vec::new(), 0, 0);
    for (i, block) in blocks.iter().enumerate() {
        work += block.work();
        if work >= share || i + 1 == blocks.len() {
            parts.push(&blocks[first..=i]);
            (first, work) = (i + 1, 0);
        }
    }
    parts
}

/// Gradients of one part of the queries and one kv head.
struct PartGrads {
    kv: usize,
    queries: Range<usize>,
    /// `[queries, group · head_dim]`
    dq: Vec<f32>,
    /// The key intervals that `dkv` covers, ascending and disjoint.
    keys: Vec<Range<usize>>,
    /// `[keys, 2 head_dim]`: dK, then dV
    dkv: Vec<f32>,
}

impl PartGrads {
    fn new(blocks: &[Block], kv: usize, shape: Shape) -> PartGrads {
        let queries = blocks[0].rows.start..blocks[blocks.len() - 1].rows.end;
        let mut all: Vec<_> = blocks.iter().flat_map(|b| b.keys.iter().cloned()).collect();
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
        PartGrads { kv, queries, dq, keys, dkv: vec![0.0; covered * 2 * shape.head_dim] }
    }

    /// Row of `dkv` that belongs to key `t`.
    fn row(&self, t: usize) -> usize {
        self.keys.iter().take_while(|k| k.start <= t).map(|k| k.end.min(t) - k.start).sum()
    }

    /// Adds what belongs to the rows of `qkv` that begin with `first`.
    fn add_to(&self, rows: &mut [f32], first: usize, shape: Shape) {
        let (d, stride, width) = (shape.head_dim, shape.qkv_dim(), shape.group() * shape.head_dim);
        let all = first..first + rows.len() / stride;
        let common = |r: &Range<usize>| r.start.max(all.start)..r.end.min(all.end);
        for t in common(&self.queries) {
            let dq = &self.dq[(t - self.queries.start) * width..][..width];
            rows[(t - first) * stride + self.kv * width..][..width].copy_from_slice(dq);
        }
        for own in self.keys.iter().map(common).filter(|own| !own.is_empty()) {
            let dkv = self.dkv[self.row(own.start) * 2 * d..].chunks_exact(2 * d);
            for (row, dkv) in rows[(own.start - first) * stride..].chunks_exact_mut(stride).zip(dkv).take(own.len()) {
                let (dk, dv) = dkv.split_at(d);
                residual::forward(&mut row[(shape.heads + self.kv) * d..][..d], dk);
                residual::forward(&mut row[(shape.heads + shape.kv_heads + self.kv) * d..][..d], dv);
            }
        }
    }
}

/// Stacked rows of one block, and its scores against one tile.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    d_out: Vec<f32>,
    dq: Vec<f32>,
    /// Of each row: the softmax's maximum, the inverse of its sum, and δ.
    stats: Vec<[f32; 3]>,
    p: Vec<f32>,
    ds: Vec<f32>,
}

impl Scratch {
    fn begin(&mut self, saved: Saved<'_>, block: &Block, kv: usize) {
        let Saved { d_out, qkv, out, softmax, shape, .. } = saved;
        let (d, q_dim, first, rows) = (shape.head_dim, shape.q_dim(), block.rows.start, block.rows.len());
        stack(&qkv[first * shape.qkv_dim()..], shape.qkv_dim(), shape, kv, rows, &mut self.q);
        stack(&d_out[first * q_dim..], q_dim, shape, kv, rows, &mut self.d_out);
        self.dq.clear();
        self.dq.resize(self.q.len(), 0.0);
        self.stats.clear();
        for (n, d_o) in self.d_out.chunks_exact(d).enumerate() {
            let (t, h) = (first + n % rows, kv * shape.group() + n / rows);
            let delta = d_o.iter().zip(&out[t * q_dim + h * d..]).map(|(a, b)| a * b).sum();
            let at = (t * shape.heads + h) * 2;
            self.stats.push([softmax[at], softmax[at + 1], delta]);
        }
    }

    /// P and dS of a tile of `n` keys, from its scores and dO Vᵀ. Query `i` sees the first `visible(i)` keys or all.
    fn scores(&mut self, rows: usize, n: usize, visible: impl Fn(usize) -> usize) {
        let rows = self.p.chunks_exact_mut(n).zip(self.ds.chunks_exact_mut(n)).zip(&self.stats).zip((0..rows).cycle());
        simd(
            #[inline(always)]
            || {
                for (((p, ds), [max, inv, delta]), i) in rows {
                    let seen = visible(i).min(n);
                    p[seen..].fill(0.0);
                    ds[seen..].fill(0.0);
                    for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
                        *p = exp(*p - max) * inv;
                        *ds = *p * (*ds - delta);
                    }
                }
            },
        )
    }
}

fn backward_part(saved: Saved<'_>, blocks: &[Block], kv: usize, s: &mut Scratch) -> PartGrads {
    let Saved { dtype, qkv, shape, .. } = saved;
    let product = |m, n, k| Product::new(dtype, (m, n, k));
    let (d, scale) = (shape.head_dim, shape.scale());
    let mut g = PartGrads::new(blocks, kv, shape);
    for block in blocks {
        s.begin(saved, block, kv);
        let (rows, stacked) = (block.rows.len(), s.stats.len());
        for (at, range) in block.tiles() {
            let (tile, n) = (Tile::of_rows(qkv, shape, kv, &range), range.len());
            s.p.resize(stacked * n, 0.0);
            s.ds.resize(stacked * n, 0.0);
            let (q, d_out) = (Mat::rows(&s.q, d), Mat::rows(&s.d_out, d));
            let values = Mat::transposed(tile.values.data, tile.values.row_stride);
            product(stacked, n, d).alpha(scale).run(&mut s.p, n, q, tile.keys);
            product(stacked, n, d).run(&mut s.ds, n, d_out, values);
            s.scores(rows, n, |i| block.visible(i).saturating_sub(at));
            let (q, d_out) = (Mat::rows(&s.q, d), Mat::rows(&s.d_out, d));
            let keys = Mat::rows(tile.keys.data, tile.keys.col_stride);
            product(stacked, d, n).alpha(scale).accumulate(true).run(&mut s.dq, d, Mat::rows(&s.ds, n), keys);
            let row = g.row(range.start) * 2 * d;
            let (dk, ds) = (product(n, d, stacked).alpha(scale).accumulate(true), Mat::transposed(&s.ds, n));
            dk.run(&mut g.dkv[row..], 2 * d, ds, q);
            let (dv, p) = (product(n, d, stacked).accumulate(true), Mat::transposed(&s.p, n));
            dv.run(&mut g.dkv[row + d..], 2 * d, p, d_out);
        }
        let (width, first) = (shape.group() * d, block.rows.start - g.queries.start);
        for (n, dq) in s.dq.chunks_exact(d).enumerate() {
            g.dq[(first + n % rows) * width + n / rows * d..][..d].copy_from_slice(dq);
        }
    }
    g
}

#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
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
pub(super) fn exp_sum(x: &mut [f32], max: f32) -> f32 {
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
