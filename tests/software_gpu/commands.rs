//! The other commands that take a device: what they find on a GPU is what they find on the CPU, but for the noise of bf16.

use crate::device::Device;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A run on the CPU that is long enough for some of its episodes to be better than others, of a shape that kernels have.
const ON_CPU: &str = "
[run]
iterations = 1
[model]
hidden_size = 128
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 128
vocab_size = 300
max_position_embeddings = 512
[sft]
steps = 40
batch = 4
lr = 0.01
games = 6
[env]
max_steps = 3
[rollout]
groups = 2
group_size = 4
max_turn_tokens = 12
temperature = 1
invalid_reward = -0.1
[gcd]
mode = 'off'
[suggestions]
mode = 'off'
[coupling]
every = 1
samples = 6
[eval]
games = 1
";

fn trained_on_the_cpu(device: &Device) -> PathBuf {
    let config = device.path("cpu.toml");
    std::fs::write(&config, ON_CPU).expect("a configuration");
    let (config, dir) = (config.display().to_string(), device.path("runs").display().to_string());
    device.succeeds(&["train", "--config", &config, "--dir", &dir, "--name", "cpu"]);
    device.path("runs/cpu")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn a_run_is_evaluated_and_its_coupling_measured() {
    let Some(device) = Device::new() else { return };
    let run = trained_on_the_cpu(&device).display().to_string();
    let on = |command: &[&str], place: &str| {
        let args: Vec<&str> = command.iter().copied().chain(["--run", &run, "--json", "--device", place]).collect();
        json(&device.succeeds(&args).stdout)
    };
    let [on_cpu, on_gpu] = ["cpu", "cuda"].map(|place| on(&["coupling"], place));
    for pair in ["pp", "nn", "pn"] {
        let mean = |of: &Value| of["cosine"][pair]["mean"].as_f64().unwrap_or_else(|| panic!("{pair} of {of:#}"));
        assert!((mean(&on_cpu) - mean(&on_gpu)).abs() < 0.02, "{pair}: {} and {}", mean(&on_cpu), mean(&on_gpu));
    }
    let [on_cpu, on_gpu] = ["cpu", "cuda"].map(|place| on(&["eval", "--games", "1"], place));
    assert_eq!(on_cpu["panels"], on_gpu["panels"]);
    assert!(on_gpu["results"].as_array().is_some_and(|rows| !rows.is_empty()), "{on_gpu:#}");
}

#[test]
fn a_golden_set_is_replayed() {
    let Some(device) = Device::new() else { return };
    let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
    let (set, out) = (set.display().to_string(), device.path("replayed"));
    let to = out.display().to_string();
    device.succeeds(&["reference", "replay", "--set", &set, "--model", "mini-hd64", "--out", &to, "--device", "cuda"]);
    assert!(out.join("mini-hd64/golden.safetensors").exists());
}
