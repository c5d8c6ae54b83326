//! RoPE, half-split: element j of a head is rotated with element j + d/2 by the angle position · theta^(−2j/d).
//!
//! The rotation is orthogonal, so the backward pass is the rotation by the negative angle.

use crate::device::cpu::simd;

/// f32 tables of cos and sin, `[positions, head_dim / 2]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tables {
    pub half: usize,
    pub inv_freq: Vec<f32>,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl Tables {
    pub fn new(theta: f32, head_dim: usize, positions: usize) -> Tables {
        let half = head_dim / 2;
        let inv_freq: Vec<f32> = (0..half).map(|i| 1.0 / theta.powf((2 * i) as f32 / head_dim as f32)).collect();
        let angles = |f: fn(f64) -> f64| {
            (0..positions).flat_map(|p| inv_freq.iter().map(move |w| f((p as f32 * w) as f64) as f32)).collect()
        };
        Tables { half, cos: angles(f64::cos), sin: angles(f64::sin), inv_freq }
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
