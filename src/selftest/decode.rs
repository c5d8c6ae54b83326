//! The checks of the paged cache and of attention over it.

use super::attention::{near, qkv};
use super::{BF16, Probe, Size, widen};
use crate::bench::ceilings::Work;
use crate::device::{Result, Tensor};
use crate::ops::attention::Shape;
use crate::ops::decode_attention;
use crate::ops::decode_attention::cuda::{self, Cache, PAGE, Rows};
use crate::ops::rope;
use half::bf16;

/// A layer between others, as pages hold several.
const LAYERS: usize = 3;
const LAYER: usize = 1;

/// Contexts, the first tokens of which (whole pages) all sequences share; and heads.
struct Case {
    contexts: Vec<usize>,
    shared: usize,
    shape: Shape,
}

fn cases(p: &Probe) -> Vec<Case> {
    let case = |contexts: &[usize], shared, [heads, kv_heads, head_dim]: [usize; 3]| Case {
        contexts: contexts.to_vec(),
        shared,
        shape: Shape { heads, kv_heads, head_dim },
    };
    let mut cases = vec![
        case(&[1], 0, [1, 1, 64]),
        case(&[33, 1, 32, 31], 0, [4, 2, 128]),
        case(&[257, 66, 64], 64, [7, 1, 64]),
        // More than one split, exactly one, and a key more.
        case(&[1030, 5, 512, 513], 0, [3, 1, 64]),
        case(&[600], 0, [16, 1, 128]),
    ];
    if p.size == Size::Full {
        cases.push(case(&(0..256).map(|i| 512 + 4 * i).collect::<Vec<_>>(), 256, [16, 2, 128]));
    }
    cases
}

/// The cache as kernels see it, and every token's row of rotated qkv, as bf16 holds it.
struct Filled {
    cache: Cache,
    tables: Vec<Vec<u32>>,
    /// (sequence, position) of every token.
    rows: Vec<(u32, u32)>,
    rotated: Vec<f32>,
}

impl Filled {
    /// Pages are dealt in no order of their sequences'. What is shared is written once.
    fn new(p: &mut Probe, case: &Case) -> Result<Filled> {
        let shared = case.shared / PAGE;
        let own: Vec<usize> = case.contexts.iter().map(|n| n.div_ceil(PAGE) - shared).collect();
        let pages = shared + own.iter().sum::<usize>();
        let mut free = 0..pages as u32;
        let common: Vec<u32> = free.by_ref().rev().take(shared).collect();
        let tables = own.iter().map(|n| common.iter().copied().chain(free.by_ref().rev().take(*n)).collect()).collect();
        let rows: Vec<(u32, u32)> = (0u32..)
            .zip(&case.contexts)
            .flat_map(|(s, n)| {
                (0..*n as u32).filter(move |at| s == 0 || *at as usize >= case.shared).map(move |at| (s, at))
            })
            .collect();
        let Shape { heads, kv_heads, head_dim } = case.shape;
        let width = case.shape.qkv_dim();
        let (narrow, mut rotated) = qkv(rows.len() * width);
        let position: Vec<u32> = rows.iter().map(|(_, at)| *at).collect();
        let angles = rope::Tables::new(1e4, head_dim, position.iter().max().map_or(0, |last| *last as usize + 1));
        rope::rotate(&mut rotated, width, heads + kv_heads, &position, &angles, false);
        rotated.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        let filled = Filled { cache: Cache::new(p.gpu, case.shape, LAYERS, pages)?, tables, rows, rotated };
        let (written, angles) = (p.gpu.tensor(&narrow)?, rope::cuda::Tables::new(p.gpu, &angles)?);
        cuda::append(p.gpu, &written, &filled.rows(p, &filled.rows)?, &angles, &filled.cache, LAYER)?;
        let written = widen(&p.gpu.read(&*written)?);
        for (got, want) in written.chunks(width).zip(filled.rotated.chunks(width)) {
            for (g, w) in got[..heads * head_dim].iter().zip(want) {
                let error = (g - w).abs() / (2.0 * BF16 * w.abs() + 1e-5);
                p.note(error.into(), || format!("a query of {:?} is {g}, should be {w}", case.shape));
            }
        }
        Ok(filled)
    }

    fn rows(&self, p: &Probe, rows: &[(u32, u32)]) -> Result<Rows> {
        let tables: Vec<&[u32]> = self.tables.iter().map(Vec::as_slice).collect();
        Rows::new(p.gpu, &self.cache, rows, &tables)
    }

    /// A token's row, wherever it was written.
    fn row<'a>(&'a self, case: &Case, sequence: u32, at: usize) -> &'a [f32] {
        let owner = if at < case.shared { 0 } else { sequence };
        let row = self.rows.iter().position(|r| *r == (owner, at as u32)).unwrap_or(0);
        let width = case.shape.qkv_dim();
        &self.rotated[row * width..(row + 1) * width]
    }
}

/// Rows near the ends of their contexts, at the edges of pages, and some between.
fn queried(case: &Case) -> Vec<(u32, u32)> {
    let of = |(s, n): (u32, &usize)| {
        let last = *n as u32 - 1;
        [last, last / 2, 31.min(last), 32.min(last)].map(|at| (s, at))
    };
    let mut rows: Vec<(u32, u32)> = (0u32..).zip(&case.contexts).flat_map(of).collect();
    rows.sort_unstable();
    rows.dedup();
    rows
}

/// By the CPU's attention over one page that holds the whole context.
fn want(filled: &Filled, case: &Case, (sequence, at): (u32, u32)) -> Vec<f32> {
    let Shape { heads, kv_heads, head_dim: d } = case.shape;
    let (len, group) = (at as usize + 1, heads / kv_heads);
    let padded = len.next_multiple_of(PAGE);
    let mut out = vec![0.0; heads * d];
    let query = &filled.row(case, sequence, at as usize)[..heads * d];
    for kv in 0..kv_heads {
        // Keys are stored by column, a page at a time.
        let (mut keys, mut values) = (vec![0.0; padded * d], vec![0.0; padded * d]);
        for t in 0..len {
            let row = filled.row(case, sequence, t);
            let key = &row[(heads + kv) * d..][..d];
            let (page, i) = (t / PAGE, t % PAGE);
            key.iter().enumerate().for_each(|(j, k)| keys[page * PAGE * d + j * PAGE + i] = *k);
            values[t * d..][..d].copy_from_slice(&row[(heads + kv_heads + kv) * d..][..d]);
        }
        let pages = keys.chunks(PAGE * d).zip(values.chunks(PAGE * d));
        let of = kv * group * d..(kv + 1) * group * d;
        decode_attention::decode::<PAGE>(&query[of.clone()], d, len, pages, &mut Vec::new(), &mut out[of]);
    }
    out
}

pub fn append_and_forward(p: &mut Probe) -> Result<()> {
    for case in cases(p) {
        let filled = Filled::new(p, &case)?;
        let (gpu, queried, shape) = (p.gpu, queried(&case), case.shape);
        let width = shape.qkv_dim();
        let mut queries = Vec::with_capacity(queried.len() * width);
        for (sequence, at) in &queried {
            let row = filled.row(&case, *sequence, *at as usize).iter().map(|x| bf16::from_f32(*x));
            queries.extend(row);
        }
        let (queries, rows): (Tensor<bf16>, Rows) = (gpu.tensor(&queries)?, filled.rows(p, &queried)?);
        let out = gpu.uninit::<bf16>(queried.len() * shape.q_dim())?;
        let keys: usize = queried.iter().map(|(_, at)| *at as usize + 1).sum();
        let work = Work::Bytes(4 * keys * shape.kv_heads * shape.head_dim);
        p.time(work, || cuda::forward(gpu, &queries, &rows, &filled.cache, LAYER, &out))?;
        let want: Vec<f32> = queried.iter().flat_map(|row| want(&filled, &case, *row)).collect();
        near(p, &format!("contexts {:?}, {shape:?}", case.contexts), &out, &want, 1.5)?;
    }
    Ok(())
}
