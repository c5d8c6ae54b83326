//! One episode while it is played.

use super::stepper::{Answer, Letter, Stepper};
use super::{Open, RolloutError, Settings, Table, too_long};
use crate::agent::{Action, Episode, Finish, Memory, Next, Refusal, Turn};
use crate::env::{EnvError, Observation, Task};
use crate::model::{Draw, Slot};
use crate::ops::philox;
use crate::ops::sampling::Sampled;
use std::sync::mpsc::Sender;
use std::time::Instant;

/// What the agent is told when no command could be read: the environment is not asked.
const REFUSED: &str = "Nothing happens.";

/// An episode being played.
pub(super) struct Live {
    /// Place in the rollout; also names its random numbers.
    pub index: usize,
    /// Its place in the cache; `None` until it has forked its group's prompt.
    pub slot: Option<Slot>,
    /// It has begun another sequence than its place in the cache holds.
    pub renewed: bool,
    pub episode: Episode,
    /// Tokens that the cache does not hold yet.
    pub pending: Vec<u32>,
    pub over: bool,
    stepper: Stepper,
    /// The turn whose answer is to come by mail.
    asked: Option<Asked>,
    /// What the agent was last shown, and all that it has before it.
    shown: Observation,
    memory: Memory,
    /// Fewest steps from here to the goal, where that is asked and known.
    distance: Option<u32>,
    /// Where the current sequence starts, and in it the current turn's tokens.
    start: usize,
    turn: usize,
    started: Instant,
}

/// A finished turn that the environment has not answered yet.
struct Asked {
    written: Action,
    /// End of its sampled tokens.
    sampled: usize,
}

/// An episode whose environment has been asked to begin.
pub(super) struct Arrival {
    pub index: usize,
    episode: Episode,
    stepper: Stepper,
    started: Instant,
}

/// An episode whose environment is open, and the first answer, unless it will come by mail.
pub(super) type Opened = (Arrival, Option<Answer>);

/// The episode as its environment's failure ends it; what is held out ends the rollout.
fn failed(mut episode: Episode, error: EnvError) -> Result<Box<Episode>, RolloutError> {
    if matches!(error, EnvError::HeldOut { .. }) {
        return Err(RolloutError::HeldOut(error));
    }
    episode.finish = Finish::EnvFailed(error.to_string());
    Ok(Box::new(episode))
}

/// The answer, unless it pays what nothing can be learnt from.
fn sound(answer: Answer, task: &Task) -> Answer {
    let (seen, distance) = answer?;
    let seen = seen.checked().map_err(|reason| EnvError::Failed { name: task.id.clone(), reason })?;
    Ok((seen, distance))
}

impl Arrival {
    /// Opens the environment and asks it to begin; with the answer, where it comes at once. `Err(episode)` when it does not open.
    pub fn open(
        table: &Table<'_>,
        open: Open<'_>,
        episode: Episode,
        index: usize,
        mail: &Sender<Letter>,
    ) -> Result<Result<Opened, Box<Episode>>, RolloutError> {
        let started = Instant::now();
        let begun = open(&episode.task).and_then(|env| Stepper::begin(env, table.settings.distances, index, mail));
        match begun {
            Ok((stepper, answer)) => Ok(Ok((Arrival { index, episode, stepper, started }, answer))),
            Err(error) => Ok(Err(failed(episode, error)?)),
        }
    }

    /// Lays out the prompt of the first observation; `Err(episode)` when the environment failed to begin, or with more words than
    /// the model can read.
    pub fn enter(self, table: &Table<'_>, answer: Answer) -> Result<Result<Live, Box<Episode>>, RolloutError> {
        let Arrival { index, mut episode, stepper, started } = self;
        let (shown, distance) = match sound(answer, &episode.task) {
            Ok(begun) => begun,
            Err(error) => return Ok(Err(failed(episode, error)?)),
        };
        let mut memory = Memory::default();
        let (Next::More(prompt) | Next::Sequence(prompt)) = memory.show(&[], table.prompter.first(&shown)?);
        if prompt.len() >= table.limit.tokens {
            let (tokens, limit) = (prompt.len(), &table.limit);
            episode.finish = Finish::EnvFailed(too_long(&episode.task.id, tokens, limit.tokens, limit.name));
            return Ok(Err(Box::new(episode)));
        }
        let turn = prompt.len();
        episode.logprobs = vec![0.0; turn];
        episode.tokens = prompt;
        Ok(Ok(Live {
            index,
            slot: None,
            renewed: false,
            episode,
            pending: Vec::new(),
            over: false,
            stepper,
            asked: None,
            shown,
            memory,
            distance,
            start: 0,
            turn,
            started,
        }))
    }
}

impl Live {
    /// Whether it waits for its environment.
    pub fn waits(&self) -> bool {
        self.asked.is_some()
    }

    /// What the next token is drawn by.
    pub fn draw(&self, slot: Slot, settings: &Settings) -> Draw<'_> {
        let tokens = &self.episode.tokens;
        let stream = settings.stream.part(self.index as u64);
        let uniform = philox::uniform(philox::block(settings.seed, stream, tokens.len() as u64)[0]);
        Draw { slot, seen: &tokens[self.start..], uniform }
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
            let written = table.prompter.read(&self.episode.tokens[self.turn..at])?;
            self.play(table, written, sampled)
        } else if sampled - self.start >= table.limit.tokens {
            let written = self.unfinished(table, sampled)?;
            self.record(written, sampled, false, 0.0, None);
            self.finish(table.limit.finish.clone());
            Ok(())
        } else if sampled - self.turn >= settings.max_turn_tokens {
            // The turn is closed for the agent, by a token that it did not sample and that carries no loss.
            self.append(&[table.prompter.end()]);
            let written = self.unfinished(table, sampled)?;
            self.play(table, written, sampled)
        } else {
            Ok(())
        }
    }

    /// What stands in a turn that was not ended, whose sampled tokens end before `sampled`.
    fn unfinished(&self, table: &Table<'_>, sampled: usize) -> Result<Action, RolloutError> {
        let text = table.prompter.read(&self.episode.tokens[self.turn..sampled])?.text;
        Ok(Action { text, command: Err(Refusal::Unfinished), thought: 0 })
    }

    /// Plays a finished turn, whose sampled tokens end before `sampled`.
    fn play(&mut self, table: &Table<'_>, written: Action, sampled: usize) -> Result<(), RolloutError> {
        let answer = match &written.command {
            Ok(command) => self.stepper.step(command.clone()),
            Err(_) => {
                let admissible = self.shown.admissible.clone();
                Some(Ok((Observation { text: REFUSED.into(), admissible, ..Observation::default() }, self.distance)))
            }
        };
        let asked = Asked { written, sampled };
        match answer {
            Some(answer) => self.show(table, asked, answer),
            None => {
                self.asked = Some(asked);
                Ok(())
            }
        }
    }

    /// Hears by mail what it waits for.
    pub fn hear(&mut self, table: &Table<'_>, answer: Answer) -> Result<(), RolloutError> {
        match self.asked.take() {
            Some(asked) => self.show(table, asked, answer),
            None => Ok(()),
        }
    }

    /// Records the turn and shows the answer to it.
    fn show(&mut self, table: &Table<'_>, asked: Asked, answer: Answer) -> Result<(), RolloutError> {
        let Asked { written, sampled } = asked;
        let (reply, distance) = match sound(answer, &self.episode.task) {
            Ok(answer) => answer,
            Err(error) => {
                self.record(written, sampled, true, 0.0, None);
                self.finish(Finish::EnvFailed(error.to_string()));
                return Ok(());
            }
        };
        let nearer = self.distance.zip(distance).map(|(before, after)| after < before);
        self.distance = distance;
        self.record(written, sampled, reply.valid, reply.reward, nearer);
        if reply.won {
            self.episode.success = true;
            self.finish(Finish::Won);
        } else if reply.done {
            self.finish(Finish::Lost);
        } else if self.episode.turns.len() >= table.settings.max_steps {
            self.finish(Finish::StepLimit);
        } else {
            self.read(table, reply)?;
        }
        Ok(())
    }

    /// Lays out what the agent reads next, if there is room for one sampled token behind it.
    fn read(&mut self, table: &Table<'_>, reply: Observation) -> Result<(), RolloutError> {
        let shown = table.prompter.next(&table.prompter.past(&self.episode.turns), &reply)?;
        let end = self.episode.tokens.len();
        let next = self.memory.show(&self.episode.tokens[self.turn..], shown);
        let start = if matches!(next, Next::Sequence(_)) { end } else { self.start };
        let (Next::More(tokens) | Next::Sequence(tokens)) = &next;
        if end + tokens.len() - start >= table.limit.tokens {
            self.finish(table.limit.finish.clone());
            return Ok(());
        }
        if start == end {
            self.pending.clear();
            self.renewed = true;
        }
        self.append(tokens);
        (self.start, self.turn, self.shown) = (start, self.episode.tokens.len(), reply);
        Ok(())
    }

    fn record(&mut self, written: Action, sampled: usize, valid: bool, reward: f32, nearer: Option<bool>) {
        let Action { text: action, command, thought } = written;
        let (refusal, command) = (command.as_ref().err().copied(), command.ok());
        let (observation, start, tokens) = (self.shown.text.clone(), self.start, self.turn..sampled);
        let turn = Turn { observation, action, command, start, tokens, thought, valid, refusal, reward, nearer };
        self.episode.turns.push(turn);
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
