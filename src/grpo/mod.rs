//! GRPO: group advantages and the policy loss. Knows no device: it sees numbers and forests.

mod loss;
mod steps;
pub use loss::{LossNormalizer, LossPart, LossReport, PolicyLoss, Sample, UseFound, UseInput};

use crate::agent::Episode;
use crate::config::Config;
use crate::ops::advantage::advantages;
use std::convert::Infallible;

/// Computes advantages of rewards in groups of these sizes, on whatever device: [`advantages`].
pub type Advantages<'a, E> = &'a dyn Fn(&[f64], &[usize]) -> Result<Vec<f64>, E>;

/// As [`samples_by`], with [`advantages`].
pub fn samples(episodes: &[Episode], config: &Config) -> Vec<Sample> {
    let Ok(samples) = samples_by(episodes, config, &|rewards, groups| {
        Ok::<_, Infallible>(advantages(rewards, groups, config.grpo.advantage, config.grpo.advantage_eps.into()))
    });
    samples
}

/// Turns finished episodes into samples for the loss, in order; neighbours with the same `group` are one group.
///
/// All tokens of an episode get the advantage of its return ([`episode_return`]) in the group, and those of a turn
/// `grpo.step_weight` times its step advantage, where one is configured.
///
/// # Errors
/// If `advantages` fails.
pub fn samples_by<E>(episodes: &[Episode], config: &Config, advantages: Advantages<'_, E>) -> Result<Vec<Sample>, E> {
    let scale = config.grpo.advantage;
    let groups: Vec<usize> = episodes.chunk_by(|a, b| a.group == b.group).map(<[_]>::len).collect();
    let returns: Vec<f64> = episodes.iter().map(|e| episode_return(e, config)).collect();
    let advantage = advantages(&returns, &groups)?;
    let mut samples: Vec<Sample> =
        episodes.iter().zip(advantage).enumerate().map(|(i, (e, a))| sample(i, e, a as f32)).collect();
    for ((episode, turn), advantage) in steps::advantages(episodes, config, scale) {
        let tokens = episodes[episode].turns[turn].tokens.clone();
        samples[episode].advantage[tokens].iter_mut().for_each(|a| *a += config.grpo.step_weight * advantage as f32);
    }
    Ok(samples)
}

/// What the environment paid, plus `rollout.invalid_reward` for each invalid turn.
pub fn episode_return(episode: &Episode, config: &Config) -> f64 {
    let invalid = episode.turns.iter().filter(|t| !t.valid).count();
    episode.paid() + invalid as f64 * f64::from(config.rollout.invalid_reward)
}

/// The samples of an episode's sequences.
pub fn parts(episode: &Episode, sample: Sample) -> Vec<Sample> {
    let sequences = episode.sequences();
    if sequences.len() > 1 { sequences.into_iter().map(|range| sample.part(range)).collect() } else { vec![sample] }
}

fn sample(index: usize, episode: &Episode, advantage: f32) -> Sample {
    let n = episode.tokens.len();
    let mut sample = Sample {
        tokens: episode.tokens.clone(),
        mask: vec![false; n],
        advantage: vec![advantage; n],
        old_logprobs: Some(episode.logprobs.clone()),
        ref_logprobs: None,
        episode: index,
        judgment: false,
        trajectory_loss_tokens: 0,
    };
    for turn in &episode.turns {
        sample.mask[turn.tokens.clone()].fill(true);
    }
    sample
}
