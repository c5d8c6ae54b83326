//! Whole runs with 8-bit moments, and weights in bf16 alone.

use crate::common;

use common::runs::{left, tiny};
use half::bf16;
use std::path::PathBuf;
use uncouple::config::{Config, Override};
use uncouple::model::Architecture;
use uncouple::model::checkpoint;
use uncouple::train::memory::{self, Placement};
use uncouple::train::run_folder::{Existing, RunFolder};
use uncouple::train::{suite, train};

fn run(config: &Config, existing: Existing) -> PathBuf {
    train(config.clone(), &*suite(config).unwrap(), existing).unwrap_or_else(|e| panic!("{e}")).folder
}

#[test]
fn a_run_with_8_bit_moments_learns_and_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    for (name, rounding) in [("master", "optim.stochastic_rounding=false"), ("alone", "optim.stochastic_rounding=true")]
    {
        let of = |name: &str, iterations| tiny(dir.path(), name, &["optim.moments=dynamic8", rounding, iterations]);
        let whole = run(&of(name, "run.iterations=3"), Existing::Refuse);
        let part = format!("{name}-part");
        run(&of(&part, "run.iterations=2"), Existing::Refuse);
        let resumed = run(&of(&part, "run.iterations=3"), Existing::Resume);
        assert!(left(&resumed) == left(&whole), "{name}");
        let last = RunFolder::finished_checkpoints(&whole).unwrap().pop().unwrap().1;
        let weights = checkpoint::load(&last).unwrap().params.flat;
        let narrow = weights.iter().all(|w| bf16::from_f32(*w).to_f32() == *w);
        assert_eq!(narrow, name == "alone", "{name}: numbers of bf16");
        // A byte and a little more for each parameter.
        let bytes = std::fs::metadata(last.join("adamw_m.safetensors")).unwrap().len();
        assert!(
            bytes < weights.len() as u64 * 11 / 10 + 8192,
            "{name}: {bytes} bytes for {} parameters",
            weights.len()
        );
        // The cold start learns as with moments in f32.
        let losses: Vec<f64> = uncouple::report::metrics::read(&whole)
            .unwrap()
            .iter()
            .filter(|r| r.phase == "sft")
            .map(|r| r.values["loss"])
            .collect();
        let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
        assert!(mean(&losses[losses.len() - 5..]) < 0.6 * mean(&losses[..5]), "{name}: {losses:?}");
    }
}

#[test]
fn weights_in_bf16_alone_need_8_bit_moments() {
    let set = [Override::parse("optim.stochastic_rounding=true").unwrap()];
    let error = Config::load(None, &set).unwrap_err().to_string();
    assert!(error.contains("optim.stochastic_rounding") && error.contains("optim.moments = \"dynamic8\""), "{error}");
}

/// All of Qwen2.5-7B in training: with moments in f32 it does not fit a card of 80 GB, with 8 bits and no master weights it does.
#[test]
fn the_plan_of_7_billion_parameters_fits_80_gb_by_8_bits() {
    let dir = tempfile::tempdir().unwrap();
    let json = serde_json::json!({
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 152_064, "hidden_size": 3584,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": false, "hidden_act": "silu",
    });
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    let shape = Architecture::read(dir.path()).unwrap();
    let fits = |sets: &[&str]| {
        let path = format!("model.path={}", dir.path().display());
        let common = [&path[..], "model.recompute=true", "rollout.max_live=32", "rollout.max_episode_tokens=4096"];
        let sets: Vec<Override> = common.iter().chain(sets).map(|set| Override::parse(set).unwrap()).collect();
        let plan = memory::plan(&Config::load(None, &sets).unwrap(), &shape, Placement::Gpu);
        memory::fit(&plan, Some(80_000_000_000)).advice.is_none()
    };
    assert!(!fits(&[]) && !fits(&["optim.moments=dynamic8"]));
    assert!(fits(&["optim.moments=dynamic8", "optim.stochastic_rounding=true"]));
    assert!(fits(&["lora.rank=32", "lora.alpha=64"]));
}
