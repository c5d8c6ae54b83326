//! Demonstrations from a file, for games that have no demonstrator of their own.
//!
//! Each line is `{"task": ID, "commands": ["…", …]}`: the commands that win a training task. As long as an episode follows them, the
//! next one is the expert's command and their number left the distance; where it has left them, the file knows nothing.

use super::{EnvError, Environment, Observation, Split, Suite, Task};
use crate::files::{self, MOST_KEPT};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// A suite whose training tasks are demonstrated by a file.
pub struct Demonstrated {
    suite: Box<dyn Suite>,
    /// In the order of the file.
    tasks: Vec<Task>,
    commands: HashMap<String, Arc<[String]>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DemonstrationLine {
    task: String,
    commands: Vec<String>,
}

impl Demonstrated {
    /// Reads `file`. A line that demonstrates nothing, a task twice, or one that is held out is refused by its number.
    ///
    /// # Errors
    /// [`EnvError::BadGame`] for the file or a line of it; [`EnvError::HeldOut`] for a task that may not be trained on.
    pub fn open(suite: Box<dyn Suite>, file: &Path) -> Result<Demonstrated, EnvError> {
        let bad = |place: String, reason: String| EnvError::BadGame { file: place, reason };
        let name = file.display();
        let text = files::read_text(file, MOST_KEPT)
            .map_err(|e| bad(name.to_string(), format!("env.demonstrations cannot be read: {e}")))?;
        let mut all = Demonstrated { suite, tasks: Vec::new(), commands: HashMap::new() };
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bad = |reason: String| bad(format!("{name}:{}", at + 1), reason);
            let form = "a line is {\"task\": ID, \"commands\": [\"…\", …]}";
            let DemonstrationLine { task, commands } =
                serde_json::from_str(line).map_err(|e| bad(format!("{e}; {form}")))?;
            if commands.iter().all(|command| command.trim().is_empty()) {
                return Err(bad(format!("task {task:?} has no commands; {form}")));
            }
            let id = task.clone();
            let task = Task { id: task, kind: "demonstrated".into(), split: Split::Train };
            all.suite.open_for_training(&task)?;
            if all.commands.insert(id, commands.into()).is_some() {
                return Err(bad(format!("task {:?} is demonstrated twice: keep one of the lines", task.id)));
            }
            all.tasks.push(task);
        }
        match all.tasks.is_empty() {
            true => Err(bad(name.to_string(), "it demonstrates nothing".into())),
            false => Ok(all),
        }
    }

    fn follow(&self, task: &Task, env: Box<dyn Environment>) -> Box<dyn Environment> {
        match self.commands.get(&task.id) {
            Some(commands) => Box::new(Following { env, commands: commands.clone(), followed: Some(0) }),
            None => env,
        }
    }
}

impl Suite for Demonstrated {
    fn name(&self) -> &str {
        self.suite.name()
    }

    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        self.suite.task(split, index)
    }

    fn len(&self, split: Split) -> Option<u64> {
        self.suite.len(split)
    }

    fn content_hash(&self) -> Option<String> {
        self.suite.content_hash()
    }

    fn demonstrated(&self) -> Option<&[Task]> {
        Some(&self.tasks)
    }

    fn open_for_training(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        Ok(self.follow(task, self.suite.open_for_training(task)?))
    }

    fn open(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        Ok(self.follow(task, self.suite.open(task)?))
    }
}

/// An episode of a demonstrated task.
struct Following {
    env: Box<dyn Environment>,
    commands: Arc<[String]>,
    /// How many of the commands were given, and no other; `None` after another.
    followed: Option<usize>,
}

impl Environment for Following {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        self.followed = Some(0);
        self.env.reset()
    }

    fn step(&mut self, command: &str) -> Result<Observation, EnvError> {
        let seen = self.env.step(command)?;
        self.followed =
            self.followed.filter(|at| self.commands.get(*at).is_some_and(|next| next == command)).map(|at| at + 1);
        Ok(seen)
    }

    fn is_remote(&self) -> bool {
        self.env.is_remote()
    }

    /// What the environment knows goes before what the file tells.
    fn distance(&mut self) -> Option<u32> {
        let left = |at: usize| u32::try_from(self.commands.len() - at).ok();
        self.env.distance().or(self.followed.and_then(left))
    }

    fn expert(&mut self) -> Option<String> {
        self.followed.and_then(|at| self.commands.get(at).cloned()).or_else(|| self.env.expert())
    }
}
