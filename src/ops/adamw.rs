//! AdamW with decoupled weight decay (Loshchilov & Hutter 2019) and clipping by the global norm.
//!
//! p ← p (1 − lr·wd); m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²; p ← p − lr · m̂ / (√v̂ + eps), with bias-corrected m̂, v̂ and
//! g scaled by min(1, clip / (‖g‖ + 1e-6)).

pub(crate) mod case;

use crate::device::cpu::simd;
use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

/// Elements of one task: fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 1 << 14;

/// The hyperparameters of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// The learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// What is added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Factor on every gradient: see [`clip_scale`].
    pub grad_scale: f32,
    /// Number of this step, from 1.
    pub step: u32,
}

/// What a step computes of them once for all elements of a tensor; the kernels' struct of this name.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct AdamWScalars {
    /// lr / (1 − β₁ᵗ)
    pub rate: f32,
    /// 1 / √(1 − β₂ᵗ)
    pub inv_root: f32,
    /// 1 − lr · decay, or 1.
    pub keep: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
}

impl AdamW {
    /// Of a tensor whose weights decay or do not.
    pub(super) fn scalars(&self, decay: bool) -> AdamWScalars {
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(self.step as i32);
        AdamWScalars {
            rate: (f64::from(self.lr) / correction(self.beta1)) as f32,
            inv_root: (1.0 / correction(self.beta2).sqrt()) as f32,
            keep: if decay { 1.0 - self.lr * self.weight_decay } else { 1.0 },
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
        }
    }
}

/// Global L2 norm; not finite if any element is not.
pub fn grad_norm(grads: &[f32]) -> f64 {
    let sums: Vec<f64> = grads
        .par_chunks(CHUNK)
        .map(|chunk| {
            let mut lanes = [0.0f64; 8];
            for (i, &g) in chunk.iter().enumerate() {
                lanes[i % 8] += f64::from(g) * f64::from(g);
            }
            lanes.iter().sum()
        })
        .collect();
    sums.iter().sum::<f64>().sqrt()
}

/// The factor that brings a gradient of this norm down to `clip` (1 when it is already smaller, or when `clip` is 0).
pub fn clip_scale(norm: f64, clip: f32) -> f32 {
    if clip == 0.0 { 1.0 } else { (f64::from(clip) / (norm + 1e-6)).min(1.0) as f32 }
}

/// Updates one tensor (any slice of the flat buffers) in parallel; `decay` switches weight decay on.
pub fn step(o: &AdamW, decay: bool, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let AdamWScalars { rate, inv_root, keep, .. } = o.scalars(decay);
    let parts =
        p.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
    parts.for_each(|(((p, g), m), v)| {
        simd(
            #[inline(always)]
            || {
                for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                    let g = g * o.grad_scale;
                    *m += (g - *m) * (1.0 - o.beta1);
                    *v = *v * o.beta2 + g * g * (1.0 - o.beta2);
                    *p = *p * keep - rate * *m / (v.sqrt() * inv_root + o.eps);
                }
            },
        )
    });
}

/// On a GPU: master weights and moments in f32, gradients in bf16 or f32, a copy of the weights in bf16 for the model. Lengths are
/// multiples of 8: tensors in a flat buffer are padded.
pub mod cuda {
    use super::AdamW;
    use crate::device::{Arg, Error, Gpu, Launch, Real, Result, Slice, Tensor, expect};
    use half::bf16;

    /// Blocks of the norm: four for each multiprocessor of an H100. Fixed, so that the norm has the same bits everywhere.
    const GRID: usize = 528;

    /// How the copy is rounded.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Rounding {
        /// To the nearest value, ties to even.
        Nearest,
        /// Up or down at random, unbiased, by a Philox stream.
        Stochastic {
            /// The run's seed.
            seed: u64,
            /// Tells the steps apart.
            stream: u64,
        },
    }

    /// What a step works on, all of one length.
    pub struct OptimizerState<'a> {
        /// Master weights.
        pub p: &'a Slice<f32>,
        /// First moments.
        pub m: &'a Slice<f32>,
        /// Second moments.
        pub v: &'a Slice<f32>,
        /// The weights in bf16, for the model.
        pub copy: &'a Slice<bf16>,
    }

    /// Which elements of a flat buffer decay: one launch steps them all.
    pub struct Decays {
        turns: Tensor<u32>,
        len: usize,
    }

    impl Decays {
        /// Of stretches that follow each other, each a multiple of 8 elements.
        ///
        /// # Errors
        /// If one is not, or the device has no memory.
        pub fn new(gpu: &Gpu, stretches: impl IntoIterator<Item = (usize, bool)>) -> Result<Decays> {
            let (mut turns, mut at, mut now) = (Vec::new(), 0, false);
            for (len, decays) in stretches {
                expect("adamw", len.is_multiple_of(8), || format!("{len} elements, no multiple of 8"))?;
                if decays != now {
                    turns.push((at / 8) as u32);
                }
                (at, now) = (at + len, decays);
            }
            Ok(Decays { turns: gpu.tensor(&turns)?, len: at })
        }
    }

    /// As [`super::step`], but gradients are scaled by `scale` `[1]`, which lies on the device (see [`grad_norm`]), not by
    /// `grad_scale`.
    ///
    /// # Errors
    /// If the sizes do not fit together, or a launch fails.
    pub fn step<T: Real>(
        gpu: &Gpu,
        o: &AdamW,
        decays: &Decays,
        state: &OptimizerState,
        g: &Slice<T>,
        scale: &Slice<f32>,
        rounding: Rounding,
    ) -> Result<()> {
        let n = g.len();
        let lengths = [state.p.len(), state.m.len(), state.v.len(), state.copy.len()];
        expect("adamw", n == decays.len && lengths == [n; 4] && scale.len() == 1, || {
            let (scales, of) = (scale.len(), decays.len);
            format!("{n} gradients and {scales} scales for weights of {lengths:?} in stretches of {of}")
        })?;
        let mut args = vec![state.p.arg(), g.arg(), state.m.arg(), state.v.arg(), state.copy.arg(), scale.arg()];
        args.extend([
            decays.turns.arg(),
            Arg::from(decays.turns.len() as i32),
            Arg::from(n as u64),
            Arg::from(o.scalars(true)),
        ]);
        let kernel = match rounding {
            Rounding::Nearest => format!("adamw_step_{}", T::NAME),
            Rounding::Stochastic { seed, stream } => {
                args.extend([seed, stream].map(Arg::from));
                format!("adamw_step_stochastic_{}", T::NAME)
            }
        };
        // 64-bit offsets: more than 2³² elements are fine.
        let (blocks, block, shared) = ((n / 8).div_ceil(256), [256, 1, 1], 0);
        let grid = [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1];
        if grid[0] > i32::MAX as u32 {
            return Err(Error::Launch { kernel, grid, block, shared, problem: format!("{n} elements are too many") });
        }
        gpu.launch(Launch { kernel: &kernel, grid, block, shared, args: &args })
    }

    /// `norm` `[2]` = the L2 norm of `g`, and the factor that clips it (1 if `clip` is 0).
    ///
    /// # Errors
    /// If the sizes do not fit together, or a launch fails.
    pub fn grad_norm<T: Real>(gpu: &Gpu, g: &Slice<T>, clip: f32, norm: &Slice<f32>) -> Result<()> {
        let n = g.len();
        expect("gradient norm", n.is_multiple_of(8) && norm.len() == 2, || {
            format!("{n} gradients (a multiple of 8) to a norm of {} elements (2)", norm.len())
        })?;
        let blocks = GRID.min(n.div_ceil(8 * 256).max(1));
        let partial = gpu.uninit::<f32>(blocks)?;
        let (kernel, block, shared) = (format!("adamw_grad_norm_partial_{}", T::NAME), [256, 1, 1], 0);
        let args = [g.arg(), partial.arg(), Arg::from(n as u64)];
        gpu.launch(Launch { kernel: &kernel, grid: [blocks as u32, 1, 1], block, shared, args: &args })?;
        let args = [partial.arg(), norm.arg(), Arg::from(blocks as i32), Arg::from(clip)];
        gpu.launch(Launch { kernel: "adamw_grad_norm_finish_f32", grid: [1; 3], block, shared, args: &args })
    }
}
