//! AdamW with moments of 8 bits (Dettmers et al. 2022), as bitsandbytes defines them.
//!
//! A moment is a code for each element and a scale for each block of 256, the block's largest |m|: m = map(code) · scale. The map has a
//! dynamic exponent: the more leading zeros, the fewer bits for the fraction. That of the first moment is signed, that of the second is
//! not. A step widens the moments to f32, updates them and the weights as [`super::adamw`] does, and takes the nearest codes.
//!
//! All tensors are quantised, the small ones too; bitsandbytes leaves those below 4096 elements in f32.
//!
//! Weights are kept in f32, or in bf16 alone: then they are rounded up or down at random, so that what is smaller than a bf16's last
//! bit is not lost on average.

pub(crate) mod case;

use super::adamw::{AdamW, AdamWScalars};
use super::philox::block;
use half::bf16;
use rayon::prelude::*;
use std::sync::OnceLock;

/// Elements that share a scale. Blocks begin with each tensor.
pub const BLOCK: usize = 256;

/// Blocks of one task.
const TASK: usize = 64;

/// The values of the 256 codes, ascending: for exponent i, 2^i (signed) or 2^(i+1) means of equal parts of [0.1, 1], times 10^(i-6); 0, 1.
fn dynamic_map(signed: bool) -> [f32; 256] {
    let mut values = vec![0.0f32, 1.0];
    for i in 0..7 {
        let parts = if signed { 1usize << i } else { 2 << i };
        // As torch.linspace: from both ends to the middle.
        let step = (1.0f32 - 0.1) / parts as f32;
        let at = |j: usize| {
            if j < parts.div_ceil(2) { 0.1 + step * j as f32 } else { 1.0 - step * (parts - j) as f32 }
        };
        let scale = 10f64.powi(i - 6) as f32;
        let means = (0..parts).map(|j| scale * ((at(j) + at(j + 1)) / 2.0));
        values.extend(means.flat_map(|mean| if signed { vec![mean, -mean] } else { vec![mean] }));
    }
    values.sort_by(f32::total_cmp);
    values.try_into().unwrap_or([0.0; 256])
}

/// The maps of the first and of the second moment.
pub fn maps() -> &'static [[f32; 256]; 2] {
    static MAPS: OnceLock<[[f32; 256]; 2]> = OnceLock::new();
    MAPS.get_or_init(|| [dynamic_map(true), dynamic_map(false)])
}

/// One tensor's moment.
#[derive(Debug)]
pub struct Quantized<'a> {
    /// A code for each element.
    pub codes: &'a mut [u8],
    /// A scale for each block.
    pub absmax: &'a mut [f32],
}

/// The code whose value is nearest to `x`, the lower of two.
fn nearest(map: &[f32; 256], x: f32) -> u8 {
    let (mut low, mut high) = (0, 255);
    for _ in 0..8 {
        let middle = (low + high) / 2;
        if x > map[middle] { low = middle } else { high = middle }
    }
    if (x - map[low]).abs() <= (x - map[high]).abs() { low as u8 } else { high as u8 }
}

/// The codes and the scale of one block.
fn quantize_block(map: &[f32; 256], x: &[f32], codes: &mut [u8]) -> f32 {
    let absmax = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    // A block of zeros has the codes of 0.
    let by = if absmax > 0.0 { absmax } else { 1.0 };
    codes.iter_mut().zip(x).for_each(|(code, x)| *code = nearest(map, x / by));
    absmax
}

/// The nearest codes of `x`, and the scales.
pub fn quantize(map: &[f32; 256], x: &[f32], to: Quantized<'_>) {
    let blocks = x.chunks(BLOCK).zip(to.codes.chunks_mut(BLOCK)).zip(to.absmax);
    blocks.for_each(|((x, codes), absmax)| *absmax = quantize_block(map, x, codes));
}

/// Where the weights are bf16 alone: which random numbers round them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stochastic {
    /// The run's seed.
    pub seed: u64,
    /// Tells the steps apart.
    pub stream: u64,
    /// The tensor's first element, a multiple of 8 on a GPU.
    pub first: usize,
}

impl Stochastic {
    /// `x` rounded to bf16, up or down with the chances that make it right on average; it is element `i` of the tensor.
    fn round(&self, x: f32, i: usize) -> f32 {
        let at = self.first + i;
        let bits = block(self.seed, self.stream, at as u64 / 8)[at % 8 / 2] >> (16 * (at % 2)) & 0xFFFF;
        bf16::from_bits((x.to_bits().wrapping_add(bits) >> 16) as u16).to_f32()
    }
}

/// Updates one tensor and its moments, in parallel; `decay` switches weight decay on. With `rounding` the weights hold numbers of bf16,
/// before and after.
pub fn step(
    o: &AdamW,
    decay: bool,
    p: &mut [f32],
    g: &[f32],
    [m, v]: [Quantized<'_>; 2],
    rounding: Option<Stochastic>,
) {
    let AdamWScalars { rate, inv_root, keep, .. } = o.scalars(decay);
    let [signed, unsigned] = maps();
    let codes = m.codes.par_chunks_mut(BLOCK).zip(v.codes.par_chunks_mut(BLOCK));
    let scales = m.absmax.par_iter_mut().zip(v.absmax);
    let blocks = p.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).zip(codes).zip(scales).enumerate();
    blocks.with_min_len(TASK).for_each(|(number, (((p, g), (m, v)), (m_scale, v_scale)))| {
        let (mut mean, mut square) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
        for i in 0..p.len() {
            let g = g[i] * o.grad_scale;
            let (before_m, before_v) = (signed[m[i] as usize] * *m_scale, unsigned[v[i] as usize] * *v_scale);
            mean[i] = before_m + (g - before_m) * (1.0 - o.beta1);
            square[i] = before_v * o.beta2 + g * g * (1.0 - o.beta2);
            p[i] = p[i] * keep - rate * mean[i] / (square[i].sqrt() * inv_root + o.eps);
        }
        if let Some(rounding) = rounding {
            p.iter_mut().zip(number * BLOCK..).for_each(|(p, i)| *p = rounding.round(*p, i));
        }
        *m_scale = quantize_block(signed, &mean[..p.len()], m);
        *v_scale = quantize_block(unsigned, &square[..p.len()], v);
    });
}

/// On a GPU: a tensor a launch, of a multiple of 8 elements.
pub mod cuda {
    use super::{AdamW, BLOCK, Stochastic};
    use crate::device::{Arg, Gpu, Launch, Result, Slice, expect};
    use half::bf16;

    /// As [`super::Quantized`].
    #[derive(Clone, Copy)]
    pub struct Quantized<'a> {
        /// A code for each element.
        pub codes: &'a Slice<u8>,
        /// A scale for each block.
        pub absmax: &'a Slice<f32>,
    }

    /// Where a tensor's weights are kept.
    #[derive(Clone, Copy)]
    pub enum Kept<'a> {
        /// In f32; what the model reads is the nearest in bf16.
        Master(&'a Slice<f32>),
        /// In what the model reads alone.
        Copy(Stochastic),
    }

    /// What a step works on: one tensor's weights in bf16, its gradient, and what all tensors share: [`super::maps`], and the factor
    /// that clips `[1]`.
    #[derive(Clone, Copy)]
    pub struct Tensor8<'a> {
        /// The weights that the model reads.
        pub copy: &'a Slice<bf16>,
        /// Where they are kept.
        pub kept: Kept<'a>,
        /// The gradient.
        pub g: &'a Slice<f32>,
        /// `[2, 256]`
        pub maps: &'a Slice<f32>,
        /// The factor of the gradient.
        pub scale: &'a Slice<f32>,
    }

    /// As [`super::step`], but gradients are scaled by what lies on the device.
    ///
    /// # Errors
    /// If the sizes do not fit together, or the launch fails.
    pub fn step(gpu: &Gpu, o: &AdamW, decay: bool, of: Tensor8<'_>, [m, v]: [Quantized<'_>; 2]) -> Result<()> {
        let (n, blocks) = (of.g.len(), of.g.len().div_ceil(BLOCK));
        let master = if let Kept::Master(p) = of.kept { p.len() } else { n };
        let lengths = [of.copy.len(), master, m.codes.len(), v.codes.len()];
        let scales = [m.absmax.len(), v.absmax.len()];
        let shared = (of.maps.len(), of.scale.len()) == (512, 1);
        expect("adamw_8bit", n.is_multiple_of(8) && lengths == [n; 4] && scales == [blocks; 2] && shared, || {
            format!(
                "{n} gradients (a multiple of 8) for weights and codes of {lengths:?}, scales of {scales:?} ({blocks} blocks)"
            )
        })?;
        let mut args = vec![of.g.arg(), m.codes.arg(), v.codes.arg(), m.absmax.arg(), v.absmax.arg()];
        args.extend([of.copy.arg(), of.scale.arg(), of.maps.arg(), Arg::from(n as u64), Arg::from(o.scalars(decay))]);
        let kernel = match of.kept {
            Kept::Master(p) => {
                args.insert(0, p.arg());
                "adamw_8bit_step_f32"
            }
            Kept::Copy(Stochastic { seed, stream, first }) => {
                args.extend([seed, stream, first as u64 / 8].map(Arg::from));
                "adamw_8bit_step_bf16"
            }
        };
        let grid = [blocks.div_ceil(8) as u32, 1, 1];
        gpu.launch(Launch { kernel, grid, block: [256, 1, 1], shared: 0, args: &args })
    }
}
