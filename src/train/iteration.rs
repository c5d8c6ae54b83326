//! One GRPO iteration: play groups, label and judge, form advantages, take the optimizer steps. Each phase records what it measures.

use super::auxiliary::{self, LabelledAction};
use super::evaluate::failures;
use super::learn::{Models, TrainingRows, learn};
use super::memory::cached_tokens;
use super::optimizer::StepReport;
use super::suggest::{Suggester, SuggestionUpdate};
use super::{TrainError, interrupt, measure};
use crate::agent::{Episode, Prompter};
use crate::config::{Config, GcdMode, LabelSource};
use crate::env::{Split, Suite};
use crate::gcd::judgment::{questions, verdict_rate};
use crate::gcd::theory::Measured;
use crate::gcd::{self, Agreement, Judge, JudgeLabels, Judged, Labelled, Suggestion};
use crate::grpo::{Sample, episode_return, samples_by};
use crate::model::Policy;
use crate::ops::philox::Stream;
use crate::report::metrics::Record;
use crate::report::stats;
use crate::rollout::{Actor, Played, PrefixCache, RolloutSettings, RolloutTasks, Statistics};
use std::time::Instant;

/// What an iteration is made of, besides the models.
pub struct IterationInputs<'a> {
    pub config: &'a Config,
    pub suite: &'a dyn Suite,
    pub prompter: &'a Prompter,
    pub judge: Option<&'a Judge>,
    /// Number of the iteration, from 0.
    pub index: u32,
    /// The suggestions in the prompt, where they are to be updated.
    pub active: Option<&'a [Suggestion]>,
    /// For what a user should know.
    pub say: &'a dyn Fn(&str),
}

/// What an iteration did, besides its record.
pub struct Iteration {
    pub played: Played,
    /// What training saw of each episode that the environment did not fail, whatever sequences it came in.
    pub samples: Vec<Sample>,
    /// What the judge said of which turns.
    pub judge_labels: JudgeLabels,
    /// The labelled actions, and what the policy said of them; `None` where nothing needs labels.
    pub judged: Option<Judged>,
    /// The flawed actions; none without labels.
    pub flawed: Measured,
    /// Suggestions, where some were to be made, or why they could not.
    pub update: Option<Result<SuggestionUpdate, String>>,
    pub steps: Vec<StepReport>,
    /// Tokens sampled and trained on.
    pub tokens: usize,
}

impl Iteration {
    pub fn labelled(&self) -> Labelled<'_> {
        Labelled { episodes: &self.played.episodes, judge_labels: &self.judge_labels }
    }

    /// The token sequences of all episodes that it learnt from.
    pub fn sequences(&self) -> Vec<&[u32]> {
        let episodes = self.played.episodes.iter();
        episodes.flat_map(|e| e.sequences().into_iter().map(|range| &e.tokens[range])).collect()
    }
}

/// Plays and learns an iteration; with active suggestions, new ones are made from its episodes, to follow these.
///
/// # Errors
/// What ends a rollout, weights that are not finite, a batch without a usable episode, a failing device.
pub fn run(inputs: &IterationInputs<'_>, mut models: Models<'_>, record: &mut Record) -> Result<Iteration, TrainError> {
    let config = inputs.config;
    // 1) Play the groups.
    let began = Instant::now();
    let policy = models.learner.sampler();
    let actor = inputs.actor(policy, Stream::Rollout(inputs.index));
    let mut cache = prefix_cache(config, policy)?;
    let played = play(config, inputs.suite, &actor, &mut cache, inputs.index)?;
    let rollout_seconds = began.elapsed().as_secs_f64();
    inputs.record_rollout(&played, record);
    // 2) Label the actions; the policy judges some of them.
    let began = Instant::now();
    let (judge_labels, judged) = inputs.judgments(policy, &mut cache, &played.episodes, record)?;
    drop(cache);
    let judge_seconds = began.elapsed().as_secs_f64();
    // 3) Form the advantages of the groups.
    let (scale, eps) = (config.grpo.advantage, config.grpo.advantage_eps.into());
    let learner = &*models.learner;
    let samples =
        samples_by(&played.episodes, config, &|rewards, groups| learner.advantages(rewards, groups, scale, eps))?;
    if samples.is_empty() {
        return Err(TrainError::NoEpisodes(failures(&played).unwrap_or_default()));
    }
    // 4) Make suggestions, by the weights that played.
    let of = Labelled { episodes: &played.episodes, judge_labels: &judge_labels };
    let (mut flawed, mut update) = (Measured::default(), None);
    if judged.is_some() {
        (flawed, update) = inputs.flaws(&actor, of, &samples, record)?;
    }
    // 5) Learn: one backward pass serves trajectories and judgments.
    let began = Instant::now();
    let rows = inputs.rows(&played.episodes, &samples, judged.as_ref());
    let learned = learn(config, &mut models, rows, inputs.index, record)?;
    let train_seconds = began.elapsed().as_secs_f64();
    let sampled = played.all().iter().map(|(_, e)| e.tokens.len()).sum::<usize>();
    let tokens = sampled + judged.as_ref().map_or(0, Judged::tokens) + learned.tokens;
    let seconds = rollout_seconds + judge_seconds + train_seconds;
    record.set("tokens_per_second", tokens as f64 / seconds);
    record.set("seconds/rollout", rollout_seconds);
    record.set("seconds/train", train_seconds);
    if judged.is_some() {
        record.set("seconds/gcd", judge_seconds);
        // Learning is shared: GCD's part of it is that of its tokens.
        record.set("seconds/gcd_share", (judge_seconds + learned.gcd_share * train_seconds) / seconds);
    }
    Ok(Iteration { played, samples, judge_labels, judged, flawed, update, steps: learned.steps, tokens })
}

/// A cache for the policy as it is now, which keeps finished sequences where the policy is to judge them.
pub fn prefix_cache<'a>(config: &Config, policy: &'a dyn Policy) -> Result<PrefixCache<'a>, TrainError> {
    let budget = if config.gcd.mode == GcdMode::Generate { cached_tokens(config, policy.config()) } else { 0 };
    Ok(PrefixCache::new(policy, budget)?)
}

/// Plays iteration `index`'s games, and leaves their sequences to the cache. The training games that the cold start demonstrated are not
/// used again.
pub fn play(
    config: &Config,
    suite: &dyn Suite,
    actor: &Actor<'_>,
    cache: &mut PrefixCache<'_>,
    index: u32,
) -> Result<Played, TrainError> {
    let groups = u64::from(config.rollout.groups);
    let first = u64::from(config.sft.games) + u64::from(index) * groups;
    let tasks: Vec<_> = (0..groups).map(|g| suite.task(Split::Train, first + g)).collect::<Result<_, _>>()?;
    let group_size = config.rollout.group_size as usize;
    let games = RolloutTasks { open: &|task| suite.open_for_training(task), tasks: &tasks, group_size };
    let played = actor.rollout_on(cache, &games)?;
    // Such a model repeats one token for ever: its groups are constant, so that no gradient would ever tell.
    if played.episodes.iter().flat_map(|e| &e.logprobs).any(|lp| !lp.is_finite()) {
        return Err(TrainError::BrokenWeights);
    }
    Ok(played)
}

impl<'a> IterationInputs<'a> {
    fn actor<'b>(&self, policy: &'b dyn Policy, stream: Stream) -> Actor<'b>
    where
        'a: 'b,
    {
        Actor::new(policy, self.prompter, RolloutSettings::training(self.config, stream), &interrupt::interrupted)
    }

    fn record_rollout(&self, played: &Played, record: &mut Record) {
        let (config, episodes) = (self.config, &played.episodes);
        if let Some(line) = failures(played) {
            (self.say)(&line);
        }
        let groups = episodes.chunk_by(|a, b| a.group == b.group);
        let groups: Vec<Vec<f64>> = groups.map(|g| g.iter().map(|e| episode_return(e, config)).collect()).collect();
        let constant = groups.iter().filter(|g| g.iter().all(|r| *r == g[0])).count();
        let s = Statistics::of(played);
        let values = [
            ("reward", stats::mean(&groups.concat())),
            // The mean of the deviations within groups.
            ("reward_std", stats::mean(&groups.iter().map(|g| stats::std(g)).collect::<Vec<_>>())),
            // Nothing in such a group was better than the rest.
            ("frac_reward_zero_std", constant as f64 / groups.len().max(1) as f64),
            ("success", s.success),
            ("episode_length", s.all.episode_length),
            ("completions/mean_length", s.all.episode_tokens),
            ("repeat_rate", s.all.repeat_rate),
            ("loop_rate", s.all.loop_rate),
            ("invalid_rate", s.all.invalid_rate),
            ("repeat_rate/won", s.won.repeat_rate),
            ("repeat_rate/lost", s.lost.repeat_rate),
            ("verdict_rate", verdict_rate(episodes)),
            ("env_failed", s.env_failed as f64),
        ];
        values.into_iter().for_each(|(name, value)| record.set(name, value));
        s.refusals.iter().for_each(|(why, count)| record.set(&format!("refused/{why}"), *count as f64));
    }

    /// Draws labelled actions, and lets the policy judge them where it does so in words; `None` where nothing needs labels.
    fn judgments(
        &self,
        policy: &dyn Policy,
        cache: &mut PrefixCache<'_>,
        episodes: &[Episode],
        record: &mut Record,
    ) -> Result<(JudgeLabels, Option<Judged>), TrainError> {
        let config = self.config;
        if !config.needs_labels() {
            return Ok((JudgeLabels::new(), None));
        }
        let actor = self.actor(policy, Stream::Judgments(self.index));
        let judge_labels = self.ask_judge(&actor, episodes, record)?;
        let each = if config.gcd.mode == GcdMode::Generate { config.gcd.judgments as usize } else { 0 };
        let of = Labelled { episodes, judge_labels: &judge_labels };
        let judged = gcd::judge(config, &actor, cache, of, [config.gcd.pairs as usize, each])?;
        let (agreement, accuracy) = (Agreement::of_loop(episodes.iter(), &config.gcd), judged.accuracy());
        record.set_known([
            ("gcd/accuracy", accuracy.all),
            ("gcd/accuracy/good", accuracy.good),
            ("gcd/accuracy/bad", accuracy.bad),
            ("gcd/unparsable", accuracy.unparsable),
            ("gcd/loop_precision", agreement.precision()),
            ("gcd/loop_recall", agreement.recall()),
        ]);
        record.set("gcd/pairs", judged.pairs.len() as f64);
        record.set("gcd/labels/good", judged.counts.good as f64);
        record.set("gcd/labels/bad", judged.counts.bad as f64);
        record.set("gcd/labels/unknown", judged.counts.unknown as f64);
        Ok((judge_labels, Some(judged)))
    }

    /// What the judge says of some actions, where one is a source of labels.
    fn ask_judge(
        &self,
        actor: &Actor<'_>,
        episodes: &[Episode],
        record: &mut Record,
    ) -> Result<JudgeLabels, TrainError> {
        let gcd = &self.config.gcd;
        let Some(judge) = self.judge.filter(|_| gcd.labels.contains(&LabelSource::Judge)) else {
            return Ok(JudgeLabels::new());
        };
        let key = (actor.settings.seed, actor.settings.stream.part(u32::MAX.into()));
        let (turns, questions) = questions(episodes, self.config.judge.pairs as usize, key);
        let verdicts = judge.ask(&questions)?;
        let labels: JudgeLabels =
            turns.into_iter().zip(&verdicts.labels).filter_map(|(at, label)| Some((at, (*label)?))).collect();
        let agreement = Agreement::of_judge(episodes, &labels);
        record.set_known([
            ("gcd/judge_precision", agreement.precision()),
            ("gcd/judge_recall", agreement.recall()),
            ("gcd/judge_missing", Some(verdicts.missing as f64)),
        ]);
        if let Some(reason) = &verdicts.reason {
            (self.say)(&format!("the judge left {} actions without a label: {reason}", verdicts.missing));
        }
        Ok(labels)
    }

    /// The flawed actions, and new suggestions where they are due.
    fn flaws(
        &self,
        actor: &Actor<'_>,
        of: Labelled<'_>,
        samples: &[Sample],
        record: &mut Record,
    ) -> Result<(Measured, Option<Result<SuggestionUpdate, String>>), TrainError> {
        let flawed = measure::flawed(self.config, of);
        if let Some((q, advantage)) = flawed.mean() {
            record.set("flawed/probability", q);
            record.set("flawed/advantage", advantage);
        }
        let began = Instant::now();
        let suggester = Suggester { config: self.config, actor, judge: self.judge, iterations: self.index + 1 };
        let update = self.active.map(|active| suggester.update(of, samples, active)).transpose()?;
        if update.is_some() {
            record.set("seconds/suggestions", began.elapsed().as_secs_f64());
        }
        Ok((flawed, update))
    }

    /// What is learnt from.
    fn rows(&self, episodes: &[Episode], samples: &[Sample], judged: Option<&Judged>) -> TrainingRows {
        let judgments = judged.map_or_else(Vec::new, |judged| judged.samples(self.config));
        let actions = match judged {
            Some(judged) if auxiliary::is_configured(self.config) => LabelledAction::of(episodes, &judged.pairs),
            _ => Vec::new(),
        };
        TrainingRows { samples: TrainingRows::beside(episodes, samples.to_vec(), judgments), actions }
    }
}
