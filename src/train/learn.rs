//! Learning from an iteration: reference log-probs, micro-batches, auxiliary losses, optimizer steps.

use super::TrainError;
use super::auxiliary::{self, LabelledAction};
use super::batch::{MicroBatches, Passes, micro_batches};
use super::critic::Critic;
use super::engine::Scorer;
use super::learner::Learner;
use super::optimizer::StepReport;
use crate::agent::Episode;
use crate::config::Config;
use crate::device;
use crate::forest::{Forest, ROOT};
use crate::grpo::{Sample, parts};
use crate::model::{Params, SavedActivations};
use crate::report::metrics::Record;

/// What is trained, and what it is held to.
pub struct Models<'a> {
    pub learner: &'a mut Learner,
    /// The value head, where there is one.
    pub critic: Option<&'a mut Critic>,
    /// What the KL term holds it to.
    pub reference: Option<&'a mut Reference>,
}

/// What the KL term holds the policy to, as it was when GRPO began.
pub enum Reference {
    /// A frozen model.
    Model(Box<dyn Scorer>),
    /// The adapter beside the policy's own frozen weights.
    Adapter(Params),
}

/// What is learnt from.
pub struct TrainingRows {
    /// Rows of the policy loss, see [`TrainingRows::beside`].
    pub samples: Vec<Sample>,
    /// What auxiliary losses read; none without them.
    pub actions: Vec<LabelledAction>,
}

/// What learning came to, besides its record.
pub struct Learned {
    pub steps: Vec<StepReport>,
    /// Packed tokens of all passes of the policy loss, and of the last epoch's auxiliary losses.
    pub tokens: usize,
    /// Share of the packed tokens that only judgments and labelled actions needed.
    pub gcd_share: f64,
}

/// Takes the epochs' optimizer steps of iteration `index`. Where nothing is taught, there is none.
///
/// # Errors
/// A failing device.
pub fn learn(
    config: &Config,
    models: &mut Models<'_>,
    mut rows: TrainingRows,
    index: u32,
    record: &mut Record,
) -> Result<Learned, TrainError> {
    let Models { learner, critic, reference } = models;
    if let Some(reference) = reference {
        let samples = &mut rows.samples;
        match reference {
            Reference::Model(model) => add_reference(config, &mut **model, samples)?,
            Reference::Adapter(adapter) => {
                learner.score_beside(adapter, &mut |scorer| add_reference(config, scorer, samples))?;
            }
        }
    }
    let batch = MicroBatches::new(config, &rows.samples);
    let lr = learning_rate(config, index);
    let (mut steps, mut packed, mut shared, mut difference) = (Vec::new(), 0, 0, Difference::default());
    let (mut last, mut auxiliary) = (None, auxiliary::AuxiliaryReport::default());
    for epoch in 0..config.grpo.epochs {
        let watch = &mut |sampled: f32, now: f32| {
            if epoch == 0 {
                difference.add(sampled, now);
            }
        };
        let passes = batch.accumulate(config, learner, watch)?;
        (packed, shared) = (packed + passes.unique_tokens, shared + passes.total_tokens);
        auxiliary = auxiliary::learn(config, learner, critic.as_deref_mut(), &rows.actions)?;
        if !batch.is_empty() || auxiliary.unique_tokens > 0 {
            steps.push(learner.step(&config.optim, lr)?);
        }
        if let Some(critic) = critic.as_deref_mut().filter(|_| !rows.actions.is_empty()) {
            critic.step(&config.optim, lr);
        }
        last = Some(passes);
    }
    if let (Some(passes), Some(step)) = (&last, steps.last()) {
        record_passes(passes, record);
        difference.record(record);
        record.set("sharing", shared as f64 / packed.max(1) as f64);
        record.set("grad_norm", step.grad_norm);
        record.set("learning_rate", lr);
    }
    auxiliary.losses.iter().for_each(|(name, loss)| record.set(name, *loss));
    if let Some(of) = auxiliary.accuracy {
        record.set_known([("gcd/accuracy", of.all), ("gcd/accuracy/good", of.good), ("gcd/accuracy/bad", of.bad)]);
    }
    let epochs = config.grpo.epochs as usize;
    let all = packed + auxiliary.unique_tokens * epochs;
    let gcd_share = (all - batch.trajectory_tokens() * epochs) as f64 / all.max(1) as f64;
    Ok(Learned { steps, tokens: packed + auxiliary.unique_tokens, gcd_share })
}

/// The last epoch's losses add up over its micro-batches, the rest are means over the tokens that were taught.
fn record_passes(passes: &Passes, record: &mut Record) {
    let r = &passes.report;
    let values = [
        ("loss", r.loss),
        ("kl", r.kl),
        ("entropy", r.entropy),
        ("clip_ratio/low_mean", r.clip_ratio_low_mean),
        ("clip_ratio/high_mean", r.clip_ratio_high_mean),
        ("clip_ratio/region_mean", r.clip_ratio_region_mean),
        ("clip_ratio/low_min", r.clip_ratio_low_min),
        ("clip_ratio/high_max", r.clip_ratio_high_max),
    ];
    values.into_iter().for_each(|(name, value)| record.set(name, value));
    record.set_known([("decouple/cosine", passes.cosine)]);
}

impl TrainingRows {
    /// The rows of the policy loss: each judgment behind the sequence that it judges, whose tokens it shares. `trajectories` are the
    /// samples of all `episodes`; `judgments` are in the order of the turns.
    pub fn beside(episodes: &[Episode], trajectories: Vec<Sample>, judgments: Vec<Sample>) -> Vec<Sample> {
        let mut judgments = judgments.into_iter().peekable();
        let mut rows = Vec::with_capacity(trajectories.len() + judgments.len());
        for trajectory in trajectories {
            let episode = trajectory.episode;
            let parts = parts(&episodes[episode], trajectory);
            let last = parts.len() - 1;
            for (i, part) in parts.into_iter().enumerate() {
                let at = rows.len();
                rows.push(part);
                let judges = |s: &Sample, part: &Sample| i == last || s.tokens.starts_with(&part.tokens);
                while let Some(judgment) = judgments.next_if(|s| s.episode == episode && judges(s, &rows[at])) {
                    rows.push(judgment);
                }
            }
        }
        rows
    }
}

/// Linear warm-up times linear decay.
pub fn learning_rate(config: &Config, index: u32) -> f32 {
    let o = &config.optim;
    let warmup = ((index as f32 + 1.0) / o.warmup.max(1) as f32).min(1.0);
    let done = index as f32 / config.run.iterations.saturating_sub(1).max(1) as f32;
    o.lr * warmup * (1.0 - (1.0 - o.lr_end) * done.min(1.0))
}

/// Fills in the frozen reference's log-probs.
fn add_reference(config: &Config, reference: &mut dyn Scorer, samples: &mut [Sample]) -> device::Result<()> {
    for batch in micro_batches(config, samples) {
        let batch = &mut samples[batch];
        let forest = Forest::new(&batch.iter().map(|s| &s.tokens[..]).collect::<Vec<_>>());
        reference.forward(&forest, SavedActivations::Nothing)?;
        let nodes: Vec<u32> = (0..forest.len() as u32).filter(|&n| forest.parent[n as usize] != ROOT).collect();
        let (scored, _) = reference.logprobs(&forest, &nodes, config.rollout.temperature)?;
        let mut logprob = vec![0.0; forest.len()];
        nodes.iter().zip(scored).for_each(|(&n, lp)| logprob[n as usize] = lp);
        for (sample, path) in batch.iter_mut().zip(&forest.paths) {
            sample.ref_logprobs = Some(path.iter().map(|&n| logprob[n as usize]).collect());
        }
    }
    Ok(())
}

/// Mean and maximum of |log-prob in training − when sampled| in the first epoch: rounding only, or something is wrong.
#[derive(Default)]
struct Difference {
    sum: f64,
    max: f64,
    count: usize,
}

impl Difference {
    fn add(&mut self, a: f32, b: f32) {
        let d = f64::from((a - b).abs());
        (self.sum, self.max, self.count) = (self.sum + d, self.max.max(d), self.count + 1);
    }

    fn record(&self, record: &mut Record) {
        record.set("sampling/sampling_logp_difference/mean", self.sum / self.count.max(1) as f64);
        record.set("sampling/sampling_logp_difference/max", self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_linearly_and_falls_to_its_end() {
        let mut config = Config::default();
        (config.optim.lr, config.optim.warmup, config.optim.lr_end, config.run.iterations) = (0.4, 4, 0.25, 21);
        let at = |index| f64::from(learning_rate(&config, index));
        // warm-up (index + 1) / 4, decay 1 - 0.75 index / 20.
        let expected = [(0, 0.1), (1, 0.2 * 0.9625), (3, 0.4 * 0.8875), (10, 0.4 * 0.625), (20, 0.1), (30, 0.1)];
        for (index, rate) in expected {
            assert!((at(index) - rate).abs() < 1e-6, "iteration {index}: {} for {rate}", at(index));
        }
        // No warm-up, no decay, a single iteration.
        (config.optim.warmup, config.optim.lr_end, config.run.iterations) = (0, 1.0, 1);
        assert_eq!(learning_rate(&config, 0), 0.4);
    }
}
