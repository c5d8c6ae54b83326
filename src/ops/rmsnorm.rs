//! RMSNorm: y = w · x · r with r = 1 / sqrt(mean(x²) + eps), per row.
//!
//! Backward, with c = mean(dy · w · x): dx = r · (w · dy − x · r² · c), dw = Σ_rows dy · x · r.

pub(crate) mod case;

use crate::device::cpu::simd;

/// `x`, `y`: `[rows, hidden]`; `rstd`: `[rows]`, kept for the backward pass.
pub fn forward(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    let hidden = w.len();
    simd(
        #[inline(always)]
        || {
            for ((x, y), rstd) in x.chunks_exact(hidden).zip(y.chunks_exact_mut(hidden)).zip(rstd) {
                let r = 1.0 / (dot(x, x) / hidden as f32 + eps).sqrt();
                *rstd = r;
                for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                    *y = w * (x * r);
                }
            }
        },
    )
}

/// Adds to `dx` `[rows, hidden]` and, unless the weight is frozen, to `dw` `[hidden]`.
pub fn backward(dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32], dx: &mut [f32], mut dw: Option<&mut [f32]>) {
    let hidden = w.len();
    simd(
        #[inline(always)]
        || {
            let rows = dy.chunks_exact(hidden).zip(x.chunks_exact(hidden)).zip(dx.chunks_exact_mut(hidden));
            for (((dy, x), dx), &r) in rows.zip(rstd) {
                let mut lanes = [0.0f32; LANES];
                let (dy8, x8, w8) = (dy.chunks_exact(LANES), x.chunks_exact(LANES), w.chunks_exact(LANES));
                let mut tail = 0.0;
                for ((g, x), w) in dy8.remainder().iter().zip(x8.remainder()).zip(w8.remainder()) {
                    tail += g * w * x;
                }
                for ((g, x), w) in dy8.zip(x8).zip(w8) {
                    for i in 0..LANES {
                        lanes[i] = (g[i] * w[i]).mul_add(x[i], lanes[i]);
                    }
                }
                let c = (lanes.iter().sum::<f32>() + tail) / hidden as f32 * r * r;
                for (((dx, g), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
                    *dx += r * (w * g - x * c);
                }
                for ((dw, g), x) in dw.iter_mut().flat_map(|dw| dw.iter_mut()).zip(dy).zip(x) {
                    *dw += g * x * r;
                }
            }
        },
    )
}

const LANES: usize = 16;

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a8, b8) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a8.zip(b8) {
        for i in 0..LANES {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// On a GPU, in bf16: `x`, `y`, `dy`, `dx` `[rows, hidden]`, `rstd` f32 `[rows]`; `hidden` is that of `w`, a multiple of 8 up to 8192.
pub mod cuda {
    use crate::device::{Arg, Gpu, Launch, Real, Result, Slice, expect};
    use half::bf16;

    /// Blocks of the backward pass: two for each multiprocessor of an H100. Fixed, so that dw has the same bits everywhere.
    const GRID: usize = 264;

    /// Checks the sizes that all of them share; the rows and the threads of a block.
    fn sizes(op: &'static str, whole: &[usize], hidden: usize, rows: usize) -> Result<(u32, u32)> {
        let fits = hidden > 0 && hidden.is_multiple_of(8) && hidden <= 8192 && rows <= i32::MAX as usize;
        expect(op, fits && whole.iter().all(|n| *n == rows * hidden), || {
            format!("matrices of {whole:?} elements for {rows} rows of {hidden} (a multiple of 8, at most 8192)")
        })?;
        Ok((rows as u32, (hidden / 8).next_multiple_of(32) as u32))
    }

    /// `y = x · rstd · w`, and `rstd`, the reciprocal root mean square of each row.
    ///
    /// # Errors
    /// If the sizes do not fit together, or the launch fails.
    pub fn forward(
        gpu: &Gpu,
        x: &Slice<bf16>,
        w: &Slice<bf16>,
        eps: f32,
        y: &Slice<bf16>,
        rstd: &Slice<f32>,
    ) -> Result<()> {
        let (rows, threads) = sizes("rmsnorm forward", &[x.len(), y.len()], w.len(), rstd.len())?;
        let args = [x.arg(), w.arg(), y.arg(), rstd.arg(), Arg::from(w.len() as i32), Arg::from(eps)];
        let (grid, block) = ([rows, 1, 1], [threads, 1, 1]);
        gpu.launch(Launch { kernel: "rmsnorm_forward_bf16", grid, block, shared: 0, args: &args })
    }

    /// The norm of `sum = x + delta`, which is kept; `sum` may be `x`.
    ///
    /// # Errors
    /// If the sizes do not fit together, or the launch fails.
    #[allow(clippy::too_many_arguments)]
    pub fn forward_add(
        gpu: &Gpu,
        x: &Slice<bf16>,
        delta: &Slice<bf16>,
        w: &Slice<bf16>,
        eps: f32,
        sum: &Slice<bf16>,
        y: &Slice<bf16>,
        rstd: &Slice<f32>,
    ) -> Result<()> {
        let whole = [x.len(), delta.len(), sum.len(), y.len()];
        let (rows, threads) = sizes("rmsnorm forward with residual", &whole, w.len(), rstd.len())?;
        let hidden = Arg::from(w.len() as i32);
        let args = [x.arg(), delta.arg(), w.arg(), sum.arg(), y.arg(), rstd.arg(), hidden, Arg::from(eps)];
        let (grid, block) = ([rows, 1, 1], [threads, 1, 1]);
        gpu.launch(Launch { kernel: "rmsnorm_forward_add_bf16", grid, block, shared: 0, args: &args })
    }

    /// Adds to `dx` and, unless the weight is frozen, to `dw` `[hidden]`.
    ///
    /// # Errors
    /// If the sizes do not fit together, or a launch fails.
    pub fn backward<T: Real>(
        gpu: &Gpu,
        dy: &Slice<bf16>,
        x: &Slice<bf16>,
        w: &Slice<bf16>,
        rstd: &Slice<f32>,
        dx: &Slice<bf16>,
        dw: Option<&Slice<T>>,
    ) -> Result<()> {
        let (op, hidden) = ("rmsnorm backward", w.len());
        let (rows, threads) = sizes(op, &[dy.len(), x.len(), dx.len()], hidden, rstd.len())?;
        let blocks = GRID.min(rows as usize);
        let partial = gpu.uninit::<f32>(blocks * hidden)?;
        let (grid, block) = ([blocks as u32, 1, 1], [threads, 1, 1]);
        let [tall, wide] = [rows as i32, hidden as i32].map(Arg::from);
        let args = [dy.arg(), x.arg(), w.arg(), rstd.arg(), dx.arg(), partial.arg(), tall, wide];
        gpu.launch(Launch { kernel: "rmsnorm_backward_bf16", grid, block, shared: 0, args: &args })?;
        dw.map_or(Ok(()), |dw| add_partial(gpu, op, &partial, blocks, dw))
    }

    /// Adds the sum of `partial` `[blocks, hidden]` over the blocks to `dw` `[hidden]`.
    pub(in crate::ops) fn add_partial<T: Real>(
        gpu: &Gpu,
        op: &'static str,
        partial: &Slice<f32>,
        blocks: usize,
        dw: &Slice<T>,
    ) -> Result<()> {
        let hidden = dw.len();
        expect(op, partial.len() == blocks * hidden, || {
            format!("dw of {hidden} elements for {blocks} sums, {} elements in all", partial.len())
        })?;
        let kernel = format!("rmsnorm_backward_dw_{}", T::NAME);
        let (grid, block) = ([hidden.div_ceil(64) as u32, 1, 1], [8, 32, 1]);
        let args = [partial.arg(), dw.arg(), Arg::from(blocks as i32), Arg::from(hidden as i32)];
        gpu.launch(Launch { kernel: &kernel, grid, block, shared: 0, args: &args })
    }
}
