//! The record of one episode: every token as it was read or sampled, and what each turn came to.

use super::{Refusal, Tag};
use crate::env::Task;
use std::ops::Range;

/// One finished episode.
#[derive(Debug, Clone, PartialEq)]
pub struct Episode {
    /// The game that was played.
    pub task: Task,
    /// Which group, and which member of it.
    pub group: usize,
    /// The episode's number within its group, from 0.
    pub sample: usize,
    /// Everything the model read and wrote, in order: one sequence, or with a windowed history one for each turn, end to end.
    pub tokens: Vec<u32>,
    /// For each sampled token its log-prob when sampled (softmax over the whole vocabulary at the sampling temperature);
    /// 0 for all other tokens.
    pub logprobs: Vec<f32>,
    /// The turns in order.
    pub turns: Vec<Turn>,
    /// Why the episode ended.
    pub finish: Finish,
    /// Whether the environment called the game won.
    pub success: bool,
    /// Wall-clock time from the first observation to the end.
    pub seconds: f64,
}

impl Episode {
    /// An episode in which nothing has happened yet.
    pub fn new(task: Task, group: usize, sample: usize) -> Episode {
        Episode {
            task,
            group,
            sample,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            turns: Vec::new(),
            finish: Finish::StepLimit,
            success: false,
            seconds: 0.0,
        }
    }

    /// What the agent had before it when it began a turn.
    pub fn state(&self, turn: &Turn) -> &[u32] {
        &self.tokens[turn.start..turn.tokens.start]
    }

    /// The same and the turn itself.
    pub fn acted(&self, turn: &Turn) -> &[u32] {
        &self.tokens[turn.start..turn.tokens.end]
    }

    /// What the environment paid: the sum of the turns' finite rewards.
    pub fn paid(&self) -> f64 {
        self.turns.iter().map(|turn| f64::from(turn.reward)).filter(|reward| reward.is_finite()).sum()
    }

    /// Where in `tokens` each of the sequences lies.
    pub fn sequences(&self) -> Vec<Range<usize>> {
        let mut starts: Vec<usize> = self.turns.iter().map(|turn| turn.start).collect();
        starts.dedup();
        let ends = starts.iter().skip(1).copied().chain([self.tokens.len()]).collect::<Vec<_>>();
        starts.into_iter().zip(ends).map(|(start, end)| start..end).collect()
    }
}

/// One turn of the agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// What the environment had said.
    pub observation: String,
    /// What the agent wrote, without the end token.
    pub action: String,
    /// The command in it, as the environment got it; `None` where none could be read.
    pub command: Option<String>,
    /// Where in [`Episode::tokens`] the sequence begins that the turn is in.
    pub start: usize,
    /// The sampled tokens of the turn in [`Episode::tokens`]; these carry loss.
    pub tokens: Range<usize>,
    /// How many of these come before what is not thought or tag.
    pub thought: usize,
    /// The action could be read and the environment understood it.
    pub valid: bool,
    /// Why the action could not be read.
    pub refusal: Option<Refusal>,
    /// The environment's reward.
    pub reward: f32,
    /// Whether the fewest steps to the goal became fewer; `None` where the environment does not know, or was not asked.
    pub progressed: Option<bool>,
}

impl Turn {
    /// What the agent did, to compare turns by: the command, or where none could be read all that was written after the tag.
    pub fn command(&self) -> &str {
        let written = || Tag::split(&self.action).map_or(&self.action[..], |(_, rest)| rest).trim();
        self.command.as_deref().unwrap_or_else(written)
    }
}

/// Why an episode ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The goal is reached.
    Won,
    /// The environment ended the episode without success.
    Lost,
    /// As many turns as `env.max_steps`.
    StepLimit,
    /// As many tokens as `rollout.max_episode_tokens`.
    TokenLimit,
    /// The model's context is full.
    ContextLimit,
    /// The environment failed; the episode says nothing about the policy.
    EnvFailed(String),
}

impl Finish {
    /// Whether the environment, not the agent, is to blame.
    pub fn is_failure(&self) -> bool {
        matches!(self, Finish::EnvFailed(_))
    }

    /// Short name for logs and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Finish::Won => "won",
            Finish::Lost => "lost",
            Finish::StepLimit => "step-limit",
            Finish::TokenLimit => "token-limit",
            Finish::ContextLimit => "context-limit",
            Finish::EnvFailed(_) => "env-failed",
        }
    }
}
