//! Races for shared memory: two threads access the same bytes, one writes, and nothing orders them: no barrier, no mbarrier, no
//! __syncwarp, no wait. Found whatever the schedule, by vector clocks; with the feature `counters`, whose instrumentation tells of every
//! access. An atomic is no access here: it is ordered by itself.

use std::collections::HashMap;

/// What a thread knows to be over: of every thread, how far.
type Clock = Vec<u32>;

/// Two bytes: as much as the smallest element.
const UNIT: usize = 2;

#[derive(Default)]
pub struct Races {
    clocks: Vec<Clock>,
    units: HashMap<usize, Unit>,
    /// By address, or by number: what arrivals have told.
    barriers: HashMap<Barrier, Clock>,
    /// Copies under way were begun with these, by where they go.
    copies: HashMap<usize, (usize, Clock)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Barrier {
    /// In shared memory.
    Address(usize),
    Number(u32),
}

/// Who has accessed some bytes, at which time of theirs.
#[derive(Default)]
struct Unit {
    write: Option<(usize, u32)>,
    reads: Vec<(usize, u32)>,
}

impl Races {
    /// Before a block.
    pub fn begin(&mut self, threads: usize) {
        let begin = |t: usize| (0..threads).map(|other| u32::from(other == t)).collect();
        *self = Races { clocks: (0..threads).map(begin).collect(), ..Races::default() };
    }

    /// The thread whose access of these bytes is unordered with this one, if there is one.
    pub fn access(&mut self, thread: usize, address: usize, bytes: usize, write: bool) -> Option<usize> {
        let now = std::mem::take(&mut self.clocks[thread]);
        let units = address / UNIT..(address + bytes).div_ceil(UNIT);
        let found = units.filter_map(|unit| self.units.entry(unit).or_default().access(thread, &now, write)).next();
        self.clocks[thread] = now;
        found
    }

    /// All threads have met.
    pub fn meet(&mut self, threads: impl Iterator<Item = usize> + Clone) {
        let mut all = vec![0; self.clocks.len()];
        threads.clone().for_each(|t| join(&mut all, &self.clocks[t]));
        for t in threads {
            self.clocks[t].clone_from(&all);
            self.clocks[t][t] += 1;
        }
    }

    /// A thread tells all it knows to whoever waits at a barrier.
    pub fn arrive(&mut self, thread: usize, barrier: Barrier) {
        let clock = &mut self.clocks[thread];
        join(self.barriers.entry(barrier).or_insert_with(|| vec![0; clock.len()]), clock);
        clock[thread] += 1;
    }

    /// It has waited there.
    pub fn pass(&mut self, thread: usize, barrier: Barrier) {
        if let Some(told) = self.barriers.get(&barrier) {
            join(&mut self.clocks[thread], told);
        }
    }

    /// A thread begins a copy to these addresses.
    pub fn begin_copy(&mut self, thread: usize, to: impl Iterator<Item = usize>) {
        let clock = self.clocks[thread].clone();
        to.for_each(|to| drop(self.copies.insert(to, (thread, clock.clone()))));
        self.clocks[thread][thread] += 1;
    }

    /// A copy of 16 bytes to here happens, at whatever time: it is a write of the thread that began it, as of then.
    pub fn copy_happens(&mut self, to: usize) -> Option<usize> {
        let (thread, clock) = self.copies.remove(&to)?;
        let units = to / UNIT..(to + 16).div_ceil(UNIT);
        units.filter_map(|unit| self.units.entry(unit).or_default().access(thread, &clock, true)).next()
    }

    /// What a copy brought is told at an mbarrier, with all that its thread knew when it began it.
    pub fn copy_arrives(&mut self, to: usize, barrier: Barrier) {
        if let Some((_, clock)) = self.copies.get(&to) {
            join(self.barriers.entry(barrier).or_insert_with(|| vec![0; clock.len()]), clock);
        }
    }
}

impl Unit {
    /// The thread of an earlier access that is not over for one who knows `now`.
    fn access(&mut self, thread: usize, now: &Clock, write: bool) -> Option<usize> {
        let unordered = |(other, time): &&(usize, u32)| *other != thread && now[*other] < *time;
        let found = self.write.iter().find(unordered).or_else(|| self.reads.iter().find(|r| write && unordered(r)));
        let found = found.map(|(other, _)| *other);
        if write {
            self.write = Some((thread, now[thread]));
            self.reads.clear();
        } else {
            match self.reads.iter_mut().find(|(reader, _)| *reader == thread) {
                Some((_, time)) => *time = now[thread],
                None => self.reads.push((thread, now[thread])),
            }
        }
        found
    }
}

fn join(clock: &mut Clock, other: &Clock) {
    clock.iter_mut().zip(other).for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
}
