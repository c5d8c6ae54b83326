//! On a GPU: activations in bf16, sums in f32, and of the kernels' parts in f64. A slab is rounded to bf16 before its products are
//! formed; ghost products round nothing.

use super::{GramMethod, flops};
use crate::device::{Arg, Gpu, Launch, Matmul, Operand, Real, Result, Slice, Tensor, expect};
use crate::ops::linear::cuda::WeightGrad;
use half::bf16;
use std::ops::Range;

/// Most samples that the slab's kernel takes.
const SAMPLES: usize = 64;
/// Columns that a block of it reads at once.
const DEPTH: usize = 64;
/// Elements of a slab tile, of all samples together: 256 MiB.
const SLAB: usize = 1 << 27;
/// Columns from one slab tile to the next are a multiple of it.
const ALIGNED: usize = 64;
/// Tokens of a side of a ghost tile.
const TILE: usize = 128;
/// Blocks that fill an H100, of the slab's kernel and of the ghosts'. Fixed, so that sums have the same bits everywhere.
const SLAB_BLOCKS: usize = 528;
const GHOST_BLOCKS: usize = 264;

/// Samples that lie one behind the other in the rows of a batch.
pub struct Samples {
    /// Where the rows of each end.
    pub ends: Vec<usize>,
    /// Where the rows of each begin, and the last end.
    start: Tensor<u32>,
}

impl Samples {
    pub fn new(gpu: &Gpu, ends: Vec<usize>) -> Result<Samples> {
        let start: Vec<u32> = [0].iter().chain(&ends).map(|&row| row as u32).collect();
        Ok(Samples { start: gpu.tensor(&start)?, ends })
    }

    fn rows(&self) -> impl Iterator<Item = Range<usize>> {
        let start = [0].into_iter().chain(self.ends.iter().copied());
        start.zip(&self.ends).map(|(start, &end)| start..end)
    }

    /// The cheaper method, counting what fills up the tiles of ghosts; ghosts for more samples than a slab's kernel takes.
    pub fn method(&self, in_features: usize, out: usize) -> GramMethod {
        let rows = self.ends.last().copied().unwrap_or(0);
        let filled = self.rows().map(|r| r.len().next_multiple_of(TILE)).sum();
        let cost = |method, rows| flops(method, rows, self.ends.len(), in_features, out);
        let slab_fits = self.ends.len() <= SAMPLES;
        if slab_fits && cost(GramMethod::Materialized, rows) <= cost(GramMethod::Ghost, filled) {
            GramMethod::Materialized
        } else {
            GramMethod::Ghost
        }
    }

    /// Adds the inner products of the gradients of the matrix that `columns` of `dy` belong to.
    pub fn add(
        &self,
        gpu: &Gpu,
        method: GramMethod,
        g: WeightGrad<'_>,
        columns: Range<usize>,
        gram: &Slice<f64>,
    ) -> Result<()> {
        let (n, samples) = (self.ends.last().copied().unwrap_or(0), self.ends.len());
        let (lengths, wanted) =
            ([g.x.len(), g.dy.len(), gram.len()], [n * g.in_features, n * g.out, samples * samples]);
        let whole = [g.in_features, g.out, columns.start, columns.end].iter().all(|n| n.is_multiple_of(8));
        let inside = columns.start < columns.end && columns.end <= g.out && g.in_features > 0;
        expect("gradient cosine", lengths == wanted && whole && inside, || {
            format!("{lengths:?} elements for {wanted:?}; columns {columns:?} of {}, multiples of 8", g.out)
        })?;
        match method {
            GramMethod::Materialized => self.slab(gpu, g, columns, gram),
            GramMethod::Ghost => self.ghost(gpu, g, columns, gram),
        }
    }

    fn slab(&self, gpu: &Gpu, g: WeightGrad<'_>, columns: Range<usize>, gram: &Slice<f64>) -> Result<()> {
        let (samples, width) = (self.ends.len(), g.in_features);
        // Each tile begins where the first does, as far as a product's loads need.
        let step = (SLAB / (samples * width).max(1)).max(ALIGNED) / ALIGNED * ALIGNED;
        let at = |of: &Slice<bf16>, place: usize| of.address() + (place * size_of::<bf16>()) as u64;
        let matrix =
            |address, stride| Operand { address, dtype: bf16::DTYPE, stride, transposed: false, batch_stride: 0 };
        for first in columns.clone().step_by(step) {
            let m = step.min(columns.end - first);
            // A sample without rows has a gradient of zeros, which no product writes.
            let empty = self.rows().any(|rows| rows.is_empty());
            let slab = if empty { gpu.zeros(samples * m * width)? } else { gpu.uninit(samples * m * width)? };
            for (i, rows) in self.rows().enumerate().filter(|(_, rows)| !rows.is_empty()) {
                let dy = Operand { transposed: true, ..matrix(at(g.dy, rows.start * g.out + first), g.out) };
                let x = matrix(at(g.x, rows.start * width), width);
                let dw = matrix(at(&slab, i * m * width), width);
                let (n, k, batch, alpha, beta) = (width, rows.len(), 1, 1.0, 0.0);
                gpu.matmul(&Matmul { m, n, k, batch, alpha, beta, a: dy, b: x, c: dw, bias: None })?;
            }
            slab_gram(gpu, &slab, samples, gram)?;
        }
        Ok(())
    }

    fn ghost(&self, gpu: &Gpu, g: WeightGrad<'_>, columns: Range<usize>, gram: &Slice<f64>) -> Result<()> {
        let samples = self.ends.len();
        let longest = self.rows().map(|r| r.len().div_ceil(TILE)).max().unwrap_or(0);
        let pairs = samples * (samples + 1) / 2;
        let parts = GHOST_BLOCKS.div_ceil(pairs.max(1)).min(longest * longest).max(1);
        let partial = gpu.uninit::<f32>(parts * samples * samples)?;
        let dy = Arg::Address(g.dy.address() + (columns.start * size_of::<bf16>()) as u64);
        let sizes = [samples, g.in_features, columns.len(), g.out].map(|n| Arg::from(n as i32));
        let args = [&[g.x.arg(), dy, self.start.arg(), partial.arg()][..], &sizes].concat();
        let (kernel, grid) = ("gradient_cosine_ghost_bf16", [pairs as u32, parts as u32, 1]);
        gpu.launch(Launch { kernel, grid, block: [256, 1, 1], shared: 48 << 10, args: &args })?;
        finish(gpu, &partial, samples, parts, gram)
    }
}

/// Adds all inner products of the rows of `slab` `[samples, n]`, at most 64 of them, n a multiple of 8.
pub fn slab_gram(gpu: &Gpu, slab: &Slice<bf16>, samples: usize, gram: &Slice<f64>) -> Result<()> {
    let n = slab.len() / samples.max(1);
    let fits =
        samples <= SAMPLES && n.is_multiple_of(8) && n * samples == slab.len() && gram.len() == samples * samples;
    expect("gradient cosine (slab)", fits, || {
        format!("{} elements for {samples} samples (at most {SAMPLES}), {} products", slab.len(), gram.len())
    })?;
    let parts = SLAB_BLOCKS.min(n.div_ceil(DEPTH));
    let partial = gpu.uninit::<f32>(parts * samples * samples)?;
    let args = [slab.arg(), partial.arg(), Arg::from(samples as i32), Arg::from(n as u64)];
    let (kernel, grid) = ("gradient_cosine_gram_bf16", [parts as u32, 1, 1]);
    gpu.launch(Launch { kernel, grid, block: [128, 1, 1], shared: 32 << 10, args: &args })?;
    finish(gpu, &partial, samples, parts, gram)
}

fn finish(gpu: &Gpu, partial: &Slice<f32>, samples: usize, parts: usize, gram: &Slice<f64>) -> Result<()> {
    let sizes = [samples, parts].map(|n| Arg::from(n as i32));
    let args = [partial.arg(), gram.arg(), sizes[0], sizes[1]];
    gpu.launch_threads("gradient_cosine_gram_finish_f64", samples * samples, &args)
}
