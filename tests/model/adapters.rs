//! Adapters beside a model: against a plain f64 model of the merged weights, and against PEFT (tests/fixtures/adapters/make.py).

use crate::common::{self, dense, numeric::relative, random_model, tiny_config, tokens};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use uncouple::config::{LORA_TARGETS, Lora, Optim};
use uncouple::device::Dtype;
use uncouple::forest::{Forest, ROOT};
use uncouple::model::checkpoint::{self, CheckpointError};
use uncouple::model::{Activations, Adapter, KvCache, Model, Params, Policy, SampleRequest, SavedActivations};
use uncouple::ops::grouped_logprob::TokenGrad;
use uncouple::ops::sampling::SamplingParams;
use uncouple::train::learner::Learner;

fn lora(rank: usize, targets: &[&str]) -> Lora {
    Lora { rank, alpha: 1.5 * rank as f32, targets: targets.iter().map(|t| t.to_string()).collect() }
}

/// A model with adapters whose B is not 0.
fn adapted(model: Model, lora: &Lora) -> Model {
    let mut adapter = Adapter::random(&model.config, lora, 5);
    let noise = common::numeric::values(17, adapter.params.flat.len(), 0.15);
    adapter.params.flat.iter_mut().zip(noise).for_each(|(w, noise)| *w += noise);
    model.with_adapter(adapter)
}

/// Σ weight · logp + weight · entropy, and its gradient by what is trained.
fn loss_and_gradient(model: &Model, forest: &Forest, keep: SavedActivations) -> (f64, Params) {
    let mut acts = Activations::default();
    model.forward(forest, keep, &mut acts);
    let nodes: Vec<u32> = (0..forest.len() as u32).filter(|&n| forest.parent[n as usize] != ROOT).collect();
    let (mut grads, mut d_hidden, mut total) = (Params::zeros(model.trained().layout.clone()), Vec::new(), 0.0);
    let mut loss = |i: usize, logp: f32, h: f32| {
        let n = nodes[i] as usize;
        let w = common::weight(forest.tokens[n], forest.position[n]);
        total += f64::from(w) * f64::from(logp) + f64::from(w * 0.3) * f64::from(h);
        TokenGrad { logprob: w, entropy: w * 0.3 }
    };
    model.head_backward(forest, &acts, &nodes, 0.8, &mut loss, &mut d_hidden, &mut grads);
    model.backward(forest, &mut acts, &mut d_hidden, &mut grads);
    (total, grads)
}

#[test]
fn a_fresh_adapter_leaves_the_model_as_it_was_to_the_bit() {
    let model = random_model(tiny_config(true, 2), 7);
    let forest = Forest::new(&[tokens(1, 40, 50), tokens(2, 30, 50)]);
    let hidden = |model: &Model| {
        let mut acts = Activations::default();
        model.forward(&forest, SavedActivations::Nothing, &mut acts);
        acts.hidden
    };
    let plain = hidden(&model);
    let lora = lora(4, &LORA_TARGETS);
    let adapter = Adapter::random(&model.config, &lora, 1);
    assert!(adapter.params.flat == Adapter::random(&model.config, &lora, 1).params.flat, "a function of the seed");
    assert!(adapter.params.flat != Adapter::random(&model.config, &lora, 2).params.flat);
    for entry in &adapter.params.layout.entries {
        let values = &adapter.params.flat[entry.range.clone()];
        if entry.name.ends_with("lora_B.weight") {
            assert!(values.iter().all(|b| *b == 0.0), "{}", entry.name);
        } else {
            // Uniform in ±1/√in: its deviation is that by √3.
            let bound = 1.0 / (entry.shape[1] as f32).sqrt();
            let deviation = (values.iter().map(|a| a * a).sum::<f32>() / values.len() as f32).sqrt();
            assert!(values.iter().all(|a| a.abs() <= bound), "{}", entry.name);
            assert!((deviation * 3f32.sqrt() / bound - 1.0).abs() < 0.15, "{}: {deviation} of {bound}", entry.name);
        }
    }
    assert!(hidden(&model.with_adapter(adapter)) == plain);
}

#[test]
fn scores_are_those_of_the_merged_weights_in_f64() {
    let forest = Forest::new(&[tokens(1, 9, 50)]);
    for (targets, rank) in [(&LORA_TARGETS[..], 4), (&["v_proj", "up_proj", "q_proj"][..], 3), (&["down_proj"][..], 16)]
    {
        let model = adapted(random_model(tiny_config(true, 2), 7), &lora(rank, targets));
        let merged = model.clone().merged();
        assert!(merged.adapter.is_none() && merged.params != model.params);
        let want: f64 = dense::loss(&merged, &tokens(1, 9, 50), 0.8, 0.3);
        let (got, _) = loss_and_gradient(&model, &forest, SavedActivations::All);
        assert!((got - want).abs() < 1e-5 * want.abs().max(1.0), "{targets:?}: {got} against {want}");
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for (tied, targets) in [(true, &LORA_TARGETS[..]), (false, &["k_proj", "v_proj", "gate_proj", "o_proj"][..])] {
        let model = adapted(random_model(tiny_config(tied, 2), 7), &lora(4, targets));
        let all = [tokens(1, 9, 50), tokens(2, 6, 50)];
        let (_, grads) = loss_and_gradient(&model, &Forest::new(&all), SavedActivations::All);
        let value = |m: Model| -> f64 {
            let merged = m.merged();
            all.iter().map(|s| dense::loss(&merged, s, 0.8, 0.3)).sum()
        };
        assert_eq!(
            grads.layout.entries.len(),
            2 * 2 * targets.len(),
            "two matrices a target and layer, and nothing else"
        );
        for entry in &grads.layout.entries {
            let direction = tokens(entry.range.start as u64 + 11, entry.range.len(), 2);
            let shifted = |step: f32| {
                let mut m = model.clone();
                for (i, &s) in entry.range.clone().zip(&direction) {
                    m.trained_mut().flat[i] += step * (2.0 * s as f32 - 1.0);
                }
                value(m)
            };
            let step = 1.0f32 / 1024.0;
            let numeric = (shifted(step) - shifted(-step)) / (2.0 * f64::from(step));
            let own = &grads.flat[entry.range.clone()];
            let exact: f64 = own.iter().zip(&direction).map(|(g, &s)| f64::from(*g) * (2.0 * f64::from(s) - 1.0)).sum();
            let scale = own.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            assert!(
                (numeric - exact).abs() < 2e-3 * (scale + 1e-2),
                "{}: {numeric} against {exact} ({scale})",
                entry.name
            );
        }
    }
}

#[test]
fn recomputation_and_threads_change_nothing() {
    let model = adapted(random_model(tiny_config(true, 2), 5), &lora(4, &LORA_TARGETS));
    let forest = Forest::new(&[tokens(1, 700, 50)[..200].to_vec(), tokens(3, 90, 50)]);
    let of = |threads: usize, keep| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| loss_and_gradient(&model, &forest, keep))
    };
    let (a, kept) = of(1, SavedActivations::All);
    for (threads, keep) in [(3, SavedActivations::All), (2, SavedActivations::LayerInputs)] {
        let (b, other) = of(threads, keep);
        assert!(a == b && kept.flat == other.flat, "{threads} threads, {keep:?}");
    }
}

/// Beside others or alone, in f32 and in bf16: a decoded row is the same to the bit, and that of the forward pass.
#[test]
fn decoding_agrees_with_the_forward_pass() {
    for (dtype, rank, tolerance) in [(Dtype::F32, 16, 1e-5), (Dtype::F32, 4, 1e-5), (Dtype::Bf16, 16, 2e-2)] {
        let model = adapted(random_model(tiny_config(true, 2), 9), &lora(rank, &LORA_TARGETS)).with_dtype(dtype);
        let all = [tokens(1, 60, 50), tokens(2, 33, 50), tokens(3, 7, 50)];
        let forest = Forest::unshared(&all);
        let mut acts = Activations::default();
        model.forward(&forest, SavedActivations::Nothing, &mut acts);
        let h = model.config.hidden_size;
        let decode = |which: &[usize]| -> Vec<Vec<f32>> {
            let mut cache = KvCache::new(&model);
            let ids: Vec<_> = which.iter().map(|_| cache.new_sequence()).collect();
            let step = |cache: &mut KvCache, of: &dyn Fn(&'_ Vec<u32>) -> std::ops::Range<usize>| {
                let inputs: Vec<_> = which.iter().zip(&ids).map(|(&i, id)| (*id, &all[i][of(&all[i])])).collect();
                model.append(cache, &inputs)
            };
            step(&mut cache, &|s| 0..s.len() - 1);
            step(&mut cache, &|s| s.len() - 1..s.len()).chunks(h).map(<[f32]>::to_vec).collect()
        };
        let together = decode(&[0, 1, 2]);
        for (i, own) in together.iter().enumerate() {
            let last = *forest.paths[i].last().unwrap() as usize;
            let error = relative(own, &acts.hidden[last * h..][..h]);
            assert!(error < tolerance, "{dtype:?}, rank {rank}, sequence {i}: {error}");
            assert!(decode(&[i])[0] == *own, "{dtype:?}, rank {rank}: sequence {i} depends on its company");
        }
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapters").join(name)
}

/// What PEFT and torch computed.
struct Golden(Vec<u8>);

impl Golden {
    fn of(name: &str) -> Golden {
        Golden(fs::read(fixture(&format!("{name}.safetensors"))).unwrap())
    }

    fn words(&self, tensor: &str) -> Vec<u32> {
        let all = SafeTensors::deserialize(&self.0).unwrap();
        let view = all.tensor(tensor).unwrap_or_else(|e| panic!("{tensor}: {e}"));
        view.data().as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    }

    fn f32(&self, tensor: &str) -> Vec<f32> {
        self.words(tensor).into_iter().map(f32::from_bits).collect()
    }

    fn names(&self, start: &str) -> Vec<String> {
        let all = SafeTensors::deserialize(&self.0).unwrap();
        all.names().into_iter().filter_map(|name| name.strip_prefix(start)).map(String::from).collect()
    }
}

/// Tokens of a prompt, of which the loss says nothing.
const PROMPT: usize = 9;
/// f32 on both sides, sums in another order.
const NOISE: f64 = 1e-5;

#[test]
fn scores_gradients_and_steps_are_those_of_peft() {
    for (name, rank, alpha) in [("all", 8, 16.0), ("some", 3, 4.0)] {
        let golden = Golden::of(name);
        let ids = golden.words("ids");
        let sequences: Vec<&[u32]> = ids.chunks(ids.len() / 2).collect();
        let model = checkpoint::load(&fixture(name)).unwrap();
        let of = model.adapter.as_ref().unwrap().lora();
        assert_eq!((of.rank, of.alpha), (rank, alpha));
        let base = model.params.clone();
        let mut learner = Learner::new(model, false);
        let forest = Forest::unshared(&sequences);
        let scored: Vec<f32> =
            forest.paths.iter().flat_map(|path| learner.logprobs(&forest, &path[1..], 1.0).unwrap().0).collect();
        assert!(relative(&scored, &golden.f32("logprobs")) < NOISE, "{name}: log-probs");

        let mask: Vec<bool> = (0..sequences[0].len()).map(|t| t >= PROMPT).collect();
        let batch: Vec<(&[u32], &[bool])> = sequences.iter().map(|s| (*s, &mask[..])).collect();
        let optim = Optim { beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.1, clip: 0.0, ..Optim::default() };
        for step in 0..2 {
            let loss = learner.cross_entropy(&batch).unwrap();
            if step == 0 {
                assert!((loss - f64::from(golden.f32("loss")[0])).abs() < 1e-5, "{name}: loss {loss}");
                let grads = learner.grads().unwrap();
                assert_eq!(grads.layout.entries.len(), golden.names("grad.").len());
                for entry in &grads.layout.entries {
                    let error =
                        relative(&grads.flat[entry.range.clone()], &golden.f32(&format!("grad.{}", entry.name)));
                    assert!(error < 10.0 * NOISE, "{name}, gradient of {}: {error}", entry.name);
                }
            }
            learner.step(&optim, 1e-2).unwrap();
        }
        let stepped = learner.export().unwrap().params.into_owned();
        for entry in &stepped.layout.entries {
            // AdamW's first steps are a gradient's sign: where that is nearly 0, rounding decides it.
            let error = relative(&stepped.flat[entry.range.clone()], &golden.f32(&format!("stepped.{}", entry.name)));
            assert!(error < 1e-3, "{name}, {} after two steps: {error}", entry.name);
        }
        assert!(learner.model().unwrap().params == base, "{name}: frozen weights changed");
    }
}

#[test]
fn merged_weights_and_greedy_tokens_are_those_of_peft() {
    for name in ["all", "some"] {
        let golden = Golden::of(name);
        let (ids, want) = (golden.words("ids"), golden.words("greedy"));
        let model = checkpoint::load(&fixture(name)).unwrap();
        let merged = model.clone().merged();
        for policy in [&model, &merged] {
            for (sequence, want) in ids.chunks(ids.len() / 2).zip(want.chunks(want.len() / 2)) {
                assert_eq!(greedy(policy, &sequence[..PROMPT], want.len()), want, "{name}");
            }
        }
        let mut unchanged = checkpoint::load(&checkpoint::base(&fixture(name)).unwrap()).unwrap().params;
        for changed in golden.names("merged.") {
            // A tied head is the embedding, which has no adapter.
            let error = relative(merged.params.get(&changed).unwrap(), &golden.f32(&format!("merged.{changed}")));
            assert!(error < 1e-6, "{name}, {changed}: {error}");
            let range = unchanged.layout.entries.iter().find(|e| e.name == changed).unwrap().range.clone();
            unchanged.flat[range.clone()].copy_from_slice(&merged.params.flat[range]);
        }
        assert!(unchanged == merged.params, "{name}: other weights changed");
    }
}

fn greedy(policy: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let (mut decoder, mut text) = (policy.decoder().unwrap(), prompt.to_vec());
    let sequence = decoder.new_sequence();
    decoder.append(&[(sequence, prompt)]).unwrap();
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    for _ in 0..count {
        let request = SampleRequest { sequence, seen: &text, uniform: 0.5 };
        let token = decoder.sample(&[request], &params).unwrap()[0].token;
        decoder.append(&[(sequence, &[token])]).unwrap();
        text.push(token);
    }
    text.split_off(prompt.len())
}

#[test]
fn adapters_that_compute_something_else_are_refused_by_field() {
    let edited = |edit: &dyn Fn(&mut Value)| -> String {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("adapter_config.json");
        fs::copy(fixture("all/adapter_model.safetensors"), dir.path().join("adapter_model.safetensors")).unwrap();
        let mut config: Value = serde_json::from_slice(&fs::read(fixture("all/adapter_config.json")).unwrap()).unwrap();
        config["base_model_name_or_path"] = json!(fixture("../golden/models/tiny-tied"));
        edit(&mut config);
        fs::write(&file, config.to_string()).unwrap();
        checkpoint::load(dir.path()).map_or_else(|e| e.to_string(), |_| "it loads".into())
    };
    assert_eq!(edited(&|_| {}), "it loads");
    let cases = [
        ("peft_type", json!("IA3")),
        ("use_dora", json!(true)),
        ("use_rslora", json!(true)),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("rank_pattern", json!({"q_proj": 4})),
        ("layers_to_transform", json!([0])),
        ("r", json!(0)),
        ("lora_alpha", json!("much")),
        ("base_model_name_or_path", json!("some/hub-model")),
    ];
    for (field, value) in cases {
        let told = edited(&|config| config[field] = value.clone());
        assert!(told.contains(&format!("`{field}`")) && told.contains("adapter_config.json"), "{field}: {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    // A rank that the tensors have not, and another model.
    assert!(edited(&|config| config["r"] = json!(4)).contains("lora_A.weight"));
    let other = json!(fixture("../families/llama3"));
    assert!(edited(&|config| config["base_model_name_or_path"] = other.clone()).contains("has shape"));
}

#[test]
fn an_adapter_comes_back_as_it_was_saved() {
    let model = checkpoint::load(&fixture("all")).unwrap();
    let (adapter, dir) = (model.adapter.as_ref().unwrap(), tempfile::tempdir().unwrap());
    let base = checkpoint::base(&fixture("all")).unwrap();
    let (ids, tokenizer) = (checkpoint::token_ids(&base).unwrap(), checkpoint::tokenizer(&base).unwrap());
    let beside = checkpoint::BesideWeights { config: &model.config, ids: &ids, tokenizer: tokenizer.files() };
    let base = base.canonicalize().unwrap().display().to_string();
    checkpoint::fill_adapter(dir.path(), adapter.lora(), &adapter.params, &base, &beside).unwrap();
    let again = checkpoint::load(dir.path()).unwrap();
    assert!(again.adapter.as_ref().unwrap().params == adapter.params && again.params == model.params);
    assert_eq!(checkpoint::token_ids(dir.path()).unwrap(), ids);
    fs::remove_file(dir.path().join("adapter_model.safetensors")).unwrap();
    assert!(matches!(checkpoint::load(dir.path()), Err(CheckpointError::Read { .. })));
}
