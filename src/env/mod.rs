//! Environments: text in, text out.

pub mod alfworld;
pub mod baseline;
pub mod bridge;
pub mod demonstrations;
pub mod household;
pub mod openenv;
mod panels;
pub mod scienceworld;
pub mod textgame;

use std::fmt;

/// What the agent is shown after a reset or a step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observation {
    /// The environment's words.
    pub text: String,
    /// Commands that would do something now, sorted; empty when the environment does not tell.
    pub admissible: Vec<String>,
    /// Reward of this step (0 at reset).
    pub reward: f32,
    /// The episode is over.
    pub done: bool,
    /// The goal is reached.
    pub won: bool,
    /// Whether the environment understood the command and it changed something or told something (true at reset).
    pub valid: bool,
}

/// Most that one step can pay or cost.
const LARGEST_REWARD: f32 = 1e6;

impl Observation {
    /// Refuses a reward that nothing can be learnt from.
    ///
    /// # Errors
    /// If the reward is not a number from −10⁶ to 10⁶.
    pub fn checked(self) -> Result<Observation, String> {
        match self.reward {
            r if r.is_finite() && r.abs() <= LARGEST_REWARD => Ok(self),
            r => Err(format!("it paid the reward {r}, which must be a number from -1e6 to 1e6")),
        }
    }
}

/// Why an environment could not go on.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum EnvError {
    /// A game or data file is unusable: which, where, why, and the mend.
    #[error("{file}: {reason}")]
    BadGame { file: String, reason: String },
    /// Training tried to open a held-out instance.
    #[error("the split guard refuses {id}: {reason}")]
    HeldOut { id: String, reason: String },
    /// The environment itself failed (died, timed out, broke its protocol).
    #[error("environment {name}: {reason}")]
    Failed { name: String, reason: String },
}

/// One live episode of a text environment.
pub trait Environment: Send {
    /// Starts (again) from the beginning; the first observation, which states the task.
    ///
    /// # Errors
    /// If the game cannot be played, or its process fails.
    fn reset(&mut self) -> Result<Observation, EnvError>;
    /// One command of the agent.
    ///
    /// # Errors
    /// If the environment's process fails. What the environment itself refuses is an observation.
    fn step(&mut self, command: &str) -> Result<Observation, EnvError>;
    /// Whether a call may take long, because it asks another process: nothing should wait for it.
    fn is_remote(&self) -> bool {
        false
    }
    /// Fewest steps from here to the goal, where the environment knows (`None`: it does not know, or it cannot be reached).
    fn distance(&mut self) -> Option<u32> {
        None
    }
    /// A next command on a shortest plan, where the environment knows.
    fn expert(&mut self) -> Option<String> {
        None
    }
    /// A next command worth imitating. Where the environment can, it comes from a player who knows only what this episode
    /// has shown so far, so that an agent can learn to search; elsewhere it is [`Environment::expert`]'s.
    fn demonstrate(&mut self) -> Option<String> {
        self.expert()
    }
}

/// Training and the evaluation splits (docs/method.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Split {
    /// What may be trained on.
    #[serde(rename = "train")]
    Train,
    /// Seen task types, seen instances' distribution.
    L0,
    /// Seen task types, unseen instances.
    L1,
    /// Unseen task types.
    L2,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::L0 => "L0",
            Split::L1 => "L1",
            Split::L2 => "L2",
        })
    }
}

/// One task instance of a suite: `id` is stable and names the instance completely (type, scene, seed).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Task {
    /// Names the instance completely.
    pub id: String,
    /// Task type, e.g. `clean-and-place`.
    pub kind: String,
    /// The split it belongs to.
    pub split: Split,
}

/// A family of task instances with its splits.
pub trait Suite: Send + Sync {
    /// Name for tables and run folders.
    fn name(&self) -> &str;
    /// The `index`-th task of a split: a pure function of the suite's configuration. Evaluation splits end at [`Suite::len`].
    ///
    /// # Errors
    /// If the split has no such task.
    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError>;
    /// Number of tasks in the split (`None`: unlimited).
    fn len(&self, split: Split) -> Option<u64>;
    /// SHA-256, in hex, of what the tasks are made of, where that is not part of this program.
    fn content_hash(&self) -> Option<String> {
        None
    }
    /// The training tasks that are demonstrated, where only these are (`None`: any may be).
    fn demonstrated(&self) -> Option<&[Task]> {
        None
    }
    /// Opens a task for training: refuses, by name, what is held out.
    ///
    /// # Errors
    /// If the task is held out, or cannot be opened.
    fn open_for_training(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError>;
    /// Opens any task for evaluation.
    ///
    /// # Errors
    /// If the task cannot be opened.
    fn open(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError>;
}
