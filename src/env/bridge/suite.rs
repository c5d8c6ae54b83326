//! The suite of the tasks that a worker program offers.

use super::{Bridged, Fault, JsonLines, Limits, Listed, Pool};
use crate::env::panels::Panels;
use crate::env::{EnvError, Environment, Split, Suite, Task};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Tasks by id, as the worker listed them, each split sorted.
pub struct WorkerSuite {
    name: String,
    pool: Arc<Pool>,
    listed: HashMap<String, Split>,
    panels: Panels,
    hash: String,
}

impl WorkerSuite {
    /// Starts a first worker of `command` and asks it for its tasks.
    ///
    /// # Errors
    /// If the worker cannot be started, lists no tasks, or lists one twice.
    pub fn open(command: &[String], limits: Limits, seed: u64) -> Result<WorkerSuite, EnvError> {
        let program = command.to_vec();
        let start = move || JsonLines::start(&program, Instant::now() + limits.start);
        let failed = |fault: Fault| EnvError::Failed { name: "worker".into(), reason: fault.to_string() };
        let mut first = start().map_err(failed)?;
        let mut tasks = first.list_tasks(Instant::now() + limits.start).map_err(failed)?;
        tasks.sort();
        let name = first.name().to_string();
        let mut hash = Sha256::new_with_prefix(&name);
        let mut listed = HashMap::new();
        for Listed { id, kind, split } in &tasks {
            hash.update(format!("\n{split} {kind} {id}"));
            if listed.insert(id.clone(), *split).is_some() {
                return Err(EnvError::Failed { name, reason: format!("it lists the task {id} twice") });
            }
        }
        let task = |Listed { id, kind, split }| Task { id, kind, split };
        let panels = Panels::new(&name, seed, tasks.into_iter().map(task));
        let pool = Pool::new(limits, move || Ok(Box::new(start()?)));
        pool.keep(Box::new(first));
        let hash = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(WorkerSuite { name, pool, listed, panels, hash })
    }
}

impl Suite for WorkerSuite {
    fn name(&self) -> &str {
        &self.name
    }

    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        self.panels.task(split, index)
    }

    fn len(&self, split: Split) -> Option<u64> {
        self.panels.len(split)
    }

    fn content_hash(&self) -> Option<String> {
        Some(self.hash.clone())
    }

    fn open_for_training(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        match self.listed.get(&task.id) {
            Some(Split::Train) => self.open(task),
            Some(other) => {
                Err(EnvError::HeldOut { id: task.id.clone(), reason: format!("the worker lists it in {other}") })
            }
            None => Err(EnvError::HeldOut { id: task.id.clone(), reason: "the worker does not list it".into() }),
        }
    }

    fn open(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        if !self.listed.contains_key(&task.id) {
            let reason = "the worker does not list it".into();
            return Err(EnvError::BadGame { file: format!("task {:?}", task.id), reason });
        }
        Ok(Box::new(Bridged::new(self.pool.clone(), &task.id)))
    }
}
