//! The clipped policy loss over a forest (DESIGN section 2; TRL's definitions).

use crate::config::Grpo;
use crate::forest::Forest;
use crate::ops::grouped_logprob::TokenGrad;

/// One sequence as the loss sees it. Every array runs over all tokens; entry 0 (nothing precedes it) is never read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    pub tokens: Vec<u32>,
    /// Which tokens carry loss (the agent's own; never the environment's).
    pub mask: Vec<bool>,
    pub advantage: Vec<f32>,
    /// Log-probs when sampled; `None`: the current policy's own, detached (ratio 1).
    pub old_logprobs: Option<Vec<f32>>,
    /// The frozen reference's log-probs; needed when `beta > 0`.
    pub ref_logprobs: Option<Vec<f32>>,
}

/// What the aggregation divides by: totals of the whole generation batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Normaliser {
    /// Loss tokens of the generation batch.
    pub tokens: usize,
    /// Micro-batches the generation batch is split into.
    pub micro_batches: usize,
}

/// The loss of one micro-batch, fed token by token by the head's single pass.
pub struct PolicyLoss<'a> {
    _todo: std::marker::PhantomData<&'a ()>,
}

/// What one micro-batch's loss came to; field names as TRL's metrics.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossReport {
    pub loss: f64,
    pub kl: f64,
    pub entropy: f64,
    pub clip_ratio_low_mean: f64,
    pub clip_ratio_high_mean: f64,
    pub clip_ratio_region_mean: f64,
    pub clip_ratio_low_min: f64,
    pub clip_ratio_high_max: f64,
}

impl<'a> PolicyLoss<'a> {
    /// `samples[i]` is the forest's sequence `i`.
    pub fn new(config: &'a Grpo, forest: &'a Forest, samples: &'a [Sample], norm: Normaliser) -> PolicyLoss<'a> {
        let _ = (config, forest, samples, norm);
        unimplemented!()
    }
    /// The nodes whose log-probs the loss reads, ascending.
    pub fn nodes(&self) -> &[u32] {
        unimplemented!()
    }
    /// Whether [`PolicyLoss::set_logprobs`] must be called before the pass (sequence-level ratio).
    pub fn needs_logprobs(&self) -> bool {
        unimplemented!()
    }
    /// The current policy's log-prob of each of [`PolicyLoss::nodes`].
    pub fn set_logprobs(&mut self, logprobs: &[f32]) {
        let _ = logprobs;
        unimplemented!()
    }
    /// The loss gradient at `nodes()[i]`; adds the token's terms to the report. A shared token carries the sum of its terms.
    pub fn token(&mut self, i: usize, logprob: f32, entropy: f32) -> TokenGrad {
        let _ = (i, logprob, entropy);
        unimplemented!()
    }
    pub fn finish(self) -> LossReport {
        unimplemented!()
    }
}
