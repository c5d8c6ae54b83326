//! SwiGLU: y = silu(g) · u, silu(g) = g · σ(g).
//!
//! Backward: du = dy · silu(g), dg = dy · u · σ(g) · (1 + g · (1 − σ(g))).

pub(crate) mod case;

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
                let ((gates, gate), (ups, up)) = (gate.as_chunks_mut(), up.as_chunks_mut());
                let (dys, dy) = dy.as_chunks();
                gates.iter_mut().zip(ups).zip(dys).for_each(|((g, u), dy)| lanes(g, u, dy));
                for ((g, u), dy) in gate.iter_mut().zip(up).zip(dy) {
                    [*g, *u] = gradient(*g, *u, *dy);
                }
            }
        },
    )
}

/// Sixteen at a time: the compiler does not see by itself that the two that are written never overlap.
#[inline(always)]
fn lanes(gate: &mut [f32; 16], up: &mut [f32; 16], dy: &[f32; 16]) {
    let (mut dg, mut du) = ([0.0; 16], [0.0; 16]);
    for i in 0..16 {
        [dg[i], du[i]] = gradient(gate[i], up[i], dy[i]);
    }
    (*gate, *up) = (dg, du);
}

/// Of the gate and the up.
#[inline(always)]
fn gradient(g: f32, u: f32, dy: f32) -> [f32; 2] {
    let sigma = 1.0 / (1.0 + exp(-g));
    [dy * u * sigma * (1.0 + g * (1.0 - sigma)), dy * g * sigma]
}

/// On a GPU, in bf16: `gate_up` `[rows, 2 ffn]`, `y` and `dy` `[rows, ffn]`; `ffn` is a multiple of 8.
pub mod cuda {
    use crate::device::{Arg, Gpu, Result, Slice, expect};
    use half::bf16;

    fn run(gpu: &Gpu, backward: bool, gate_up: &Slice<bf16>, ffn: usize, y: &Slice<bf16>) -> Result<()> {
        let op = if backward { "swiglu backward" } else { "swiglu forward" };
        let rows = y.len() / ffn.max(1);
        let fits = ffn > 0 && ffn.is_multiple_of(8) && rows * ffn == y.len() && gate_up.len() == 2 * y.len();
        expect(op, fits, || {
            format!("{} gates and ups for {} outputs in rows of {ffn} (a multiple of 8)", gate_up.len(), y.len())
        })?;
        let [rows, wide] = [rows as i32, ffn as i32].map(Arg::from);
        match backward {
            true => gpu.launch_threads("swiglu_backward_bf16", y.len() / 8, &[y.arg(), gate_up.arg(), rows, wide]),
            false => gpu.launch_threads("swiglu_forward_bf16", y.len() / 8, &[gate_up.arg(), y.arg(), rows, wide]),
        }
    }

    /// `y = silu(gate) · up`.
    ///
    /// # Errors
    /// If the sizes do not fit together, or the launch fails.
    pub fn forward(gpu: &Gpu, gate_up: &Slice<bf16>, ffn: usize, y: &Slice<bf16>) -> Result<()> {
        run(gpu, false, gate_up, ffn, y)
    }

    /// Overwrites `gate_up` with its gradient.
    ///
    /// # Errors
    /// If the sizes do not fit together, or the launch fails.
    pub fn backward(gpu: &Gpu, dy: &Slice<bf16>, ffn: usize, gate_up: &Slice<bf16>) -> Result<()> {
        run(gpu, true, gate_up, ffn, dy)
    }
}
