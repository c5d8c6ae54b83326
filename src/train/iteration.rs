//! One GRPO iteration: sample groups, form advantages, take the optimiser steps.

use super::batch::{Batch, micro_batches};
use super::engine::Scorer;
use super::evaluate::failures;
use super::learner::Learner;
use super::memory::cached_tokens;
use super::optimizer::StepReport;
use super::probe::{self, Probed, probes};
use super::suggest::{Renewal, renew};
use super::{TrainError, interrupt, measure};
use crate::agent::{Episode, Prompter};
use crate::config::{Config, DecoupleMethod, GcdMode, LabelSource};
use crate::device;
use crate::env::{Split, Suite};
use crate::forest::{Forest, ROOT};
use crate::gcd::judge::Verdicts;
use crate::gcd::judgment::questions;
use crate::gcd::theory::Measured;
use crate::gcd::{self, Accuracy, Agreement, Asked, Judge, Judged, Suggestion};
use crate::grpo::{LossReport, Sample, episode_return, parts, samples};
use crate::model::{Keep, Policy};
use crate::ops::philox::Stream;
use crate::report::stats;
use crate::rollout::{self, Played, PrefixCache, Settings, rollout_on};
use std::time::Instant;

/// What an iteration did.
pub struct Iteration {
    pub played: Played,
    /// What training saw of each episode that the environment did not fail, whatever sequences it came in.
    pub samples: Vec<Sample>,
    /// Of the last epoch: losses of the micro-batches add up, the rest are means over the tokens that were taught. `None` when
    /// nothing was: then there was no step either.
    pub loss: Option<LossReport>,
    pub steps: Vec<StepReport>,
    /// Mean and largest |log-prob in training − when sampled|: rounding only, or something is wrong.
    pub logprob_difference: (f64, f64),
    /// Tokens trained on, after and before prefix sharing.
    pub packed_tokens: usize,
    pub shared_tokens: usize,
    pub returns: Returns,
    /// The labelled actions, and what the policy said of them; `None` where nothing needs labels.
    pub gcd: Option<Gcd>,
    /// The flawed actions; none without labels.
    pub flawed: Measured,
    /// Suggestions, where some were to be made, or why they could not.
    pub renewal: Option<Result<Renewal, String>>,
    /// Cosine between the gradients of positive and of negative advantages, of the last epoch (PCGrad).
    pub cosine: Option<f64>,
    pub rollout_seconds: f64,
    pub train_seconds: f64,
}

/// GCD's part of an iteration.
pub struct Gcd {
    pub judged: Judged,
    /// What the judge said of which turns.
    pub asked: Asked,
    /// Of the judgments, or of the value head before the last epoch's step.
    pub accuracy: Accuracy,
    /// The losses of hidden states, of the last epoch.
    pub probed: Probed,
    pub agreement: Agreement,
    /// The judge, where one is asked: its agreement with the oracle, and what it left open.
    pub judge: Option<(Agreement, Verdicts)>,
    /// Labels and judgments; learning from them is part of `train_seconds`.
    pub seconds: f64,
    /// Share of the packed tokens that only judgments needed, of the last epoch.
    pub packed_share: f64,
}

/// A cache for the policy as it is now, which keeps finished sequences where the policy is to judge them.
pub fn prefix_cache<'a>(config: &Config, policy: &'a dyn Policy) -> Result<PrefixCache<'a>, TrainError> {
    let budget = if config.gcd.mode == GcdMode::Generate { cached_tokens(config, policy.config()) } else { 0 };
    Ok(PrefixCache::new(policy, budget)?)
}

/// Samples iteration `index`'s episodes, and leaves their sequences to the cache. The training games that the cold start demonstrated are not used again.
pub fn sample(
    config: &Config,
    suite: &dyn Suite,
    cache: &mut PrefixCache<'_>,
    prompter: &Prompter,
    index: u32,
) -> Result<Played, TrainError> {
    let first = u64::from(config.sft.games) + u64::from(index) * u64::from(config.rollout.groups);
    let tasks: Vec<_> =
        (0..u64::from(config.rollout.groups)).map(|g| suite.task(Split::Train, first + g)).collect::<Result<_, _>>()?;
    let open: rollout::Open<'_> = &|task| suite.open_for_training(task);
    let settings = Settings::training(config, Stream::Rollout(index));
    let group_size = config.rollout.group_size as usize;
    Ok(rollout_on(cache, prompter, open, &tasks, group_size, &settings, &interrupt::interrupted)?)
}

/// Plays and learns iteration `index`; with `suggest`, suggestions are made from its episodes, to follow these.
#[allow(clippy::too_many_arguments)]
pub fn run(
    config: &Config,
    suite: &dyn Suite,
    learner: &mut Learner,
    reference: Option<&mut dyn Scorer>,
    prompter: &Prompter,
    judge: Option<&Judge>,
    index: u32,
    suggest: Option<&[Suggestion]>,
) -> Result<Iteration, TrainError> {
    let began = Instant::now();
    let mut cache = prefix_cache(config, learner.sampler())?;
    let played = sample(config, suite, &mut cache, prompter, index)?;
    let episodes = &played.episodes;
    let rollout_seconds = began.elapsed().as_secs_f64();
    // Such a model repeats one token for ever: its groups are constant, so that no gradient would ever tell.
    if episodes.iter().flat_map(|e| &e.logprobs).any(|lp| !lp.is_finite()) {
        return Err(TrainError::BrokenWeights);
    }
    let mut gcd = match config.needs_labels() {
        false => None,
        true => Some(judgments(config, &mut cache, prompter, judge, episodes, index)?),
    };
    drop(cache);
    let began = Instant::now();
    let samples = samples(episodes, config);
    if samples.is_empty() {
        return Err(TrainError::NoEpisodes(failures(&played).unwrap_or_default()));
    }
    // Before anything is learnt: what samples may be interrupted.
    let (mut renewal, mut flawed) = (None, Measured::default());
    if let Some(gcd) = &gcd {
        flawed = measure::flawed(config, episodes, &gcd.asked);
        if let Some(standing) = suggest {
            let (policy, asked) = (learner.sampler(), &gcd.asked);
            renewal = Some(renew(config, policy, prompter, judge, episodes, &samples, asked, standing, index + 1)?);
        }
    }
    let judgments = gcd.as_ref().map_or_else(Vec::new, |gcd| gcd.judged.samples(config));
    let mut rows = beside(episodes, samples.clone(), judgments);
    if let Some(reference) = reference {
        add_reference(config, reference, &mut rows)?;
    }
    let batch = Batch::new(config, &rows);
    let contrasts = config.decouple.method == DecoupleMethod::Contrastive;
    let probes = match &gcd {
        Some(gcd) if config.gcd.mode.has_critic() || contrasts => probes(episodes, &gcd.judged.pairs),
        _ => Vec::new(),
    };
    let (mut loss, mut steps, mut cosine, mut probed) = (None, Vec::new(), None, Probed::default());
    let (mut packed_tokens, mut shared_tokens, mut difference) = (0, 0, Difference::default());
    for epoch in 0..config.grpo.epochs {
        let watch = &mut |sampled: f32, now: f32| {
            if epoch == 0 {
                difference.add(sampled, now);
            }
        };
        let passes = batch.accumulate(config, learner, watch)?;
        (packed_tokens, shared_tokens) = (packed_tokens + passes.packed_tokens, shared_tokens + passes.shared_tokens);
        cosine = passes.cosine;
        probed = probe::learn(config, learner, &probes)?;
        let lr = learning_rate(config, index);
        if !batch.is_empty() || probed.packed_tokens > 0 {
            loss = Some(passes.report);
            steps.push(learner.step(&config.optim, lr)?);
        }
        if let Some(critic) = learner.critic.as_mut().filter(|_| !probes.is_empty()) {
            critic.step(&config.optim, lr);
        }
    }
    let train_seconds = began.elapsed().as_secs_f64();
    let probe_tokens = probed.packed_tokens * config.grpo.epochs as usize;
    if let Some(gcd) = &mut gcd {
        let without = batch.trajectory_tokens() * config.grpo.epochs as usize;
        let all = packed_tokens + probe_tokens;
        gcd.packed_share = (all - without) as f64 / all.max(1) as f64;
        gcd.accuracy = probed.critic.map_or(gcd.accuracy, |(_, accuracy)| accuracy);
        gcd.probed = probed;
    }
    Ok(Iteration {
        returns: Returns::of(episodes, config),
        played,
        samples,
        loss,
        steps,
        logprob_difference: difference.result(),
        packed_tokens,
        shared_tokens,
        gcd,
        flawed,
        renewal,
        cosine,
        rollout_seconds,
        train_seconds,
    })
}

/// Draws labelled actions of iteration `index`, and lets the policy judge them where it does so in words.
fn judgments(
    config: &Config,
    cache: &mut PrefixCache<'_>,
    prompter: &Prompter,
    judge: Option<&Judge>,
    episodes: &[Episode],
    index: u32,
) -> Result<Gcd, TrainError> {
    let began = Instant::now();
    let settings = Settings::training(config, Stream::Judgments(index));
    let each = if config.gcd.mode == GcdMode::Generate { config.gcd.judgments as usize } else { 0 };
    let size = [config.gcd.pairs as usize, each];
    let (mut asked, mut answered) = (Asked::new(), None);
    if let Some(judge) = judge.filter(|_| config.gcd.labels.contains(&LabelSource::Judge)) {
        let key = (settings.seed, settings.stream.part(u32::MAX.into()));
        let (turns, questions) = questions(episodes, config.gcd.judge.pairs as usize, key);
        let verdicts = judge.ask(&questions)?;
        asked = turns.into_iter().zip(&verdicts.labels).filter_map(|(at, label)| Some((at, (*label)?))).collect();
        answered = Some((Agreement::of_judge(episodes, &asked), verdicts));
    }
    let judged = gcd::judge(config, cache, prompter, episodes, &asked, size, &settings, &interrupt::interrupted)?;
    let agreement = Agreement::of_loop(episodes.iter(), &config.gcd);
    let (accuracy, probed) = (judged.accuracy(), Probed::default());
    let seconds = began.elapsed().as_secs_f64();
    Ok(Gcd { judged, asked, accuracy, probed, agreement, judge: answered, seconds, packed_share: 0.0 })
}

/// The rows of the loss: each judgment behind the sequence that it judges, whose tokens it shares. `trajectories` are the samples
/// of the episodes that the environment did not fail; `judgments` come with their episode, in the order of the turns.
pub fn beside(episodes: &[Episode], trajectories: Vec<Sample>, judgments: Vec<(usize, Sample)>) -> Vec<Sample> {
    let mut judgments = judgments.into_iter().peekable();
    let mut rows = Vec::with_capacity(trajectories.len() + judgments.len());
    for ((episode, played), trajectory) in episodes.iter().enumerate().zip(trajectories) {
        let parts = parts(played, trajectory);
        let last = parts.len() - 1;
        for (i, part) in parts.into_iter().enumerate() {
            let at = rows.len();
            rows.push(part);
            let judges = |s: &Sample, part: &Sample| i == last || s.tokens.starts_with(&part.tokens);
            while let Some((_, judgment)) = judgments.next_if(|(of, s)| *of == episode && judges(s, &rows[at])) {
                rows.push(judgment);
            }
        }
    }
    rows
}

/// Linear warm-up times linear decay.
fn learning_rate(config: &Config, index: u32) -> f32 {
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
        reference.forward(&forest, Keep::Nothing)?;
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

/// The returns of the episodes that the environment did not fail, in TRL's terms.
pub struct Returns {
    pub mean: f64,
    /// Mean over groups of the standard deviation within the group.
    pub std: f64,
    /// Share of groups whose returns are all alike: nothing in them was better than the rest.
    pub constant_groups: f64,
}

impl Returns {
    fn of(episodes: &[Episode], config: &Config) -> Returns {
        let groups = episodes.chunk_by(|a, b| a.group == b.group);
        let groups: Vec<Vec<f64>> = groups.map(|g| g.iter().map(|e| episode_return(e, config)).collect()).collect();
        let constant = |g: &&Vec<f64>| g.iter().all(|r| *r == g[0]);
        Returns {
            mean: stats::mean(&groups.concat()),
            std: stats::mean(&groups.iter().map(|g| stats::std(g)).collect::<Vec<_>>()),
            constant_groups: groups.iter().filter(constant).count() as f64 / groups.len().max(1) as f64,
        }
    }
}

/// Mean and maximum of |a − b|.
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

    fn result(&self) -> (f64, f64) {
        (self.sum / self.count.max(1) as f64, self.max)
    }
}
