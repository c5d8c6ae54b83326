//! The lines that a worker has written and nobody has read yet, within a budget of bytes.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Longest line, bytes.
const LONGEST: usize = 8 << 20;
/// Most bytes that are kept unread, and what each line counts beside its own.
const BUDGET: usize = 16 << 20;
const LINE: usize = 64;

/// Why there is no line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The writer has closed its output.
    Closed,
    /// One line is longer than any honest one.
    TooLong,
    /// It writes and writes, though nobody reads.
    TooMuch,
    /// Nothing came in time.
    TimedOut,
}

impl End {
    /// What the writer did, as words about it; of [`End::Closed`] and [`End::TimedOut`] others know more.
    pub fn excess(self) -> Option<String> {
        match self {
            End::TooLong => Some(format!("it wrote a line of more than {} MiB", LONGEST >> 20)),
            End::TooMuch => Some(format!("it wrote more than {} MiB without a request", BUDGET >> 20)),
            End::Closed | End::TimedOut => None,
        }
    }
}

/// A queue from the thread that reads to the one that asks.
#[derive(Debug, Default)]
pub struct Lines {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<String>,
    bytes: usize,
    end: Option<End>,
    discard: bool,
}

impl Lines {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next line, without its line break.
    pub fn next(&self, deadline: Instant) -> Result<String, End> {
        let empty = |queue: &mut Queue| queue.lines.is_empty() && queue.end.is_none();
        let patience = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.queue(), patience, empty);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match queue.lines.pop_front() {
            Some(line) => {
                queue.bytes -= line.len() + LINE;
                Ok(line)
            }
            None => Err(queue.end.unwrap_or(End::TimedOut)),
        }
    }

    /// Whether a line waits to be read.
    pub fn has_unread(&self) -> bool {
        !self.queue().lines.is_empty()
    }

    /// Throws away what has come and what will come.
    pub fn discard(&self) {
        let mut queue = self.queue();
        (queue.discard, queue.bytes) = (true, 0);
        queue.lines.clear();
    }

    /// Reads to the end, or until it is too much.
    pub fn fill(&self, mut from: impl Read) {
        let (mut buffer, mut line) = (vec![0; 64 << 10], Vec::new());
        let end = 'reading: loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break End::Closed,
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break End::Closed,
            };
            if self.queue().discard {
                continue;
            }
            for piece in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(piece);
                if line.len() > LONGEST {
                    break 'reading End::TooLong;
                }
                if line.pop_if(|last| *last == b'\n').is_some()
                    && let Err(end) = self.push(std::mem::take(&mut line))
                {
                    break 'reading end;
                }
            }
        };
        let mut queue = self.queue();
        if end != End::Closed {
            queue.lines = VecDeque::new();
            queue.bytes = 0;
        }
        queue.end = Some(end);
        self.changed.notify_all();
    }

    fn push(&self, line: Vec<u8>) -> Result<(), End> {
        let line = String::from_utf8(line).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
        let mut queue = self.queue();
        if queue.discard {
            return Ok(());
        }
        queue.bytes += line.len() + LINE;
        if queue.bytes > BUDGET {
            return Err(End::TooMuch);
        }
        queue.lines.push_back(line);
        self.changed.notify_all();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn lines_come_in_order_and_then_the_end() {
        let lines = Lines::default();
        lines.fill(&b"one\ntwo \xff\n\nhalf"[..]);
        assert!(lines.has_unread());
        assert_eq!(lines.next(soon()).unwrap(), "one");
        assert_eq!(lines.next(soon()).unwrap(), "two \u{fffd}");
        assert_eq!(lines.next(soon()).unwrap(), "");
        assert_eq!((lines.next(soon()), lines.has_unread()), (Err(End::Closed), false), "half a line is none");
        assert_eq!(Lines::default().next(Instant::now()), Err(End::TimedOut));
    }

    #[test]
    fn what_nobody_reads_is_bounded_in_bytes() {
        let endless = || std::io::repeat(b'x');
        let lines = Lines::default();
        lines.fill(endless());
        assert_eq!(lines.next(soon()), Err(End::TooLong));
        // Long lines and short ones alike; what had come is let go of.
        for text in [[&[b'y'; 1 << 20][..], b"\n"].concat(), b"y\n".to_vec()] {
            let lines = Lines::default();
            let mut left = 1 << 30;
            let flood = std::iter::repeat_with(|| text.as_slice());
            lines.fill(Flood { flood, piece: &[], left: &mut left });
            assert_eq!((lines.next(soon()), lines.queue().lines.capacity()), (Err(End::TooMuch), 0));
            assert!(left > (1 << 30) - (BUDGET + (2 << 20)), "it is not read on");
        }
        // Within the budget as long as somebody reads.
        let lines = Lines::default();
        let text = [&[b'z'; 1 << 20][..], b"\n"].concat();
        for _ in 0..64 {
            lines.push(text.clone()).unwrap();
            lines.next(soon()).unwrap();
        }
    }

    #[test]
    fn what_is_thrown_away_has_no_bounds() {
        let lines = Lines::default();
        lines.push(b"port".to_vec()).unwrap();
        lines.discard();
        lines.fill(std::io::repeat(b'x').take(64 << 20));
        assert_eq!(lines.next(soon()), Err(End::Closed));
    }

    /// A text again and again.
    struct Flood<'a, I> {
        flood: I,
        piece: &'a [u8],
        left: &'a mut usize,
    }

    impl<'a, I: Iterator<Item = &'a [u8]>> Read for Flood<'a, I> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.piece.is_empty() {
                self.piece = self.flood.next().unwrap_or_default();
            }
            let count = self.piece.len().min(buffer.len()).min(*self.left);
            buffer[..count].copy_from_slice(&self.piece[..count]);
            self.piece = &self.piece[count..];
            *self.left -= count;
            Ok(count)
        }
    }
}
