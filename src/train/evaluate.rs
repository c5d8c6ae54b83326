//! Evaluation on the fixed panels of L0, L1 and L2.

use super::auxiliary::{self, LabelledAction};
use super::critic::Critic;
use super::learner::Learner;
use super::{TrainError, interrupt, memory};
use crate::agent::{Episode, Finish, Prompter, Refusal};
use crate::config::{Config, ConfigError, GcdMode};
use crate::env::baseline::{self, Baselines};
use crate::env::{Split, Suite, Task};
use crate::gcd::{Accuracy, JudgeLabels, Judged, Labelled, judge};
use crate::grpo::episode_return;
use crate::model::Policy;
use crate::ops::philox::Stream;
use crate::report::results::{EvalEpisode, Evaluation, TypeRow, Unreadable};
use crate::report::stats;
use crate::rollout::{Actor, Counts, Played, PrefixCache, RolloutSettings, RolloutTasks};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The panels' splits.
pub const SPLITS: [Split; 3] = [Split::L0, Split::L1, Split::L2];

/// Most games of a panel.
const MOST_GAMES: u64 = 1_000_000;

/// The games of the panel: the first `config.eval.games` of each split (0: all).
///
/// # Errors
/// As [`games`], and if the suite refuses a task.
pub fn panel(config: &Config, suite: &dyn Suite, splits: &[Split]) -> Result<Vec<Task>, TrainError> {
    let mut tasks = Vec::new();
    for &split in splits {
        for index in 0..games(config, suite, split)? {
            tasks.push(suite.task(split, index)?);
        }
    }
    Ok(tasks)
}

/// Number of games of a split's panel. A server may offer a split without end.
///
/// # Errors
/// If there would be too many games: `eval.games` must say how many.
pub fn games(config: &Config, suite: &dyn Suite, split: Split) -> Result<u64, TrainError> {
    let asked = u64::from(config.eval.games);
    let all = suite.len(split).unwrap_or(asked);
    let games = if asked == 0 { all } else { all.min(asked) };
    if games > MOST_GAMES {
        let suite = suite.name();
        let reason = format!("{split} of {suite} has {all} games: say how many to evaluate on, at most {MOST_GAMES}");
        return Err(ConfigError::Invalid { key: "eval.games", value: asked.to_string(), reason }.into());
    }
    Ok(games)
}

/// How players who do not learn do on the panel of each split.
///
/// # Errors
/// As [`panel`], and if a game cannot be opened.
pub fn baselines(
    config: &Config,
    suite: &dyn Suite,
    splits: &[Split],
) -> Result<BTreeMap<String, Baselines>, TrainError> {
    let limit = config.env.max_steps as usize;
    let of = |split: &Split| {
        let games = panel(config, suite, &[*split])?.len() as u64;
        Ok((split.to_string(), baseline::baselines(suite, *split, games, limit, config.run.seed)?))
    };
    splits.par_iter().map(of).collect()
}

/// SHA-256, in hex, of a panel: its tasks in order and the content of their suite. Equal hashes were asked the same.
pub fn panel_hash(suite: &dyn Suite, panel: &[Task]) -> String {
    let mut hash = Sha256::new_with_prefix(suite.content_hash().unwrap_or_default());
    panel.iter().for_each(|task| hash.update(format!("\n{}", task.id)));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The actor of evaluations.
pub fn actor<'a>(config: &Config, policy: &'a dyn Policy, prompter: &'a Prompter) -> Actor<'a> {
    Actor::new(policy, prompter, RolloutSettings::evaluation(config, Stream::Evaluation), &interrupt::interrupted)
}

/// Plays one episode of each game of the panel.
///
/// # Errors
/// As [`panel`], and if the rollout fails or a log-prob is not finite.
pub fn evaluate(config: &Config, suite: &dyn Suite, actor: &Actor<'_>, splits: &[Split]) -> Result<Played, TrainError> {
    let tasks = panel(config, suite, splits)?;
    let played = actor.rollout(&RolloutTasks { open: &|task| suite.open(task), tasks: &tasks, group_size: 1 })?;
    match played.all().into_iter().map(|(_, e)| e).find(|e| e.logprobs.iter().any(|lp| !lp.is_finite())) {
        Some(broken) => Err(TrainError::BrokenModel { task: broken.task.id.clone() }),
        None => Ok(played),
    }
}

/// Whether actions are judged in an evaluation.
pub fn judges(config: &Config) -> bool {
    config.gcd.mode != GcdMode::Off && config.eval.judgments > 0
}

/// How well the model, or its value head, judges held-out actions: those of an evaluation's episodes, as many good as bad, each
/// once, at most `eval.judgments`; and what it said of them. `None` without GCD. Nothing is learnt from it.
///
/// # Errors
/// If the rollout of the judgments or the device fails.
pub fn judgments(
    config: &Config,
    learner: &mut Learner,
    critic: Option<&Critic>,
    prompter: &Prompter,
    episodes: &[Episode],
) -> Result<Option<(Accuracy, Judged)>, TrainError> {
    if !judges(config) {
        return Ok(None);
    }
    let size = [config.eval.judgments as usize, usize::from(config.gcd.mode == GcdMode::Generate)];
    let policy = learner.sampler();
    let actor = actor(config, policy, prompter).with(RolloutSettings::evaluation(config, Stream::EvaluationJudgments));
    let mut cache = PrefixCache::new(policy, memory::cached_tokens(config, policy.config()))?;
    let of = Labelled { episodes, judge_labels: &JudgeLabels::new() };
    let judged = judge(config, &actor, &mut cache, of, size)?;
    drop(cache);
    let actions = LabelledAction::of(episodes, &judged.pairs);
    let accuracy = match critic {
        Some(critic) => auxiliary::accuracy(config, learner, critic, &actions)?,
        None => judged.accuracy(),
    };
    Ok(Some((accuracy, judged)))
}

/// A line about the episodes that the environment failed, if there are any.
pub fn failures(played: &Played) -> Option<String> {
    let reason = |episode: &Episode| match &episode.finish {
        Finish::EnvFailed(reason) => format!("{}: {reason}", episode.task.id),
        other => format!("{}: {}", episode.task.id, other.name()),
    };
    let first = reason(played.failed.first()?);
    let (failed, all) = (played.failed.len(), played.episodes.len() + played.failed.len());
    Some(format!("the environment failed {failed} of {all} episodes, first {first}"))
}

/// By split: how many turns held no command that could be read, and why.
pub fn unreadable(episodes: &[Episode]) -> BTreeMap<String, Unreadable> {
    let mut splits: BTreeMap<String, Vec<&Episode>> = BTreeMap::new();
    for episode in episodes {
        splits.entry(episode.task.split.to_string()).or_default().push(episode);
    }
    let of = |episodes: Vec<&Episode>| {
        let refusals =
            |e: &Episode| e.turns.iter().filter_map(|turn| turn.refusal).map(Refusal::name).collect::<Vec<_>>();
        let refused: Vec<Vec<&str>> = episodes.iter().map(|e| refusals(e)).collect();
        Unreadable::new(&refused, &episodes.iter().map(|e| e.turns.len()).collect::<Vec<_>>())
    };
    splits.into_iter().map(|(split, episodes)| (split, of(episodes))).collect()
}

/// Success by split and task type.
pub fn types(episodes: &[Episode]) -> Vec<TypeRow> {
    let mut counts: BTreeMap<(String, &str), (u64, u64)> = BTreeMap::new();
    for episode in episodes {
        let (won, games) = counts.entry((episode.task.split.to_string(), &episode.task.kind)).or_default();
        (*won, *games) = (*won + u64::from(episode.success), *games + 1);
    }
    counts.into_iter().map(|((split, kind), (won, games))| TypeRow::new(split, kind, won, games)).collect()
}

/// Mean return of each split.
pub fn returns(config: &Config, episodes: &[Episode]) -> BTreeMap<String, f64> {
    let mut of = BTreeMap::<String, Vec<f64>>::new();
    for episode in episodes {
        of.entry(episode.task.split.to_string()).or_default().push(episode_return(episode, config));
    }
    of.into_iter().map(|(split, returns)| (split, stats::mean(&returns))).collect()
}

/// The episodes of each split in numbers.
pub fn count(episodes: &[Episode]) -> Evaluation {
    let mut evaluation = Evaluation::new();
    for episode in episodes {
        let c = Counts::of(episode);
        evaluation.entry(episode.task.split.to_string()).or_default().push(EvalEpisode {
            success: episode.success,
            turns: c.turns as u32,
            repeats: c.repeats as u32,
            loops: c.loops as u32,
        });
    }
    evaluation
}
