//! The memory traffic and the matrix arithmetic of launches, as the hardware would count them: with the feature `counters`, for which
//! the compiler instruments every access of the kernels (`counter.cpp`). Slow, so that nothing else is built with it.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// What a kernel's launches did together. As in `counter.cpp`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counts {
    /// Bytes of global memory that threads read and wrote, and that asynchronous copies read.
    pub read: u64,
    pub written: u64,
    pub copied: u64,
    /// Bytes of the sectors that were read and written at all: what a launch must move at least.
    pub distinct_read: u64,
    pub distinct_written: u64,
    /// Sectors of global memory that warps' requests touch, and the fewest for as many bytes.
    pub sectors: u64,
    pub least_sectors: u64,
    /// Wavefronts of shared memory, and those without bank conflicts.
    pub wavefronts: u64,
    pub least_wavefronts: u64,
    /// Of the tensor cores.
    pub flops: u64,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.read += other.read;
        self.written += other.written;
        self.copied += other.copied;
        self.distinct_read += other.distinct_read;
        self.distinct_written += other.distinct_written;
        self.sectors += other.sectors;
        self.least_sectors += other.least_sectors;
        self.wavefronts += other.wavefronts;
        self.least_wavefronts += other.least_wavefronts;
        self.flops += other.flops;
    }
}

unsafe extern "C" {
    fn counter_begin(global_from: usize, global_to: usize, shared_from: usize, shared_to: usize);
    fn counter_end() -> Counts;
    fn counter_announce(p: *const c_void, bytes: u32, site: usize);
    fn counter_copied(from: usize, bytes: usize);
    fn counter_flops(flops: u64);
}

/// By kernel: launches, and what they did.
static TOTALS: Mutex<BTreeMap<&str, (u64, Counts)>> = Mutex::new(BTreeMap::new());

/// Of every kernel that was launched: how often, and what that did.
pub fn counters() -> BTreeMap<&'static str, (u64, Counts)> {
    TOTALS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Counts what a launch does. One launch at a time.
pub(crate) fn counted<T>(
    kernel: &'static str,
    global: &[Range<usize>],
    shared: Range<usize>,
    launch: impl FnOnce() -> T,
) -> T {
    let mut totals = TOTALS.lock().unwrap_or_else(PoisonError::into_inner);
    let from = global.iter().map(|r| r.start).min().unwrap_or(0);
    let to = global.iter().map(|r| r.end).max().unwrap_or(0);
    // SAFETY: the lock keeps others out.
    unsafe { counter_begin(from, to, shared.start, shared.end) };
    let done = launch();
    let (launches, counts) = totals.entry(kernel).or_default();
    *launches += 1;
    counts.add(unsafe { counter_end() });
    done
}

pub(crate) fn announce(p: *const c_void, bytes: usize, site: usize) {
    // SAFETY: only within a launch, as all of these.
    unsafe { counter_announce(p, bytes as u32, site) }
}

pub(crate) fn copied(from: *const u8, bytes: usize) {
    unsafe { counter_copied(from as usize, bytes) }
}

pub(crate) fn flops(flops: u64) {
    unsafe { counter_flops(flops) }
}
