//! Graphs: commands captured from a stream, to be run again and again.

use crate::command::Command;
use crate::driver::Gpu;
use crate::status::{
    INVALID_VALUE, STREAM_CAPTURE_INVALIDATED, STREAM_CAPTURE_UNMATCHED, STREAM_CAPTURE_UNSUPPORTED,
    STREAM_CAPTURE_WRONG_THREAD, Status,
};
use std::ffi::c_uint;
use std::thread::{self, ThreadId};

/// CU_STREAM_CAPTURE_MODE_GLOBAL forbids unsafe calls to all threads, THREAD_LOCAL to its own, RELAXED to none.
const THREAD_LOCAL: c_uint = 1;
const RELAXED: c_uint = 2;

/// A capture under way.
pub struct Capture {
    pub commands: Vec<Command>,
    pub broken: bool,
    mode: c_uint,
    thread: ThreadId,
}

impl Capture {
    fn forbids(&self) -> bool {
        match self.mode {
            RELAXED => false,
            THREAD_LOCAL => self.thread == thread::current().id(),
            _ => true,
        }
    }
}

impl Gpu {
    /// For calls that a capture forbids: it is lost.
    pub fn not_while_capturing(&mut self, function: &str) -> Result<(), Status> {
        let captures = self.streams.values_mut().filter_map(|s| s.capture.as_mut());
        let broken = captures.filter(|c| c.forbids()).map(|c| c.broken = true).count();
        if broken == 0 {
            return Ok(());
        }
        self.refuse(STREAM_CAPTURE_UNSUPPORTED, format!("{function} while a stream captures"))
    }

    pub fn begin_capture(&mut self, stream: usize, mode: c_uint) -> Result<(), Status> {
        let of = self.streams.get_mut(stream)?;
        if mode > RELAXED || of.capture.is_some() {
            return self.refuse(INVALID_VALUE, "cuStreamBeginCapture of a stream that captures".into());
        }
        let thread = thread::current().id();
        of.capture = Some(Capture { commands: Vec::new(), broken: false, mode, thread });
        self.trace.line(|| "capture".into());
        Ok(())
    }

    /// The graph, unless the capture was broken.
    pub fn end_capture(&mut self, stream: usize) -> Result<usize, Status> {
        let Capture { commands, broken, mode, thread } =
            self.streams.get_mut(stream)?.capture.take().ok_or(STREAM_CAPTURE_UNMATCHED)?;
        if mode != RELAXED && thread != thread::current().id() {
            return Err(STREAM_CAPTURE_WRONG_THREAD);
        }
        if broken {
            return Err(STREAM_CAPTURE_INVALIDATED);
        }
        self.trace.line(|| format!("graph {}", commands.len()));
        Ok(self.graphs.insert(commands))
    }

    pub fn instantiate(&mut self, graph: usize) -> Result<usize, Status> {
        self.not_while_capturing("cuGraphInstantiate")?;
        let commands = self.graphs.get(graph)?.clone();
        Ok(self.executables.insert(commands))
    }

    pub fn replay(&mut self, executable: usize, stream: usize) -> Result<(), Status> {
        let commands = self.executables.get(executable)?.clone();
        self.trace.line(|| format!("replay {}", commands.len()));
        commands.into_iter().try_for_each(|command| self.submit(stream, command))
    }
}
