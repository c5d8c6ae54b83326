//! Ctrl-C in every phase, sent to the real program: it saves, says how to go on, and going on ends as if nothing had been. And a
//! kill at its file operations, where nothing can be saved any more.
#![cfg(unix)]

mod common;

use common::runs::{Left, TINY, checkpoints, left, state};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Long enough phases to be met by a signal; on top of [`TINY`].
const LONGER: [&str; 8] = [
    "sft.steps=150",
    "sft.batch=4",
    "eval.games=64",
    "env.max_steps=4",
    "rollout.groups=24",
    "rollout.group_size=8",
    "run.iterations=2",
    "run.checkpoint_every=1",
];

fn start(dir: &Path, name: &str) -> Child {
    let config = dir.join("tiny.toml");
    fs::write(&config, TINY).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_uncouple"));
    command.args(["train", "--name", name, "--dir"]).arg(dir).arg("--config").arg(config);
    LONGER.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for the end, at most `limit`.
fn wait(child: &mut Child, limit: Duration) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if began.elapsed() > limit {
            child.kill().unwrap();
            panic!("still running after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Starts a run, interrupts it once its metrics hold `lines` of `phase`, checks how it stops, and gives the state it saved.
fn interrupted(dir: &Path, name: &str, phase: &str, lines: usize) -> Value {
    let mut child = start(dir, name);
    let run = dir.join(name);
    let began = Instant::now();
    loop {
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        if text.matches(&format!("\"phase\":\"{phase}\"")).count() >= lines {
            break;
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        assert!(began.elapsed() < Duration::from_secs(120), "it does not get anywhere");
        std::thread::sleep(Duration::from_millis(1));
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let status = wait(&mut child, Duration::from_secs(20));
    let mut told = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut told).unwrap();
    assert_eq!(status.code(), Some(130), "{told}");
    let mend = format!("uncouple train --resume --dir {} --name {name}", dir.display());
    assert!(told.contains(&mend), "{told}");
    assert!(!run.join("summary.json").exists(), "it was not finished");
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(
        page.contains("not finished: ") && page.contains("--dir"),
        "its report tells how far it came, and its command"
    );
    state(&run)
}

/// Follows the advice that the interrupted run gave.
fn resume(dir: &Path, name: &str) -> Left {
    let output = Command::new(env!("CARGO_BIN_EXE_uncouple"))
        .args(["train", "--resume", "--name", name, "--dir"])
        .arg(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    left(&dir.join(name))
}

#[test]
fn ctrl_c_in_any_phase_saves_and_resuming_finishes_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(wait(&mut start(dir, "whole"), Duration::from_secs(300)).success());
    let whole = left(&dir.join("whole"));

    // In the middle of the cold start.
    let saved = interrupted(dir, "cold-start", "sft", 20);
    let steps = saved["sft_steps"].as_u64().unwrap();
    assert!((20..150).contains(&steps), "stopped after {steps} steps");
    assert!(resume(dir, "cold-start") == whole);

    // After it: in the evaluation.
    let saved = interrupted(dir, "evaluation", "sft", 150);
    assert_eq!((&saved["sft_steps"], &saved["cold_start"]), (&150.into(), &Value::Null));
    assert!(resume(dir, "evaluation") == whole);

    // In the rollout of the first iteration or right after it.
    let saved = interrupted(dir, "rollout", "eval", 1);
    assert!(saved["cold_start"].is_object() && saved["iterations"].as_u64().unwrap() <= 1, "{saved}");
    assert!(resume(dir, "rollout") == whole);

    // Between iterations, or in the next one.
    let saved = interrupted(dir, "iterations", "grpo", 1);
    assert!((1..=2).contains(&saved["iterations"].as_u64().unwrap()), "{saved}");
    assert!(resume(dir, "iterations") == whole);

    // In the final evaluation.
    let saved = interrupted(dir, "final", "grpo", 2);
    assert_eq!(saved["iterations"], 2);
    assert!(resume(dir, "final") == whole);
}

#[test]
fn a_second_ctrl_c_ends_at_once_and_leaves_a_run_that_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start(dir.path(), "a");
    while !dir.path().join("a/metrics.jsonl").exists() {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..2 {
        // The second may find the process gone already.
        let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).stderr(Stdio::null()).status().unwrap();
    }
    assert_eq!(wait(&mut child, Duration::from_secs(20)).code(), Some(130));
    assert!(checkpoints(&dir.path().join("a")).len() <= 1);
    resume(dir.path(), "a");
}

/// Short, but with every file that a run writes: on top of [`TINY`].
#[cfg(target_os = "linux")]
const EVERY_FILE: [&str; 12] = [
    "sft.steps=4",
    "sft.batch=2",
    "sft.checkpoint_every=2",
    "run.iterations=3",
    "run.checkpoint_every=1",
    "run.keep_checkpoints=2",
    "eval.games=1",
    "eval.every=2",
    "grpo.beta=0.1",
    "coupling.every=1",
    "coupling.samples=4",
    "model.num_hidden_layers=1",
];

#[cfg(target_os = "linux")]
mod kills {
    use super::*;
    use std::collections::BTreeMap;
    use std::ffi::OsStr;
    use std::path::PathBuf;

    /// The library that counts file operations and kills at one; `None` where there is no C compiler.
    fn shim(dir: &Path) -> Option<PathBuf> {
        let (source, library) =
            (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/kill_at.c"), dir.join("kill_at.so"));
        let mut compiler = Command::new(std::env::var_os("CC").unwrap_or("cc".into()));
        compiler.args(["-O1", "-shared", "-fPIC", source, "-ldl", "-o"]).arg(&library);
        let built = match compiler.status() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            built => built.unwrap(),
        };
        assert!(built.success(), "{source} does not compile");
        Some(library)
    }

    struct Runs {
        dir: PathBuf,
        shim: PathBuf,
    }

    impl Runs {
        fn command(&self, name: &str, how: &[&str]) -> Command {
            let config = self.dir.join("tiny.toml");
            fs::write(&config, TINY).unwrap();
            let mut command = Command::new(env!("CARGO_BIN_EXE_uncouple"));
            command.args(["train", "--name", name, "--dir"]).arg(&self.dir).args(how).arg("--config").arg(config);
            EVERY_FILE.iter().for_each(|set| {
                command.args(["--set", set]);
            });
            command
        }

        /// Runs to the end, with the operations as `CALL PATH` within the run's folder.
        fn counted(&self, name: &str) -> Vec<String> {
            let log = self.dir.join("log");
            let mut command = self.command(name, &[]);
            let output = command.env("LD_PRELOAD", &self.shim).env("KILL_LOG", &log).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let within = self.dir.join(name).display().to_string();
            fs::read_to_string(log).unwrap().lines().map(|line| line.replace(&within, "")).collect()
        }

        /// A run that dies on entry of operation `at`, counted from 1.
        fn killed(&self, name: &str, how: &[&str], at: usize) {
            let mut command = self.command(name, how);
            let status = command.env("LD_PRELOAD", &self.shim).env("KILL_AT", at.to_string()).output().unwrap().status;
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "operation {at}");
        }

        /// Goes on as a user would, and gives what was left and what was told.
        fn gone_on(&self, name: &str) -> (Left, String) {
            let begun = self.dir.join(name).join("config.toml").exists();
            let output = self.command(name, if begun { &["--resume"] } else { &[] }).output().unwrap();
            let told = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{told}");
            (left(&self.dir.join(name)), told)
        }
    }

    /// Whether a checkpoint of the run is on disk.
    fn stands(run: &Path) -> bool {
        !checkpoints(run).is_empty()
    }

    /// What is still there under a name that only exists while it is written or deleted.
    fn leftovers(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if [Some(OsStr::new("unfinished")), Some(OsStr::new("removed"))].contains(&path.extension()) {
                found.push(path);
            } else if path.is_dir() {
                found.extend(leftovers(&path));
            }
        }
        found
    }

    /// The first and the last operation of each kind: of one call on paths that differ in numbers only, or in the file of a folder
    /// that is written or deleted.
    fn of_each_kind(operations: &[String]) -> Vec<usize> {
        let mut kinds = BTreeMap::<String, (usize, usize)>::new();
        for (i, operation) in operations.iter().enumerate() {
            let passing = [".unfinished/", ".removed/"].iter().find_map(|end| operation.find(end));
            let path = &operation[..passing.unwrap_or(operation.len())];
            let kind = path.chars().filter(|c| !c.is_ascii_digit()).collect::<String>()
                + ["", "/"][usize::from(passing.is_some())];
            kinds.entry(kind).or_insert((i + 1, i + 1)).1 = i + 1;
        }
        let mut chosen: Vec<usize> = kinds.into_values().flat_map(|(first, last)| [first, last]).collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    #[test]
    fn a_run_killed_at_a_file_operation_is_resumed_from_what_stands_and_ends_as_if_nothing_had_been() {
        let dir = tempfile::tempdir().unwrap();
        let Some(shim) = shim(dir.path()) else {
            return eprintln!("SKIPPED: there is no C compiler (cc) to build tests/common/kill_at.c with");
        };
        let runs = Runs { dir: dir.path().into(), shim };
        let operations = runs.counted("whole");
        let whole = left(&dir.path().join("whole"));
        let chosen = of_each_kind(&operations);
        assert!(chosen.len() > 40, "{} kinds of operations in {operations:?}", chosen.len());
        for at in chosen {
            let (name, operation) = (format!("killed-{at}"), &operations[at - 1]);
            runs.killed(&name, &[], at);
            let run = dir.path().join(&name);
            let stood = stands(&run);
            let (end, told) = runs.gone_on(&name);
            assert!(end == whole, "killed at {operation}: it ends otherwise");
            assert_eq!(leftovers(&run), Vec::<PathBuf>::new(), "killed at {operation}");
            let anew = !told.contains("going on from step-");
            assert!(stood != anew, "killed at {operation}: a checkpoint stood: {stood}; {told}");
            fs::remove_dir_all(run).unwrap();
        }
    }

    #[test]
    fn an_overwrite_killed_at_a_file_operation_is_repeated_or_leaves_no_run() {
        let dir = tempfile::tempdir().unwrap();
        let Some(shim) = shim(dir.path()) else {
            return eprintln!("SKIPPED: there is no C compiler (cc) to build tests/common/kill_at.c with");
        };
        let runs = Runs { dir: dir.path().into(), shim };
        runs.counted("a");
        let whole = left(&dir.path().join("a"));
        // Everything that was there is deleted within the first operations; only then is there a checkpoint again.
        for at in (2..60).step_by(9) {
            runs.killed("a", &["--overwrite"], at);
            let stood = stands(&dir.path().join("a"));
            let (end, told) = runs.gone_on("a");
            assert!(end == whole, "killed at operation {at}: it ends otherwise");
            assert!(stood == told.contains("going on from step-"), "killed at operation {at}: {told}");
        }
    }
}
