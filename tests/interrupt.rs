//! Ctrl-C in every phase, sent to the real program: it saves, says how to go on, and going on ends as if nothing had been.
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
