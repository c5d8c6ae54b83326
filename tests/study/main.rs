//! Studies: the real program over tiny cells.

#[path = "../common/mod.rs"]
mod common;

mod files;
mod plan;
mod runs;
mod slurm;
mod tables;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Two variants of the tiny run on two seeds, whose cells take about a second each.
const STUDY: &str = "
question = 'Does it run?'
config = 'tiny.toml'
seeds = [5, 6]
tuned_on = [0]
chosen = 'nothing that matters'

[set]
run.iterations = 3
run.checkpoint_every = 1
eval.every = 2
eval.games = 4
eval.judgments = 8
eval.consistency_states = 2
coupling.every = 2

[[variant]]
name = 'grpo'

[[variant]]
name = 'gcd'
[variant.set]
gcd.mode = 'generate'
gcd.pairs = 4
gcd.judgments = 2
gcd.max_tokens = 4
";

/// Writes the study `text` and its base configuration into `dir`.
fn study(dir: &Path, text: &str) -> PathBuf {
    std::fs::write(dir.join("tiny.toml"), common::runs::TINY).unwrap();
    let file = dir.join("tiny-study.toml");
    std::fs::write(&file, text).unwrap();
    file
}

/// `uncouple study …` in `dir`, with two threads.
fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uncouple"));
    command.current_dir(dir).env("RAYON_NUM_THREADS", "2").arg("study").args(args);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeeds(dir: &Path, args: &[&str]) -> Output {
    let output = command(dir, args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    output
}

/// The one line of an error.
fn refused(dir: &Path, args: &[&str]) -> String {
    let output = command(dir, args).output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {told}");
    assert!(told.starts_with("error: ") && told.lines().count() == 1, "{args:?}: {told}");
    told
}

/// report.json without what depends on the clock.
fn report(dir: &Path) -> serde_json::Value {
    let bytes = std::fs::read(dir.join("runs/tiny-study/report.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let timeless = |m: &serde_json::Value| !uncouple::study::measures::TIMES.contains(&m["name"].as_str().unwrap());
    json["measures"].as_array_mut().unwrap().retain(timeless);
    json["gates"].as_array_mut().unwrap().iter_mut().for_each(|gate| {
        gate.as_object_mut().unwrap().remove("seconds").unwrap();
    });
    json
}
