//! What was asked of the driver, one line each, for tests that count: first a word for what it is.
//!
//! ```text
//! launch rmsnorm_forward_bf16 4,1,1 256,1,1 0      grid, block, dynamic shared memory
//! product 32 64 128 x1                             m, n, k, batch
//! plan 32 64 128 x1                                a heuristic was asked
//! upload 4096     download 64     copy 256     zero 1024       bytes
//! wait 12         wait_event 3                     commands that ran for it
//! capture         graph 54        replay 54        commands in it
//! alloc 1024      pin 1024        module rmsnorm   optin name 98304
//! violation …
//! ```
//! At the end `calls FUNCTION n`, and with the feature `counters` what each kernel did, in the order of `kernel_emulator::Counts`:
//! `counters KERNEL launches read written …`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};

#[derive(Default)]
pub struct Trace {
    file: Option<BufWriter<File>>,
    /// Calls of each function.
    calls: BTreeMap<&'static str, u64>,
}

impl Trace {
    pub fn new(file: Option<File>) -> Trace {
        Trace { file: file.map(BufWriter::new), calls: BTreeMap::new() }
    }

    /// Counts a call: which it is, from 1.
    pub fn call(&mut self, function: &'static str) -> u64 {
        let calls = self.calls.entry(function).or_default();
        *calls += 1;
        *calls
    }

    pub fn line(&mut self, line: impl FnOnce() -> String) {
        if let Some(file) = &mut self.file {
            // A full disk shows up as a trace that lacks lines, which its reader misses.
            let _ = writeln!(file, "{}", line());
        }
    }

    /// A rule that was broken.
    pub fn violation(&mut self, problem: &str) {
        eprintln!("software GPU: violation: {problem}");
        self.line(|| format!("violation {problem}"));
        // Kept even if the process dies of it.
        self.flush();
    }

    /// At the end: how often each function was called, what kernels did.
    pub fn finish(&mut self) {
        #[cfg(feature = "counters")]
        for (kernel, (launches, c)) in kernel_emulator::counters() {
            let traffic = [c.read, c.written, c.copied, c.distinct_read, c.distinct_written];
            let served = [c.sectors, c.least_sectors, c.wavefronts, c.least_wavefronts, c.flops];
            let numbers: Vec<String> = traffic.iter().chain(&served).map(u64::to_string).collect();
            self.line(|| format!("counters {kernel} {launches} {}", numbers.join(" ")));
        }
        for (function, calls) in std::mem::take(&mut self.calls) {
            self.line(|| format!("calls {function} {calls}"));
        }
        self.flush();
    }

    fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            let _ = file.flush();
        }
    }
}
