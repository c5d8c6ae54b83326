//! RoPE, half-split: element j of a head is rotated with element j + d/2 by the angle position · theta^(−2j/d).
//!
//! The rotation is orthogonal, so the backward pass is the rotation by the negative angle.

pub(crate) mod case;

use crate::device::cpu::simd;

/// f32 tables of cos and sin, `[positions, head_dim / 2]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tables {
    /// Pairs of a head: `head_dim / 2`.
    pub half: usize,
    /// The angle that a pair turns by from one position to the next, in radians.
    pub inv_freq: Vec<f32>,
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

/// Llama 3.1's scaling: of what turns slowly the angles are divided by `factor`, what turns fast stays as it is, and in between the
/// two are blended. A pair is slow when it makes less than `low_freq_factor` turns in the original context, and fast from
/// `high_freq_factor` turns on.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaling {
    /// What slow angles are divided by.
    pub factor: f32,
    /// Turns in the original context below which a pair is slow.
    pub low_freq_factor: f32,
    /// Turns in the original context from which a pair is fast.
    pub high_freq_factor: f32,
    /// Of the model before its context was extended, in tokens.
    pub original_max_position_embeddings: f32,
}

impl Scaling {
    /// The scaled frequencies of plain ones.
    pub fn apply(&self, mut frequencies: Vec<f32>) -> Vec<f32> {
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        for frequency in &mut frequencies {
            let turns = self.original_max_position_embeddings / (2.0 * std::f32::consts::PI / *frequency);
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            *frequency = (1.0 - kept) * *frequency / self.factor + kept * *frequency;
        }
        frequencies
    }
}

/// theta^(−2j/d) of each of the d/2 pairs of a head.
pub fn frequencies(theta: f32, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / head_dim as f32)).collect()
}

impl Tables {
    /// Tables of so many positions.
    pub fn new(theta: f32, head_dim: usize, positions: usize) -> Tables {
        Tables::of(frequencies(theta, head_dim), positions)
    }

    /// Of the given frequencies, one for each pair of a head.
    pub fn of(inv_freq: Vec<f32>, positions: usize) -> Tables {
        let angles = |f: fn(f64) -> f64| {
            (0..positions).flat_map(|p| inv_freq.iter().map(move |w| f((p as f32 * w) as f64) as f32)).collect()
        };
        Tables { half: inv_freq.len(), cos: angles(f64::cos), sin: angles(f64::sin), inv_freq }
    }
}

/// Rotates the first `heads` heads of every row of `x` `[rows, row_len]` in place; `inverse` is the backward pass.
pub fn rotate(x: &mut [f32], row_len: usize, heads: usize, position: &[u32], tables: &Tables, inverse: bool) {
    let half = tables.half;
    let sign = if inverse { -1.0 } else { 1.0 };
    simd(
        #[inline(always)]
        || {
            for (row, &p) in x.chunks_exact_mut(row_len).zip(position) {
                let cos = &tables.cos[p as usize * half..][..half];
                let sin = &tables.sin[p as usize * half..][..half];
                for head in row[..heads * 2 * half].chunks_exact_mut(2 * half) {
                    let (a, b) = head.split_at_mut(half);
                    for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                        let (x, y, s) = (*a, *b, s * sign);
                        *a = x * c - y * s;
                        *b = y * c + x * s;
                    }
                }
            }
        },
    )
}

/// On a GPU, in bf16.
pub mod cuda {
    use crate::device::{Arg, Gpu, Result, Slice, Tensor, expect};
    use half::bf16;

    /// [`super::Tables`] on the device.
    pub struct Tables {
        pub(in crate::ops) half: usize,
        pub(in crate::ops) cos: Tensor<f32>,
        pub(in crate::ops) sin: Tensor<f32>,
    }

    impl Tables {
        /// Copies tables to the device.
        ///
        /// # Errors
        /// If half a head is no multiple of 8, or there is too little device memory.
        pub fn new(gpu: &Gpu, tables: &super::Tables) -> Result<Tables> {
            let half = tables.half;
            expect("rope", half > 0 && half.is_multiple_of(8), || {
                format!("heads of {}: must be a multiple of 16", 2 * half)
            })?;
            Ok(Tables { half, cos: gpu.tensor(&tables.cos)?, sin: gpu.tensor(&tables.sin)? })
        }
    }

    /// Rotates the first `heads` heads of every row of `x` `[rows, row_len]` in place; `inverse` is the backward pass. Positions
    /// `[rows]` must be in the tables; `row_len` is a multiple of 8.
    ///
    /// # Errors
    /// If the sizes do not fit together, or the launch fails.
    pub fn rotate(
        gpu: &Gpu,
        x: &Slice<bf16>,
        row_len: usize,
        heads: usize,
        position: &Slice<u32>,
        tables: &Tables,
        inverse: bool,
    ) -> Result<()> {
        let (rows, half) = (position.len(), tables.half);
        let fits = row_len.is_multiple_of(8) && 2 * heads * half <= row_len && x.len() == rows * row_len;
        expect("rope", fits, || {
            let len = x.len();
            format!("{len} elements for {rows} rows of {row_len} (a multiple of 8) with {heads} heads of {}", 2 * half)
        })?;
        let [tall, wide, turned, half_] = [rows, row_len, heads, half].map(|n| Arg::from(n as i32));
        let [x, position, cos, sin] = [x.arg(), position.arg(), tables.cos.arg(), tables.sin.arg()];
        let args = [x, position, cos, sin, tall, wide, turned, half_, Arg::from(i32::from(inverse))];
        gpu.launch_threads("rope_rotate_bf16", rows * heads * half / 8, &args)
    }
}
