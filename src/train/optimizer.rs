//! AdamW on the CPU: of the policy, and of the value head.

use crate::config::Optim;
use crate::model::Params;
use crate::ops::adamw::{self, AdamW};

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

/// A step of AdamW, which counts it in `steps`: clips, updates the parameters and clears the gradient. A gradient that is not
/// finite changes nothing.
pub(super) fn update(
    optim: &Optim,
    lr: f32,
    steps: &mut u32,
    params: &mut Params,
    grads: &mut Params,
    [m, v]: &mut [Params; 2],
) -> StepReport {
    let grad_norm = adamw::grad_norm(&grads.flat);
    let skipped = !grad_norm.is_finite();
    if !skipped {
        *steps += 1;
        let update = adamw_step(optim, lr, adamw::clip_scale(grad_norm, optim.clip), *steps);
        for entry in &params.layout.clone().entries {
            let at = entry.range.clone();
            let (g, m, v) = (&grads.flat[at.clone()], &mut m.flat[at.clone()], &mut v.flat[at.clone()]);
            adamw::step(&update, entry.decay, &mut params.flat[at], g, m, v);
        }
    }
    grads.flat.fill(0.0);
    StepReport { grad_norm, skipped }
}
