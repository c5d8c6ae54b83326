//! The worker protocol: JSON objects over stdin and stdout, one a line, one answer to each request.
//!
//! ```text
//! → {"id":1,"method":"hello","protocol":1}         ← {"id":1,"protocol":1,"name":"textworld"}
//! → {"id":2,"method":"list_tasks"}                 ← {"id":2,"tasks":[{"id":"a","kind":"cook","split":"train"}, …]}
//! → {"id":3,"method":"reset","task":"a"}           ← {"id":3,"text":"…","admissible":["…"]}
//! → {"id":4,"method":"step","action":"go east"}    ← {"id":4,"text":"…","reward":0,"done":false,"won":false,"valid":true}
//! → {"id":5,"method":"close"}                      the worker ends; so it does at the end of its stdin
//! ```
//! Splits are `train`, `L0`, `L1`, `L2`. Of an observation only `text` must be there; without a `reward`, a step that wins pays 1
//! and any other 0. `{"id":…,"error":"words"}` declines. A line has at most 8 MiB, and the worker writes nothing without a request.
//!
//! An observation may also tell what the agent is not shown: `"expert":"go east"`, the command of one who knows the way, which the
//! cold start teaches, and `"distance":3`, the fewest steps from here to the goal, by which the oracle labels actions for GCD.
//! Either may be missing or null, where the game does not know.

use super::process::Process;
use super::{Fault, Hints, Worker, hints, no_json};
use crate::env::{Observation, Split};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

const PROTOCOL: u64 = 1;
/// How much of a nonsensical line an error shows, characters.
const SHOWN: usize = 80;
/// How much of its own words of an error is told, characters.
const LONGEST_ERROR: usize = 400;
/// Time to end after `close`.
const GOODBYE: Duration = Duration::from_millis(500);

/// A worker that speaks the protocol.
#[derive(Debug)]
pub struct JsonLines {
    process: Process,
    name: String,
    last_id: u64,
    hints: Hints,
    broken: bool,
}

/// A task that a worker offers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Listed {
    /// The task's id.
    pub id: String,
    /// Its task type.
    #[serde(default)]
    pub kind: String,
    /// Its split.
    pub split: Split,
}

#[derive(Deserialize)]
struct Shown {
    text: String,
    #[serde(default)]
    admissible: Vec<String>,
    #[serde(default)]
    reward: Option<f32>,
    #[serde(default)]
    done: bool,
    #[serde(default)]
    won: bool,
    #[serde(default = "yes")]
    valid: bool,
    #[serde(default, deserialize_with = "hints::expert")]
    expert: Option<String>,
    #[serde(default, deserialize_with = "hints::distance")]
    distance: Option<u32>,
}

fn yes() -> bool {
    true
}

impl Shown {
    fn told(mut self) -> (Observation, Hints) {
        self.admissible.sort_unstable();
        self.admissible.dedup();
        let Shown { text, admissible, reward, done, won, valid, expert, distance } = self;
        let reward = reward.unwrap_or(f32::from(u8::from(won)));
        let seen = Observation { text, admissible, reward, done: done || won, won, valid };
        (seen, Hints { expert, distance })
    }
}

impl JsonLines {
    /// Starts a program (`command[0]`) with its arguments and greets it.
    ///
    /// # Errors
    /// If the program cannot be started, does not answer in time, or speaks another protocol.
    pub fn start(command: &[String], deadline: Instant) -> Result<JsonLines, Fault> {
        let [program, arguments @ ..] = command else {
            return Err(Fault::Refused(
                "no worker is named: set env.worker.command, e.g. [\"python3\", \"worker.py\"]".into(),
            ));
        };
        let mut command = Command::new(program);
        command.args(arguments);
        let process = Process::start(command)?;
        let mut worker =
            JsonLines { process, name: program.clone(), last_id: 0, hints: Hints::default(), broken: false };
        #[derive(Deserialize)]
        struct Hello {
            protocol: u64,
            name: String,
        }
        let hello: Hello = worker.call("hello", json!({ "protocol": PROTOCOL }), deadline)?;
        if hello.protocol != PROTOCOL {
            let reason = format!("{} speaks protocol {}, not {PROTOCOL}", hello.name, hello.protocol);
            return Err(Fault::Refused(reason));
        }
        worker.name = hello.name;
        Ok(worker)
    }

    /// What the worker calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of its process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// All tasks that the worker offers.
    ///
    /// # Errors
    /// If the worker does not answer in time, or answers with something else.
    pub fn list_tasks(&mut self, deadline: Instant) -> Result<Vec<Listed>, Fault> {
        #[derive(Deserialize)]
        struct Tasks {
            tasks: Vec<Listed>,
        }
        Ok(self.call::<Tasks>("list_tasks", json!({}), deadline)?.tasks)
    }

    fn observe(&mut self, method: &str, request: Value, deadline: Instant) -> Result<Observation, Fault> {
        self.hints = Hints::default();
        let (seen, hints) = self.call::<Shown>(method, request, deadline)?.told();
        self.hints = hints;
        Ok(seen)
    }

    fn call<T: DeserializeOwned>(&mut self, method: &str, mut request: Value, deadline: Instant) -> Result<T, Fault> {
        self.last_id += 1;
        request["id"] = self.last_id.into();
        request["method"] = method.into();
        let sent = self.process.send(&request.to_string(), deadline);
        let exchange = sent.and_then(|()| self.process.receive(deadline));
        let result = exchange.and_then(|line| self.read(&line));
        self.broken |= matches!(result, Err(Fault::Broken(_)));
        result.map_err(|fault| match fault {
            Fault::Broken(reason) => Fault::Broken(format!("worker {}, {method}: {reason}", self.name)),
            Fault::Refused(reason) => Fault::Refused(format!("worker {}, {method}: {reason}", self.name)),
        })
    }

    fn read<T: DeserializeOwned>(&self, line: &str) -> Result<T, Fault> {
        let nonsense = |why: String| {
            let start: String = line.chars().take(SHOWN).collect();
            Fault::Broken(format!("the answer breaks the protocol ({why}): {start:?}"))
        };
        // Only what is looked at is kept: as a JSON value, a line can take many times its bytes.
        #[derive(Deserialize)]
        struct Head {
            id: u64,
            error: Option<String>,
        }
        let head: Head = serde_json::from_str(line).map_err(|e| nonsense(no_json(&e, line)))?;
        if head.id != self.last_id {
            return Err(nonsense(format!("its id should be {}", self.last_id)));
        }
        match head.error {
            Some(words) => Err(Fault::Refused(words.chars().take(LONGEST_ERROR).collect())),
            None => serde_json::from_str(line).map_err(|e| nonsense(e.to_string())),
        }
    }
}

impl Worker for JsonLines {
    fn reset(&mut self, task: &str, deadline: Instant) -> Result<Observation, Fault> {
        self.observe("reset", json!({ "task": task }), deadline)
    }

    fn step(&mut self, command: &str, deadline: Instant) -> Result<Observation, Fault> {
        self.observe("step", json!({ "action": command }), deadline)
    }

    fn hints(&self) -> Hints {
        self.hints.clone()
    }
}

impl Drop for JsonLines {
    fn drop(&mut self) {
        let close = json!({ "id": self.last_id + 1, "method": "close" }).to_string();
        if !self.broken && self.process.send(&close, Instant::now() + GOODBYE).is_ok() {
            self.process.finish(GOODBYE);
        }
    }
}
