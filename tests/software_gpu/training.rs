//! A training run small enough for an emulator.

use crate::device::Device;
use serde_json::Value;

/// Heads of 64, as the kernels have them; of everything else next to nothing.
pub const TINY: &str = "
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
";

/// The arguments of a tiny run of this name in the device's folder, with more of them.
pub fn train(device: &Device, name: &str, more: &[&str]) -> Vec<String> {
    let config = device.path("tiny.toml");
    std::fs::write(&config, TINY).expect("a configuration");
    let path = |path: std::path::PathBuf| path.display().to_string();
    let (config, dir) = (path(config), path(device.path("runs")));
    let args = ["train", "--device", "cuda", "--config", &config, "--dir", &dir, "--name", name];
    args.iter().chain(more).map(|arg| arg.to_string()).collect()
}

pub fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn a_run_trains_samples_judges_and_measures() {
    let Some(device) = Device::new() else { return };
    let args = train(&device, "whole", &[]);
    let run = device.succeeds(&strs(&args));
    let summary = std::fs::read_to_string(device.path("runs/whole/summary.json")).expect("a summary");
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert!(summary["train_steps"].as_u64() >= Some(5) && summary["coupling"]["pn"].is_number(), "{summary:#}");
    // All kinds of work were seen.
    for word in ["launch", "product", "upload", "download", "copy", "zero", "replay"] {
        assert!(run.trace.of(word).next().is_some(), "no {word}");
    }
}
