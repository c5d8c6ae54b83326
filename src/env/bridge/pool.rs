//! A bounded number of workers, started when first needed and kept for the next episode.

use super::{Fault, Worker};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bounds of a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Most workers alive at once; episodes beyond them wait for one.
    pub workers: usize,
    /// Longest time for a worker to start.
    pub start: Duration,
    /// Longest time for one answer.
    pub call: Duration,
    /// How often a call is tried again, each time with a new worker.
    pub retries: u32,
    /// Longest time that an episode waits for a worker which others have. `None`: until one is free, as in a rollout, whose
    /// episodes all end.
    pub wait: Option<Duration>,
}

type Start = Box<dyn Fn() -> Result<Box<dyn Worker>, Fault> + Send + Sync>;

/// Workers of one kind.
pub struct Pool {
    /// How many workers there may be, and how long they may take.
    pub limits: Limits,
    start: Start,
    shelf: Mutex<Shelf>,
    returned: Condvar,
}

#[derive(Default)]
struct Shelf {
    leases: usize,
    idle: Vec<Box<dyn Worker>>,
}

/// The right to one worker, and the worker while it lives. Dropping it passes both on.
pub struct Lease {
    pub worker: Option<Box<dyn Worker>>,
    pool: Arc<Pool>,
}

impl Pool {
    /// `start` makes a new worker, within a time of its own.
    pub fn new(
        limits: Limits,
        start: impl Fn() -> Result<Box<dyn Worker>, Fault> + Send + Sync + 'static,
    ) -> Arc<Pool> {
        Arc::new(Pool { limits, start: Box::new(start), shelf: Mutex::default(), returned: Condvar::new() })
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until fewer than `limits.workers` are leased.
    ///
    /// # Errors
    /// If no worker became free within `limits.wait`.
    pub fn lease(self: &Arc<Pool>) -> Result<Lease, Fault> {
        let workers = self.limits.workers.max(1);
        let full = |shelf: &mut Shelf| shelf.leases >= workers;
        let mut shelf = match self.limits.wait {
            None => self.returned.wait_while(self.shelf(), full).unwrap_or_else(PoisonError::into_inner),
            Some(wait) => {
                let waited = self.returned.wait_timeout_while(self.shelf(), wait, full);
                let (shelf, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                if waited.timed_out() {
                    let seconds = wait.as_secs_f64();
                    return Err(Fault::Refused(format!(
                        "none of {workers} workers became free within {seconds:.1} s: close a session, or raise env.workers"
                    )));
                }
                shelf
            }
        };
        shelf.leases += 1;
        Ok(Lease { worker: None, pool: self.clone() })
    }

    /// An idle worker, or a new one.
    ///
    /// # Errors
    /// If a new worker cannot be started.
    pub fn worker(&self) -> Result<Box<dyn Worker>, Fault> {
        let idle = self.shelf().idle.pop();
        idle.map_or_else(&self.start, Ok)
    }

    /// A new worker.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn fresh(&self) -> Result<Box<dyn Worker>, Fault> {
        (self.start)()
    }

    /// Keeps a worker that nobody has leased yet.
    pub fn keep(&self, worker: Box<dyn Worker>) {
        self.shelf().idle.push(worker);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut shelf = self.pool.shelf();
        shelf.leases -= 1;
        shelf.idle.extend(self.worker.take());
        drop(shelf);
        self.pool.returned.notify_one();
    }
}
