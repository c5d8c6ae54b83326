//! How the agent behaved: success, repetition, loops, length; apart for episodes that won and those that did not.

use super::Played;
use crate::agent::Episode;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};

/// One episode in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Number of turns.
    pub turns: usize,
    /// Turns with the same command at the same observation as an earlier turn.
    pub repeats: usize,
    /// Repeats, and turns whose answer had been seen before: a cycle that shows nothing new.
    pub loops: usize,
    /// Turns that could not be read or that the environment did not understand.
    pub invalid: usize,
    /// Sampled tokens.
    pub tokens: usize,
}

impl Counts {
    /// Counts an episode's turns.
    pub fn of(episode: &Episode) -> Counts {
        let mut counts = Counts { turns: episode.turns.len(), ..Counts::default() };
        let (mut pairs, mut shown) = (HashSet::new(), HashSet::new());
        for (i, turn) in episode.turns.iter().enumerate() {
            shown.insert(turn.observation.as_str());
            let repeated = !pairs.insert((turn.observation.as_str(), turn.command()));
            // The answer to the last turn is not shown to anybody.
            let returned = episode.turns.get(i + 1).is_some_and(|next| shown.contains(next.observation.as_str()));
            counts.repeats += usize::from(repeated);
            counts.loops += usize::from(repeated || returned);
            counts.invalid += usize::from(!turn.valid);
            counts.tokens += turn.tokens.len();
        }
        counts
    }
}

/// A set of episodes in numbers. Rates are shares of all turns of the set, in 0..1; all are 0 for an empty set.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Behaviour {
    /// Number of episodes.
    pub episodes: usize,
    /// Turns that repeat a command already tried at the same observation.
    pub repeat_rate: f64,
    /// Turns that repeat, or come back to an observation.
    pub loop_rate: f64,
    /// Turns that the environment did not understand, or that hold no command.
    pub invalid_rate: f64,
    /// Mean turns in an episode.
    pub episode_length: f64,
    /// Mean sampled tokens in an episode.
    pub episode_tokens: f64,
}

impl Behaviour {
    fn of<'a>(episodes: impl Iterator<Item = &'a Episode>) -> Behaviour {
        let (mut n, mut sum) = (0, Counts::default());
        for c in episodes.map(Counts::of) {
            n += 1;
            sum.turns += c.turns;
            sum.repeats += c.repeats;
            sum.loops += c.loops;
            sum.invalid += c.invalid;
            sum.tokens += c.tokens;
        }
        let per = |x: usize, whole: usize| x as f64 / whole.max(1) as f64;
        Behaviour {
            episodes: n,
            repeat_rate: per(sum.repeats, sum.turns),
            loop_rate: per(sum.loops, sum.turns),
            invalid_rate: per(sum.invalid, sum.turns),
            episode_length: per(sum.turns, n),
            episode_tokens: per(sum.tokens, n),
        }
    }
}

/// Statistics of a rollout. Episodes that the environment failed are counted, and left out of everything else.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Statistics {
    /// Share of episodes that reached the goal.
    pub success: f64,
    /// All episodes.
    pub all: Behaviour,
    /// The episodes that were won.
    pub won: Behaviour,
    /// The episodes that were not.
    pub lost: Behaviour,
    /// Episodes that the environment failed.
    pub env_failed: usize,
    /// Episodes by the way they ended, failed ones included.
    pub finishes: BTreeMap<&'static str, usize>,
    /// Turns by why no command could be read.
    pub refusals: BTreeMap<&'static str, usize>,
}

impl Statistics {
    /// The statistics of a rollout.
    pub fn of(Played { episodes, failed }: &Played) -> Statistics {
        let of = |success: bool| Behaviour::of(episodes.iter().filter(|e| e.success == success));
        let (won, lost) = (of(true), of(false));
        let mut out = Statistics {
            success: won.episodes as f64 / episodes.len().max(1) as f64,
            all: Behaviour::of(episodes.iter()),
            won,
            lost,
            env_failed: failed.len(),
            ..Statistics::default()
        };
        for episode in episodes.iter().chain(failed) {
            *out.finishes.entry(episode.finish.name()).or_default() += 1;
        }
        for refusal in episodes.iter().flat_map(|e| &e.turns).filter_map(|t| t.refusal) {
            *out.refusals.entry(refusal.name()).or_default() += 1;
        }
        out
    }
}
