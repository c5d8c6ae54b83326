//! Linear: y = x Wᵀ + b, W stored `[out, in]`.
//!
//! Backward: dx = dy W, dW = dyᵀ x, db = Σ_rows dy.

use crate::device::cpu::{Mat, gemm, simd};

/// `y` `[rows, out]` from `x` `[rows, in]`.
pub fn forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, in_features: usize, y: &mut [f32]) {
    let (rows, out) = (x.len() / in_features, w.len() / in_features);
    if let Some(bias) = bias {
        for row in y.chunks_exact_mut(out) {
            row.copy_from_slice(bias);
        }
    }
    let (x, w) = (Mat::rows(x, in_features), Mat::transposed(w, in_features));
    gemm((rows, out, in_features), y, out, bias.is_some(), 1.0, x, w);
}

/// `y += x Wᵀ`: a projection that writes straight into the residual stream.
pub fn forward_add(x: &[f32], w: &[f32], in_features: usize, y: &mut [f32]) {
    let (rows, out) = (x.len() / in_features, w.len() / in_features);
    gemm((rows, out, in_features), y, out, true, 1.0, Mat::rows(x, in_features), Mat::transposed(w, in_features));
}

/// `dx = dy W`; `dy` `[rows, out]`, `dx` `[rows, in]`.
pub fn backward_input(dy: &[f32], w: &[f32], in_features: usize, dx: &mut [f32]) {
    let (rows, out) = (dx.len() / in_features, w.len() / in_features);
    gemm((rows, in_features, out), dx, in_features, false, 1.0, Mat::rows(dy, out), Mat::rows(w, in_features));
}

/// One output tile of `dW += dyᵀ x`: `dw` holds the rows of dW that belong to columns `first ..` of `dy`.
/// `dy` `[tokens, out]`, `x` `[tokens, in]`.
pub fn backward_weight(dy: &[f32], out: usize, first: usize, x: &[f32], in_features: usize, dw: &mut [f32]) {
    let (tokens, rows) = (x.len() / in_features, dw.len() / in_features);
    let (dy, x) = (Mat::transposed(&dy[first..], out), Mat::rows(x, in_features));
    gemm((rows, in_features, tokens), dw, in_features, true, 1.0, dy, x);
}

/// `db += Σ_rows dy`.
pub fn backward_bias(dy: &[f32], db: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for row in dy.chunks_exact(db.len()) {
                for (d, g) in db.iter_mut().zip(row) {
                    *d += g;
                }
            }
        },
    )
}
