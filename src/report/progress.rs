//! Progress of long work on stderr: a bar with an ETA on a terminal, plain lines otherwise.

use super::terminal;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Plain lines come at most this often (and at the end).
const EVERY: Duration = Duration::from_secs(10);

/// A line on stderr. That nobody reads it any more (a closed terminal, `2>&1 | head`) is no reason to stop training.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", terminal::line(line));
}

/// Progress of one phase.
pub struct Progress {
    label: String,
    total: u64,
    done: u64,
    message: String,
    began: Instant,
    /// When the last plain line was printed.
    printed: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `done` of `total` steps were done before (a resumed run).
    pub fn new(label: &str, done: u64, total: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} eta {eta} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(terminal::line(label).into_owned());
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Progress { label: label.into(), total, done, message: String::new(), began: now, printed: now, bar }
    }

    /// `done` steps are done; `message` says how it goes, e.g. `loss 1.23`.
    pub fn step(&mut self, done: u64, message: impl Into<String>) {
        (self.done, self.message) = (done, message.into());
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(terminal::line(&self.message).into_owned());
            }
            None if self.printed.elapsed() >= EVERY => {
                self.printed = Instant::now();
                self.print();
            }
            None => {}
        }
    }

    /// A line of its own, without disturbing the bar.
    pub fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }

    /// Ends the phase; its last state stays readable.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.print();
    }

    fn print(&self) {
        let seconds = self.began.elapsed().as_secs();
        say(&format!("{} {}/{} {seconds} s {}", self.label, self.done, self.total, self.message));
    }
}
