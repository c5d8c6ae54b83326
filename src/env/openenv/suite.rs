//! The suite of the tasks that an OpenEnv server offers.
//!
//! A server that lists its tasks (the Task API of `openenv` 0.10) gives them by split and index: its splits `train`, `L0`,
//! `L1` and `L2` are ours, of others those of type `validation` make L0 and those of type `test` L1. Elsewhere a task is a seed:
//! seeds below 10⁹ are for training, and the 128 from there on are L0.

use super::client::{Address, Connection, MessageLayout};
use crate::env::bridge::{Bridged, Fault, Limits, Pool};
use crate::env::household::Random;
use crate::env::{EnvError, Environment, Split, Suite, Task};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::sync::Arc;
use std::time::Instant;

/// Seeds from here on are for evaluation only.
const FIRST_EVALUATION_SEED: u64 = 1_000_000_000;
/// Seeds in L0.
const PANEL: u64 = 128;
/// Most tasks of an evaluation split whose types are requested.
const MOST_TYPED: u64 = 100_000;
/// Most splits.
const MOST_SPLITS: usize = 100;
/// Longest answer of an HTTP route, bytes.
const LONGEST: u64 = 16 << 20;
/// How much of what a server says is shown, characters.
const SHOWN: usize = 200;

/// Tasks of one of the server's splits.
#[derive(Debug)]
struct TaskRange {
    split: Split,
    /// What the server calls the split; `None`: tasks are seeds.
    name: Option<String>,
    /// Place of its first task.
    first: u64,
    count: u64,
    /// Types of its tasks, where the server tells.
    kinds: Vec<String>,
}

/// The tasks of a server.
pub struct OpenEnv {
    pool: Arc<Pool>,
    seed: u64,
    parts: Vec<TaskRange>,
    hash: String,
}

/// What a reset says to get a task: `SPLIT/INDEX` or `seed-N`. The seed beside an index is for environments that draw numbers.
pub(super) fn reset_of(task: &str) -> Value {
    match (task.rsplit_once('/'), task.strip_prefix("seed-").and_then(|seed| seed.parse::<u64>().ok())) {
        (Some((split, index)), _) => {
            let index = index.parse::<u64>().unwrap_or_default();
            json!({ "split": split, "index": index, "seed": index })
        }
        (None, seed) => json!({ "seed": seed }),
    }
}

impl OpenEnv {
    /// Asks the server at `url` what there is to play. `action` is the field of its actions that takes the command (empty: the
    /// only text field); `seed` chooses the training tasks.
    ///
    /// # Errors
    /// If the address is refused, the server does not answer, or its schema offers no text to act by.
    pub fn open(url: &str, action: &str, limits: Limits, seed: u64) -> Result<OpenEnv, EnvError> {
        let address = Address::parse(url)?;
        let http = Http::new(&address, limits);
        let failed = |reason: String| EnvError::Failed { name: format!("OpenEnv server {}", address.http), reason };
        let schema = http.get("/schema").map_err(failed)?.ok_or_else(|| failed("there is no /schema".into()))?;
        let layout = Arc::new(MessageLayout::read(&schema, action).map_err(failed)?);
        let environments = http.get("/list_environments").map_err(failed)?;
        let name = environments.as_ref().and_then(|names| names[0].as_str()).unwrap_or_default().to_string();
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.~".contains(c)) || name.starts_with('.') {
            let start: String = name.chars().take(SHOWN).collect();
            return Err(failed(format!("/list_environments: {start:?} cannot be a part of an address")));
        }
        let listed = if name.is_empty() { None } else { http.parts(&name).map_err(failed)? };
        let seeds = |split, first, count| TaskRange { split, name: None, first, count, kinds: Vec::new() };
        let parts = listed.unwrap_or_else(|| {
            let train = seeds(Split::Train, 0, FIRST_EVALUATION_SEED);
            vec![train, seeds(Split::L0, FIRST_EVALUATION_SEED, PANEL)]
        });
        let mut hash = Sha256::new_with_prefix(&name);
        parts.iter().for_each(|p| hash.update(format!("\n{} {:?} {} {:?}", p.split, p.name, p.count, p.kinds)));
        let hash = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let start = move || -> Result<Box<dyn crate::env::bridge::Worker>, Fault> {
            Ok(Box::new(Connection::open(&address, layout.clone(), Instant::now() + limits.start)?))
        };
        let pool = Pool::new(limits, start);
        Ok(OpenEnv { pool, seed, parts, hash })
    }

    fn count(&self, split: Split) -> u64 {
        self.parts.iter().filter(|p| p.split == split).fold(0, |sum, p| p.count.saturating_add(sum))
    }
}

impl TaskRange {
    fn task(&self, at: u64) -> Task {
        let place = self.first + at;
        let id = self.name.as_ref().map_or_else(|| format!("seed-{place}"), |name| format!("{name}/{place}"));
        let kind = usize::try_from(at).ok().and_then(|at| self.kinds.get(at));
        let kind = kind.or(self.name.as_ref()).map_or("seed", String::as_str);
        Task { id, kind: kind.into(), split: self.split }
    }

    /// Whether an id is one of its tasks.
    fn has(&self, id: &str) -> bool {
        let place = match &self.name {
            None => id.strip_prefix("seed-"),
            Some(name) => id.strip_prefix(&name[..]).and_then(|rest| rest.strip_prefix('/')),
        };
        let number = place.and_then(|digits| digits.parse::<u64>().ok().filter(|n| n.to_string() == digits));
        number.and_then(|n| n.checked_sub(self.first)).is_some_and(|at| at < self.count)
    }
}

impl Suite for OpenEnv {
    fn name(&self) -> &str {
        "openenv"
    }

    /// Training tasks are drawn with replacement: a server may have no end of them.
    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        let count = self.count(split);
        let mut place = match split {
            Split::Train if count > 0 => Random::new(&[7, self.seed, index]).next() % count,
            _ => index,
        };
        for part in self.parts.iter().filter(|p| p.split == split) {
            if place < part.count {
                return Ok(part.task(place));
            }
            place -= part.count;
        }
        let reason = format!("the server has {count} tasks in this split");
        Err(EnvError::BadGame { file: format!("openenv {split} {index}"), reason })
    }

    fn len(&self, split: Split) -> Option<u64> {
        (split != Split::Train).then(|| self.count(split))
    }

    fn content_hash(&self) -> Option<String> {
        Some(self.hash.clone())
    }

    fn open_for_training(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        let reason = match self.parts.iter().find(|p| p.has(&task.id)).map(|p| p.split) {
            Some(Split::Train) => return self.open(task),
            Some(other) => format!("it is in {other}"),
            None => "the server does not list it".into(),
        };
        Err(EnvError::HeldOut { id: task.id.clone(), reason })
    }

    fn open(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        if !self.parts.iter().any(|p| p.has(&task.id)) {
            let reason = "the server does not list it".into();
            return Err(EnvError::BadGame { file: format!("task {:?}", task.id), reason });
        }
        Ok(Box::new(Bridged::new(self.pool.clone(), &task.id)))
    }
}

/// The server's HTTP routes.
struct Http<'a> {
    agent: ureq::Agent,
    base: &'a str,
}

impl<'a> Http<'a> {
    fn new(address: &'a Address, limits: Limits) -> Http<'a> {
        let config = ureq::Agent::config_builder().timeout_global(Some(limits.start)).http_status_as_error(false);
        // Where a server sends us is for the user to judge.
        Http { agent: config.max_redirects(0).build().into(), base: &address.http }
    }

    /// The answer of a route; `None` where the server has none such.
    fn get(&self, route: &str) -> Result<Option<Value>, String> {
        answer(route, self.agent.get(format!("{}{route}", self.base)).call())
    }

    fn post(&self, route: &str, body: &Value) -> Result<Option<Value>, String> {
        answer(route, self.agent.post(format!("{}{route}", self.base)).send_json(body))
    }

    /// What the Task API lists; `None` where the server has none, or the environment lists no tasks.
    fn parts(&self, environment: &str) -> Result<Option<Vec<TaskRange>>, String> {
        let Some(splits) = self.get(&format!("/{environment}/splits"))? else { return Ok(None) };
        let mut parts = Vec::new();
        let splits = splits.as_array().map_or(&[][..], Vec::as_slice);
        if splits.len() > MOST_SPLITS {
            return Err(format!("/splits: {} are too many, at most {MOST_SPLITS} can be told apart", splits.len()));
        }
        for listed in splits {
            let name = listed["name"].as_str().ok_or("/splits: a split has no name")?;
            let split = match (name, listed["type"].as_str().unwrap_or_default()) {
                ("train", _) => Split::Train,
                ("L0", _) => Split::L0,
                ("L1", _) => Split::L1,
                ("L2", _) => Split::L2,
                (_, "train") => Split::Train,
                (_, "test") => Split::L1,
                _ => Split::L0,
            };
            let asked = json!({ "split": name });
            let count = self.post(&format!("/{environment}/num_tasks"), &asked)?;
            let count = count.as_ref().and_then(|count| count["num_tasks"].as_u64());
            let Some(count) = count else { return Err(format!("/num_tasks: it does not say how many {name} has")) };
            let typed = split != Split::Train && count <= MOST_TYPED;
            let kinds = if typed { self.kinds(environment, &asked, count)? } else { Vec::new() };
            parts.push(TaskRange { split, name: Some(name.into()), first: 0, count, kinds });
        }
        Ok(Some(parts))
    }

    /// The types of a split's tasks; empty where the server does not tell them all.
    fn kinds(&self, environment: &str, asked: &Value, count: u64) -> Result<Vec<String>, String> {
        let listed = self.post(&format!("/{environment}/tasks"), asked)?.unwrap_or_default();
        let kind = |task: &Value| Some(task["kind"].as_str()?.to_string());
        let kinds: Option<Vec<String>> = listed["tasks"].as_array().and_then(|tasks| tasks.iter().map(kind).collect());
        Ok(kinds.filter(|kinds| kinds.len() as u64 == count).unwrap_or_default())
    }
}

fn answer(route: &str, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Option<Value>, String> {
    let mut answer = answer.map_err(|e| format!("{route}: {e}"))?;
    let location = answer.headers().get("location").map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
    match (answer.status().as_u16(), location) {
        (200, _) => {
            let body = answer.body_mut().with_config().limit(LONGEST);
            body.read_json().map(Some).map_err(|e| format!("{route}: its answer is not JSON: {e}"))
        }
        (404 | 405 | 501, _) => Ok(None),
        (300..400, Some(to)) => {
            let to: String = to.chars().take(SHOWN).collect();
            Err(format!("{route}: it sends elsewhere, to {to:?}: set env.openenv.url to where the server is"))
        }
        (status, _) => {
            let mut body = String::new();
            // Only its beginning is shown, as far as it is text.
            let _ = answer.body_mut().as_reader().take(4 * SHOWN as u64).read_to_string(&mut body);
            let body: String = body.chars().take(SHOWN).collect();
            Err(format!("{route}: it answers with status {status}: {body}"))
        }
    }
}
