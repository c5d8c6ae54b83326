//! AdamW on the CPU: of the policy, and of the value head.

use super::moments::{Codes, scales};
use crate::config::Optim;
use crate::model::Params;
use crate::ops::adamw::{self, AdamW};
use crate::ops::adamw_8bit::{self, Quantized, Stochastic};
use crate::ops::philox::Stream;

/// What an optimizer step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// The gradient was not finite: nothing was changed.
    pub skipped: bool,
}

/// AdamW's step number `step`, of a gradient that is scaled by `grad_scale`.
pub(super) fn adamw_step(optim: &Optim, lr: f32, grad_scale: f32, step: u32) -> AdamW {
    let Optim { beta1, beta2, eps, weight_decay, .. } = *optim;
    AdamW { lr, beta1, beta2, eps, weight_decay, grad_scale, step }
}

/// A step of AdamW, which counts it in `steps`: clips, lets `apply` update what is trained by the gradient, and clears it. A gradient that
/// is not finite changes nothing.
pub(super) fn update(
    optim: &Optim,
    lr: f32,
    steps: &mut u32,
    grads: &mut Params,
    apply: impl FnOnce(&AdamW, &Params),
) -> StepReport {
    let grad_norm = adamw::grad_norm(&grads.flat);
    let skipped = !grad_norm.is_finite();
    if !skipped {
        *steps += 1;
        apply(&adamw_step(optim, lr, adamw::clip_scale(grad_norm, optim.clip), *steps), grads);
    }
    grads.flat.fill(0.0);
    StepReport { grad_norm, skipped }
}

/// Updates every tensor by its gradient and its moments in f32.
pub(super) fn step_f32(o: &AdamW, params: &mut Params, grads: &Params, [m, v]: &mut [Params; 2]) {
    for entry in &params.layout.clone().entries {
        let at = entry.range.clone();
        let (g, m, v) = (&grads.flat[at.clone()], &mut m.flat[at.clone()], &mut v.flat[at.clone()]);
        adamw::step(o, entry.decay, &mut params.flat[at], g, m, v);
    }
}

/// The same by moments of 8 bits; with `stochastic` the weights are rounded to bf16.
pub(super) fn step_8bit(o: &AdamW, params: &mut Params, grads: &Params, both: &mut [Codes; 2], stochastic: bool) {
    let layout = params.layout.clone();
    for (entry, scales) in layout.entries.iter().zip(scales(&layout)) {
        let at = entry.range.clone();
        let both = both
            .each_mut()
            .map(|of| Quantized { codes: &mut of.codes[at.clone()], absmax: &mut of.absmax[scales.clone()] });
        let rounding = stochastic.then(|| weight_rounding(o.step, at.start));
        adamw_8bit::step(o, entry.decay, &mut params.flat[at.clone()], &grads.flat[at], both, rounding);
    }
}

/// How step number `step` rounds the weights of the tensor that begins at `first`.
pub(super) fn weight_rounding(step: u32, first: usize) -> Stochastic {
    Stochastic { seed: 0, stream: Stream::WeightRounding(step).part(0), first }
}
