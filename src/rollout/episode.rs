//! One episode while it is played.

use super::environment::{Event, OpenEnvironment, Response};
use super::{Open, PrefixCache, RolloutContext, RolloutError, RolloutSettings, too_long};
use crate::agent::{Action, Episode, Finish, Memory, Next, Refusal, Turn};
use crate::env::{EnvError, Observation, Task};
use crate::model::{SampleRequest, SequenceId};
use crate::ops::philox;
use crate::ops::sampling::Sampled;
use std::sync::mpsc::Sender;
use std::time::Instant;

/// What the agent is told when no command could be read: the environment is not open_turn.
const REFUSED: &str = "Nothing happens.";

/// An episode being played.
pub(super) struct ActiveEpisode {
    /// Place in the rollout; also names its random numbers.
    pub index: usize,
    /// Its place in the cache; `None` until it has forked its group's prompt.
    pub sequence: Option<SequenceId>,
    /// It has begun another sequence than its place in the cache holds.
    pub is_new_sequence: bool,
    pub episode: Episode,
    /// Tokens that the cache does not hold yet.
    pub pending: Vec<u32>,
    pub over: bool,
    environment: OpenEnvironment,
    /// The turn whose response is to come later.
    open_turn: Option<OpenTurn>,
    /// What the agent was last shown, and all that it has before it.
    shown: Observation,
    memory: Memory,
    /// Fewest steps from here to the goal, where that is open_turn and known.
    distance: Option<u32>,
    /// Where the current sequence starts, and in it the current turn's tokens.
    start: usize,
    turn: usize,
    started: Instant,
}

/// A finished turn that the environment has not responseed yet.
struct OpenTurn {
    written: Action,
    /// End of its sampled tokens.
    sampled: usize,
}

/// An episode whose environment has been open_turn to begin.
pub(super) struct PendingEpisode {
    pub index: usize,
    episode: Episode,
    environment: OpenEnvironment,
    started: Instant,
}

/// An episode whose environment is open, and the first response, unless it will come later.
pub(super) type Opened = (PendingEpisode, Option<Response>);

/// The episode as its environment's failure ends it; what is held out ends the rollout.
fn failed(mut episode: Episode, error: EnvError) -> Result<Box<Episode>, RolloutError> {
    if matches!(error, EnvError::HeldOut { .. }) {
        return Err(RolloutError::HeldOut(error));
    }
    episode.finish = Finish::EnvFailed(error.to_string());
    Ok(Box::new(episode))
}

/// The response, unless it pays what nothing can be learnt from.
fn sound(response: Response, task: &Task) -> Response {
    let (seen, distance) = response?;
    let seen = seen.checked().map_err(|reason| EnvError::Failed { name: task.id.clone(), reason })?;
    Ok((seen, distance))
}

impl PendingEpisode {
    /// Opens the environment and asks it to begin; with the response, where it comes at once. `Err(episode)` when it does not open.
    pub fn open(
        context: &RolloutContext<'_>,
        open: Open<'_>,
        episode: Episode,
        index: usize,
        sender: &Sender<Event>,
    ) -> Result<Result<Opened, Box<Episode>>, RolloutError> {
        let started = Instant::now();
        let begun =
            open(&episode.task).and_then(|env| OpenEnvironment::begin(env, context.settings.distances, index, sender));
        match begun {
            Ok((environment, response)) => Ok(Ok((PendingEpisode { index, episode, environment, started }, response))),
            Err(error) => Ok(Err(failed(episode, error)?)),
        }
    }

    /// Lays out the prompt of the first observation; `Err(episode)` when the environment failed to begin, or with more words than
    /// the model can read.
    pub fn enter(
        self,
        context: &RolloutContext<'_>,
        response: Response,
    ) -> Result<Result<ActiveEpisode, Box<Episode>>, RolloutError> {
        let PendingEpisode { index, mut episode, environment, started } = self;
        let (shown, distance) = match sound(response, &episode.task) {
            Ok(begun) => begun,
            Err(error) => return Ok(Err(failed(episode, error)?)),
        };
        let mut memory = Memory::default();
        let (Next::More(prompt) | Next::Sequence(prompt)) = memory.show(&[], context.prompter.first(&shown)?);
        if prompt.len() >= context.limit.tokens {
            let (tokens, limit) = (prompt.len(), &context.limit);
            episode.finish = Finish::EnvFailed(too_long(&episode.task.id, tokens, limit.tokens, limit.name));
            return Ok(Err(Box::new(episode)));
        }
        let turn = prompt.len();
        episode.logprobs = vec![0.0; turn];
        episode.tokens = prompt;
        Ok(Ok(ActiveEpisode {
            index,
            sequence: None,
            is_new_sequence: false,
            episode,
            pending: Vec::new(),
            over: false,
            environment,
            open_turn: None,
            shown,
            memory,
            distance,
            start: 0,
            turn,
            started,
        }))
    }
}

impl ActiveEpisode {
    /// Whether it waits for its environment.
    pub fn waits(&self) -> bool {
        self.open_turn.is_some()
    }

    /// Gives its pages back: its tokens are read again when it goes on.
    pub fn give_back(&mut self, cache: &mut PrefixCache<'_>) {
        if let Some(id) = self.sequence.take() {
            cache.free(id);
            self.pending = self.episode.tokens[self.start..].to_vec();
            self.is_new_sequence = true;
        }
    }

    /// How the next token is sampled.
    pub fn request(&self, id: SequenceId, settings: &RolloutSettings) -> SampleRequest<'_> {
        let tokens = &self.episode.tokens;
        let stream = settings.stream.part(self.index as u64);
        let uniform = philox::uniform(philox::block(settings.seed, stream, tokens.len() as u64)[0]);
        SampleRequest { sequence: id, seen: &tokens[self.start..], uniform }
    }

    /// Takes the token that was sampled and, when it ends the turn, plays the turn.
    pub fn advance(&mut self, context: &RolloutContext<'_>, next: Sampled) -> Result<(), RolloutError> {
        let settings = context.settings;
        let at = self.episode.tokens.len();
        self.pending.clear();
        self.append(&[next.token]);
        self.episode.logprobs[at] = next.logprob;

        let sampled = at + 1;
        if context.prompter.ends_turn(next.token) {
            let written = context.prompter.read(&self.episode.tokens[self.turn..at])?;
            self.play(context, written, sampled)
        } else if sampled - self.start >= context.limit.tokens {
            let written = self.unfinished(context, sampled)?;
            self.record(written, sampled, false, 0.0, None);
            self.finish(context.limit.finish.clone());
            Ok(())
        } else if sampled - self.turn >= settings.max_turn_tokens {
            // The turn is closed for the agent, by a token that it did not sample and that carries no loss.
            self.append(&[context.prompter.end()]);
            let written = self.unfinished(context, sampled)?;
            self.play(context, written, sampled)
        } else {
            Ok(())
        }
    }

    /// What stands in a turn that was not ended, whose sampled tokens end before `sampled`.
    fn unfinished(&self, context: &RolloutContext<'_>, sampled: usize) -> Result<Action, RolloutError> {
        let text = context.prompter.read(&self.episode.tokens[self.turn..sampled])?.text;
        Ok(Action { text, command: Err(Refusal::Unfinished), thought: 0 })
    }

    /// Plays a finished turn, whose sampled tokens end before `sampled`.
    fn play(&mut self, context: &RolloutContext<'_>, written: Action, sampled: usize) -> Result<(), RolloutError> {
        let response = match &written.command {
            Ok(command) => self.environment.step(command.clone()),
            Err(_) => {
                let admissible = self.shown.admissible.clone();
                Some(Ok((Observation { text: REFUSED.into(), admissible, ..Observation::default() }, self.distance)))
            }
        };
        let open_turn = OpenTurn { written, sampled };
        match response {
            Some(response) => self.show(context, open_turn, response),
            None => {
                self.open_turn = Some(open_turn);
                Ok(())
            }
        }
    }

    /// Takes the response that it waits for.
    pub fn on_response(&mut self, context: &RolloutContext<'_>, response: Response) -> Result<(), RolloutError> {
        match self.open_turn.take() {
            Some(open_turn) => self.show(context, open_turn, response),
            None => Ok(()),
        }
    }

    /// Records the turn and shows the response to it.
    fn show(
        &mut self,
        context: &RolloutContext<'_>,
        open_turn: OpenTurn,
        response: Response,
    ) -> Result<(), RolloutError> {
        let OpenTurn { written, sampled } = open_turn;
        let (reply, distance) = match sound(response, &self.episode.task) {
            Ok(response) => response,
            Err(error) => {
                self.record(written, sampled, true, 0.0, None);
                self.finish(Finish::EnvFailed(error.to_string()));
                return Ok(());
            }
        };
        let progressed = self.distance.zip(distance).map(|(before, after)| after < before);
        self.distance = distance;
        self.record(written, sampled, reply.valid, reply.reward, progressed);
        if reply.won {
            self.episode.success = true;
            self.finish(Finish::Won);
        } else if reply.done {
            self.finish(Finish::Lost);
        } else if self.episode.turns.len() >= context.settings.max_steps {
            self.finish(Finish::StepLimit);
        } else {
            self.read(context, reply)?;
        }
        Ok(())
    }

    /// Lays out what the agent reads next, if there is room for one sampled token behind it.
    fn read(&mut self, context: &RolloutContext<'_>, reply: Observation) -> Result<(), RolloutError> {
        let shown = context.prompter.next(&context.prompter.past(&self.episode.turns), &reply)?;
        let end = self.episode.tokens.len();
        let next = self.memory.show(&self.episode.tokens[self.turn..], shown);
        let start = if matches!(next, Next::Sequence(_)) { end } else { self.start };
        let (Next::More(tokens) | Next::Sequence(tokens)) = &next;
        if end + tokens.len() - start >= context.limit.tokens {
            self.finish(context.limit.finish.clone());
            return Ok(());
        }
        if start == end {
            self.pending.clear();
            self.is_new_sequence = true;
        }
        self.append(tokens);
        (self.start, self.turn, self.shown) = (start, self.episode.tokens.len(), reply);
        Ok(())
    }

    fn record(&mut self, written: Action, sampled: usize, valid: bool, reward: f32, progressed: Option<bool>) {
        let Action { text: action, command, thought } = written;
        let (refusal, command) = (command.as_ref().err().copied(), command.ok());
        let (observation, start, tokens) = (self.shown.text.clone(), self.start, self.turn..sampled);
        let turn = Turn { observation, action, command, start, tokens, thought, valid, refusal, reward, progressed };
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
