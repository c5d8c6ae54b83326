//! Batched multi-turn episodes with a KV cache.
//!
//! Each tick every live episode feeds what is pending (a new observation's tokens, or its last sampled token) into one
//! [`Decoder::extend`] call and samples one token. The members of a group share their prompt: it is computed once and forked.
//! Environments in other processes answer by mail: an episode that waits for one sits out, and nobody waits for the slowest.
//! Finished episodes leave at once, waiting ones enter. Random numbers are a function of (seed, stream, episode, token
//! index), so an episode does not depend on who else is in the batch.

mod answers;
mod live;
mod played;
mod prefix_cache;
mod statistics;
mod stepper;
pub use answers::{Answer, answers, answers_on};
pub use played::Played;
pub use prefix_cache::PrefixCache;
pub use statistics::{Behaviour, Counts, Statistics};

use crate::agent::{Episode, Finish, PromptError, Prompter};
use crate::config::Config;
use crate::device;
use crate::env::{EnvError, Environment, Task};
use crate::model::tokenizer::TokenizerError;
use crate::model::{Draw, Policy, Slot};
use crate::ops::philox::Stream;
use crate::ops::sampling::SamplingParams;
use live::{Arrival, Live};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::time::Duration;
use stepper::Letter;

/// Opens a task's environment: [`crate::env::Suite::open_for_training`] or [`crate::env::Suite::open`].
pub type Open<'a> = &'a (dyn Fn(&Task) -> Result<Box<dyn Environment>, EnvError> + Sync);

/// How often a rollout looks up while all its episodes wait for their environments.
const PATIENCE: Duration = Duration::from_millis(50);

/// Why a rollout was given up. An environment that fails ends its own episode only.
#[derive(Debug, thiserror::Error)]
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
pub struct Settings {
    pub sampling: SamplingParams,
    /// Most turns in an episode.
    pub max_steps: usize,
    /// Most tokens in a turn.
    pub max_turn_tokens: usize,
    /// Most tokens in a sequence of an episode (0: the model's context).
    pub max_episode_tokens: usize,
    /// Most episodes alive at once.
    pub max_live: usize,
    pub seed: u64,
    /// What the tokens are sampled for: tells rollouts under one seed apart.
    pub stream: Stream,
    /// Ask environments how far the goal is, for [`crate::agent::Turn::nearer`].
    pub distances: bool,
}

impl Settings {
    /// The settings of training's rollouts.
    pub fn training(config: &Config, stream: Stream) -> Settings {
        let r = &config.rollout;
        let sampling = SamplingParams {
            temperature: r.temperature,
            top_k: r.top_k as usize,
            top_p: r.top_p,
            min_p: r.min_p,
            repetition_penalty: r.repetition_penalty,
        };
        Settings {
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
    pub fn evaluation(config: &Config, stream: Stream) -> Settings {
        let sampling = SamplingParams { temperature: config.eval.temperature, ..SamplingParams::default() };
        Settings { sampling, ..Settings::training(config, stream) }
    }
}

/// What the members of a group share.
#[derive(Default)]
struct Group {
    prompt: Vec<u32>,
    /// Holds the prompt until the last member has forked it.
    slot: Option<Slot>,
    /// The model has read the prompt.
    read: bool,
    /// Members that have not forked the prompt yet.
    expected: usize,
}

impl Group {
    /// Lets a member in, or gives back its failed episode: a group is one instance, so a member that began elsewhere
    /// cannot be compared with the others.
    fn admit(&mut self, cache: &mut PrefixCache<'_>, entrant: Live) -> Result<Live, Box<Episode>> {
        if self.prompt.is_empty() {
            self.prompt.clone_from(&entrant.episode.tokens);
            self.slot = Some(cache.alloc());
        }
        if self.prompt == entrant.episode.tokens {
            return Ok(entrant);
        }
        let reason = "it began with another observation than the rest of its group".into();
        Err(Box::new(Episode { finish: Finish::EnvFailed(reason), ..entrant.episode }))
    }

    /// One member fewer will need the prompt.
    fn release(&mut self, cache: &mut PrefixCache<'_>) {
        self.expected -= 1;
        if self.expected == 0
            && let Some(slot) = self.slot.take()
        {
            cache.free(slot);
        }
    }
}

/// As [`rollout_on`], with a cache that keeps nothing.
pub fn rollout(
    policy: &dyn Policy,
    prompter: &Prompter,
    open: Open<'_>,
    tasks: &[Task],
    group_size: usize,
    settings: &Settings,
    interrupted: &dyn Fn() -> bool,
) -> Result<Played, RolloutError> {
    rollout_on(&mut PrefixCache::new(policy, 0)?, prompter, open, tasks, group_size, settings, interrupted)
}

/// Plays `group_size` episodes of each task to their end. Their sequences are left to the cache.
///
/// `interrupted` is asked once a tick.
pub fn rollout_on(
    cache: &mut PrefixCache<'_>,
    prompter: &Prompter,
    open: Open<'_>,
    tasks: &[Task],
    group_size: usize,
    settings: &Settings,
    interrupted: &dyn Fn() -> bool,
) -> Result<Played, RolloutError> {
    let context = cache.config().max_position_embeddings;
    let limit = match settings.max_episode_tokens {
        n if n > 0 && n < context => {
            Limit { tokens: n, name: "limit rollout.max_episode_tokens", finish: Finish::TokenLimit }
        }
        _ => Limit { tokens: context, name: "model's context", finish: Finish::ContextLimit },
    };
    let table = Table { prompter, settings, limit };
    let total = tasks.len() * group_size;
    let (mut waiting, mut live) = (0..total, Vec::<Live>::new());
    let mut groups: Vec<Group> = tasks.iter().map(|_| Group { expected: group_size, ..Group::default() }).collect();
    let mut done: Vec<Option<Episode>> = vec![None; total];

    // Episodes whose environment is about to begin.
    let mut arriving = BTreeMap::<usize, Arrival>::new();
    let (mail, inbox) = channel::<Letter>();

    while !live.is_empty() || !arriving.is_empty() || !waiting.is_empty() {
        if interrupted() {
            return Err(RolloutError::Interrupted);
        }
        let room = settings.max_live.max(1) - live.len() - arriving.len();
        let entering: Vec<usize> = waiting.by_ref().take(room).collect();
        let opened: Vec<_> = entering
            .par_iter()
            .map_with(mail.clone(), |mail, &i| {
                let (group, sample) = (i / group_size, i % group_size);
                Arrival::open(&table, open, Episode::new(tasks[group].clone(), group, sample), i, mail)
            })
            .collect();
        let mut begun = Vec::new();
        for (index, opened) in entering.into_iter().zip(opened) {
            match opened? {
                Ok((arrival, Some(answer))) => begun.push((arrival, answer)),
                Ok((arrival, None)) => {
                    arriving.insert(index, arrival);
                }
                Err(failed) => {
                    groups[index / group_size].release(cache);
                    done[index] = Some(*failed);
                }
            }
        }

        let idle = begun.is_empty() && live.iter().all(Live::waits) && !(live.is_empty() && arriving.is_empty());
        let first = if idle { inbox.recv_timeout(PATIENCE).ok() } else { None };
        for (index, answer) in first.into_iter().chain(inbox.try_iter()) {
            match arriving.remove(&index) {
                Some(arrival) => begun.push((arrival, answer)),
                None => {
                    if let Some(l) = live.iter_mut().find(|l| l.index == index) {
                        l.hear(&table, answer)?;
                    }
                }
            }
        }
        let entered: Vec<_> =
            begun.into_par_iter().map(|(arrival, answer)| (arrival.index, arrival.enter(&table, answer))).collect();
        for (index, entered) in entered {
            let group = &mut groups[index / group_size];
            match entered?.and_then(|entrant| group.admit(cache, entrant)) {
                Ok(entrant) => live.push(entrant),
                Err(failed) => {
                    group.release(cache);
                    done[index] = Some(*failed);
                }
            }
        }

        let (mut playing, sitting): (Vec<Live>, Vec<Live>) = live.into_iter().partition(|l| !l.waits() && !l.over);
        if !playing.is_empty() {
            let slots = extend(cache, &mut groups, &mut playing)?;
            let draws: Vec<Draw> = playing.iter().zip(slots).map(|(l, slot)| l.draw(slot, settings)).collect();
            let drawn = cache.draw(&draws, &settings.sampling)?;
            playing.par_iter_mut().zip(drawn).try_for_each(|(l, drawn)| l.advance(&table, drawn))?;
        }

        let (over, on): (Vec<Live>, Vec<Live>) = playing.into_iter().chain(sitting).partition(|l| l.over);
        live = on;
        for l in over {
            if let Some(slot) = l.slot {
                cache.keep(slot);
            }
            done[l.index] = Some(l.episode);
        }
    }
    Ok(Played::new(done.into_iter().flatten().collect()))
}

/// What all episodes of a rollout share.
struct Table<'a> {
    prompter: &'a Prompter,
    settings: &'a Settings,
    limit: Limit,
}

/// Most tokens of an episode, and what it is called when they are used up.
struct Limit {
    tokens: usize,
    name: &'static str,
    finish: Finish,
}

/// Feeds everything pending to the model; the slot of each live episode.
fn extend(cache: &mut PrefixCache<'_>, groups: &mut [Group], live: &mut [Live]) -> Result<Vec<Slot>, RolloutError> {
    let mut prompts: Vec<usize> = live.iter().filter(|l| l.slot.is_none()).map(|l| l.episode.group).collect();
    prompts.sort_unstable();
    prompts.dedup();
    prompts.retain(|&g| !groups[g].read);
    for l in live.iter_mut().filter(|l| l.renewed) {
        let (slot, held) = match l.slot {
            Some(old) => cache.branch(old, &l.pending)?,
            None => (cache.alloc(), 0),
        };
        l.slot.into_iter().for_each(|old| cache.keep(old));
        l.pending.drain(..held);
        (l.slot, l.renewed) = (Some(slot), false);
    }
    let mut feeds: Vec<(Slot, &[u32])> = Vec::with_capacity(prompts.len() + live.len());
    feeds.extend(prompts.iter().filter_map(|&g| Some((groups[g].slot?, &groups[g].prompt[..]))));
    feeds.extend(live.iter().filter_map(|l| Some((l.slot?, &l.pending[..]))));
    if !feeds.is_empty() {
        cache.extend(&feeds)?;
    }
    prompts.iter().for_each(|&g| groups[g].read = true);
    let mut slots = Vec::with_capacity(live.len());
    for l in live {
        let group = &mut groups[l.episode.group];
        if let (None, Some(prompt)) = (l.slot, group.slot) {
            l.slot = Some(cache.fork(prompt)?);
            group.release(cache);
        }
        slots.extend(l.slot);
    }
    Ok(slots)
}
