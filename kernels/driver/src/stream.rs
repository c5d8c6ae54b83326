//! Streams: queues whose commands run when somebody waits for them.

use crate::command::Command;
use crate::driver::Gpu;
use crate::graph::Capture;
use crate::memory;
use crate::status::{INVALID_VALUE, STREAM_CAPTURE_INVALIDATED, STREAM_CAPTURE_UNSUPPORTED, Status};
use std::collections::VecDeque;

/// Commands that a stream holds before it runs them unasked: a program that never waits shall not fill the memory.
const LONGEST: usize = 200_000;

#[derive(Default)]
pub struct Stream {
    /// With the turn in which each was submitted.
    queue: VecDeque<(u64, Command)>,
    pub capture: Option<Capture>,
}

impl Gpu {
    /// Queues a command, or notes it in the graph that the stream captures.
    pub fn submit(&mut self, stream: usize, command: Command) -> Result<(), Status> {
        self.turn += 1;
        let (turn, eager) = (self.turn, self.settings.eager);
        let of = self.streams.get_mut(stream)?;
        if let Some(capture) = &mut of.capture {
            if capture.broken {
                return Err(STREAM_CAPTURE_INVALIDATED);
            }
            capture.commands.push(command);
            return Ok(());
        }
        of.queue.push_back((turn, command));
        if eager || of.queue.len() > LONGEST { self.run(stream, turn).map(drop) } else { Ok(()) }
    }

    /// Runs what a stream holds up to a turn. How much that was. An error ends the context.
    pub fn run(&mut self, stream: usize, until: u64) -> Result<usize, Status> {
        for run in 0.. {
            let queue = &mut self.streams.get_mut(stream)?.queue;
            if queue.front().is_none_or(|(turn, _)| *turn > until) {
                return Ok(run);
            }
            let Some((_, command)) = queue.pop_front() else { return Ok(run) };
            self.perform(&command).inspect_err(|status| self.sticky = *status)?;
        }
        Ok(0)
    }

    /// Everything of every stream.
    pub fn run_all(&mut self) -> Result<(), Status> {
        self.streams.keys().into_iter().try_for_each(|stream| self.run(stream, u64::MAX).map(drop))
    }

    pub fn synchronize(&mut self, stream: usize) -> Result<(), Status> {
        self.not_capturing(stream, "cuStreamSynchronize")?;
        let run = self.run(stream, u64::MAX)?;
        self.trace.line(|| format!("wait {run}"));
        Ok(())
    }

    /// For what a capturing stream does not permit: the capture is lost.
    pub fn not_capturing(&mut self, stream: usize, function: &str) -> Result<(), Status> {
        match &mut self.streams.get_mut(stream)?.capture {
            None => Ok(()),
            Some(capture) => {
                capture.broken = true;
                self.refuse(STREAM_CAPTURE_UNSUPPORTED, format!("{function} of a stream that captures"))
            }
        }
    }

    pub fn set(&mut self, to: usize, byte: u8, bytes: usize, stream: usize) -> Result<(), Status> {
        self.expect_device("cuMemsetD8Async", to, bytes)?;
        self.trace.line(|| format!("zero {bytes}"));
        self.submit(stream, Command::Set { to, byte, bytes })
    }

    pub fn upload(&mut self, from: usize, to: usize, bytes: usize, stream: usize) -> Result<(), Status> {
        self.expect_device("cuMemcpyHtoDAsync", to, bytes)?;
        self.expect_transfer("cuMemcpyHtoDAsync", from, bytes, stream)?;
        self.trace.line(|| format!("upload {bytes}"));
        self.submit(stream, Command::Upload { from, to, bytes })
    }

    pub fn download(&mut self, from: usize, to: usize, bytes: usize, stream: usize) -> Result<(), Status> {
        self.expect_device("cuMemcpyDtoHAsync", from, bytes)?;
        self.expect_transfer("cuMemcpyDtoHAsync", to, bytes, stream)?;
        let overlaps = |(at, length): (usize, usize)| at < to + bytes && to < at + length;
        let uses = |stream: &Stream| stream.queue.iter().any(|(_, command)| command.pinned().is_some_and(overlaps));
        if self.streams.values().any(uses) {
            self.violation("cuMemcpyDtoHAsync into memory that an earlier copy still uses".into());
        } else {
            // A program that does not wait for it shall see nonsense.
            memory::poison(to, bytes);
        }
        self.trace.line(|| format!("download {bytes}"));
        self.submit(stream, Command::Download { from, to, bytes })
    }

    pub fn copy(&mut self, from: usize, to: usize, bytes: usize, stream: usize) -> Result<(), Status> {
        self.expect_device("cuMemcpyDtoDAsync", to, bytes)?;
        self.expect_device("cuMemcpyDtoDAsync", from, bytes)?;
        if to < from + bytes && from < to + bytes {
            self.violation("cuMemcpyDtoDAsync between ranges that overlap".into());
        }
        self.trace.line(|| format!("copy {bytes}"));
        self.submit(stream, Command::Copy { from, to, bytes })
    }

    fn expect_device(&mut self, function: &str, at: usize, bytes: usize) -> Result<(), Status> {
        if bytes > 0 && self.memory.is_device(at, bytes) {
            return Ok(());
        }
        self.refuse(INVALID_VALUE, format!("{function}: {bytes} bytes at {at:#x} are no device memory"))
    }

    /// Pageable memory would make the call wait; a graph would read the same pinned memory at every launch.
    fn expect_transfer(&mut self, function: &str, at: usize, bytes: usize, stream: usize) -> Result<(), Status> {
        if self.streams.get(stream)?.capture.is_some() {
            self.violation(format!("{function} is captured"));
        }
        if self.memory.is_pinned(at, bytes) {
            return Ok(());
        }
        self.refuse(INVALID_VALUE, format!("{function}: {bytes} bytes at {at:#x} are not pinned"))
    }
}
