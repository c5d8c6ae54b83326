//! The rows that the policy learns from in an iteration, in micro-batches; and the passes over them.

use super::learner::Learner;
use crate::config::{Aggregation, Config, DecoupleMethod};
use crate::device::Result;
use crate::forest::Forest;
use crate::grpo::{LossNormalizer, LossPart, LossReport, Sample};
use std::ops::Range;

/// What is taught in an iteration.
pub struct MicroBatches {
    taught: Vec<Sample>,
    micro: Vec<Range<usize>>,
    norm: LossNormalizer,
    /// Each has a pass of its own.
    parts: &'static [LossPart],
}

/// What an epoch's passes came to.
pub struct Passes {
    pub report: LossReport,
    /// Tokens of all passes, after and before prefix sharing.
    pub unique_tokens: usize,
    pub total_tokens: usize,
    /// Cosine between the gradients of positive and of negative advantages (PCGrad).
    pub cosine: Option<f64>,
}

impl MicroBatches {
    /// `rows` are those of the whole generation batch, each judgment behind its trajectory.
    pub fn new(config: &Config, rows: &[Sample]) -> MicroBatches {
        // A sample without advantage has no gradient unless a regulariser gives it one: exactly the same step, without its
        // cost. Only the mean over a micro-batch's own tokens depends on who else is in it.
        let all = config.grpo.beta > 0.0
            || config.grpo.entropy_coef != 0.0
            || config.grpo.aggregation == Aggregation::MicroTokenMean;
        let taught: Vec<Sample> = rows.iter().filter(|s| all || teaches(s)).cloned().collect();
        let micro = micro_batches(config, &taught);
        let norm = LossNormalizer::new(rows, micro.len()).with_lambda(config.gcd.lambda);
        let parts: &[LossPart] = match config.decouple.method {
            DecoupleMethod::Pcgrad if taught.iter().any(|s| s.judgment) => {
                &[LossPart::Positive, LossPart::Negative, LossPart::Judgments]
            }
            DecoupleMethod::Pcgrad => &[LossPart::Positive, LossPart::Negative],
            _ => &[LossPart::All],
        };
        MicroBatches { taught, micro, norm, parts }
    }

    /// Nothing is taught.
    pub fn is_empty(&self) -> bool {
        self.micro.is_empty()
    }

    /// Packed tokens of an epoch's passes if only trajectories were taught.
    pub fn trajectory_tokens(&self) -> usize {
        let packed = |samples: &[Sample]| {
            let tokens: Vec<&[u32]> = samples.iter().filter(|s| !s.judgment).map(|s| &s.tokens[..]).collect();
            Forest::new(&tokens).len()
        };
        self.parts.len() * self.micro.iter().map(|m| packed(&self.taught[m.clone()])).sum::<usize>()
    }

    /// Adds the gradient of the policy loss; `watch` is told each scored token's log-prob when it was sampled, and now.
    pub fn accumulate(
        &self,
        config: &Config,
        learner: &mut Learner,
        watch: &mut dyn FnMut(f32, f32),
    ) -> Result<Passes> {
        let (mut total, mut cosine) = (Weighted::default(), None);
        let (mut unique_tokens, mut total_tokens) = (0, 0);
        for &part in self.parts {
            let norm = self.norm.with_part(part);
            for micro in &self.micro {
                let micro = &self.taught[micro.clone()];
                let (report, packed) =
                    learner.backward_policy(&config.grpo, micro, norm, config.rollout.temperature, watch)?;
                unique_tokens += packed;
                total_tokens += micro.iter().map(|s| s.tokens.len()).sum::<usize>();
                total.add(report, micro.iter().map(|s| s.loss_positions().count()).sum());
            }
            match part {
                LossPart::Positive => learner.set_grads_aside()?,
                LossPart::Negative => cosine = learner.combine()?,
                LossPart::All | LossPart::Judgments => {}
            }
        }
        Ok(Passes { report: total.mean(), unique_tokens, total_tokens, cosine })
    }
}

fn teaches(sample: &Sample) -> bool {
    sample.loss_positions().any(|t| sample.advantage[t] != 0.0)
}

/// Consecutive samples of about `grpo.micro_tokens` tokens each (before sharing); neighbours share their prompts. Of a
/// judgment only the tokens count that the sample before it does not have.
pub fn micro_batches(config: &Config, samples: &[Sample]) -> Vec<Range<usize>> {
    let (mut batches, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (i, sample) in samples.iter().enumerate() {
        let shared = if sample.judgment && i > start { common_prefix(&samples[i - 1], sample) } else { 0 };
        tokens += sample.tokens.len() - shared;
        if i > start && tokens > config.grpo.micro_tokens as usize {
            batches.push(start..i);
            (start, tokens) = (i, sample.tokens.len());
        }
    }
    if start < samples.len() {
        batches.push(start..samples.len());
    }
    batches
}

fn common_prefix(a: &Sample, b: &Sample) -> usize {
    a.tokens.iter().zip(&b.tokens).take_while(|(a, b)| a == b).count()
}

/// Reports of micro-batches put together: losses add up, the rest are means weighted by loss tokens.
#[derive(Default)]
struct Weighted {
    sum: LossReport,
    tokens: usize,
}

impl Weighted {
    fn add(&mut self, r: LossReport, tokens: usize) {
        let (w, s) = (tokens as f64, &mut self.sum);
        s.loss += r.loss;
        s.kl += r.kl * w;
        s.entropy += r.entropy * w;
        s.clip_ratio_low_mean += r.clip_ratio_low_mean * w;
        s.clip_ratio_high_mean += r.clip_ratio_high_mean * w;
        s.clip_ratio_region_mean += r.clip_ratio_region_mean * w;
        s.clip_ratio_low_min =
            if self.tokens == 0 { r.clip_ratio_low_min } else { s.clip_ratio_low_min.min(r.clip_ratio_low_min) };
        s.clip_ratio_high_max = s.clip_ratio_high_max.max(r.clip_ratio_high_max);
        self.tokens += tokens;
    }

    fn mean(mut self) -> LossReport {
        let n = self.tokens.max(1) as f64;
        let s = &mut self.sum;
        for mean in [
            &mut s.kl,
            &mut s.entropy,
            &mut s.clip_ratio_low_mean,
            &mut s.clip_ratio_high_mean,
            &mut s.clip_ratio_region_mean,
        ] {
            *mean /= n;
        }
        self.sum
    }
}
