//! Batched multi-turn episodes with a KV cache.
//!
//! Each step every active episode appends what is pending (a new observation's tokens, or its last sampled token) in one batch and
//! samples one token. The members of a group share their prompt: it is computed once and forked. Environments in other processes
//! respond later: an episode that waits for one sits out, and nobody waits for the slowest. Finished episodes leave at once, waiting
//! ones enter. When the device runs out of pages, the youngest episode is preempted: its tokens are read again later. Random numbers
//! are a function of (seed, stream, episode, token index), so an episode does not depend on who else is in the batch.

mod actor;
mod answers;
mod environment;
mod episode;
mod group;
mod played;
mod prefix_cache;
mod scheduler;
mod statistics;
pub use actor::Actor;
pub use answers::Answer;
pub use played::Played;
pub use prefix_cache::PrefixCache;
pub use statistics::{Behaviour, Counts, Statistics};

use crate::agent::{Finish, PromptError, Prompter};
use crate::config::Config;
use crate::device;
use crate::env::{EnvError, Environment, Task};
use crate::model::tokenizer::TokenizerError;
use crate::ops::philox::Stream;
use crate::ops::sampling::SamplingParams;

/// Opens a task's environment: [`crate::env::Suite::open_for_training`] or [`crate::env::Suite::open`].
pub type Open<'a> = &'a (dyn Fn(&Task) -> Result<Box<dyn Environment>, EnvError> + Sync);

/// Why a rollout was given up. An environment that fails ends its own episode only.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum RolloutError {
    #[error(transparent)]
    HeldOut(EnvError),
    #[error(transparent)]
    Prompt(#[from] PromptError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error("interrupted")]
    Interrupted,
}

/// Why an episode cannot begin: its prompt fills the `limit`, which is `name`.
pub fn too_long(task: &str, tokens: usize, limit: usize, name: &str) -> String {
    format!(
        "the prompt of task {task} has {tokens} tokens and leaves no room to answer within {limit}, the {name}; \
         use a model with a longer context, or a shorter prompt"
    )
}

/// Limits and sampling of a rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutSettings {
    /// Temperature, truncation and penalty.
    pub sampling: SamplingParams,
    /// Most turns in an episode.
    pub max_steps: usize,
    /// Most tokens in a turn.
    pub max_turn_tokens: usize,
    /// Most tokens in a sequence of an episode (0: the model's context).
    pub max_episode_tokens: usize,
    /// Most episodes alive at once.
    pub max_live: usize,
    /// The run's seed.
    pub seed: u64,
    /// What the tokens are sampled for: tells rollouts under one seed apart.
    pub stream: Stream,
    /// Ask environments how far the goal is, for [`crate::agent::Turn::progressed`].
    pub distances: bool,
}

impl RolloutSettings {
    /// The settings of training's rollouts.
    pub fn training(config: &Config, stream: Stream) -> RolloutSettings {
        let r = &config.rollout;
        let sampling = SamplingParams {
            temperature: r.temperature,
            top_k: r.top_k as usize,
            top_p: r.top_p,
            min_p: r.min_p,
            repetition_penalty: r.repetition_penalty,
        };
        RolloutSettings {
            sampling,
            max_steps: config.env.max_steps as usize,
            max_turn_tokens: r.max_turn_tokens as usize,
            max_episode_tokens: r.max_episode_tokens as usize,
            max_live: r.max_live as usize,
            seed: config.run.seed,
            stream,
            distances: config.needs_labels(),
        }
    }

    /// The same limits at evaluation's temperature, without truncation or penalty.
    pub fn evaluation(config: &Config, stream: Stream) -> RolloutSettings {
        let sampling = SamplingParams { temperature: config.eval.temperature, ..SamplingParams::default() };
        RolloutSettings { sampling, ..RolloutSettings::training(config, stream) }
    }
}

/// The games of a rollout: `group_size` episodes of each task.
#[derive(Clone, Copy)]
pub struct RolloutTasks<'a> {
    /// Opens a task.
    pub open: Open<'a>,
    /// The tasks.
    pub tasks: &'a [Task],
    /// Episodes of each task.
    pub group_size: usize,
}

/// What all episodes of a rollout share.
struct RolloutContext<'a> {
    prompter: &'a Prompter,
    settings: &'a RolloutSettings,
    limit: Limit,
}

/// Most tokens of an episode, and what it is called when they are used up.
struct Limit {
    tokens: usize,
    name: &'static str,
    finish: Finish,
}

impl Limit {
    /// The stricter of the configured limit and the model's `context`.
    fn new(settings: &RolloutSettings, context: usize) -> Limit {
        match settings.max_episode_tokens {
            n if n > 0 && n < context => {
                Limit { tokens: n, name: "limit rollout.max_episode_tokens", finish: Finish::TokenLimit }
            }
            _ => Limit { tokens: context, name: "model's context", finish: Finish::ContextLimit },
        }
    }
}
