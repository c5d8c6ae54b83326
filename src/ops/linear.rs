//! Linear: y = x Wᵀ + b, W stored `[out, in]`.
//!
//! Backward: dx = dy W, dW = dyᵀ x, db = Σ_rows dy.

use crate::device::cpu::{Mat, gemm, simd};

/// A weight matrix as the forward pass reads it.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    data: &'a [f32],
    in_features: usize,
    panels: bool,
}

/// Output features of a panel: whole registers of every instruction set, and few enough that a panel's rows share no cache set.
const PANEL: usize = 32;

impl<'a> Weight<'a> {
    /// W as it is stored, `[out, in]`.
    pub fn new(data: &'a [f32], in_features: usize) -> Weight<'a> {
        Weight { data, in_features, panels: false }
    }

    /// W as [`to_panels`] leaves it: a product of few rows spends much of its time bringing W into such an order.
    pub fn panels(data: &'a [f32], in_features: usize) -> Weight<'a> {
        Weight { data, in_features, panels: true }
    }

    fn product(&self, x: &[f32], accumulate: bool, y: &mut [f32]) {
        let Weight { data, in_features, panels } = *self;
        let (rows, out) = (x.len() / in_features, data.len() / in_features);
        let x = Mat::rows(x, in_features);
        if !panels {
            let w = Mat::transposed(data, in_features);
            return gemm((rows, out, in_features), y, out, accumulate, 1.0, x, w);
        }
        for (i, panel) in data.chunks(PANEL * in_features).enumerate() {
            let width = panel.len() / in_features;
            let w = Mat::rows(panel, width);
            gemm((rows, width, in_features), &mut y[i * PANEL..], out, accumulate, 1.0, x, w);
        }
    }
}

/// Copies W, `[out, in]`, into panels of 32 output features, each `[in, 32]` (the last may be narrower).
pub fn to_panels(w: &[f32], in_features: usize, panels: &mut [f32]) {
    for (w, panel) in w.chunks(PANEL * in_features).zip(panels.chunks_mut(PANEL * in_features)) {
        let width = w.len() / in_features;
        for (i, row) in w.chunks_exact(in_features).enumerate() {
            for (j, x) in row.iter().enumerate() {
                panel[j * width + i] = *x;
            }
        }
    }
}

/// `y` `[rows, out]` from `x` `[rows, in]`.
pub fn forward(x: &[f32], w: Weight<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
    if let Some(bias) = bias {
        for row in y.chunks_exact_mut(bias.len()) {
            row.copy_from_slice(bias);
        }
    }
    w.product(x, bias.is_some(), y);
}

/// `y += x Wᵀ`: a projection that writes straight into the residual stream.
pub fn forward_add(x: &[f32], w: Weight<'_>, y: &mut [f32]) {
    w.product(x, true, y);
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
