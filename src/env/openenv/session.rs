//! One session of the server: a message in, an answer out. It knows no network.

use crate::env::{EnvError, Environment, Observation, Split, Suite, Task};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The games that all sessions play.
pub struct Games {
    suite: Box<dyn Suite>,
    /// The training task of the next reset that names none.
    next: AtomicU64,
}

impl Games {
    /// Hands out the tasks of `suite`.
    pub fn new(suite: Box<dyn Suite>) -> Games {
        Games { suite, next: AtomicU64::new(0) }
    }

    /// The suite that is served.
    pub fn suite(&self) -> &dyn Suite {
        &*self.suite
    }

    /// A task by its place in the split, or by its id; a seed means a place, too. Only what names an evaluation split gets out of
    /// training's.
    fn task(&self, asked: &Reset) -> Result<Task, EnvError> {
        let split = asked.split.unwrap_or(Split::Train);
        if let Some(id) = &asked.task {
            return Ok(Task { id: id.clone(), kind: String::new(), split });
        }
        let panel = self.suite.len(split).filter(|len| *len > 0);
        let place = match (asked.index, asked.seed, panel) {
            (Some(index), ..) => index,
            (None, seed, panel) => {
                let free = seed.unwrap_or_else(|| self.next.fetch_add(1, Ordering::Relaxed));
                panel.map_or(free, |len| free % len)
            }
        };
        self.suite.task(split, place)
    }

    fn open(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        match task.split {
            Split::Train => self.suite.open_for_training(task),
            _ => self.suite.open(task),
        }
    }
}

/// What a reset may ask for; what else it holds is ignored, as in the reference server.
#[derive(Debug, Default, Deserialize)]
struct Reset {
    seed: Option<u64>,
    episode_id: Option<String>,
    split: Option<Split>,
    index: Option<u64>,
    task: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Action {
    command: String,
    #[serde(default, rename = "metadata")]
    _metadata: Map<String, Value>,
}

/// Why a message has no better answer, in the protocol's terms.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refusal {
    pub code: &'static str,
    pub message: String,
}

impl Refusal {
    fn new(code: &'static str, message: impl ToString) -> Refusal {
        Refusal { code, message: message.to_string() }
    }

    pub fn answer(&self) -> Value {
        json!({ "type": "error", "data": { "message": self.message, "code": self.code } })
    }
}

fn failed(message: impl ToString) -> Refusal {
    Refusal::new("EXECUTION_ERROR", message)
}

fn read<T: DeserializeOwned>(data: Value) -> Result<T, Refusal> {
    let data = if data.is_null() { json!({}) } else { data };
    T::deserialize(data).map_err(|e| Refusal::new("VALIDATION_ERROR", format!("Invalid message: {e}")))
}

/// A client's episode.
pub struct Session {
    games: Arc<Games>,
    episode: Option<Episode>,
}

struct Episode {
    env: Box<dyn Environment>,
    task: Task,
    id: Option<String>,
    steps: u64,
    over: bool,
}

impl Session {
    /// A session that has begun no episode.
    pub fn new(games: Arc<Games>) -> Session {
        Session { games, episode: None }
    }

    /// The answer to a message of the protocol; `None` to `close`.
    pub fn answer(&mut self, message: &str) -> Option<Value> {
        let answer = match serde_json::from_str::<Value>(message) {
            Err(e) => Err(Refusal::new("INVALID_JSON", format!("Invalid JSON: {e}"))),
            Ok(mut message) => {
                let data = message.get_mut("data").map(Value::take).unwrap_or_default();
                match message["type"].as_str().unwrap_or_default() {
                    "reset" => self.reset(data).map(|data| json!({ "type": "observation", "data": data })),
                    "step" => self.step(data).map(|data| json!({ "type": "observation", "data": data })),
                    "state" => Ok(json!({ "type": "state", "data": self.state() })),
                    "close" => return None,
                    other => Err(Refusal::new("UNKNOWN_TYPE", format!("Unknown message type: {other}"))),
                }
            }
        };
        Some(answer.unwrap_or_else(|refusal| refusal.answer()))
    }

    /// Begins an episode: what it shows.
    pub(super) fn reset(&mut self, data: Value) -> Result<Value, Refusal> {
        let asked: Reset = read(data)?;
        // The old one ends first: its process may be the one that the new one needs.
        self.episode = None;
        let task = self.games.task(&asked).map_err(failed)?;
        let mut env = self.games.open(&task).map_err(failed)?;
        let seen = env.reset().map_err(failed)?;
        self.episode = Some(Episode { env, task, id: asked.episode_id, steps: 0, over: seen.done });
        Ok(shown(seen))
    }

    pub(super) fn step(&mut self, data: Value) -> Result<Value, Refusal> {
        let Action { command, .. } = read(data)?;
        let episode = self.episode.as_mut().ok_or_else(|| failed("there is no episode yet: reset first"))?;
        if episode.over {
            return Err(failed("the episode is over: reset for another"));
        }
        let seen = episode.env.step(&command).map_err(failed)?;
        (episode.steps, episode.over) = (episode.steps + 1, seen.done);
        Ok(shown(seen))
    }

    fn state(&self) -> Value {
        match &self.episode {
            None => json!({ "episode_id": null, "step_count": 0 }),
            Some(Episode { task, id, steps, .. }) => json!({
                "episode_id": id, "step_count": steps, "task": task.id, "kind": task.kind, "split": task.split
            }),
        }
    }
}

fn shown(seen: Observation) -> Value {
    let Observation { text, admissible, reward, done, won, valid } = seen;
    json!({
        "observation": { "text": text, "admissible": admissible, "won": won, "valid": valid },
        "reward": reward,
        "done": done,
    })
}
