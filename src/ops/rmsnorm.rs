//! RMSNorm: y = w · x · r with r = 1 / sqrt(mean(x²) + eps), per row.
//!
//! Backward, with c = mean(dy · w · x): dx = r · (w · dy − x · r² · c), dw = Σ_rows dy · x · r.

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

/// Adds to `dx` `[rows, hidden]` and to `dw` `[hidden]`.
pub fn backward(dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32], dx: &mut [f32], dw: &mut [f32]) {
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
                for ((((dx, dw), g), x), w) in dx.iter_mut().zip(dw.iter_mut()).zip(dy).zip(x).zip(w) {
                    *dx += r * (w * g - x * c);
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
