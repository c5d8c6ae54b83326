//! Events: points in a stream, waited for or timed.

use crate::command::Command;
use crate::driver::Gpu;
use crate::status::{CAPTURED_EVENT, INVALID_HANDLE, NOT_READY, Status};
use std::time::Instant;

#[derive(Default)]
pub struct Event {
    timing: bool,
    /// Of the last record: the stream and the turn, 0 before the first.
    stream: usize,
    turn: u64,
    captured: bool,
    /// When which turn's record ran.
    pub done: Option<(u64, Instant)>,
}

impl Event {
    pub fn new(timing: bool) -> Event {
        Event { timing, ..Event::default() }
    }
}

impl Gpu {
    pub fn record(&mut self, event: usize, stream: usize) -> Result<(), Status> {
        let (captured, turn) = (self.streams.get(stream)?.capture.is_some(), self.turn + 1);
        let of = self.events.get_mut(event)?;
        (of.stream, of.turn, of.captured) = (stream, turn, captured);
        self.submit(stream, Command::Record { event, turn })
    }

    pub fn wait_event(&mut self, event: usize) -> Result<(), Status> {
        self.not_while_capturing("cuEventSynchronize")?;
        let Event { stream, turn, captured, .. } = *self.events.get(event)?;
        if captured {
            return self.refuse(CAPTURED_EVENT, "cuEventSynchronize of an event recorded in a capture".into());
        }
        let run = if turn > 0 { self.run(stream, turn)? } else { 0 };
        self.trace.line(|| format!("wait_event {run}"));
        Ok(())
    }

    /// Milliseconds of this CPU's.
    pub fn elapsed(&self, begin: usize, end: usize) -> Result<f32, Status> {
        let time = |event: usize| {
            let event = self.events.get(event)?;
            match event.done {
                _ if !event.timing || event.turn == 0 || event.captured => Err(INVALID_HANDLE),
                Some((turn, at)) if turn == event.turn => Ok(at),
                _ => Err(NOT_READY),
            }
        };
        Ok(1e3 * time(end)?.duration_since(time(begin)?).as_secs_f32())
    }
}
