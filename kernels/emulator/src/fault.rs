//! What a launch can be found guilty of.

use crate::Schedule;
use std::fmt;

/// A line of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    pub file: String,
    pub line: u32,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A kernel, one of its blocks, and the (linear) thread in question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub kernel: &'static str,
    pub block: [u32; 3],
    pub thread: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "{}, block ({x}, {y}, {z}), thread {}", self.kernel, self.thread)
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    #[error("no kernel is named {0}; if its file is new: touch kernels/emulator/build.rs")]
    UnknownKernel(String),
    #[error("{kernel}: {problem}")]
    Arguments { kernel: &'static str, problem: String },
    #[error("{place}: the barrier at {site} was reached by {arrived} of {threads} threads; this one {instead}")]
    PartialBarrier { place: Place, site: Site, arrived: usize, threads: usize, instead: String },
    #[error("{place}: a barrier was reached at {site} and at {other}")]
    DivergentBarrier { place: Place, site: Site, other: Site },
    #[error("{place}: {what} at {site} with mask {mask:#010x} {problem}")]
    Collective { place: Place, what: &'static str, site: Site, mask: u32, problem: String },
    /// Of an mbarrier, a barrier with a number, a bulk copy or a product of a warpgroup.
    #[error("{place}: at {site}: {problem}")]
    Asynchronous { place: Place, site: Site, problem: String },
    #[error("{place}: access at {site} {problem}")]
    Access { place: Place, site: Site, problem: String },
    #[error("{kernel}: wrote outside of argument {argument}, {bytes} bytes {side} it")]
    Guard { kernel: &'static str, argument: usize, bytes: usize, side: &'static str },
    #[error("{place}: wrote outside of its shared memory: past the array of {site}")]
    SharedGuard { place: Place, site: Site },
    #[error("{place}: requests {bytes} bytes of shared memory, more than a block can have")]
    SharedSize { place: Place, bytes: usize },
    #[error("{place}: at {site} the host's promise is broken: {condition}")]
    BrokenPromise { place: Place, site: Site, condition: String },
    #[error("{place}: overran its stack")]
    Stack { place: Place },
    #[error("{kernel}: byte {byte} of argument {argument} depends on the schedule: {first:?} and {second:?} differ")]
    Race { kernel: &'static str, argument: usize, byte: usize, first: Schedule, second: Schedule },
    /// Of shared memory, by vector clocks.
    #[error(
        "{place} and thread {other} access byte {byte} of the shared array of {site}, at least one writes, and nothing orders them"
    )]
    Unordered { place: Place, other: usize, byte: usize, site: Site },
    #[error("element {element} was never written")]
    Unwritten { element: usize },
}
