//! Episodes as the run's database keeps them.

use super::suggest::SuggestionUpdate;
use crate::agent::{Episode, Prompter, Turn};
use crate::config::Config;
use crate::gcd::label::{Label, labels};
use crate::gcd::suggestion::{flawed, probability};
use crate::gcd::{JudgeLabels, Judged};
use crate::grpo::{Sample, episode_return};
use crate::model::tokenizer::TokenizerError;
use crate::report::trajectories::{self, JudgmentRecord};
use crate::rollout::{Counts, Played};
use std::collections::HashMap;

/// Turns episodes into what is kept of them.
pub struct Recorder<'a> {
    pub config: &'a Config,
    /// As it was when the episodes were played.
    pub prompter: &'a Prompter,
    pub iteration: u64,
    pub phase: &'a str,
    /// What training saw of each episode; none in an evaluation.
    pub samples: &'a [Sample],
    /// What the judge said of which turns.
    pub judge_labels: &'a JudgeLabels,
    /// What the policy said of which turns.
    pub judged: &'a Judged,
}

impl Recorder<'_> {
    /// All episodes of `played`, also those that the environment failed.
    pub fn episodes(&self, played: &Played) -> Result<Vec<trajectories::EpisodeRecord>, TokenizerError> {
        let mut judgments = self.judgments()?;
        let kept = |(index, episode): (Option<usize>, &Episode)| self.episode(index, episode, &mut judgments);
        Ok(played.all().into_iter().map(kept).collect())
    }

    /// `index` is the episode's place among those that the environment did not fail.
    fn episode(
        &self,
        index: Option<usize>,
        episode: &Episode,
        judgments: &mut HashMap<(usize, usize), Vec<JudgmentRecord>>,
    ) -> trajectories::EpisodeRecord {
        let (count, at) = (episode.turns.len(), index.unwrap_or(usize::MAX));
        let (mut labelled, mut flaws) = (vec![None; count], vec![None; count]);
        if self.config.needs_labels() {
            labelled = labels(episode, at, self.judge_labels, &self.config.gcd);
            let found = flawed(episode, at, self.judge_labels, &self.config.gcd);
            found.into_iter().for_each(|(turn, flaw)| flaws[turn] = Some(flaw.name().to_string()));
        }
        let advantage = |turn: &Turn| {
            let of = &self.samples.get(index?)?.advantage;
            of.get(turn.tokens.clone())?.last().map(|a| f64::from(*a))
        };
        let counts = Counts::of(episode);
        let turns = episode.turns.iter().zip(labelled).zip(flaws).enumerate();
        let turns = turns.map(|(t, ((turn, label), flaw))| trajectories::TurnRecord {
            label: label.map(|label: Label| label.name().into()),
            flaw,
            advantage: advantage(turn),
            judgments: judgments.remove(&(at, t)).unwrap_or_default(),
            ..alone(episode, turn)
        });
        trajectories::EpisodeRecord {
            iteration: self.iteration,
            phase: self.phase.into(),
            split: episode.task.split.to_string(),
            task: episode.task.id.clone(),
            kind: episode.task.kind.clone(),
            group: episode.group as u32,
            sample: episode.sample as u32,
            reward: episode_return(episode, self.config),
            success: episode.success,
            finish: episode.finish.name().into(),
            seconds: episode.seconds,
            repeats: counts.repeats as u32,
            loops: counts.loops as u32,
            suggestions: self.prompter.suggestions().to_vec(),
            tokens: episode.tokens.clone(),
            turns: turns.collect(),
        }
    }

    /// The policy's judgments by (episode, turn).
    fn judgments(&self) -> Result<HashMap<(usize, usize), Vec<JudgmentRecord>>, TokenizerError> {
        let mut all = HashMap::new();
        for (pair, answers) in self.judged.pairs.iter().zip(&self.judged.judgments) {
            let of: &mut Vec<JudgmentRecord> = all.entry((pair.episode, pair.turn)).or_default();
            for (answer, verdict) in answers {
                let written = &answer.tokens[..answer.tokens.len() - usize::from(answer.ended)];
                let text = self.prompter.tokenizer().decode(written, false)?;
                let verdict = verdict.map(|verdict| verdict.name().into());
                of.push(JudgmentRecord { label: pair.label.name().into(), verdict, text });
            }
        }
        Ok(all)
    }
}

/// What a turn is by itself.
fn alone(episode: &Episode, turn: &Turn) -> trajectories::TurnRecord {
    trajectories::TurnRecord {
        observation: turn.observation.clone(),
        action: turn.action.clone(),
        command: turn.command.clone(),
        valid: turn.valid,
        prompt: turn.start..turn.tokens.start,
        sampled: turn.tokens.clone(),
        logprob_sum: episode.logprobs[turn.tokens.clone()].iter().map(|lp| f64::from(*lp)).sum(),
        q: probability(episode, turn),
        reward: turn.reward.into(),
        ..trajectories::TurnRecord::default()
    }
}

/// The episodes of an evaluation in which nothing was judged.
pub fn evaluated(
    config: &Config,
    prompter: &Prompter,
    played: &Played,
    iteration: u64,
    phase: &str,
) -> Result<Vec<trajectories::EpisodeRecord>, TokenizerError> {
    let (labels, judged) = (JudgeLabels::new(), Judged::default());
    Recorder { config, prompter, iteration, phase, samples: &[], judge_labels: &labels, judged: &judged }
        .episodes(played)
}

/// New suggestions with their evidence.
pub fn suggested(update: &SuggestionUpdate) -> Vec<trajectories::SuggestionRecord> {
    let evidence = |e: &crate::gcd::suggestion::Evidence| trajectories::EvidenceRecord {
        task: e.task.clone(),
        observation: e.observation.clone(),
        action: e.action.clone(),
        flaw: e.flaw.name().into(),
        count: e.count as u64,
        sampled: e.sampled,
        resampled: e.resampled,
        advantage: e.advantage,
    };
    let suggestion = |s: &crate::gcd::Suggestion| trajectories::SuggestionRecord {
        text: s.text.clone(),
        evidence: s.evidence.iter().map(evidence).collect(),
    };
    update.suggestions.iter().map(suggestion).collect()
}
