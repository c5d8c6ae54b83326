//! What kernels did on the software GPU, by its trace: bytes, sectors, wavefronts and flops as the hardware would count them, beside
//! what ptxas says of their registers. Nothing here was timed; the bound is arithmetic.

use crate::device::kernels::{MODULES, Usage};
use serde::Serialize;
use std::collections::BTreeMap;

/// What an H100 does at most, as seen on real ones: bytes and flops (bf16, tensor cores) a second.
const BYTES: f64 = 3.0e12;
const FLOPS: f64 = 800e12;
/// Of a multiprocessor of sm_90.
const REGISTERS: u32 = 65536;
const SHARED: u32 = 228 << 10;
const THREADS: u32 = 2048;
/// What the system takes of a block's shared memory.
const SYSTEM_SHARED: u32 = 1 << 10;

/// Of all launches of a kernel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CounterRow {
    /// The kernel's name.
    pub kernel: String,
    /// How often it was launched.
    pub launches: u64,
    /// Bytes of global memory that threads read.
    pub read: u64,
    /// Bytes of global memory that threads wrote.
    pub written: u64,
    /// Bytes of global memory that asynchronous copies read.
    pub copied: u64,
    /// Bytes that launches must move at least: each sector that they touch, once.
    pub compulsory: u64,
    /// Sectors that requests touch, for each that as many bytes fill: 1 is coalesced.
    pub sectors: f64,
    /// Wavefronts of shared memory, for each without bank conflicts: 1 has none.
    pub wavefronts: f64,
    /// Floating-point operations of tensor cores.
    pub flops: u64,
    /// For each thread; `None` where this build has no such kernel.
    pub registers: Option<u32>,
    /// Share of a multiprocessor's threads that blocks of the largest launch fill.
    pub occupancy: Option<f64>,
    /// The least seconds on an H100: by its bandwidth for the compulsory bytes, or by its tensor cores.
    pub bound: f64,
}

/// Calls of the host to the driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// Kernel launches.
    pub launches: usize,
    /// Matrix products.
    pub products: usize,
    /// Copies to the device.
    pub uploads: usize,
    /// Copies from the device.
    pub downloads: usize,
    /// Waits for the device.
    pub waits: usize,
    /// Replays of a captured graph.
    pub replays: usize,
}

/// What one trace says: the host's calls, and a row for each kernel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Counters {
    /// The host's calls.
    pub calls: Calls,
    /// One row a kernel, the most bytes first.
    pub rows: Vec<CounterRow>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum CountersError {
    #[error("line {0} is not one of a trace of the software GPU: give the file that SOFTWARE_GPU_TRACE named")]
    Line(usize),
    #[error("the trace counts no kernels: build the software GPU with --features counters")]
    NotCounted,
}

/// A block of a kernel: threads, and bytes of dynamic shared memory.
type Block = (u32, u32);

/// Reads a trace (its lines are explained in kernels/driver/src/trace.rs).
///
/// # Errors
/// If a line is not one of a trace, or the trace counts no kernels.
pub fn parse(trace: &str) -> Result<Counters, CountersError> {
    let (mut calls, mut rows) = (Calls::default(), Vec::new());
    let mut blocks: BTreeMap<&str, Block> = BTreeMap::new();
    for (line, words) in trace.lines().map(|line| line.split(' ').collect::<Vec<_>>()).enumerate() {
        let wrong = CountersError::Line(line + 1);
        match words[..] {
            ["launch", kernel, _, block, shared] => {
                calls.launches += 1;
                let threads = block.split(',').map(|n| n.parse::<u32>()).product::<Result<u32, _>>();
                let (Ok(threads), Ok(shared)) = (threads, shared.parse()) else { return Err(wrong) };
                let largest = blocks.entry(kernel).or_default();
                *largest = (*largest).max((threads, shared));
            }
            ["product", ..] => calls.products += 1,
            ["upload", _] => calls.uploads += 1,
            ["download", _] => calls.downloads += 1,
            ["wait" | "wait_event", _] => calls.waits += 1,
            ["replay", _] => calls.replays += 1,
            ["counters", kernel, ref numbers @ ..] => {
                let numbers: Vec<u64> = numbers.iter().filter_map(|n| n.parse().ok()).collect();
                rows.push(row(kernel, &numbers, blocks.get(kernel)).ok_or(wrong)?);
            }
            _ => {}
        }
    }
    if rows.is_empty() { Err(CountersError::NotCounted) } else { Ok(Counters { calls, rows }) }
}

fn row(kernel: &str, numbers: &[u64], block: Option<&Block>) -> Option<CounterRow> {
    let &[
        launches,
        read,
        written,
        copied,
        distinct_read,
        distinct_written,
        sectors,
        least_sectors,
        wavefronts,
        least_wavefronts,
        flops,
    ] = numbers
    else {
        return None;
    };
    let ratio = |of: u64, least: u64| if least == 0 { 1.0 } else { of as f64 / least as f64 };
    let usage = MODULES.iter().flat_map(|m| m.usage()).find(|u| u.kernel == kernel && u.arch == "sm_90a");
    let compulsory = distinct_read + distinct_written;
    Some(CounterRow {
        kernel: kernel.into(),
        launches,
        read,
        written,
        copied,
        compulsory,
        sectors: ratio(sectors, least_sectors),
        wavefronts: ratio(wavefronts, least_wavefronts),
        flops,
        registers: usage.as_ref().map(|u| u.registers),
        occupancy: usage.as_ref().zip(block).map(|(usage, block)| occupancy(usage, *block)),
        bound: (compulsory as f64 / BYTES).max(flops as f64 / FLOPS),
    })
}

/// The share of a multiprocessor's threads that as many blocks as fit have.
pub fn occupancy(usage: &Usage, (threads, shared): (u32, u32)) -> f64 {
    let warps = threads.div_ceil(32);
    // Registers are given to warps, 256 at a time.
    let registers = (usage.registers * 32).next_multiple_of(256) * warps;
    let fit =
        [REGISTERS / registers.max(1), SHARED / (usage.shared + shared + SYSTEM_SHARED), THREADS / (32 * warps).max(1)];
    f64::from(fit.into_iter().min().unwrap_or(0) * threads) / f64::from(THREADS)
}
