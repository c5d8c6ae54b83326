//! Continuous batching: which episodes begin, wait, are played, and leave.

use super::environment::{Event, Response};
use super::episode::{ActiveEpisode, PendingEpisode};
use super::group::Group;
use super::{Actor, Limit, Played, PrefixCache, RolloutContext, RolloutError, RolloutTasks};
use crate::agent::Episode;
use crate::device::Error;
use crate::model::{SampleRequest, SequenceId};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// How often a rollout looks up while all its episodes wait for their environments.
const PATIENCE: Duration = Duration::from_millis(50);

/// An episode whose environment has shown how it begins.
type Begun = (PendingEpisode, Response);

/// A rollout on its way. Every episode is in one place: not admitted yet, pending, active, preempted, or done.
pub(super) struct Scheduler<'a, 'c> {
    context: RolloutContext<'a>,
    interrupted: &'a dyn Fn() -> bool,
    games: &'a RolloutTasks<'a>,
    cache: &'a mut PrefixCache<'c>,
    groups: Vec<Group>,
    /// Episodes that have not been admitted.
    waiting: Range<usize>,
    /// Episodes whose environment is about to begin.
    pending: BTreeMap<usize, PendingEpisode>,
    active: Vec<ActiveEpisode>,
    /// Active episodes that gave their pages back; the last of them was the youngest.
    preempted: Vec<ActiveEpisode>,
    done: Vec<Option<Episode>>,
    sender: Sender<Event>,
    receiver: Receiver<Event>,
}

impl<'a, 'c> Scheduler<'a, 'c> {
    pub fn new(actor: &'a Actor<'_>, cache: &'a mut PrefixCache<'c>, games: &'a RolloutTasks<'a>) -> Scheduler<'a, 'c> {
        let limit = Limit::new(&actor.settings, cache.config().max_position_embeddings);
        let total = games.tasks.len() * games.group_size;
        let (sender, receiver) = channel();
        Scheduler {
            context: RolloutContext { prompter: actor.prompter, settings: &actor.settings, limit },
            interrupted: actor.interrupted,
            games,
            cache,
            groups: games.tasks.iter().map(|_| Group::new(games.group_size)).collect(),
            waiting: 0..total,
            pending: BTreeMap::new(),
            active: Vec::new(),
            preempted: Vec::new(),
            done: vec![None; total],
            sender,
            receiver,
        }
    }

    pub fn run(mut self) -> Result<Played, RolloutError> {
        while !(self.waiting.is_empty()
            && self.pending.is_empty()
            && self.active.is_empty()
            && self.preempted.is_empty())
        {
            if (self.interrupted)() {
                return Err(RolloutError::Interrupted);
            }
            let mut begun = self.admit()?;
            self.receive(&mut begun)?;
            self.enter(begun)?;
            self.step()?;
            self.retire();
        }
        Ok(Played::new(self.done.into_iter().flatten().collect()))
    }

    /// Opens the environments of as many waiting episodes as there is room for, in parallel. Nobody enters before those that were
    /// preempted.
    fn admit(&mut self) -> Result<Vec<Begun>, RolloutError> {
        if !self.preempted.is_empty() {
            return Ok(Vec::new());
        }
        let room = self.context.settings.max_live.max(1) - self.active.len() - self.pending.len();
        let entering: Vec<usize> = self.waiting.by_ref().take(room).collect();
        let (context, games) = (&self.context, self.games);
        let open = |sender: &mut Sender<Event>, &index: &usize| {
            let (group, sample) = (index / games.group_size, index % games.group_size);
            let episode = Episode::new(games.tasks[group].clone(), group, sample);
            PendingEpisode::open(context, games.open, episode, index, sender)
        };
        let opened: Vec<_> = entering.par_iter().map_with(self.sender.clone(), open).collect();
        let mut begun = Vec::new();
        for (index, opened) in entering.into_iter().zip(opened) {
            match opened? {
                Ok((pending, Some(response))) => begun.push((pending, response)),
                Ok((pending, None)) => {
                    self.pending.insert(index, pending);
                }
                Err(failed) => self.fail(index, *failed),
            }
        }
        Ok(begun)
    }

    /// Takes the responses of environments that are played elsewhere; waits for one where there is nothing else to do.
    fn receive(&mut self, begun: &mut Vec<Begun>) -> Result<(), RolloutError> {
        let nobody = self.active.is_empty() && self.pending.is_empty();
        let idle = begun.is_empty() && self.active.iter().all(ActiveEpisode::waits) && !nobody;
        let first = if idle { self.receiver.recv_timeout(PATIENCE).ok() } else { None };
        for (index, response) in first.into_iter().chain(self.receiver.try_iter()) {
            if let Some(pending) = self.pending.remove(&index) {
                begun.push((pending, response));
            } else if let Some(episode) = self.active.iter_mut().find(|e| e.index == index) {
                episode.on_response(&self.context, response)?;
            }
        }
        Ok(())
    }

    /// Lays out the prompts of episodes that have begun, in parallel.
    fn enter(&mut self, begun: Vec<Begun>) -> Result<(), RolloutError> {
        let context = &self.context;
        let enter = |(pending, response): Begun| (pending.index, pending.enter(context, response));
        let entered: Vec<_> = begun.into_par_iter().map(enter).collect();
        for (index, entered) in entered {
            let group = &mut self.groups[index / self.games.group_size];
            match entered?.and_then(|entrant| group.admit(self.cache, entrant)) {
                Ok(entrant) => self.active.push(entrant),
                Err(failed) => self.fail(index, *failed),
            }
        }
        Ok(())
    }

    /// The environment failed an episode before it entered its group.
    fn fail(&mut self, index: usize, failed: Episode) {
        self.groups[index / self.games.group_size].release(self.cache);
        self.done[index] = Some(failed);
    }

    /// Appends what is pending and samples one token for each episode that waits for nobody.
    fn step(&mut self) -> Result<(), RolloutError> {
        let active = std::mem::take(&mut self.active);
        let (mut playing, sitting): (Vec<_>, Vec<_>) = active.into_iter().partition(|e| !e.waits() && !e.over);
        self.active = sitting;
        if !playing.is_empty() {
            let ids = self.append(&mut playing)?;
            let settings = self.context.settings;
            let requests: Vec<SampleRequest> = playing.iter().zip(ids).map(|(e, id)| e.request(id, settings)).collect();
            let sampled = self.cache.sample(&requests, &settings.sampling)?;
            let context = &self.context;
            playing.par_iter_mut().zip(sampled).try_for_each(|(e, sampled)| e.advance(context, sampled))?;
        }
        playing.append(&mut self.active);
        self.active = playing;
        Ok(())
    }

    /// Appends everything pending to the model's cache; the sequence of each playing episode. Out of pages, the youngest are preempted.
    fn append(&mut self, playing: &mut Vec<ActiveEpisode>) -> Result<Vec<SequenceId>, RolloutError> {
        self.begin_sequences(playing)?;
        loop {
            let mut prompts: Vec<usize> =
                playing.iter().filter(|e| e.sequence.is_none()).map(|e| e.episode.group).collect();
            prompts.sort_unstable();
            prompts.dedup();
            prompts.retain(|&g| !self.groups[g].is_read);
            let mut inputs: Vec<(SequenceId, &[u32])> = Vec::with_capacity(prompts.len() + playing.len());
            inputs.extend(prompts.iter().filter_map(|&g| Some((self.groups[g].sequence?, &self.groups[g].prompt[..]))));
            inputs.extend(playing.iter().filter_map(|e| Some((e.sequence?, &e.pending[..]))));
            match if inputs.is_empty() { Ok(()) } else { self.cache.append(&inputs) } {
                Err(Error::OutOfPages { .. }) if self.preempt(playing) => {}
                appended => {
                    appended?;
                    prompts.iter().for_each(|&g| self.groups[g].is_read = true);
                    break;
                }
            }
        }
        let mut ids = Vec::with_capacity(playing.len());
        for episode in playing {
            let group = &mut self.groups[episode.episode.group];
            if let (None, Some(prompt)) = (episode.sequence, group.sequence) {
                episode.sequence = Some(self.cache.fork(prompt)?);
                group.release(self.cache);
            }
            ids.extend(episode.sequence);
        }
        Ok(ids)
    }

    /// Gives episodes that have begun another sequence a sequence, with what it has in common with the last one.
    fn begin_sequences(&mut self, playing: &mut [ActiveEpisode]) -> Result<(), RolloutError> {
        for episode in playing.iter_mut().filter(|e| e.is_new_sequence) {
            let (id, held) = match episode.sequence {
                Some(old) => self.cache.branch(old, &episode.pending)?,
                None => (self.cache.new_sequence(), 0),
            };
            episode.sequence.into_iter().for_each(|old| self.cache.keep(old));
            episode.pending.drain(..held);
            (episode.sequence, episode.is_new_sequence) = (Some(id), false);
        }
        Ok(())
    }

    /// Takes pages from an episode that waits for its environment, else from the youngest that plays, else from the prompts of groups.
    /// Whether there was one to take from, other than the last that plays.
    fn preempt(&mut self, playing: &mut Vec<ActiveEpisode>) -> bool {
        if let Some(waiting) = self.active.iter_mut().rev().find(|e| e.sequence.is_some()) {
            waiting.give_back(self.cache);
            return true;
        }
        if playing.len() > 1
            && let Some(mut youngest) = playing.pop()
        {
            youngest.give_back(self.cache);
            self.preempted.push(youngest);
            return true;
        }
        let mut evicted = false;
        for group in &mut self.groups {
            evicted |= group.evict(self.cache);
        }
        evicted
    }

    /// Lets finished episodes go, whose sequences the cache may keep. Pages are free then: those that were preempted come back.
    fn retire(&mut self) {
        let (over, active): (Vec<_>, Vec<_>) = std::mem::take(&mut self.active).into_iter().partition(|e| e.over);
        self.active = active;
        if !over.is_empty() || self.active.is_empty() {
            self.active.extend(self.preempted.pop());
        }
        for episode in over {
            if let Some(id) = episode.sequence {
                self.cache.keep(id);
            }
            self.done[episode.index] = Some(episode.episode);
        }
    }
}
