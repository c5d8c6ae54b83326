//! Episodes as the run's database keeps them.

use crate::agent::Episode;
use crate::config::Config;
use crate::grpo::episode_return;
use crate::report::trajectories;
use crate::rollout::Played;

/// `reward` is the episode's return; `advantage` runs over its tokens (training only).
pub fn stored(
    episode: &Episode,
    iteration: u64,
    phase: &str,
    reward: f64,
    advantage: Option<&[f32]>,
) -> trajectories::Episode {
    let turns = episode.turns.iter().map(|t| trajectories::Turn {
        observation: t.observation.clone(),
        action: t.action.clone(),
        valid: t.valid,
        tokens: episode.tokens[t.tokens.clone()].to_vec(),
        logprob_sum: episode.logprobs[t.tokens.clone()].iter().map(|lp| f64::from(*lp)).sum(),
        reward: t.reward.into(),
        advantage: advantage.and_then(|a| a.get(t.tokens.clone())?.last().map(|a| f64::from(*a))),
    });
    trajectories::Episode {
        iteration,
        phase: phase.into(),
        split: episode.task.split.to_string(),
        task: episode.task.id.clone(),
        group: episode.group as u32,
        sample: episode.sample as u32,
        reward,
        success: episode.success,
        finish: episode.finish.name().into(),
        seconds: episode.seconds,
        turns: turns.collect(),
    }
}

/// The episodes of an evaluation.
pub fn evaluated(config: &Config, played: &Played, iteration: u64, phase: &str) -> Vec<trajectories::Episode> {
    played.all().into_iter().map(|(_, e)| stored(e, iteration, phase, episode_return(e, config), None)).collect()
}
