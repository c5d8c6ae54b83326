//! The scheduler: runs the blocks of a grid one by one, and of a block whichever thread the schedule picks among those that could
//! run, until it waits or returns.
//!
//! A thread waits only at a barrier or a collective, and what it waits for is settled by the last to arrive: so a warp may run as
//! far ahead of the others as barriers let it, which is what exposes the barrier that is missing.

use crate::bulk::Bulk;
use crate::fault::{Fault, Place};
use crate::fiber::{self, Stack};
use crate::kernel::Kernel;
use crate::launch::{Dim, Schedule};
use crate::mbarrier::{Named, Phases};
use crate::shared::Shared;
use crate::wgmma::{Flight, Product};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::ops::Range;
use std::ptr::null_mut;

thread_local! {
    /// The launch that this thread of the host is running.
    static CURRENT: Cell<*mut c_void> = const { Cell::new(null_mut()) };
    /// Stacks that no fiber uses.
    static IDLE: RefCell<Vec<Stack>> = const { RefCell::new(Vec::new()) };
}

/// As in `shim.h`.
#[repr(C)]
struct Coordinates {
    thread: [u32; 3],
    block: [u32; 3],
    block_dim: [u32; 3],
    grid_dim: [u32; 3],
}

unsafe extern "C" {
    fn emulator_coordinates() -> *mut Coordinates;
}

/// A line, as C++ hands it over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line(pub *const c_char, pub i32);

pub fn text(literal: *const c_char) -> &'static str {
    unsafe { CStr::from_ptr(literal) }.to_str().unwrap_or_default()
}

/// What a lane brings to a collective of its warp.
#[derive(Clone, Copy)]
pub struct Part {
    pub mask: u32,
    /// Compared as a pointer.
    pub what: *const c_char,
    pub line: Line,
    pub lane: *mut c_void,
    pub body: unsafe extern "C" fn(*const *mut c_void, u32),
}

#[derive(Clone, Copy)]
pub enum State {
    Fresh,
    Ready,
    Barrier(Line),
    Warp(Part),
    /// At an mbarrier, for the phase of this parity.
    Phase {
        address: usize,
        parity: u32,
        line: Line,
    },
    /// At a barrier with a number.
    Named {
        id: u32,
        line: Line,
    },
    Product {
        product: Product,
        line: Line,
    },
    Returned,
}

pub struct Thread {
    pub state: State,
    /// Groups of asynchronous copies committed.
    groups: u32,
    /// Groups of products committed, and the products under way.
    pub product_groups: u32,
    pub flights: Vec<Flight>,
    stack: Option<Stack>,
    sp: *mut u8,
}

/// An asynchronous copy that has not happened yet.
struct Copy16 {
    thread: usize,
    /// Of its thread's groups, counted from 0.
    group: u32,
    to: *mut u8,
    from: *const u8,
    zero: bool,
}

/// A launch. Fibers and the scheduler share it by pointer: see [`current`].
pub struct Runner<'a> {
    kernel: &'static Kernel,
    arguments: &'a [*mut c_void],
    /// Addresses that the kernel may touch.
    pub memory: Vec<Range<usize>>,
    grid: Dim,
    block: Dim,
    pub dynamic_shared: usize,
    pub schedule: Schedule,
    random: u64,
    pub shared: Shared,
    index: [u32; 3],
    pub threads: Vec<Thread>,
    /// One bit a thread.
    ready: Vec<u64>,
    copies: Vec<Copy16>,
    pub bulks: Vec<Bulk>,
    at_barrier: usize,
    pub named: [Named; 16],
    /// By address.
    pub mbarriers: HashMap<usize, Phases>,
    /// Of the schedule that is prompt: who is to run next, the last first.
    pub woken: Vec<usize>,
    #[cfg(feature = "counters")]
    pub races: crate::races::Races,
    /// Registers of each thread of a warp.
    registers: Vec<u32>,
    /// Of the block.
    most_registers: u32,
    pub running: usize,
    /// Of the scheduler, while a fiber runs.
    sp: *mut u8,
    fault: Option<Fault>,
}

impl<'a> Runner<'a> {
    pub fn new(
        kernel: &'static Kernel,
        arguments: &'a [*mut c_void],
        memory: Vec<Range<usize>>,
        grid: Dim,
        block: Dim,
        dynamic_shared: usize,
        schedule: Schedule,
    ) -> Runner<'a> {
        Runner {
            kernel,
            arguments,
            memory,
            grid,
            block,
            dynamic_shared,
            schedule,
            random: if let Schedule::Random(seed) = schedule { seed } else { 0 },
            shared: Shared::new(),
            index: [0; 3],
            threads: Vec::new(),
            ready: Vec::new(),
            copies: Vec::new(),
            bulks: Vec::new(),
            at_barrier: 0,
            named: Default::default(),
            mbarriers: HashMap::new(),
            woken: Vec::new(),
            #[cfg(feature = "counters")]
            races: Default::default(),
            registers: Vec::new(),
            most_registers: 0,
            running: 0,
            sp: null_mut(),
            fault: None,
        }
    }

    pub fn run(mut self) -> Result<(), Fault> {
        let mut order: Vec<usize> = (0..self.grid.count()).collect();
        match self.schedule {
            Schedule::Forward | Schedule::Prompt => {}
            Schedule::Reverse => order.reverse(),
            Schedule::Random(_) => (1..order.len()).for_each(|i| order.swap(i, self.draw(i + 1))),
        }
        // From here on only by pointer: fibers change it behind the scheduler's back.
        let this: *mut Runner = &mut self;
        let outer = CURRENT.replace(this.cast());
        let blocks = || order.into_iter().try_for_each(|block| unsafe { run_block(this, block) });
        #[cfg(feature = "counters")]
        let result = {
            let (name, memory, shared) =
                unsafe { ((*this).kernel.name(), (*this).memory.clone(), (*this).shared.addresses()) };
            crate::counters::counted(name, &memory, shared, blocks)
        };
        #[cfg(not(feature = "counters"))]
        let result = blocks();
        CURRENT.set(outer);
        result
    }

    /// Below `n`: splitmix64.
    pub fn draw(&mut self, n: usize) -> usize {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) % n as u64) as usize
    }

    fn begin(&mut self, block: usize) {
        self.index = self.grid.at(block);
        let threads = self.block.count();
        self.threads.clear();
        self.threads.extend((0..threads).map(|_| Thread {
            state: State::Fresh,
            groups: 0,
            product_groups: 0,
            flights: Vec::new(),
            stack: None,
            sp: null_mut(),
        }));
        self.ready = vec![0; threads.div_ceil(64)];
        (0..threads).for_each(|t| self.ready[t / 64] |= 1 << (t % 64));
        self.at_barrier = 0;
        self.named = Default::default();
        self.copies.clear();
        self.bulks.clear();
        self.mbarriers.clear();
        self.woken.clear();
        #[cfg(feature = "counters")]
        self.races.begin(threads);
        let warps = threads.div_ceil(32);
        self.registers = vec![launched_registers(threads); warps];
        self.most_registers = self.registers.iter().sum();
        self.shared.poison();
    }

    /// The next thread to run, if any could.
    fn pick(&mut self) -> Option<usize> {
        while let Some(t) = self.woken.pop() {
            if self.ready[t / 64] >> (t % 64) & 1 == 1 {
                self.ready[t / 64] &= !(1 << (t % 64));
                return Some(t);
            }
        }
        let words = self.ready.len();
        let lowest = |w: usize, bits: u64| (bits != 0).then(|| 64 * w + bits.trailing_zeros() as usize);
        let t = match self.schedule {
            Schedule::Forward | Schedule::Prompt => (0..words).find_map(|w| lowest(w, self.ready[w]))?,
            Schedule::Reverse => {
                (0..words).rev().find_map(|w| self.ready[w].checked_ilog2().map(|bit| 64 * w + bit as usize))?
            }
            Schedule::Random(_) => {
                // The first from a random one on, round the end.
                let start = self.draw(self.threads.len());
                let from = |w: usize| if w == start / 64 { u64::MAX << (start % 64) } else { u64::MAX };
                (start / 64..words)
                    .find_map(|w| lowest(w, self.ready[w] & from(w)))
                    .or_else(|| (0..words).find_map(|w| lowest(w, self.ready[w])))?
            }
        };
        self.ready[t / 64] &= !(1 << (t % 64));
        Some(t)
    }

    pub fn wake(&mut self, t: usize) {
        self.threads[t].state = State::Ready;
        self.ready[t / 64] |= 1 << (t % 64);
    }

    fn thread(&mut self, t: usize) -> *mut Thread {
        &raw mut self.threads[t]
    }

    fn place(&self, thread: usize) -> Place {
        Place { kernel: self.kernel.name(), block: self.index, thread }
    }

    /// Of the running thread.
    pub fn here(&self) -> Place {
        self.place(self.running)
    }

    pub fn arrive_at_barrier(&mut self, line: Line) {
        self.threads[self.running].state = State::Barrier(line);
        self.at_barrier += 1;
        if self.at_barrier < self.threads.len() {
            return;
        }
        self.at_barrier = 0;
        #[cfg(feature = "counters")]
        self.races.meet(0..self.threads.len());
        for t in 0..self.threads.len() {
            if let State::Barrier(other) = self.threads[t].state
                && other != line
            {
                let (site, other) = (line.site(), other.site());
                self.fault = Some(Fault::DivergentBarrier { place: self.place(t), site, other });
            }
            self.wake(t);
        }
    }

    pub fn arrive_at_collective(&mut self, part: Part) {
        let (me, warp) = (self.running, self.running / 32 * 32);
        self.threads[me].state = State::Warp(part);
        let blame = |problem: String| {
            let Part { mask, what, line, .. } = part;
            Some(Fault::Collective { place: self.place(me), what: text(what), site: line.site(), mask, problem })
        };
        if part.mask >> (me - warp) & 1 == 0 {
            self.fault = blame("leaves out the lane that calls it".into());
            return;
        }
        let mut lanes = [null_mut(); 32];
        let members = || (0..32).filter(|i| part.mask >> i & 1 == 1);
        for i in members() {
            match self.threads.get(warp + i).map(|t| t.state) {
                None => return self.fault = blame(format!("names lane {i}, which the block does not have")),
                Some(State::Returned) => return self.fault = blame(format!("names lane {i}, which has returned")),
                Some(State::Warp(other)) if other.agrees(&part) => lanes[i] = other.lane,
                Some(State::Warp(other)) if other.mask >> (me - warp) & 1 == 1 => {
                    let Part { mask, what, line, .. } = other;
                    let what = text(what);
                    let met = format!("meets {what} at {} with mask {mask:#010x} in lane {i}", line.site());
                    return self.fault = blame(met);
                }
                Some(_) => return,
            }
        }
        #[cfg(feature = "counters")]
        if text(part.what) == "__syncwarp" {
            self.races.meet(members().map(|i| warp + i));
        }
        // m16n8k16.
        #[cfg(feature = "counters")]
        if text(part.what) == "mma" {
            crate::counters::flops(2 * 16 * 8 * 16);
        }
        unsafe { (part.body)(lanes.as_ptr(), part.mask) };
        members().for_each(|i| self.wake(warp + i));
    }

    /// A warp's threads are to have so many registers, `more` or fewer than before. Once a warp.
    pub fn set_registers(&mut self, count: u32, more: bool, line: Line) {
        let warp = self.running / 32;
        let now = self.registers[warp];
        if !self.running.is_multiple_of(32) {
            return;
        }
        let sound = count.is_multiple_of(8) && (24..=256).contains(&count);
        if !sound || if more { count < now } else { count > now } {
            let verb = if more { "takes" } else { "gives" };
            return self.blame(line, format!("a warp of {now} registers a thread {verb} {count}"));
        }
        self.registers[warp] = count;
    }

    pub fn anyone_waits(&self) -> bool {
        self.threads.iter().any(|t| !matches!(t.state, State::Returned))
    }

    pub fn fail(&mut self, fault: Fault) {
        self.fault = Some(fault);
    }

    pub fn failed(&self) -> bool {
        self.fault.is_some()
    }

    /// When a copy happens is up to the schedule: as late as it may (forward), at once (reverse), or any time between.
    pub fn async_copy(&mut self, to: *mut u8, from: *const u8, zero: bool) {
        let group = self.threads[self.running].groups;
        #[cfg(feature = "counters")]
        if !zero {
            crate::counters::copied(from, 16);
        }
        let copy = Copy16 { thread: self.running, group, to, from, zero };
        #[cfg(feature = "counters")]
        self.races.begin_copy(self.running, std::iter::once(to as usize));
        if self.schedule.copies_at_once() { self.copy_happens(copy) } else { self.copies.push(copy) }
    }

    pub fn async_commit(&mut self) {
        self.threads[self.running].groups += 1;
    }

    pub fn async_wait(&mut self, pending: u32) {
        let (thread, groups) = (self.running, self.threads[self.running].groups);
        let due = |c: &mut Copy16| c.thread == thread && c.group + pending < groups;
        let due: Vec<Copy16> = self.copies.extract_if(.., due).collect();
        due.into_iter().for_each(|copy| self.copy_happens(copy));
    }

    fn copy_happens(&mut self, copy: Copy16) {
        #[cfg(feature = "counters")]
        self.copied(copy.to as usize);
        copy.happen();
    }

    /// Between two threads' turns.
    fn time_passes(&mut self) {
        if matches!(self.schedule, Schedule::Random(_)) && !self.copies.is_empty() && self.draw(2) == 0 {
            let any = self.draw(self.copies.len());
            let copy = self.copies.swap_remove(any);
            self.copy_happens(copy);
        }
        if matches!(self.schedule, Schedule::Random(_)) && !self.bulks.is_empty() && self.draw(8) == 0 {
            let any = self.draw(self.bulks.len());
            let bulk = self.bulks.swap_remove(any);
            self.bulk_happens(bulk);
        }
    }

    /// When no thread can run.
    fn end(&self) -> Result<(), Fault> {
        let find = |f: &dyn Fn(State) -> bool| (0..self.threads.len()).find(|&t| f(self.threads[t].state));
        if let Some(t) = find(&|s| matches!(s, State::Barrier(_)))
            && let State::Barrier(line) = self.threads[t].state
        {
            let missing = find(&|s| !matches!(s, State::Barrier(_))).unwrap_or(t);
            let instead = match self.threads[missing].state {
                State::Warp(part) => format!("waits in {} at {}", text(part.what), part.line.site()),
                State::Phase { line, .. } | State::Named { line, .. } | State::Product { line, .. } => {
                    format!("waits at {}", line.site())
                }
                _ => "has returned".into(),
            };
            let (arrived, threads) = (self.at_barrier, self.threads.len());
            return Err(Fault::PartialBarrier {
                place: self.place(missing),
                site: line.site(),
                arrived,
                threads,
                instead,
            });
        }
        if let Some(t) = find(&|s| matches!(s, State::Warp(_)))
            && let State::Warp(Part { mask, what, line, .. }) = self.threads[t].state
        {
            let missing = (t / 32 * 32..).zip(0..32).find(|(other, lane)| {
                mask >> lane & 1 == 1 && !matches!(self.threads[*other].state, State::Warp(part) if part.mask == mask)
            });
            let problem = format!("waits for lane {}, which has returned", missing.map_or(0, |(_, lane)| lane));
            return Err(Fault::Collective { place: self.place(t), what: text(what), site: line.site(), mask, problem });
        }
        let stuck = |t: usize| -> Option<(Line, String)> {
            match self.threads[t].state {
                State::Phase { address, parity, line } => Some((line, self.mbarrier_stuck(address, parity))),
                State::Named { id, line } => Some((line, self.named_stuck(id))),
                State::Product { line, .. } => Some((line, "waits for ever for the rest of its warpgroup".into())),
                _ => None,
            }
        };
        if let Some((t, (line, problem))) = (0..self.threads.len()).find_map(|t| Some((t, stuck(t)?))) {
            return Err(Fault::Asynchronous { place: self.place(t), site: line.site(), problem });
        }
        if let Some(line) = self.abandoned_bulk() {
            let problem = "a copy was still under way when the block ended".into();
            return Err(Fault::Asynchronous { place: self.place(0), site: line.site(), problem });
        }
        // One that takes waits for those that give; if all had taken, some would wait for ever.
        if self.registers.iter().sum::<u32>() > self.most_registers {
            let (taken, most) = (&self.registers, self.most_registers);
            let problem = format!("warps end up with {taken:?} registers a thread, together more than {most}");
            let site = Line(c"the block".as_ptr(), 0).site();
            return Err(Fault::Asynchronous { place: self.place(0), site, problem });
        }
        match self.shared.damage() {
            Some(line) => Err(Fault::SharedGuard { place: self.place(0), site: line.site() }),
            None => Ok(()),
        }
    }
}

/// Registers of each thread of a block that is launched with as many as there are.
fn launched_registers(threads: usize) -> u32 {
    const FILE: u32 = 65536;
    (FILE / threads as u32).min(255) / 8 * 8
}

impl Copy16 {
    fn happen(self) {
        // Checked when it was issued.
        unsafe { if self.zero { self.to.write_bytes(0, 16) } else { self.to.copy_from_nonoverlapping(self.from, 16) } }
    }
}

impl Part {
    /// Whether two lanes stand in the same collective. A warp may meet in __syncwarp from different lines.
    fn agrees(&self, other: &Part) -> bool {
        let same_line = self.line == other.line || text(self.what) == "__syncwarp";
        self.mask == other.mask && self.what == other.what && same_line
    }
}

/// The launch that the calling fiber belongs to. Valid for as long as kernel code runs; borrow from it only between switches.
pub fn current() -> *mut Runner<'static> {
    CURRENT.get().cast()
}

unsafe fn run_block(this: *mut Runner, block: usize) -> Result<(), Fault> {
    unsafe {
        (*this).begin(block);
        loop {
            match (*this).pick() {
                Some(t) => {
                    resume(this, t);
                    (*this).time_passes();
                }
                None if (*this).awaited_bulk_happens() => {}
                None => break,
            }
            if let Some(fault) = (*this).fault.take() {
                return Err(fault);
            }
        }
        (*this).end()
    }
}

/// Runs a thread until it waits or returns.
unsafe fn resume(this: *mut Runner, t: usize) {
    unsafe {
        let thread = (*this).thread(t);
        if matches!((*thread).state, State::Fresh) {
            let mut stack = IDLE.with_borrow_mut(Vec::pop).unwrap_or_else(Stack::new);
            (*thread).sp = stack.start(entry);
            (*thread).stack = Some(stack);
        }
        (*this).running = t;
        *emulator_coordinates() = Coordinates {
            thread: (*this).block.at(t),
            block: (*this).index,
            block_dim: (*this).block.0,
            grid_dim: (*this).grid.0,
        };
        fiber::switch(&raw mut (*this).sp, (*thread).sp);
        if (*thread).stack.as_ref().is_some_and(Stack::overrun) {
            (*this).fault = Some(Fault::Stack { place: (*this).place(t) });
        } else if matches!((*thread).state, State::Returned)
            && let Some(stack) = (*thread).stack.take()
        {
            IDLE.with_borrow_mut(|idle| idle.push(stack));
        }
    }
}

/// Where a fiber begins, and ends.
extern "C" fn entry() -> ! {
    let this = current();
    unsafe {
        ((*this).kernel.call)((*this).arguments.as_ptr());
        (*(*this).thread((*this).running)).state = State::Returned;
        suspend();
    }
    unreachable!("a thread that has returned is not resumed")
}

/// Back to the scheduler, until it resumes the running thread.
///
/// # Safety
/// On a fiber only, with nothing borrowed from [`current`].
pub unsafe fn suspend() {
    let this = current();
    unsafe {
        let thread = (*this).thread((*this).running);
        fiber::switch(&raw mut (*thread).sp, (*this).sp);
    }
}
