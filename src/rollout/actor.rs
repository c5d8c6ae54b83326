//! Who acts: a policy, how it is prompted, how tokens are sampled, and when to stop.

use super::answers::{Answer, answers};
use super::scheduler::Scheduler;
use super::{Played, PrefixCache, RolloutError, RolloutSettings, RolloutTasks};
use crate::agent::Prompter;
use crate::model::Policy;

/// Plays games and answers questions.
#[derive(Clone)]
pub struct Actor<'a> {
    /// The model that samples.
    pub policy: &'a dyn Policy,
    /// How observations become tokens.
    pub prompter: &'a Prompter,
    /// Limits and sampling.
    pub settings: RolloutSettings,
    /// Asked once a step.
    pub interrupted: &'a dyn Fn() -> bool,
}

impl<'a> Actor<'a> {
    /// An actor that nobody stops.
    pub fn new(
        policy: &'a dyn Policy,
        prompter: &'a Prompter,
        settings: RolloutSettings,
        interrupted: &'a dyn Fn() -> bool,
    ) -> Actor<'a> {
        Actor { policy, prompter, settings, interrupted }
    }

    /// The same under other settings.
    pub fn with(&self, settings: RolloutSettings) -> Actor<'a> {
        Actor { settings, ..self.clone() }
    }

    /// As [`Actor::rollout_on`], with a cache that keeps nothing.
    ///
    /// ```
    /// use std::path::Path;
    /// use uncouple::agent::Prompter;
    /// use uncouple::config::Config;
    /// use uncouple::env::{Split, Suite, household::Household};
    /// use uncouple::model::checkpoint;
    /// use uncouple::ops::philox::Stream;
    /// use uncouple::rollout::{Actor, RolloutSettings, RolloutTasks};
    ///
    /// let (model, tokenizer) = checkpoint::load_with_tokenizer(Path::new("tests/fixtures/golden/models/tiny-tied"))?;
    /// let (config, suite) = (Config::default(), Household::new(0));
    /// let prompter = Prompter::new(tokenizer, &config.prompt)?;
    /// let settings = RolloutSettings { max_steps: 2, ..RolloutSettings::training(&config, Stream::Rollout(0)) };
    /// let actor = Actor::new(&model, &prompter, settings, &|| false);
    /// let tasks = [suite.task(Split::Train, 0)?];
    /// let played = actor.rollout(&RolloutTasks { open: &|task| suite.open(task), tasks: &tasks, group_size: 4 })?;
    /// assert_eq!(played.episodes.len(), 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn rollout(&self, games: &RolloutTasks<'_>) -> Result<Played, RolloutError> {
        self.rollout_on(&mut PrefixCache::new(self.policy, 0)?, games)
    }

    /// Plays the games to their end. Their sequences are left to the cache.
    ///
    /// # Errors
    /// A held-out task, a prompt that cannot be laid out, a failing device, an interrupt. An environment that fails ends its own episode
    /// only.
    pub fn rollout_on(&self, cache: &mut PrefixCache<'_>, games: &RolloutTasks<'_>) -> Result<Played, RolloutError> {
        Scheduler::new(self, cache, games).run()
    }

    /// As [`Actor::answers_on`], with an empty cache.
    ///
    /// # Errors
    /// As there.
    pub fn answers(&self, prompts: &[Vec<u32>], count: usize) -> Result<Vec<Vec<Answer>>, RolloutError> {
        let budget = self.settings.max_live * self.policy.config().max_position_embeddings;
        self.answers_on(&mut PrefixCache::new(self.policy, budget)?, prompts, count)
    }

    /// Samples `count` answers to each prompt, which share the prompt's keys and values; ordered by prompt. What prompts have in common
    /// with each other, or with a sequence that the cache keeps, is not read again.
    ///
    /// At most `settings.max_live` answers (of one prompt at least) are written at once. Random numbers are a function of (seed,
    /// stream, place of the answer, token index). A prompt must leave room for `settings.max_turn_tokens` in the model's context.
    ///
    /// # Errors
    /// A failing device, an interrupt.
    pub fn answers_on(
        &self,
        cache: &mut PrefixCache<'_>,
        prompts: &[Vec<u32>],
        count: usize,
    ) -> Result<Vec<Vec<Answer>>, RolloutError> {
        answers(self, cache, prompts, count)
    }
}
