//! Which games are played: one table a suite, and what they share.

use serde::{Deserialize, Serialize};

/// Which tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Env {
    /// `household` (embedded), `alfworld`, `scienceworld`, `worker` (a program that speaks the worker protocol), or `openenv` (a
    /// server).
    pub suite: String,
    /// Most agent steps in an episode.
    pub max_steps: u32,
    /// SHA-256 of the suite's content, which a run writes down; other content is then refused (empty: not checked).
    pub hash: String,
    /// JSON lines `{"task": ID, "commands": [...]}` that demonstrate training tasks of a suite without a demonstrator (empty: none).
    pub demonstrations: String,
    /// Most processes at once that environments outside this one may have, or sessions with a server.
    pub workers: u32,
    /// Longest time for one of them to start, seconds.
    pub start_timeout: f32,
    /// Longest time for one of its answers, seconds.
    pub timeout: f32,
    /// How often a call is tried again with a new process or session, after one that died, hung or talked nonsense.
    pub retries: u32,
    /// ALFWorld's own games.
    pub alfworld: Alfworld,
    /// ScienceWorld's simulator.
    pub scienceworld: ScienceWorld,
    /// A program that speaks the worker protocol.
    pub worker: Worker,
    /// An OpenEnv server.
    pub openenv: OpenEnv,
}

/// ALFWorld's own games.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alfworld {
    /// Folder of the games (empty: $ALFWORLD_DATA).
    pub data: String,
    /// Which task types are trained on.
    pub train_types: TrainTypes,
}

/// ScienceWorld's simulator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScienceWorld {
    /// Its jar (empty: $SCIENCEWORLD_JAR, or the one of the installed Python package).
    pub data: String,
    /// Which task types are trained on.
    pub train_types: TrainTypes,
    /// Simplifications, comma-separated: `easy`, or e.g. `teleportAction,openDoors`; empty: none.
    pub simplifications: String,
    /// What is paid.
    pub reward: Reward,
}

/// A program that speaks the worker protocol.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// The program and its arguments, e.g. `["python3", "my_game.py"]`.
    pub command: Vec<String>,
}

/// An OpenEnv server.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpenEnv {
    /// Its address, e.g. `http://127.0.0.1:8000`.
    pub url: String,
    /// Field of its actions that takes the command (empty: the only one that takes text).
    pub action: String,
}

/// What ScienceWorld pays; the other suites have rewards of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reward {
    /// 1 for a completed task with a full score.
    Success,
    /// The score, as a share of the full score, paid as it changes: less than 0 where it falls.
    Score,
}

/// Which task types of a suite with held-out types are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainTypes {
    /// All but those held out for L2.
    Seen,
    /// All: there is no L2.
    All,
}

impl Default for Env {
    fn default() -> Self {
        Env {
            suite: "household".into(),
            max_steps: 20,
            hash: String::new(),
            demonstrations: String::new(),
            workers: 8,
            start_timeout: 60.0,
            timeout: 30.0,
            retries: 3,
            alfworld: Alfworld::default(),
            scienceworld: ScienceWorld::default(),
            worker: Worker::default(),
            openenv: OpenEnv::default(),
        }
    }
}

impl Default for Alfworld {
    fn default() -> Self {
        Alfworld { data: String::new(), train_types: TrainTypes::Seen }
    }
}

impl Default for ScienceWorld {
    fn default() -> Self {
        ScienceWorld {
            data: String::new(),
            train_types: TrainTypes::Seen,
            simplifications: "easy".into(),
            reward: Reward::Success,
        }
    }
}

impl Env {
    /// Another suite than the chosen one whose table has a setting.
    pub(super) fn table_of_another(&self) -> Option<&'static str> {
        let plain = Env::default();
        let changed = [
            ("alfworld", self.alfworld != plain.alfworld),
            ("scienceworld", self.scienceworld != plain.scienceworld),
            ("worker", self.worker != plain.worker),
            ("openenv", self.openenv != plain.openenv),
        ];
        let other = changed.into_iter().find(|(suite, changed)| *changed && *suite != self.suite);
        other.map(|(suite, _)| suite)
    }
}
