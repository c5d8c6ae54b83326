//! SwiGLU: y = silu(g) · u, silu(g) = g · σ(g).
//!
//! Backward: du = dy · silu(g), dg = dy · u · σ(g) · (1 + g · (1 − σ(g))).

use crate::device::cpu::{exp, simd};

/// `gate_up` `[rows, 2 ffn]` (gate, then up), `y` `[rows, ffn]`.
pub fn forward(gate_up: &[f32], ffn: usize, y: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for (row, y) in gate_up.chunks_exact(2 * ffn).zip(y.chunks_exact_mut(ffn)) {
                let (gate, up) = row.split_at(ffn);
                for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                    *y = g / (1.0 + exp(-g)) * u;
                }
            }
        },
    )
}

/// Overwrites `gate_up` with its gradient; `dy` `[rows, ffn]`.
pub fn backward(dy: &[f32], ffn: usize, gate_up: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for (row, dy) in gate_up.chunks_exact_mut(2 * ffn).zip(dy.chunks_exact(ffn)) {
                let (gate, up) = row.split_at_mut(ffn);
                for ((g, u), dy) in gate.iter_mut().zip(up).zip(dy) {
                    let sigma = 1.0 / (1.0 + exp(-*g));
                    let (x, v) = (*g, *u);
                    *g = dy * v * sigma * (1.0 + x * (1.0 - sigma));
                    *u = dy * x * sigma;
                }
            }
        },
    )
}
