//! Llama and Qwen3 against transformers: small random models and what it computes of them (tests/fixtures/families/make.py).

use crate::common::numeric::relative;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use uncouple::forest::Forest;
use uncouple::model::families::{LLAMA, QWEN3};
use uncouple::model::{Architecture, Model, Policy, SampleRequest, checkpoint};
use uncouple::ops::sampling::SamplingParams;
use uncouple::train::learner::Learner;

const PROMPT: usize = 9;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(name)
}

/// What transformers computed.
struct Golden(Vec<u8>);

impl Golden {
    fn of(name: &str) -> Golden {
        Golden(fs::read(fixture(&format!("{name}.safetensors"))).unwrap())
    }

    fn f32(&self, tensor: &str) -> Vec<f32> {
        let all = SafeTensors::deserialize(&self.0).unwrap();
        words(all.tensor(tensor).unwrap().data()).map(f32::from_bits).collect()
    }

    /// The rows of a table of tokens.
    fn tokens(&self, tensor: &str) -> Vec<Vec<u32>> {
        let all = SafeTensors::deserialize(&self.0).unwrap();
        let view = all.tensor(tensor).unwrap();
        let ids: Vec<u32> = words(view.data()).collect();
        ids.chunks(view.shape()[1]).map(<[u32]>::to_vec).collect()
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word))
}

/// f32 on both sides, sums in another order.
const NOISE: f64 = 1e-5;

#[test]
fn scores_and_gradients_are_those_of_transformers() {
    for name in ["qwen3", "llama", "llama3"] {
        let golden = Golden::of(name);
        let sequences = golden.tokens("ids");
        // A last token that nothing sees gives the entropy at the end, too.
        let longer: Vec<Vec<u32>> = sequences.iter().map(|s| [&s[..], &[0]].concat()).collect();
        let forest = Forest::unshared(&longer.iter().map(|s| &s[..]).collect::<Vec<_>>());
        for recompute in [false, true] {
            let mut learner = Learner::new(checkpoint::load(&fixture(name)).unwrap(), recompute);
            let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
            for path in &forest.paths {
                let (logprob, entropy) = learner.logprobs(&forest, &path[1..], 1.0).unwrap();
                logprobs.extend_from_slice(&logprob[..logprob.len() - 1]);
                entropies.extend(entropy);
            }
            assert!(relative(&logprobs, &golden.f32("logprobs")) < NOISE, "{name}: log-probs");
            assert!(relative(&entropies, &golden.f32("entropy")) < NOISE, "{name}: entropies");

            let mask: Vec<bool> = (0..sequences[0].len()).map(|t| t >= PROMPT).collect();
            let batch: Vec<(&[u32], &[bool])> = sequences.iter().map(|s| (&s[..], &mask[..])).collect();
            let loss = learner.cross_entropy(&batch).unwrap();
            assert!((loss - f64::from(golden.f32("loss")[0])).abs() < 1e-5, "{name}: loss {loss}");
            let grads = learner.take_grads().unwrap();
            for entry in &grads.layout.entries {
                let want = golden.f32(&format!("grad.{}", entry.name));
                let error = relative(&grads.flat[entry.range.clone()], &want);
                assert!(error < 5.0 * NOISE, "{name}, gradient of {}: {error}", entry.name);
            }
        }
    }
}

#[test]
fn greedy_decoding_writes_the_same_tokens() {
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    for name in ["qwen3", "llama", "llama3"] {
        let (model, golden) = (checkpoint::load(&fixture(name)).unwrap(), Golden::of(name));
        for (prompt, want) in golden.tokens("ids").iter().zip(golden.tokens("greedy")) {
            let mut decoder = model.decoder().unwrap();
            let id = decoder.new_sequence();
            decoder.append(&[(id, &prompt[..PROMPT])]).unwrap();
            let mut written = Vec::new();
            while written.len() < want.len() {
                let sampled =
                    decoder.sample(&[SampleRequest { sequence: id, seen: &[], uniform: 0.5 }], &greedy).unwrap();
                decoder.append(&[(id, &[sampled[0].token])]).unwrap();
                written.push(sampled[0].token);
            }
            assert_eq!(written, want, "{name}");
        }
    }
}

#[test]
fn the_files_say_what_they_are() {
    let [qwen3, llama, llama3] = ["qwen3", "llama", "llama3"].map(|name| Architecture::read(&fixture(name)).unwrap());
    assert_eq!((qwen3.family, qwen3.head_dim, qwen3.hidden_size), (&QWEN3, 16, 48));
    assert_eq!((llama.family, llama.rope_scaling.is_some(), llama.tie_word_embeddings), (&LLAMA, false, true));
    let scaling = llama3.rope_scaling.clone().unwrap();
    assert_eq!((scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor), (8.0, 1.0, 4.0));
    assert_eq!((scaling.original_max_position_embeddings, llama3.rope_theta), (64.0, 500.0));
    let has = |model: &Model, tail: &str| model.params.layout.entries.iter().any(|e| e.name.ends_with(tail));
    let [qwen3, llama] = ["qwen3", "llama"].map(|name| checkpoint::load(&fixture(name)).unwrap());
    assert!(has(&qwen3, "layers.1.self_attn.k_norm.weight") && !has(&qwen3, "bias"));
    assert!(!has(&llama, "norm.bias") && !has(&llama, "q_norm.weight") && !has(&llama, "bias"));
}

#[test]
fn what_would_compute_something_else_is_refused_by_name() {
    let refusal = |name: &str, edit: &dyn Fn(&mut Value)| -> String {
        let dir = tempfile::tempdir().unwrap();
        let mut config: Value = serde_json::from_slice(&fs::read(fixture(name).join("config.json")).unwrap()).unwrap();
        edit(&mut config);
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        Architecture::read(dir.path()).unwrap_err().to_string()
    };
    for (name, field, value, says) in [
        ("llama", "attention_bias", json!(true), "`attention_bias` is true; this family is supported without biases"),
        ("llama", "mlp_bias", json!(true), "`mlp_bias` is true"),
        ("qwen3", "attention_bias", json!(true), "`attention_bias` is true"),
        ("qwen3", "use_sliding_window", json!(true), "`use_sliding_window` is true"),
        ("llama", "model_type", json!("mistral"), r#"only "qwen2", "qwen3", "llama" are supported"#),
        ("llama", "architectures", json!(["Qwen2ForCausalLM"]), r#"only ["LlamaForCausalLM"] is supported"#),
        ("llama", "rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}), r#"only "default" and "llama3" are"#),
        ("qwen3", "rope_scaling", json!({"rope_type": "llama3", "factor": 4.0}), r#"only "default" is"#),
        (
            "llama",
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0}),
            "`rope_scaling.low_freq_factor` is missing",
        ),
    ] {
        let message = refusal(name, &|config| config[field] = value.clone());
        assert!(message.contains(says), "{message}\n  should say {says}");
    }
    let message = refusal("llama3", &|config| config["rope_parameters"]["high_freq_factor"] = json!(1.0));
    assert!(message.contains("it must be above low_freq_factor (1)"), "{message}");
}

/// config.json as transformers 4 spells it gives the same model.
#[test]
fn the_older_spelling_is_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(fixture("llama3").join("config.json")).unwrap()).unwrap();
    let mut table = config["rope_parameters"].take();
    config["rope_theta"] = table["rope_theta"].take();
    table.as_object_mut().unwrap().remove("rope_theta");
    config["rope_scaling"] = table;
    config.as_object_mut().unwrap().remove("rope_parameters");
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    assert_eq!(Architecture::read(dir.path()).unwrap(), Architecture::read(&fixture("llama3")).unwrap());
}

#[test]
fn what_is_saved_is_of_the_same_family() {
    for name in ["qwen3", "llama", "llama3"] {
        let architecture = Architecture::read(&fixture(name)).unwrap();
        let ids = uncouple::model::TokenIds { bos: Some(0), eos: vec![1], pad: None };
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), architecture.to_json(&ids, "float32").to_string()).unwrap();
        assert_eq!(Architecture::read(dir.path()).unwrap(), architecture, "{name}");
    }
}
