//! One episode while it is played.

use super::{Open, RolloutError, Settings, Table};
use crate::agent::{Episode, Finish, Refusal, Turn};
use crate::env::{EnvError, Environment, Observation};
use crate::model::{Draw, Slot};
use crate::ops::philox;
use crate::ops::sampling::Sampled;
use std::time::Instant;

/// What the agent is told when no command could be read: the environment is not asked.
const REFUSED: &str = "Nothing happens.";

/// An episode being played.
pub(super) struct Live {
    /// Place in the rollout; also names its random numbers.
    pub index: usize,
    /// Its place in the cache; `None` until it has forked its group's prompt.
    pub slot: Option<Slot>,
    pub episode: Episode,
    /// Tokens that the cache does not hold yet.
    pub pending: Vec<u32>,
    pub over: bool,
    env: Box<dyn Environment>,
    /// What the agent was last shown.
    shown: Observation,
    /// Fewest steps from here to the goal, where that is asked and known.
    distance: Option<u32>,
    /// Where the current turn's tokens start.
    turn: usize,
    started: Instant,
}

impl Live {
    /// Opens the environment and lays out the prompt; `Err(episode)` when the environment fails already here.
    pub fn start(
        table: &Table<'_>,
        open: Open<'_>,
        mut episode: Episode,
        index: usize,
    ) -> Result<Result<Live, Box<Episode>>, RolloutError> {
        let started = Instant::now();
        let begin = || -> Result<_, EnvError> {
            let mut env = open(&episode.task)?;
            let observation = env.reset()?;
            let distance = if table.settings.distances { env.distance() } else { None };
            Ok((env, observation, distance))
        };
        let (env, shown, distance) = match begin() {
            Ok(begun) => begun,
            Err(error @ EnvError::HeldOut { .. }) => return Err(RolloutError::HeldOut(error)),
            Err(error) => {
                episode.finish = Finish::EnvFailed(error.to_string());
                return Ok(Err(Box::new(episode)));
            }
        };
        let prompt = table.prompter.first(&shown)?;
        if prompt.len() >= table.limit.tokens {
            return Err(RolloutError::PromptTooLong {
                task: episode.task.id,
                tokens: prompt.len(),
                limit: table.limit.tokens,
                what: table.limit.name,
            });
        }
        let turn = prompt.len();
        episode.logprobs = vec![0.0; turn];
        episode.tokens = prompt;
        Ok(Ok(Live {
            index,
            slot: None,
            episode,
            pending: Vec::new(),
            over: false,
            env,
            shown,
            distance,
            turn,
            started,
        }))
    }

    /// What the next token is drawn by.
    pub fn draw(&self, settings: &Settings) -> Draw<'_> {
        let seen = &self.episode.tokens;
        let stream = u64::from(settings.stream) << 32 | self.index as u64;
        Draw { seen, uniform: philox::uniform(philox::block(settings.seed, stream, seen.len() as u64)[0]) }
    }

    /// Takes the token that was drawn and, when it ends the turn, plays the turn.
    pub fn advance(&mut self, table: &Table<'_>, drawn: Sampled) -> Result<(), RolloutError> {
        let settings = table.settings;
        let at = self.episode.tokens.len();
        self.pending.clear();
        self.append(&[drawn.token]);
        self.episode.logprobs[at] = drawn.logprob;

        let sampled = at + 1;
        if table.prompter.ends_turn(drawn.token) {
            let action = table.prompter.read(&self.episode.tokens[self.turn..at])?;
            self.play(table, action.text, action.command, sampled)
        } else if sampled >= table.limit.tokens {
            let text = table.prompter.read(&self.episode.tokens[self.turn..sampled])?.text;
            self.record(text, sampled, Some(Refusal::Unfinished), false, 0.0, None);
            self.finish(table.limit.finish.clone());
            Ok(())
        } else if sampled - self.turn >= settings.max_turn_tokens {
            // The turn is closed for the agent, by a token that it did not sample and that carries no loss.
            self.append(&[table.prompter.end()]);
            let text = table.prompter.read(&self.episode.tokens[self.turn..sampled])?.text;
            self.play(table, text, Err(Refusal::Unfinished), sampled)
        } else {
            Ok(())
        }
    }

    /// Plays a finished turn, whose sampled tokens end before `sampled`, and shows the answer.
    fn play(
        &mut self,
        table: &Table<'_>,
        text: String,
        command: Result<String, Refusal>,
        sampled: usize,
    ) -> Result<(), RolloutError> {
        let reply = match &command {
            Ok(command) => self.env.step(command),
            Err(_) => Ok(Observation {
                text: REFUSED.into(),
                admissible: self.shown.admissible.clone(),
                ..Observation::default()
            }),
        };
        let refusal = command.err();
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                self.record(text, sampled, refusal, true, 0.0, None);
                self.finish(Finish::EnvFailed(error.to_string()));
                return Ok(());
            }
        };
        let before = self.distance;
        if table.settings.distances && refusal.is_none() {
            self.distance = self.env.distance();
        }
        let nearer = before.zip(self.distance).map(|(before, after)| after < before);
        self.record(text, sampled, refusal, reply.valid, reply.reward, nearer);
        if reply.won {
            self.episode.success = true;
            self.finish(Finish::Won);
        } else if reply.done {
            self.finish(Finish::Lost);
        } else if self.episode.turns.len() >= table.settings.max_steps {
            self.finish(Finish::StepLimit);
        } else {
            let next = table.prompter.next(&reply)?;
            // There must be room for one sampled token at least.
            if self.episode.tokens.len() + next.len() >= table.limit.tokens {
                self.finish(table.limit.finish.clone());
            } else {
                self.append(&next);
                self.turn = self.episode.tokens.len();
                self.shown = reply;
            }
        }
        Ok(())
    }

    fn record(
        &mut self,
        action: String,
        sampled: usize,
        refusal: Option<Refusal>,
        valid: bool,
        reward: f32,
        nearer: Option<bool>,
    ) {
        let (observation, tokens) = (self.shown.text.clone(), self.turn..sampled);
        self.episode.turns.push(Turn { observation, action, tokens, valid, refusal, reward, nearer });
    }

    /// Adds tokens that were not sampled (the caller sets a log-prob where one was).
    fn append(&mut self, tokens: &[u32]) {
        self.episode.tokens.extend_from_slice(tokens);
        self.episode.logprobs.resize(self.episode.tokens.len(), 0.0);
        self.pending.extend_from_slice(tokens);
    }

    /// Ends the episode; it leaves the batch at the end of the tick.
    fn finish(&mut self, finish: Finish) {
        self.episode.finish = finish;
        self.episode.seconds = self.started.elapsed().as_secs_f64();
        self.over = true;
    }
}
