//! AdamW with decoupled weight decay (Loshchilov & Hutter 2019) and clipping by the global norm.
//!
//! p ← p (1 − lr·wd); m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²; p ← p − lr · m̂ / (√v̂ + eps), with bias-corrected m̂, v̂ and
//! g scaled by min(1, clip / (‖g‖ + 1e-6)).

use crate::device::cpu::simd;
use rayon::prelude::*;

/// Elements of one task: fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 1 << 14;

/// The hyperparameters of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    /// Factor on every gradient: see [`clip_scale`].
    pub grad_scale: f32,
    /// Number of this step, from 1.
    pub step: u32,
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
    let correction = |beta: f32| 1.0 - f64::from(beta).powi(o.step as i32);
    let rate = (f64::from(o.lr) / correction(o.beta1)) as f32;
    let inv_root = (1.0 / correction(o.beta2).sqrt()) as f32;
    let keep = if decay { 1.0 - o.lr * o.weight_decay } else { 1.0 };
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
