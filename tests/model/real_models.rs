//! A real pretrained model against figures of transformers. `UNCOUPLE_MODELS` names the folder that holds its directory,
//! `smollm2-135m` (SmolLM2-135M-Instruct as a Qwen2 model); without it the test says that it is skipped.

use serde::Deserialize;
use std::path::PathBuf;
use uncouple::forest::{Forest, ROOT};
use uncouple::model::{Activations, SavedActivations, Tokenizer, checkpoint};

/// What transformers 5.23 computes in f32, from `model` loaded as it is.
#[derive(Deserialize)]
struct Figures {
    model: String,
    text: String,
    tokens: Vec<u32>,
    /// Of each token but the first, given those before it.
    logprobs: Vec<f32>,
}

#[test]
fn log_probs_of_smollm2_are_those_of_transformers() {
    let figures: Figures = serde_json::from_str(include_str!("../fixtures/smollm2_logprobs.json")).unwrap();
    let Some(models) = std::env::var_os("UNCOUPLE_MODELS") else {
        // Past the test harness, which shows the output of failed tests only.
        use std::io::Write;
        let line = "SKIPPED: tests/model/real_models.rs needs UNCOUPLE_MODELS, the folder that holds smollm2-135m\n";
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    };
    let dir = PathBuf::from(models).join(&figures.model);
    let tokens = Tokenizer::load(&dir).unwrap().encode(&figures.text).unwrap();
    assert_eq!(tokens, figures.tokens);
    let (model, mut acts) = (checkpoint::load(&dir).unwrap(), Activations::default());
    let forest = Forest::new(&[&tokens[..]]);
    model.forward(&forest, SavedActivations::Nothing, &mut acts);
    let nodes: Vec<u32> = (0..forest.len() as u32).filter(|&n| forest.parent[n as usize] != ROOT).collect();
    let (logprobs, _) = model.logprobs(&forest, &acts, &nodes, 1.0);
    assert_eq!(logprobs.len(), figures.logprobs.len());
    for (i, (ours, theirs)) in logprobs.iter().zip(&figures.logprobs).enumerate() {
        assert!((ours - theirs).abs() < 1e-3, "token {}: {ours}, transformers {theirs}", i + 1);
    }
}
