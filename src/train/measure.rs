//! How the policy behaves beyond winning: how much of one mind it is, and what its flawed actions are worth.

use super::{TrainError, suggest};
use crate::agent::Episode;
use crate::config::Config;
use crate::gcd::theory::Measured;
use crate::gcd::{Labelled, suggestion};
use crate::grpo::episode_return;
use crate::ops::philox::{self, Stream};
use crate::rollout::{Actor, RolloutSettings};
use std::collections::HashMap;

/// How often the policy does the same in the same state (`eval.consistency_samples` at training's temperature).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Consistency {
    /// Share of the states where at least half of the samples are one action.
    pub high: f64,
    /// Mean share of the most frequent action.
    pub mean: f64,
}

/// Of at most `eval.consistency_states` states drawn from `episodes`; `None` if there are none.
pub fn consistency(
    config: &Config,
    actor: &Actor<'_>,
    episodes: &[Episode],
) -> Result<Option<Consistency>, TrainError> {
    let mut states: Vec<(u32, (usize, usize))> = episodes
        .iter()
        .enumerate()
        .flat_map(|(e, episode)| (0..episode.turns.len()).map(move |t| (e, t)))
        .map(|(e, t)| {
            (philox::block(config.run.seed, Stream::Consistency.part(u32::MAX.into()), (e << 16 | t) as u64)[0], (e, t))
        })
        .collect();
    states.sort_unstable();
    let (most, samples) = (config.eval.consistency_states as usize, config.eval.consistency_samples);
    let states: Vec<_> = states.into_iter().take(most).map(|(_, at)| at).collect();
    let actor = actor.with(RolloutSettings::training(config, Stream::Consistency));
    let answers = suggest::actions(&actor, episodes, &states, samples)?;
    let shares: Vec<f64> = answers.iter().filter(|a| !a.is_empty()).map(|a| most_frequent(a)).collect();
    let mean = |x: &dyn Fn(f64) -> f64| shares.iter().map(|s| x(*s)).sum::<f64>() / shares.len() as f64;
    let of = || Consistency { high: mean(&|s| f64::from(u8::from(s >= 0.5))), mean: mean(&|s| s) };
    Ok((!shares.is_empty()).then(of))
}

/// Share of the most frequent command; what cannot be read is no command.
fn most_frequent(actions: &[Option<String>]) -> f64 {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    actions.iter().flatten().for_each(|action| *counts.entry(action).or_default() += 1);
    counts.into_values().max().unwrap_or(0) as f64 / actions.len() as f64
}

/// Probability and advantage of each flawed action. As in theory, an advantage is the episode's return less the mean of the
/// others in its group, whatever training scales it by.
pub fn flawed(config: &Config, of: Labelled<'_>) -> Measured {
    let mut measured = Measured::default();
    let episodes: Vec<(usize, &Episode)> = of.episodes.iter().enumerate().collect();
    for group in episodes.chunk_by(|a, b| a.1.group == b.1.group).filter(|group| group.len() > 1) {
        let sum: f64 = group.iter().map(|(_, e)| episode_return(e, config)).sum();
        let mut actions = Vec::new();
        for (e, episode) in group {
            let own = episode_return(episode, config);
            let advantage = own - (sum - own) / (group.len() - 1) as f64;
            let flawed = suggestion::flawed(episode, *e, of.judge_labels, &config.gcd).into_iter();
            actions.extend(flawed.map(|(t, _)| (suggestion::probability(episode, &episode.turns[t]), advantage)));
        }
        measured.add(&actions);
    }
    measured
}
