//! ScienceWorld (Wang et al. 2022) without Python: its simulator's jar in a pool of Java machines, one environment each.
//!
//! A task's variations are split by its own rule: with q a quarter of them, rounded down, 2q are for training, q make L0 and
//! the rest L1. Ten of the tasks are held out for L2 (RLVMR, arXiv 2507.22844), whose panel is their last part, unless
//! `env.scienceworld.train_types = "all"`. As there, use-thermometer is left out. Success is a completed task with a full score; `env.scienceworld.reward` says
//! whether that pays, or what each step adds to the score.

use super::bridge::py4j::{Gateway, JavaArg, JavaValue};
use super::bridge::{Bridged, Fault, Limits, Pool, Process, Worker};
use super::panels::Panels;
use super::{EnvError, Environment, Observation, Split, Suite, Task};
use crate::config::{Reward, TrainTypes};
use crate::files;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;

/// Tasks held out for L2.
pub const HELD_OUT: [&str; 10] = [
    "change-the-state-of-matter-of",
    "chemistry-mix-paint-tertiary-color",
    "find-plant",
    "grow-plant",
    "identify-life-stages-2",
    "inclined-plane-friction-unnamed-surfaces",
    "lifespan-longest-lived-then-shortest-lived",
    "measure-melting-point-unknown-substance",
    "mendelian-genetics-unknown-plant",
    "test-conductivity-of-unknown-substances",
];
/// Left out of every split.
const LEFT_OUT: &str = "use-thermometer";

/// What the simulator says to a command that it cannot do.
const UNKNOWN: &str = "No known action matches that input.";
/// The same object order in every run (by default it depends on addresses), and a bounded, single-threaded heap.
const JAVA: [&str; 4] = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2"];
const SIMULATOR: &str = "scienceworld.runtime.pythonapi.PythonInterface";

/// How to play.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// The simulator's jar.
    pub jar: PathBuf,
    /// Simplifications, comma-separated: e.g. `easy`; empty: none.
    pub simplifications: String,
    /// Tell the valid actions with every observation (takes five times as long as the step itself).
    pub admissible: bool,
    /// What a step pays.
    pub reward: Reward,
}

/// The simulator's jar: `given`, else $SCIENCEWORLD_JAR, else that of the installed Python package.
///
/// # Errors
/// If no jar is named or installed, or the file does not exist.
pub fn jar(given: &str) -> Result<PathBuf, EnvError> {
    let named = if given.is_empty() { std::env::var_os("SCIENCEWORLD_JAR") } else { Some(given.into()) };
    let installed = || {
        let ask = "import importlib.util as u; print(u.find_spec('scienceworld').submodule_search_locations[0])";
        let output = Command::new("python3").args(["-c", ask]).output().ok().filter(|o| o.status.success())?;
        Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()).join("scienceworld.jar"))
    };
    let bad = |file: String, reason: &str| EnvError::BadGame { file, reason: reason.into() };
    let mend =
        "set env.scienceworld.data or $SCIENCEWORLD_JAR to scienceworld.jar, or `pip install scienceworld` for python3";
    let path = named.map(PathBuf::from).or_else(installed).ok_or_else(|| bad("ScienceWorld".into(), mend))?;
    if path.is_file() { Ok(path) } else { Err(bad(path.display().to_string(), &format!("is not there; {mend}"))) }
}

/// A Java machine with one simulator.
pub struct Simulator {
    gateway: Gateway,
    object: String,
    rules: Rules,
    /// What of the score (of 100) has been paid.
    paid: f64,
    /// The gateway goes before the machine, the machine before its folder.
    process: Process,
    _folder: TempDir,
}

impl Simulator {
    /// Starts a Java machine with the simulator.
    ///
    /// # Errors
    /// If Java cannot be started, or names no port by `deadline`.
    pub fn start(rules: &Rules, deadline: Instant) -> Result<Simulator, Fault> {
        let folder = tempfile::Builder::new().prefix("uncouple-scienceworld-").tempdir();
        let folder = folder.map_err(|e| Fault::Broken(format!("no folder can be made for it: {e}")))?;
        let jar = std::path::absolute(&rules.jar).unwrap_or_else(|_| rules.jar.clone());
        let mut command = Command::new("java");
        command.args(JAVA).arg("-cp").arg(jar).args(["py4j.GatewayServer", "--die-on-broken-pipe", "0"]);
        command.current_dir(folder.path());
        let mut process = Process::start(command)?;
        let said = process.receive(deadline)?;
        let port = said.trim().parse();
        let port = port.map_err(|_| Fault::Broken(format!("java named no port: {said:?}")))?;
        process.discard_output();
        let mut gateway = Gateway::connect(port, deadline)?;
        let object = gateway.construct(SIMULATOR, deadline)?;
        Ok(Simulator { gateway, object, rules: rules.clone(), paid: 0.0, process, _folder: folder })
    }

    /// Names of the tasks, sorted, with the number of variations of each.
    ///
    /// # Errors
    /// If the simulator does not answer by `deadline`.
    pub fn tasks(&mut self, deadline: Instant) -> Result<Vec<(String, u64)>, Fault> {
        let mut names = self.gateway.texts(&self.object, "getTaskNames", deadline)?;
        names.sort();
        let count = |name: String| {
            let count = self.gateway.number(&self.object, "getTaskMaxVariations", &[JavaArg::Text(&name)], deadline)?;
            Ok((name, count as u64))
        };
        names.into_iter().map(count).collect()
    }

    /// Number of the Java process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    fn observe(&mut self, text: String, deadline: Instant) -> Result<Observation, Fault> {
        let score = (100.0 * self.gateway.number(&self.object, "getScore", &[], deadline)?).round();
        let completed = self.gateway.call(&self.object, "getCompleted", &[], deadline)? == JavaValue::Bool(true);
        let (won, done) = (completed && score == 100.0, completed || score < 0.0);
        let mut admissible = Vec::new();
        if self.rules.admissible && !done {
            admissible = self.gateway.texts(&self.object, "getValidActionObjectCombinations", deadline)?;
            admissible.sort();
            admissible.dedup();
        }
        let valid = text.trim() != UNKNOWN;
        let reward = match self.rules.reward {
            Reward::Success => f32::from(u8::from(won)),
            Reward::Score => ((score - self.paid) / 100.0) as f32,
        };
        self.paid = score;
        Ok(Observation { valid, admissible, reward, done, won, text })
    }
}

impl Worker for Simulator {
    fn reset(&mut self, task: &str, deadline: Instant) -> Result<Observation, Fault> {
        let unknown = || Fault::Refused(format!("{task} is not TASK/VARIATION"));
        let (name, variation) = task.split_once('/').ok_or_else(unknown)?;
        let variation = variation.parse().map_err(|_| unknown())?;
        let load = [
            JavaArg::Text(name),
            JavaArg::Int(variation),
            JavaArg::Text(&self.rules.simplifications),
            JavaArg::Bool(false),
        ];
        let error = self.gateway.text(&self.object, "load", &load, deadline)?;
        if !error.is_empty() {
            return Err(Fault::Refused(error));
        }
        self.gateway.call(&self.object, "reset", &[], deadline)?;
        let goal = self.gateway.text(&self.object, "getTaskDescription", &[], deadline)?;
        let place = self.gateway.text(&self.object, "step", &[JavaArg::Text("look around")], deadline)?;
        let seen = self.observe(format!("{goal}\n{place}"), deadline)?;
        // Some tasks begin with a few points: the first step pays them, so that a return is the score.
        self.paid = 0.0;
        Ok(Observation { reward: 0.0, ..seen })
    }

    fn step(&mut self, command: &str, deadline: Instant) -> Result<Observation, Fault> {
        let text = self.gateway.text(&self.object, "step", &[JavaArg::Text(command)], deadline)?;
        self.observe(text, deadline)
    }
}

/// The suite of all tasks and variations.
pub struct ScienceWorld {
    pool: Arc<Pool>,
    train_types: TrainTypes,
    /// Variations of each task.
    counts: HashMap<String, u64>,
    panels: Panels,
    hash: String,
}

impl ScienceWorld {
    /// Starts a first Java machine and asks it for its tasks.
    ///
    /// # Errors
    /// If Java cannot be started, or the jar cannot be read.
    pub fn open(rules: Rules, limits: Limits, train_types: TrainTypes, seed: u64) -> Result<ScienceWorld, EnvError> {
        let failed = |fault: Fault| EnvError::Failed { name: "ScienceWorld".into(), reason: fault.to_string() };
        let hash = content_hash(&rules.jar, &rules.simplifications)?;
        let mut first = Simulator::start(&rules, Instant::now() + limits.start).map_err(failed)?;
        let counts = first.tasks(Instant::now() + limits.start).map_err(failed)?;
        let tasks = counts.iter().flat_map(|(name, count)| {
            (0..*count).filter_map(move |variation| {
                let split = split_of(name, variation, *count, train_types).ok()?;
                Some(Task { id: format!("{name}/{variation}"), kind: name.clone(), split })
            })
        });
        let panels = Panels::new("scienceworld", seed, tasks);
        let pool = Pool::new(limits, move || Ok(Box::new(Simulator::start(&rules, Instant::now() + limits.start)?)));
        pool.keep(Box::new(first));
        Ok(ScienceWorld { pool, train_types, counts: counts.into_iter().collect(), panels, hash })
    }

    /// Name, variation and number of variations of a task; `None` where there is none such.
    fn variation<'a>(&self, id: &'a str) -> Option<(&'a str, u64, u64)> {
        let (name, digits) = id.split_once('/')?;
        let count = *self.counts.get(name)?;
        let variation = digits.parse::<u64>().ok().filter(|v| *v < count && digits == v.to_string())?;
        Some((name, variation, count))
    }
}

fn content_hash(jar: &Path, simplifications: &str) -> Result<String, EnvError> {
    let bytes = files::read(jar, files::MOST_KEPT)
        .map_err(|e| EnvError::BadGame { file: jar.display().to_string(), reason: format!("cannot be read: {e}") })?;
    let hash = Sha256::new_with_prefix(bytes).chain_update(simplifications).finalize();
    Ok(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Where a variation is used, or why nowhere.
fn split_of(name: &str, variation: u64, count: u64, train_types: TrainTypes) -> Result<Split, &'static str> {
    let quarter = count / 4;
    let seen = train_types == TrainTypes::All || !HELD_OUT.contains(&name);
    match (variation / quarter.max(1), seen) {
        _ if name == LEFT_OUT => Err("the task is left out, as in RLVMR"),
        (0 | 1, true) => Ok(Split::Train),
        (2, true) => Ok(Split::L0),
        (_, true) => Ok(Split::L1),
        (0..=2, false) => Err("the task is held out for L2 (env.scienceworld.train_types = \"seen\")"),
        (_, false) => Ok(Split::L2),
    }
}

impl Suite for ScienceWorld {
    fn name(&self) -> &str {
        "scienceworld"
    }

    /// Evaluation variations come by task and number.
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
        let place =
            self.variation(&task.id).map(|(name, variation, count)| split_of(name, variation, count, self.train_types));
        let reason = match place {
            Some(Ok(Split::Train)) => return self.open(task),
            Some(Ok(other)) => format!("it is in {other}"),
            Some(Err(reason)) => reason.into(),
            None => "there is no such variation".into(),
        };
        Err(EnvError::HeldOut { id: task.id.clone(), reason })
    }

    fn open(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        if self.variation(&task.id).is_none() {
            let reason = "ScienceWorld has no such variation".into();
            return Err(EnvError::BadGame { file: format!("task {:?}", task.id), reason });
        }
        Ok(Box::new(Bridged::new(self.pool.clone(), &task.id)))
    }
}
