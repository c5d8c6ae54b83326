//! GRPO: group advantages and the policy loss. Knows no device: it sees numbers and forests.

mod loss;
pub mod pcgrad;
mod steps;
pub use loss::{LossReport, Normaliser, Part, PolicyLoss, Sample};

use crate::agent::Episode;
use crate::config::{AdvantageScale, Config};
use crate::ops::advantage::{Scale, advantages};

/// Turns finished episodes into samples for the loss, in order; neighbours with the same `group` are one group.
///
/// Episodes that the environment failed say nothing about the policy: they give no sample and are left out of their
/// group's statistics.
///
/// All tokens of an episode get the advantage of its reward ([`reward`]) in the group. A turn's own also get
/// `rollout.invalid_reward` if it was invalid, less what the group's turns get on average, and `grpo.step_weight` times its step
/// advantage, where one is configured.
pub fn samples(episodes: &[Episode], config: &Config) -> Vec<Sample> {
    let scale = match config.grpo.advantage {
        AdvantageScale::Group => Scale::Group,
        AdvantageScale::Batch => Scale::Batch,
        AdvantageScale::None => Scale::None,
    };
    let usable: Vec<&Episode> = episodes.iter().filter(|e| !e.finish.is_failure()).collect();
    let groups: Vec<usize> = usable.chunk_by(|a, b| a.group == b.group).map(<[_]>::len).collect();
    let rewards: Vec<f64> = usable.iter().map(|e| reward(e)).collect();
    let advantage = advantages(&rewards, &groups, scale, config.grpo.advantage_eps.into());
    let mut samples: Vec<Sample> = usable.iter().zip(advantage).map(|(e, a)| sample(e, a as f32)).collect();
    let mut add = |(episode, turn): (usize, usize), advantage: f64| {
        let tokens = usable[episode].turns[turn].tokens.clone();
        samples[episode].advantage[tokens].iter_mut().for_each(|a| *a += advantage as f32);
    };
    for (place, advantage) in steps::invalid(&usable, config) {
        add(place, advantage);
    }
    for (place, advantage) in steps::advantages(&usable, config, scale) {
        add(place, f64::from(config.grpo.step_weight) * advantage);
    }
    samples
}

/// 1 for success, else 0.
pub fn reward(episode: &Episode) -> f64 {
    f64::from(u8::from(episode.success))
}

/// The samples of an episode's sequences.
pub fn parts(episode: &Episode, sample: Sample) -> Vec<Sample> {
    let sequences = episode.sequences();
    if sequences.len() > 1 { sequences.into_iter().map(|range| sample.part(range)).collect() } else { vec![sample] }
}

fn sample(episode: &Episode, advantage: f32) -> Sample {
    let n = episode.tokens.len();
    let mut sample = Sample {
        tokens: episode.tokens.clone(),
        mask: vec![false; n],
        advantage: vec![advantage; n],
        old_logprobs: Some(episode.logprobs.clone()),
        ref_logprobs: None,
        judgment: false,
        whole: 0,
    };
    for turn in &episode.turns {
        sample.mask[turn.tokens.clone()].fill(true);
    }
    sample
}
