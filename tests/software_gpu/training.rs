//! A training run small enough for an emulator.

use crate::device::{Device, Run};
use crate::runs::{checkpoints, left};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

/// Heads of 64, as the kernels have them; of everything else next to nothing.
const TINY: &str = "
[run]
iterations = 2
checkpoint_every = 1
[model]
hidden_size = 128
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 128
[sft]
games = 20
steps = 3
batch = 2
[env]
max_steps = 2
[rollout]
groups = 2
group_size = 2
max_turn_tokens = 5
invalid_reward = -0.1
[grpo]
entropy_coef = 0.001
[gcd]
pairs = 2
judgments = 2
max_tokens = 4
cold_start = 1
[coupling]
every = 1
samples = 4
[eval]
games = 1
judgments = 2
consistency_states = 2
consistency_samples = 2
";

/// A tiny run of this name in the device's folder, with more arguments.
pub fn train(device: &Device, name: &str, more: &[&str]) -> Run {
    device.succeeds(&strs(&arguments(device, name, more)))
}

fn arguments(device: &Device, name: &str, more: &[&str]) -> Vec<String> {
    let config = device.path("tiny.toml");
    std::fs::write(&config, TINY).expect("a configuration");
    let text = |path: PathBuf| path.display().to_string();
    let (config, dir) = (text(config), text(device.path("runs")));
    let args = ["train", "--device", "cuda", "--config", &config, "--dir", &dir, "--name", name];
    args.iter().chain(more).map(|arg| arg.to_string()).collect()
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// What a run computes depends on nothing but its configuration: not on when the GPU does what it is asked to, nor on the order of
/// threads; and a run that was killed goes on as if nothing had been.
#[test]
fn a_run_ends_the_same_whenever_commands_run_and_when_killed() {
    let Some(device) = Device::new() else { return };
    let whole = train(&device, "whole", &[]);
    let summary = std::fs::read_to_string(device.path("runs/whole/summary.json")).expect("a summary");
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert!(summary["train_steps"].as_u64() >= Some(5) && summary["judgment_accuracy"].is_number(), "{summary:#}");
    // All kinds of work were seen.
    for word in ["launch", "product", "upload", "download", "copy", "zero", "replay"] {
        assert!(whole.trace.of(word).next().is_some(), "no {word}");
    }
    let end = |name: &str| left(&device.path("runs").join(name));
    let expected = end("whole");

    train(&device.again().with("EAGER", "1").with("SCHEDULE", "7"), "eager", &[]);
    assert!(end("eager") == expected, "a run whose commands run at once ends otherwise");

    kill_after_a_checkpoint(&device, "killed");
    train(&device, "killed", &["--resume"]);
    assert!(end("killed") == expected, "a run that was killed ends otherwise");
}

/// Kills a run once it has a checkpoint of its reinforcement phase, and is not done.
fn kill_after_a_checkpoint(device: &Device, name: &str) {
    let run = device.path("runs").join(name);
    let args = arguments(device, name, &[]);
    let mut child = device.command(&strs(&args)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a run");
    let began = Instant::now();
    while checkpoints(&run).len() < 2 {
        assert!(began.elapsed() < Duration::from_secs(100) && child.try_wait().expect("a child").is_none(), "no end");
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    assert!(!Path::new(&run.join("summary.json")).exists(), "it was done already");
}

/// On another chip, whose kernels are others.
#[test]
fn a_run_trains_on_ampere() {
    let Some(device) = Device::new() else { return };
    let run = train(&device.again().with("COMPUTE_CAPABILITY", "8.0"), "ampere", &["--set", "run.iterations=1"]);
    assert!(run.trace.of("launch").all(|line| !line[0].contains("hopper")), "Hopper's kernels on another GPU");
    assert!(device.path("runs/ampere/summary.json").exists());
}
