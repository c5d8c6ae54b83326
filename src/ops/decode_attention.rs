//! Attention over a paged cache (decoding and prefill).

pub(crate) mod case;
pub mod cuda;

use super::attention::{KEYS, Online, QUERIES, Shape, Tile, exp_sum, max};
use crate::device::Dtype;
use crate::device::cpu::{Mat, exp, prefetch, simd};
use bytemuck::Pod;
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Fewest new tokens of a sequence that are computed in blocks.
const BLOCKED: usize = 16;
/// Most keys of one task of a single query.
const SPLIT: usize = 1024;

/// What keys and values are kept in.
pub trait Element: Pod + Send + Sync {
    /// The nearest.
    fn narrow(x: f32) -> Self;
    /// Exactly.
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        bf16::from_f32(x)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// What a paged cache holds of one sequence in one layer. Keys of a page lie `[head_dim, PAGE]` (so that scores vectorise over
/// tokens), values `[PAGE, head_dim]`.
pub trait Paged: Sync {
    /// What they are kept in.
    type Element: Element;

    /// (keys, values) of a kv head, page by page.
    fn pages(&self, kv: usize) -> impl Iterator<Item = (&[Self::Element], &[Self::Element])> + Clone;
}

/// New tokens of a sequence: their rows of rotated qkv, and the cache, which holds `past` tokens before them, and them.
pub struct Input<'a, P> {
    /// Rows of rotated qkv.
    pub qkv: &'a [f32],
    /// Tokens before them.
    pub past: usize,
    /// The cache.
    pub cache: P,
}

/// One task: queries of an input, by one kv head's keys.
struct Piece {
    input: usize,
    rows: Range<usize>,
    kv: usize,
    keys: Range<usize>,
}

impl Piece {
    /// What the rows of an input are computed in: blocks of queries over all their keys, or, when they are few, single queries over
    /// parts of them. A function of the input alone.
    fn of(input: usize, new: usize, past: usize, kv_heads: usize) -> Vec<Piece> {
        let (rows, keys) = if new < BLOCKED { (1, SPLIT) } else { (QUERIES, usize::MAX) };
        let mut pieces = Vec::new();
        for start in (0..new).step_by(rows) {
            let rows = start..(start + rows).min(new);
            let seen = past + rows.end;
            for kv in 0..kv_heads {
                let parts = (0..seen).step_by(keys).map(|start| start..start.saturating_add(keys).min(seen));
                pieces.extend(parts.map(|keys| Piece { input, rows: rows.clone(), kv, keys }));
            }
        }
        pieces
    }

    fn same_queries(&self, other: &Piece) -> bool {
        (self.input, &self.rows, self.kv) == (other.input, &other.rows, other.kv)
    }
}

/// Attention of the new tokens of many sequences; `out` `[rows of all inputs, q_dim]`. With `spread` on all cores. A row's result
/// depends on its own input only.
pub fn forward<const PAGE: usize, P: Paged>(
    dtype: Dtype,
    inputs: &[Input<'_, P>],
    shape: Shape,
    spread: bool,
    out: &mut [f32],
) {
    let (qkv_dim, q_dim) = (shape.qkv_dim(), shape.q_dim());
    let rows = |input: &Input<'_, P>| input.qkv.len() / qkv_dim;
    let pieces = inputs.iter().enumerate().flat_map(|(i, input)| Piece::of(i, rows(input), input.past, shape.kv_heads));
    let pieces: Vec<Piece> = pieces.collect();
    let run = |scratch: &mut Scratch, piece: &Piece| scratch.run::<PAGE, P>(&inputs[piece.input], shape, piece);
    let found: Vec<Found> = if spread {
        pieces.par_iter().map_init(|| Scratch::new(dtype), run).collect()
    } else {
        let mut scratch = Scratch::new(dtype);
        pieces.iter().map(|piece| run(&mut scratch, piece)).collect()
    };
    let first: Vec<usize> = inputs
        .iter()
        .scan(0, |at, input| {
            *at += rows(input);
            Some(*at - rows(input))
        })
        .collect();
    let mut found = found.into_iter();
    for parts in pieces.chunk_by(Piece::same_queries) {
        let piece = &parts[0];
        let whole = Found::join(found.by_ref().take(parts.len()), shape.head_dim);
        let (n, at) = (piece.rows.len(), first[piece.input] + piece.rows.start);
        for (i, head) in whole.chunks_exact(shape.head_dim).enumerate() {
            let h = piece.kv * shape.group() + i / n;
            out[(at + i % n) * q_dim + h * shape.head_dim..][..shape.head_dim].copy_from_slice(head);
        }
    }
}

/// Outputs of stacked queries over some of their keys, and the maximum and the sum of each query's softmax.
struct Found {
    out: Vec<f32>,
    stats: Vec<[f32; 2]>,
}

impl Found {
    /// The outputs over all keys.
    fn join(mut parts: impl Iterator<Item = Found>, head_dim: usize) -> Vec<f32> {
        let Some(Found { mut out, mut stats }) = parts.next() else { return Vec::new() };
        for part in parts {
            let rows =
                out.chunks_exact_mut(head_dim).zip(&mut stats).zip(part.out.chunks_exact(head_dim)).zip(part.stats);
            for (((out, stats), more), [other_max, other_sum]) in rows {
                let max = stats[0].max(other_max);
                let (a, b) = (stats[1] * exp(stats[0] - max), other_sum * exp(other_max - max));
                let (wa, wb) = (a / (a + b), b / (a + b));
                out.iter_mut().zip(more).for_each(|(x, y)| *x = *x * wa + y * wb);
                *stats = [max, a + b];
            }
        }
        out
    }
}

struct Scratch {
    online: Online,
    scores: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Scratch {
    fn new(dtype: Dtype) -> Scratch {
        Scratch { online: Online::new(dtype), scores: Vec::new(), keys: Vec::new(), values: Vec::new() }
    }

    fn run<const PAGE: usize, P: Paged>(&mut self, input: &Input<'_, P>, shape: Shape, piece: &Piece) -> Found {
        let (d, width) = (shape.head_dim, shape.group() * shape.head_dim);
        let Piece { rows, kv, keys, .. } = piece;
        if input.qkv.len() / shape.qkv_dim() >= BLOCKED {
            return Found { out: self.block::<PAGE, P>(input, shape, piece), stats: Vec::new() };
        }
        let mut out = vec![0.0; width];
        let q = &input.qkv[rows.start * shape.qkv_dim() + kv * width..][..width];
        let pages = input.cache.pages(*kv).skip(keys.start / PAGE);
        let stats = decode::<PAGE, _>(q, d, keys.len(), pages, &mut self.scores, &mut out);
        Found { out, stats }
    }

    /// A block of queries: over what came before from pages, brought together tile by tile, and over the new tokens themselves.
    fn block<const PAGE: usize, P: Paged>(&mut self, input: &Input<'_, P>, shape: Shape, piece: &Piece) -> Vec<f32> {
        let (d, kv, rows) = (shape.head_dim, piece.kv, &piece.rows);
        self.online.begin(&input.qkv[rows.start * shape.qkv_dim()..], shape, kv, rows.len());
        let mut pages = input.cache.pages(kv);
        let wide = KEYS / PAGE * PAGE;
        for start in (0..input.past).step_by(wide) {
            let len = wide.min(input.past - start);
            self.keys.resize(d * wide, 0.0);
            self.values.clear();
            for (i, (keys, values)) in pages.by_ref().take(len.div_ceil(PAGE)).enumerate() {
                let rows = self.keys.chunks_exact_mut(wide).zip(keys.as_chunks::<PAGE>().0);
                let widen = |(to, from): (&mut f32, &P::Element)| *to = from.widen();
                rows.for_each(|(to, keys)| to[i * PAGE..][..PAGE].iter_mut().zip(keys).for_each(widen));
                self.values.extend(values.iter().map(|v| v.widen()));
            }
            let tile = Tile { keys: Mat::rows(&self.keys, wide), values: Mat::rows(&self.values, d), len };
            self.online.add(shape, rows.len(), tile, |_| len);
        }
        for start in (0..rows.end).step_by(KEYS) {
            let tile = start..(start + KEYS).min(rows.end);
            let visible = |i: usize| (rows.start + i + 1).saturating_sub(start);
            self.online.add(shape, rows.len(), Tile::of_rows(input.qkv, shape, kv, &tile), visible);
        }
        self.online.finish(shape).to_vec()
    }
}

/// One query against a paged cache: `q` `[group, head_dim]` are the query heads of one kv head, `pages` yields (keys, values) of
/// consecutive pages. `len` keys are visible. `out` `[group, head_dim]`; `scores` is scratch. The maximum and the sum of each
/// head's softmax.
pub fn decode<'a, const PAGE: usize, E: Element>(
    q: &[f32],
    head_dim: usize,
    len: usize,
    pages: impl Iterator<Item = (&'a [E], &'a [E])> + Clone,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) -> Vec<[f32; 2]> {
    let padded = len.next_multiple_of(PAGE);
    let mut stats = Vec::with_capacity(q.len() / head_dim);
    scores.resize(2 * padded, 0.0);
    simd(
        #[inline(always)]
        || {
            // Two heads share what is loaded, and keep two sums going.
            for (q, out) in q.chunks(2 * head_dim).zip(out.chunks_mut(2 * head_dim)) {
                let (pages, scores) = (pages.clone(), &mut scores[..padded * (q.len() / head_dim)]);
                if q.len() == head_dim {
                    stats.extend(decode_heads::<1, PAGE, E>(q, head_dim, len, pages, scores, out));
                } else {
                    stats.extend(decode_heads::<2, PAGE, E>(q, head_dim, len, pages, scores, out));
                }
            }
        },
    );
    stats
}

#[inline(always)]
fn decode_heads<'a, const HEADS: usize, const PAGE: usize, E: Element>(
    q: &[f32],
    head_dim: usize,
    len: usize,
    pages: impl Iterator<Item = (&'a [E], &'a [E])> + Clone,
    scores: &mut [f32],
    out: &mut [f32],
) -> [[f32; 2]; HEADS] {
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
                    sum[h][i] = k[i].widen().mul_add(q, sum[h][i]);
                }
            }
        }
        for h in 0..HEADS {
            scores[h * padded + page * PAGE..][..PAGE].copy_from_slice(&sum[h]);
        }
    }
    let mut stats = [[0.0; 2]; HEADS];
    for (scores, stats) in scores.chunks_exact_mut(padded).zip(&mut stats) {
        let scores = &mut scores[..len];
        let max = max(scores);
        let sum = exp_sum(scores, max);
        let inv = 1.0 / sum;
        scores.iter_mut().for_each(|p| *p *= inv);
        *stats = [max, sum];
    }
    if head_dim.is_multiple_of(32) {
        weigh::<HEADS, PAGE, 32, E>(scores, head_dim, len, seen, out);
    } else {
        weigh::<HEADS, PAGE, 2, E>(scores, head_dim, len, seen, out);
    }
    stats
}

/// `out = probs · values`, page by page, `WIDTH` columns at a time: they stay in registers over a page's keys.
#[inline(always)]
fn weigh<'a, const HEADS: usize, const PAGE: usize, const WIDTH: usize, E: Element>(
    probs: &[f32],
    head_dim: usize,
    len: usize,
    pages: impl Iterator<Item = (&'a [E], &'a [E])> + Clone,
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
                        sum[h][c] = v[c].widen().mul_add(p, sum[h][c]);
                    }
                }
            }
            for h in 0..HEADS {
                out[h * head_dim + column..][..WIDTH].copy_from_slice(&sum[h]);
            }
        }
    }
}
