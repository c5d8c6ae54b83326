//! The case of the paged cache and of attention over it.

use super::cuda::{self, Cache, PAGE, Rows};
use crate::device::{Gpu, Result};
use crate::ops::attention::{Shape, case::qkv};
use crate::ops::case::{BF16, Bf16s, Case, OpCase, Size, Trial, Work, widen};
use crate::ops::rope;
use half::bf16;
use std::fmt;

pub const CASES: &[&dyn Case] = &[&APPEND_AND_FORWARD];

const APPEND_AND_FORWARD: OpCase<Contexts> = OpCase { op: "decode_attention", pass: "", shapes, run };

/// A layer between others, as pages hold several.
const LAYERS: usize = 3;
const LAYER: usize = 1;

/// Contexts, the first tokens of which (whole pages) all sequences share; and heads.
struct Contexts {
    lengths: Vec<usize>,
    shared: usize,
    shape: Shape,
}

/// As the peers call theirs where all are of one length.
impl fmt::Display for Contexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, d, first) = (self.lengths.len(), self.shape.head_dim, self.lengths[0]);
        match self.lengths.iter().all(|length| *length == first) {
            true => write!(f, "hd{d} {n}x{first}"),
            false => write!(f, "hd{d} {n} contexts from {first} on"),
        }
    }
}

fn shapes(size: Size) -> Vec<Contexts> {
    let contexts = |lengths: &[usize], shared, [heads, kv_heads, head_dim]: [usize; 3]| Contexts {
        lengths: lengths.to_vec(),
        shared,
        shape: Shape { heads, kv_heads, head_dim },
    };
    match size {
        Size::Ragged => vec![
            contexts(&[1], 0, [1, 1, 64]),
            contexts(&[33, 1, 32, 31], 0, [4, 2, 128]),
            contexts(&[257, 66, 64], 64, [7, 1, 64]),
            // More than one split, exactly one, and a key more.
            contexts(&[1030, 5, 512, 513], 0, [3, 1, 64]),
            contexts(&[600], 0, [16, 1, 128]),
            // Groups that went on from one prompt: a tile of each, and rows that share it in part.
            contexts(&[1025, 1030, 1056, 1057, 1024 + 64, 1100, 1029, 1040], 1024, [7, 1, 64]),
            contexts(&[129, 130, 140, 200, 131], 128, [8, 2, 128]),
        ],
        Size::Model => vec![contexts(&(0..64).map(|i| 512 + 16 * i).collect::<Vec<_>>(), 256, [16, 2, 128])],
        Size::Peers => vec![contexts(&[1024; 256], 0, [16, 2, 64]), contexts(&[1024; 256], 0, [16, 2, 128])],
        // `uncouple bench generate` times it.
        Size::Task => Vec::new(),
    }
}

impl Contexts {
    /// The pages of each sequence, dealt in no order of their sequences'; and how many there are.
    fn tables(&self) -> (Vec<Vec<u32>>, usize) {
        let shared = self.shared / PAGE;
        let own: Vec<usize> = self.lengths.iter().map(|n| n.div_ceil(PAGE) - shared).collect();
        let pages = shared + own.iter().sum::<usize>();
        let mut free = 0..pages as u32;
        let common: Vec<u32> = free.by_ref().rev().take(shared).collect();
        let table = |n: &usize| common.iter().copied().chain(free.by_ref().rev().take(*n)).collect();
        (own.iter().map(table).collect(), pages)
    }

    /// Every token's row: those of the first sequence, and then what the others do not share.
    fn row(&self, sequence: u32, at: usize) -> usize {
        let before = |s: usize| self.lengths[..s].iter().sum::<usize>() - s.saturating_sub(1) * self.shared;
        match sequence as usize {
            0 => at,
            _ if at < self.shared => at,
            s => before(s) + at - self.shared,
        }
    }

    /// (sequence, position) of every row.
    fn rows(&self) -> Vec<(u32, u32)> {
        let of = |(s, n): (u32, &usize)| {
            let first = if s == 0 { 0 } else { self.shared as u32 };
            (first..*n as u32).map(move |at| (s, at))
        };
        (0u32..).zip(&self.lengths).flat_map(of).collect()
    }

    /// Rows near the ends of their contexts, at the edges of pages, and some between; of a group the last, as a step has them.
    fn queried(&self) -> Vec<(u32, u32)> {
        if self.shared > 0 {
            return self.last();
        }
        let of = |(s, n): (u32, &usize)| {
            let last = *n as u32 - 1;
            [last, last / 2, 31.min(last), 32.min(last)].map(|at| (s, at))
        };
        let mut rows: Vec<(u32, u32)> = (0u32..).zip(&self.lengths).flat_map(of).collect();
        rows.sort_unstable();
        rows.dedup();
        rows
    }

    /// The last token of each.
    fn last(&self) -> Vec<(u32, u32)> {
        (0u32..).zip(&self.lengths).map(|(s, n)| (s, *n as u32 - 1)).collect()
    }
}

/// The cache as kernels see it.
struct Paged {
    cache: Cache,
    tables: Vec<Vec<u32>>,
}

impl Paged {
    fn new(gpu: &Gpu, contexts: &Contexts) -> Result<Paged> {
        let (tables, pages) = contexts.tables();
        Ok(Paged { cache: Cache::new(gpu, contexts.shape, LAYERS, pages)?, tables })
    }

    fn rows(&self, gpu: &Gpu, rows: &[(u32, u32)]) -> Result<Rows> {
        Rows::new(gpu, &self.cache, rows, &self.tables.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }
}

fn run(contexts: &Contexts, t: &mut Trial<'_>) -> Result<()> {
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (shape, paged) = (contexts.shape, Paged::new(gpu, contexts)?);
    let queried = if t.compares() { contexts.queried() } else { contexts.last() };
    let tokens = if t.compares() { fill(contexts, &paged, t)? } else { qkv(queried.len() * shape.qkv_dim()) };
    let row = |(sequence, at): (u32, u32)| {
        let row = contexts.row(sequence, at as usize);
        &tokens.wide()[row * shape.qkv_dim()..][..shape.qkv_dim()]
    };
    let queries = match t.compares() {
        true => Bf16s::of(&queried.iter().flat_map(|at| row(*at)).copied().collect::<Vec<f32>>()).on(gpu)?,
        false => tokens.on(gpu)?,
    };
    let (rows, out) = (paged.rows(gpu, &queried)?, gpu.uninit::<bf16>(queried.len() * shape.q_dim())?);
    let keys: usize = queried.iter().map(|(_, at)| *at as usize + 1).sum();
    let work = Work::Bytes(4 * keys * shape.kv_heads * shape.head_dim);
    t.cuda(gpu, work, || cuda::forward(gpu, &queries, &rows, &paged.cache, LAYER, &out))?;
    if t.compares() {
        let want: Vec<f32> = queried.iter().flat_map(|at| want(shape, *at, row)).collect();
        t.near("out", &out, &want, 1.5)?;
    }
    Ok(())
}

/// Appends every token and compares its rotated query; the rotated rows, as bf16 holds them. What is shared is written once.
fn fill(contexts: &Contexts, paged: &Paged, t: &mut Trial<'_>) -> Result<Bf16s> {
    let (Some(gpu), rows, shape) = (t.gpu, contexts.rows(), contexts.shape) else { return Ok(Bf16s::of(&[])) };
    let Shape { heads, kv_heads, head_dim } = shape;
    let (width, position) = (shape.qkv_dim(), rows.iter().map(|(_, at)| *at).collect::<Vec<u32>>());
    let tokens = qkv(rows.len() * width);
    let angles = rope::Tables::new(1e4, head_dim, position.iter().max().map_or(0, |last| *last as usize + 1));
    let mut rotated = tokens.wide().to_vec();
    rope::rotate(&mut rotated, width, heads + kv_heads, &position, &angles, false);
    let rotated = Bf16s::of(&rotated);
    let (written, angles) = (tokens.on(gpu)?, rope::cuda::Tables::new(gpu, &angles)?);
    cuda::append(gpu, &written, &paged.rows(gpu, &rows)?, &angles, &paged.cache, LAYER)?;
    let written = widen(&gpu.read(&written)?);
    for (got, want) in written.chunks(width).zip(rotated.wide().chunks(width)) {
        for (g, w) in got[..heads * head_dim].iter().zip(want) {
            let error = (g - w).abs() / (2.0 * BF16 * w.abs() + 1e-5);
            t.note(error.into(), || format!("a query is {g}, should be {w}"));
        }
    }
    Ok(rotated)
}

/// By the CPU's attention over pages that hold the whole context.
fn want<'a>(shape: Shape, (sequence, at): (u32, u32), row: impl Fn((u32, u32)) -> &'a [f32]) -> Vec<f32> {
    let Shape { heads, kv_heads, head_dim: d } = shape;
    let (len, group) = (at as usize + 1, heads / kv_heads);
    let padded = len.next_multiple_of(PAGE);
    let (query, mut out) = (&row((sequence, at))[..heads * d], vec![0.0; heads * d]);
    for kv in 0..kv_heads {
        // Keys are stored by column, a page at a time.
        let (mut keys, mut values) = (vec![0.0; padded * d], vec![0.0; padded * d]);
        for t in 0..len {
            let row = row((sequence, t as u32));
            let key = &row[(heads + kv) * d..][..d];
            let (page, i) = (t / PAGE, t % PAGE);
            key.iter().enumerate().for_each(|(j, k)| keys[page * PAGE * d + j * PAGE + i] = *k);
            values[t * d..][..d].copy_from_slice(&row[(heads + kv_heads + kv) * d..][..d]);
        }
        let pages = keys.chunks(PAGE * d).zip(values.chunks(PAGE * d));
        let of = kv * group * d..(kv + 1) * group * d;
        super::decode::<PAGE, f32>(&query[of.clone()], d, len, pages, &mut Vec::new(), &mut out[of]);
    }
    out
}
