//! What GRPO would begin with: the first iteration's games, played but not learnt from, and the gradient coupling of
//! their turns.

use super::checkpoints::{self, Last};
use super::start::{Start, with_training_template};
use super::{TrainError, coupling, interrupt, iteration};
use crate::agent::Prompter;
use crate::config::Config;
use crate::coupling::{Grams, Measurement, Probe};
use crate::device::Gpu;
use crate::env::Suite;
use crate::gcd::{JudgeLabels, Labelled};
use crate::grpo::samples_by;
use crate::ops::philox::Stream;
use crate::rollout::{Actor, RolloutSettings};
use std::path::Path;

/// An iteration that nothing was learnt from.
pub struct OnPolicy {
    /// Whether each episode was won, group by group.
    pub groups: Vec<Vec<bool>>,
    /// Groups whose returns differ: from the others nothing can be learnt.
    pub mixed: usize,
    /// The samples and their coupling; `None` where there are not two of each sign.
    pub measured: Option<(Probe, Grams, Measurement)>,
}

/// Plays the first iteration of the run in `run` by its last checkpoint's policy, as training would, and measures the
/// coupling with A = 1.
pub fn on_policy(config: &Config, suite: &dyn Suite, gpu: Option<&Gpu>, run: &Path) -> Result<OnPolicy, TrainError> {
    let Last { found, .. } = checkpoints::last(run, |_| true, |dir| Start::checkpoint(config, dir))?;
    let (_, Start { mut learner, tokenizer, .. }) = found.ok_or_else(|| TrainError::NoRun(run.into()))?;
    gpu.map_or(Ok(()), |gpu| learner.to_gpu(gpu, &config.optim, config.rollout.max_live as usize))?;
    let prompter = Prompter::new(with_training_template(tokenizer, config.prompt.format)?, &config.prompt)?;
    let policy = learner.sampler();
    let settings = RolloutSettings::training(config, Stream::Rollout(0));
    let actor = Actor::new(policy, &prompter, settings, &interrupt::interrupted);
    let mut cache = iteration::prefix_cache(config, policy)?;
    let played = iteration::play(config, suite, &actor, &mut cache, 0)?;
    drop(cache);
    let (scale, eps) = (config.grpo.advantage, config.grpo.advantage_eps.into());
    let advantages = |returns: &[f64], groups: &[usize]| learner.advantages(returns, groups, scale, eps);
    let samples = samples_by(&played.episodes, config, &advantages)?;
    let of = Labelled { episodes: &played.episodes, judge_labels: &JudgeLabels::new() };
    let probe = coupling::choose(config, &prompter, of, &samples, 0)?;
    let measure = |probe: Probe| -> Result<_, TrainError> {
        let (grams, measurement) = coupling::measured(&learner, &probe, config.coupling.tokens, config.run.seed)?;
        Ok((probe, grams, measurement))
    };
    let groups = played.episodes.chunk_by(|a, b| a.group == b.group);
    let differs = |group: &[crate::grpo::Sample]| group.iter().any(|s| s.advantage.iter().any(|a| *a != 0.0));
    let mut rest = &samples[..];
    let mut mixed = 0;
    for group in groups.clone() {
        let (own, others) = rest.split_at(group.len());
        (mixed, rest) = (mixed + usize::from(differs(own)), others);
    }
    Ok(OnPolicy {
        groups: groups.map(|group| group.iter().map(|e| e.success).collect()).collect(),
        mixed,
        measured: probe.map(measure).transpose()?,
    })
}
