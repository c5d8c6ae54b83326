//! Good, bad or unknown: labels of (state, action) pairs.

use crate::agent::Episode;
use crate::config::{Disagreement, Gcd, LabelSource};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// What an action was, where a source knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Label {
    /// It brings the goal closer, or the judge calls it good.
    Good,
    /// It is flawed, or the judge calls it bad.
    Bad,
}

impl Label {
    /// The word of a verdict.
    pub fn name(self) -> &'static str {
        match self {
            Label::Good => "good",
            Label::Bad => "bad",
        }
    }
}

/// What the judge said of (episode, turn).
pub type JudgeLabels = HashMap<(usize, usize), Label>;

/// Episodes, and what the judge said of their turns.
#[derive(Clone, Copy)]
pub struct Labelled<'a> {
    /// The episodes.
    pub episodes: &'a [Episode],
    /// The judge's labels, by state and action.
    pub judge_labels: &'a JudgeLabels,
}

/// The label of each turn of an episode by the configured sources; `None`: unknown. `index` is the episode's in `judge_labels`.
pub fn labels(episode: &Episode, index: usize, judge_labels: &JudgeLabels, config: &Gcd) -> Vec<Option<Label>> {
    let by_source = |source: &LabelSource| match source {
        LabelSource::Loop => by_loop(episode, config.cycle as usize),
        LabelSource::Oracle => by_oracle(episode),
        LabelSource::Judge => (0..episode.turns.len()).map(|turn| judge_labels.get(&(index, turn)).copied()).collect(),
    };
    let by_source: Vec<Vec<_>> = config.labels.iter().map(by_source).collect();
    (0..episode.turns.len())
        .map(|turn| {
            let mut given = by_source.iter().filter_map(|labels| labels[turn]);
            let first = given.next()?;
            let believed = config.disagreement == Disagreement::First || given.all(|other| other == first);
            believed.then_some(first)
        })
        .collect()
}

/// Bad where there is a [`Flaw`], else unknown.
fn by_loop(episode: &Episode, cycle: usize) -> Vec<Option<Label>> {
    flaws(episode, cycle).into_iter().map(|flaw| flaw.map(|_| Label::Bad)).collect()
}

/// How an action is flawed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flaw {
    /// It was not understood, changed nothing, or could not be read.
    Idle,
    /// It was taken before in the same observation.
    Repeated,
    /// It leads back to an observation of a few turns ago, and nothing since was new.
    Circular,
    /// It does none of that, but does not bring the goal nearer either.
    Astray,
}

impl Flaw {
    /// All flaws, in the order in which they are looked for.
    pub const ALL: [Flaw; 4] = [Flaw::Idle, Flaw::Repeated, Flaw::Circular, Flaw::Astray];

    /// Short name for tables and queries.
    pub fn name(self) -> &'static str {
        match self {
            Flaw::Idle => "idle",
            Flaw::Repeated => "repeated",
            Flaw::Circular => "circular",
            Flaw::Astray => "astray",
        }
    }

    /// What such an action did, after "which".
    pub fn description(self) -> &'static str {
        match self {
            Flaw::Idle => "did nothing",
            Flaw::Repeated => "it had tried there before",
            Flaw::Circular => "led it back to where it had been",
            Flaw::Astray => "did not bring its goal nearer",
        }
    }
}

/// The flaw of each turn, as far as the episode itself shows one: never [`Flaw::Astray`]. Cycles of up to `cycle` turns are found
/// (1: the action changed nothing).
pub fn flaws(episode: &Episode, cycle: usize) -> Vec<Option<Flaw>> {
    let turns = &episode.turns;
    let (mut taken, mut shown) = (HashSet::new(), HashSet::new());
    // How many of the observations up to and including each turn's, going back from it, had been shown before.
    let mut stale = 0;
    turns
        .iter()
        .enumerate()
        .map(|(i, turn)| {
            stale = if shown.insert(turn.observation.as_str()) { 0 } else { stale + 1 };
            let repeated = !taken.insert((turn.observation.as_str(), turn.command()));
            // The answer to the last turn is shown to nobody. Back by `period` turns, the answer itself is one of the stale.
            let returned = turns.get(i + 1).is_some_and(|next| {
                (1..=cycle.min(i + 1).min(stale + 1))
                    .any(|period| turns[i + 1 - period].observation == next.observation)
            });
            let found = [(!turn.valid, Flaw::Idle), (repeated, Flaw::Repeated), (returned, Flaw::Circular)];
            found.into_iter().find_map(|(is, flaw)| is.then_some(flaw))
        })
        .collect()
}

/// Good when the fewest steps to the goal became fewer.
fn by_oracle(episode: &Episode) -> Vec<Option<Label>> {
    let label = |progressed| if progressed { Label::Good } else { Label::Bad };
    episode.turns.iter().map(|turn| turn.progressed.map(label)).collect()
}

/// How many turns have which label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LabelCounts {
    /// Good turns.
    pub good: usize,
    /// Bad turns.
    pub bad: usize,
    /// Turns that no source knows.
    pub unknown: usize,
}

impl LabelCounts {
    /// Counts one turn.
    pub fn add(&mut self, label: Option<Label>) {
        match label {
            Some(Label::Good) => self.good += 1,
            Some(Label::Bad) => self.bad += 1,
            None => self.unknown += 1,
        }
    }
}

/// How far the bad labels of a cheap source are those of `oracle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Agreement {
    /// Bad by both.
    pub both: usize,
    /// Bad by the cheap source.
    pub by_cheap: usize,
    /// Bad by `oracle`.
    pub by_oracle: usize,
}

impl Agreement {
    /// `loop` against `oracle`, in the turns that `oracle` knows.
    pub fn of_loop<'a>(episodes: impl IntoIterator<Item = &'a Episode>, config: &Gcd) -> Agreement {
        let mut sum = Agreement::default();
        for episode in episodes {
            let cheap = by_loop(episode, config.cycle as usize);
            cheap.into_iter().zip(by_oracle(episode)).for_each(|(cheap, oracle)| sum.add(cheap, oracle));
        }
        sum
    }

    /// `judge` against `oracle`, in the turns that both know.
    pub fn of_judge(episodes: &[Episode], judge_labels: &JudgeLabels) -> Agreement {
        let mut sum = Agreement::default();
        for ((episode, turn), label) in judge_labels {
            sum.add(Some(*label), by_oracle(&episodes[*episode])[*turn]);
        }
        sum
    }

    fn add(&mut self, cheap: Option<Label>, oracle: Option<Label>) {
        let Some(oracle) = oracle else { return };
        let (cheap, oracle) = (cheap == Some(Label::Bad), oracle == Label::Bad);
        self.both += usize::from(cheap && oracle);
        self.by_cheap += usize::from(cheap);
        self.by_oracle += usize::from(oracle);
    }

    /// Share of the cheap source's bad actions that are bad; `None` when it named none.
    pub fn precision(&self) -> Option<f64> {
        share(self.both, self.by_cheap)
    }

    /// Share of the bad actions that the cheap source names; `None` when there are none.
    pub fn recall(&self) -> Option<f64> {
        share(self.both, self.by_oracle)
    }
}

/// A part of a whole; `None` of nothing.
pub(super) fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}
