//! Advantages of single turns, to be added to their episode's.
//!
//! GiGPO (Feng et al. 2025): turns of a group at the same observation are compared by their discounted returns. RLVMR (Zhang et
//! al. 2025): turns of a group with the same tag are compared by their rewards for being what the tag says; a turn without a
//! tag, or not understood, is left out (the missing tag already made it invalid).

use crate::agent::{Episode, Tag};
use crate::config::{Config, StepAdvantage};
use crate::ops::advantage::{self, Scale};
use std::collections::BTreeMap;

/// A turn: which episode, and which turn of it.
pub(super) type TurnIndex = (usize, usize);

/// The step advantage of the turns that have one; scaled as the episodes' advantages are.
pub(super) fn advantages(episodes: &[Episode], config: &Config, scale: Scale) -> Vec<(TurnIndex, f64)> {
    let mut groups: BTreeMap<(usize, &str), Vec<(TurnIndex, f64)>> = BTreeMap::new();
    for (e, episode) in episodes.iter().enumerate() {
        match config.grpo.step_advantage {
            StepAdvantage::None => {}
            StepAdvantage::Gigpo => {
                for (t, value) in returns(episode, config).into_iter().enumerate() {
                    let state = episode.turns[t].observation.as_str();
                    groups.entry((episode.group, state)).or_default().push(((e, t), value));
                }
            }
            StepAdvantage::Tags => {
                for t in 0..episode.turns.len() {
                    if let Some((tag, value)) = Tag::reward(&episode.turns, t, episode.paid()) {
                        groups.entry((episode.group, tag.name())).or_default().push(((e, t), value));
                    }
                }
            }
        }
    }
    let sizes: Vec<usize> = groups.values().map(Vec::len).collect();
    let (places, values): (Vec<_>, Vec<f64>) = groups.into_values().flatten().unzip();
    let advantages = advantage::advantages(&values, &sizes, scale, config.grpo.advantage_eps.into());
    places.into_iter().zip(advantages).collect()
}

/// The discounted return from each turn on: of what the environment paid, and `rollout.invalid_reward` at invalid turns.
fn returns(episode: &Episode, config: &Config) -> Vec<f64> {
    let discount = f64::from(config.grpo.step_discount);
    let mut returns: Vec<f64> = Vec::with_capacity(episode.turns.len());
    for turn in episode.turns.iter().rev() {
        let fine = if turn.valid { 0.0 } else { f64::from(config.rollout.invalid_reward) };
        returns.push(f64::from(turn.reward) + fine + discount * returns.last().copied().unwrap_or_default());
    }
    returns.reverse();
    returns
}
