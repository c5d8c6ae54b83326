//! Barriers of parts of a block: mbarriers in shared memory, which count arrivals and bytes and complete phase by phase, and the
//! sixteen that have numbers.

use crate::block::{Line, Runner, State};
use crate::fault::Fault;
use crate::launch::Schedule;
#[cfg(feature = "counters")]
use crate::races::Barrier;

/// What an initialised mbarrier's word holds.
const MAGIC: u64 = 0x6261_7272_6965_7221;

#[derive(Debug)]
pub struct Phases {
    /// Arrivals of a phase.
    count: u32,
    /// Arrivals that this phase still waits for, and bytes.
    arrivals: u32,
    bytes: i64,
    /// Phases completed.
    done: u64,
    /// The thread that made it, and whether the others see it.
    maker: usize,
    shown: bool,
}

#[derive(Debug, Default)]
pub struct Named {
    threads: u32,
    arrived: u32,
}

impl Runner<'_> {
    /// The mbarrier at an address: a fault, and none, where there is none.
    fn phases(&mut self, p: *const u64, line: Line) -> Option<&mut Phases> {
        self.check_access(p as usize, 8, line);
        if self.failed() {
            return None;
        }
        // SAFETY: inside memory of the kernel's, as just checked.
        if unsafe { *p } != MAGIC || !self.mbarriers.contains_key(&(p as usize)) {
            self.blame(
                line,
                "there is no mbarrier: it was never initialised, or was invalidated, or overwritten".into(),
            );
        }
        self.mbarriers.get_mut(&(p as usize))
    }

    pub fn mbarrier_init(&mut self, p: *mut u64, count: u32, line: Line) {
        self.check_access(p as usize, 8, line);
        if self.failed() {
            return;
        }
        if !self.is_shared(p as usize, 8) || count == 0 || self.mbarriers.contains_key(&(p as usize)) {
            let problem =
                format!("an mbarrier of {count} arrivals cannot be made here: not shared memory, or one is there");
            return self.blame(line, problem);
        }
        unsafe { *p = MAGIC };
        let maker = self.running;
        self.mbarriers.insert(p as usize, Phases { count, arrivals: count, bytes: 0, done: 0, maker, shown: false });
    }

    pub fn mbarrier_invalidate(&mut self, p: *mut u64, line: Line) {
        if self.phases(p, line).is_some() {
            self.mbarriers.remove(&(p as usize));
            unsafe { *p = 0 };
        }
    }

    /// What the running thread made is visible to the others.
    pub fn show_mbarriers(&mut self) {
        let me = self.running;
        self.mbarriers.values_mut().filter(|phases| phases.maker == me).for_each(|phases| phases.shown = true);
    }

    /// The mbarrier, which the running thread made or was shown.
    fn visible_phases(&mut self, p: *const u64, line: Line) -> Option<&mut Phases> {
        let me = self.running;
        if self.mbarriers.get(&(p as usize)).is_some_and(|phases| !phases.shown && phases.maker != me) {
            self.blame(line, "this mbarrier was made by another thread, which has not shown it".into());
        }
        self.phases(p, line)
    }

    /// One arrival, which makes the phase wait for `bytes` more.
    pub fn mbarrier_arrive(&mut self, p: *const u64, bytes: u32, line: Line) {
        #[cfg(feature = "counters")]
        self.races.arrive(self.running, Barrier::Address(p as usize));
        let Some(phases) = self.visible_phases(p, line) else { return };
        phases.bytes += i64::from(bytes);
        match phases.arrivals.checked_sub(1) {
            Some(left) => phases.arrivals = left,
            None => return self.blame(line, "more arrivals than the phase waits for".into()),
        }
        self.mbarrier_settle(p as usize);
    }

    /// Bytes that a copy has brought.
    pub fn mbarrier_bytes(&mut self, p: *const u64, bytes: usize, line: Line) {
        let Some(phases) = self.phases(p, line) else { return };
        phases.bytes -= bytes as i64;
        self.mbarrier_settle(p as usize);
    }

    fn mbarrier_settle(&mut self, address: usize) {
        let Some(phases) = self.mbarriers.get_mut(&address) else { return };
        if phases.arrivals > 0 || phases.bytes != 0 {
            return;
        }
        phases.arrivals = phases.count;
        phases.done += 1;
        for t in 0..self.threads.len() {
            if matches!(self.threads[t].state, State::Phase { address: at, .. } if at == address) {
                self.wake(t);
                if self.schedule == Schedule::Prompt {
                    self.woken.push(t);
                }
            }
        }
    }

    /// Whether the last phase of this parity is complete. If not, the running thread is to wait, and then to ask again.
    pub fn mbarrier_passed(&mut self, p: *const u64, parity: u32, line: Line) -> bool {
        let Some(phases) = self.visible_phases(p, line) else { return true };
        // The phase under way has the parity of `done`.
        let passed = phases.done % 2 != u64::from(parity);
        if !passed {
            self.threads[self.running].state = State::Phase { address: p as usize, parity, line };
        }
        #[cfg(feature = "counters")]
        if passed {
            self.races.pass(self.running, Barrier::Address(p as usize));
        }
        passed
    }

    /// Of a thread that waits for ever: what for.
    pub fn mbarrier_stuck(&self, address: usize, parity: u32) -> String {
        let Some(Phases { arrivals, bytes, done, .. }) = self.mbarriers.get(&address) else { return String::new() };
        format!(
            "waits for ever for the phase of parity {parity} of an mbarrier: {done} phases are complete, the next lacks {arrivals} \
             arrivals and {bytes} bytes"
        )
    }

    /// Arrives at barrier `id` of so many threads, to wait there or not.
    pub fn named_barrier(&mut self, id: u32, threads: u32, wait: bool, line: Line) {
        let size = self.threads.len() as u32;
        let barrier = &mut self.named[id as usize % 16];
        if barrier.arrived == 0 {
            barrier.threads = threads;
        }
        if id >= 16 || !threads.is_multiple_of(32) || threads > size || barrier.threads != threads {
            let problem = format!("barrier {id} of {threads} threads: others expect {}", barrier.threads);
            return self.blame(line, problem);
        }
        barrier.arrived += 1;
        let complete = barrier.arrived == threads;
        #[cfg(feature = "counters")]
        self.races.arrive(self.running, Barrier::Number(id));
        if wait {
            self.threads[self.running].state = State::Named { id, line };
        }
        if complete {
            barrier.arrived = 0;
            for t in 0..self.threads.len() {
                if matches!(self.threads[t].state, State::Named { id: at, .. } if at == id) {
                    #[cfg(feature = "counters")]
                    self.races.pass(t, Barrier::Number(id));
                    self.wake(t);
                }
            }
        }
    }

    pub fn named_stuck(&self, id: u32) -> String {
        let Named { threads, arrived } = self.named[id as usize];
        format!("waits for ever at barrier {id}: {arrived} of {threads} threads have come")
    }

    /// Whether the running thread is to let others go first, as a real one might at any time: it exposes what was released too early.
    pub fn hesitates(&mut self) -> bool {
        let hesitates = match self.schedule {
            Schedule::Forward => false,
            Schedule::Reverse | Schedule::Prompt => true,
            Schedule::Random(_) => self.draw(2) == 0,
        };
        if hesitates {
            self.wake(self.running);
        }
        hesitates
    }

    pub fn blame(&mut self, line: Line, problem: String) {
        self.fail(Fault::Asynchronous { place: self.here(), site: line.site(), problem });
    }
}
