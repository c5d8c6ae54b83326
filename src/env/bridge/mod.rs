//! Environments that live in other processes, behind one interface, and what keeps them from stopping us.
//!
//! A [`Worker`] plays one episode at a time and is trusted with nothing: each call has a deadline; a worker that dies, hangs
//! or talks nonsense is killed, another takes its place, and the episode so far is played to it again. What that cannot mend
//! ends the episode as failed by its environment ([`EnvError::Failed`]), which no statistics count.

mod guard;
mod hints;
mod jsonl;
mod lines;
mod pool;
mod process;
pub mod py4j;
mod suite;

pub use hints::Hints;
pub use jsonl::{JsonLines, Listed};
pub use pool::{Limits, Pool};
pub use process::Process;
pub use suite::WorkerSuite;

use super::{EnvError, Environment, Observation};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pause before the first new try, twice as long before each further one: what just failed may be starting again.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why a call to a worker came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is dead, silent, or broke its protocol: another worker may do better.
    #[error("{0}")]
    Broken(String),
    /// It understood and declined; asking again would not help.
    #[error("{0}")]
    Refused(String),
}

/// One environment at the other end of a pipe or connection. Dropping it ends it.
pub trait Worker: Send {
    /// Begins the episode of a task, whatever was played before.
    ///
    /// # Errors
    /// If the worker refuses the task, breaks its protocol, ends, or does not answer by `deadline`.
    fn reset(&mut self, task: &str, deadline: Instant) -> Result<Observation, Fault>;
    /// One command of the agent.
    ///
    /// # Errors
    /// If the worker breaks its protocol, ends, or does not answer by `deadline`.
    fn step(&mut self, command: &str, deadline: Instant) -> Result<Observation, Fault>;
    /// What it told with its last observation.
    fn hints(&self) -> Hints {
        Hints::default()
    }
}

/// Why an answer is no JSON. What Python writes for numbers that are none is the likeliest reason.
pub(super) fn no_json(error: &serde_json::Error, text: &str) -> String {
    match ["NaN", "Infinity"].into_iter().find(|word| text.contains(word)) {
        Some(word) => format!("{error}: JSON has no {word}, so that a reward must be a finite number"),
        None => error.to_string(),
    }
}

/// An episode played by whichever worker of a pool lives.
pub struct Bridged {
    pool: Arc<Pool>,
    task: String,
    /// The right to a worker, from the first reset on.
    lease: Option<pool::Lease>,
    commands: Vec<String>,
    /// What was shown after the reset and after each command; a replay must show the same.
    shown: Vec<String>,
    /// What came with the last of it.
    hints: Hints,
}

impl Bridged {
    /// The environment of `task`, played by a worker of `pool`.
    pub fn new(pool: Arc<Pool>, task: &str) -> Bridged {
        let (commands, shown) = (Vec::new(), Vec::new());
        Bridged { pool, task: task.into(), lease: None, commands, shown, hints: Hints::default() }
    }

    /// Asks until a worker answers, or the retries are used up.
    fn ask(&mut self, command: Option<&str>) -> Result<Observation, EnvError> {
        let failed = |reason: String| EnvError::Failed { name: self.task.clone(), reason };
        let lease = match &mut self.lease {
            Some(lease) => lease,
            empty => empty.insert(self.pool.lease().map_err(|fault| failed(fault.to_string()))?),
        };
        let mut faults = 0;
        loop {
            let fault = match once(&self.pool, lease, faults > 0, &self.task, &self.commands, &self.shown, command) {
                Ok(seen) => {
                    self.hints = lease.worker.as_ref().map_or_else(Hints::default, |worker| worker.hints());
                    return seen.checked().map_err(failed);
                }
                Err(Fault::Refused(reason)) => return Err(failed(reason)),
                Err(Fault::Broken(reason)) => reason,
            };
            lease.worker = None;
            faults += 1;
            if faults > self.pool.limits.retries {
                return Err(failed(format!("{fault}; given up after {faults} tries")));
            }
            std::thread::sleep((PAUSE * 2u32.saturating_pow(faults - 1)).min(LONGEST_PAUSE));
        }
    }
}

/// One try; a new worker is first brought to where the episode stands. It is a fresh one when another has just failed, since
/// what failed may have broken the idle ones, too.
fn once(
    pool: &Pool,
    lease: &mut pool::Lease,
    fresh: bool,
    task: &str,
    commands: &[String],
    shown: &[String],
    command: Option<&str>,
) -> Result<Observation, Fault> {
    let deadline = || Instant::now() + pool.limits.call;
    let restore = lease.worker.is_none() && command.is_some();
    let worker = match &mut lease.worker {
        Some(worker) => worker,
        empty => empty.insert(if fresh { pool.fresh()? } else { pool.worker()? }),
    };
    if restore {
        let same = |seen: Observation, expected: Option<&String>| match Some(&seen.text) == expected {
            true => Ok(()),
            false => Err(Fault::Refused("a replay of the episode in a new worker showed something else".into())),
        };
        same(worker.reset(task, deadline())?, shown.first())?;
        for (command, expected) in commands.iter().zip(&shown[1..]) {
            same(worker.step(command, deadline())?, Some(expected))?;
        }
    }
    match command {
        Some(command) => worker.step(command, deadline()),
        None => worker.reset(task, deadline()),
    }
}

impl Environment for Bridged {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        let seen = self.ask(None)?;
        (self.commands, self.shown) = (Vec::new(), vec![seen.text.clone()]);
        Ok(seen)
    }

    fn step(&mut self, command: &str) -> Result<Observation, EnvError> {
        if self.shown.is_empty() {
            self.reset()?;
        }
        let seen = self.ask(Some(command))?;
        self.commands.push(command.into());
        self.shown.push(seen.text.clone());
        Ok(seen)
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn distance(&mut self) -> Option<u32> {
        self.hints.distance
    }

    fn expert(&mut self) -> Option<String> {
        self.hints.expert.clone()
    }
}
