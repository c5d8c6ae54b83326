//! The model in bf16, by every unit of the machine, against goldens in f32: it may err twice as much as transformers does in bf16.

use crate::common::numeric::relative;
use crate::common::{random_model, tiny_config, tokens};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::Path;
use uncouple::coupling::{Grams, StateAction};
use uncouple::device::Dtype;
use uncouple::device::cpu::bf16::{Unit, use_unit};
use uncouple::forest::{Forest, ROOT};
use uncouple::model::{Activations, KvCache, SavedActivations, checkpoint};
use uncouple::train::learner::Learner;

fn golden(name: &str) {
    let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
    let json: Value =
        serde_json::from_slice(&fs::read(set.join(format!("golden/{name}/golden.json"))).unwrap()).unwrap();
    let bytes = fs::read(set.join(format!("golden/{name}/golden.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |tensor: &str| -> Vec<f32> {
        let data = tensors.tensor(tensor).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let forward = &json["forward"];
    let sequences: Vec<Vec<u32>> = serde_json::from_value(forward["sequences"].clone()).unwrap();
    let prompts: Vec<usize> = serde_json::from_value(forward["prompt_lens"].clone()).unwrap();
    let allowed = |of: &str| 2.0 * json["bf16_by_hf"][of]["rel_l2"].as_f64().unwrap();
    let model = checkpoint::load(&set.join("models").join(name)).unwrap();

    let forest = Forest::new(&sequences);
    let nodes: Vec<u32> = (0..forest.len() as u32).filter(|&n| forest.parent[n as usize] != ROOT).collect();
    let masks: Vec<Vec<bool>> =
        sequences.iter().zip(&prompts).map(|(s, p)| (0..s.len()).map(|t| t >= *p).collect()).collect();
    let batch: Vec<(&[u32], &[bool])> = sequences.iter().zip(&masks).map(|(s, m)| (&s[..], &m[..])).collect();
    let mut exact = Learner::new(model.clone(), false);
    exact.cross_entropy(&batch).unwrap();
    let exact = exact.take_grads().unwrap();

    for unit in Unit::all() {
        use_unit(unit);
        let model = model.clone().with_dtype(Dtype::Bf16);
        let mut acts = Activations::default();
        model.forward(&forest, SavedActivations::Nothing, &mut acts);
        let (logprobs, _) = model.logprobs(&forest, &acts, &nodes, 1.0);
        let mut of_node = vec![f32::NAN; forest.len()];
        nodes.iter().zip(logprobs).for_each(|(&n, lp)| of_node[n as usize] = lp);
        let (mut got, mut want) = (Vec::new(), Vec::new());
        for (i, path) in forest.paths.iter().enumerate().filter(|(_, path)| path.len() > 1) {
            got.extend(path[1..].iter().map(|&n| of_node[n as usize]));
            want.extend(stored(&format!("seq{i}.logprobs")));
        }
        let error = relative(&got, &want);
        assert!(error > 1e-5, "{name}, {unit:?}: an error of {error} is not bf16's");
        assert!(error <= allowed("logprobs"), "{name}, {unit:?}: log-probs {error}");

        let mut learner = Learner::new(model, false);
        let loss = learner.cross_entropy(&batch).unwrap();
        let want = forward["ce_loss"].as_f64().unwrap();
        assert!((loss - want).abs() <= allowed("logprobs") * want, "{name}, {unit:?}: loss {loss}, not {want}");
        let error = relative(&learner.take_grads().unwrap().flat, &exact.flat);
        assert!(error <= allowed("ce_grads"), "{name}, {unit:?}: gradient {error}");
    }
    use_unit(Unit::all()[0]);
}

#[test]
fn goldens() {
    ["mini-hd64", "mini-hd128"].into_iter().for_each(golden);
}

/// What a policy scored while it sampled is what training computes again: the ratio begins near 1.
#[test]
fn a_cached_pass_is_near_the_whole_one() {
    let model = random_model(tiny_config(true, 2), 7).with_dtype(Dtype::Bf16);
    let sequence = tokens(1, 70, 50);
    let mut acts = Activations::default();
    let forest = Forest::new(&[&sequence[..]]);
    model.forward(&forest, SavedActivations::Nothing, &mut acts);
    let mut cache = KvCache::new(&model);
    let id = cache.new_sequence();
    for part in [&sequence[..40], &sequence[40..41], &sequence[41..]] {
        let hidden = model.append(&mut cache, &[(id, part)]);
        let at = (cache.len(id) - 1) * model.config.hidden_size;
        let error = relative(&hidden, &acts.hidden[at..at + model.config.hidden_size]);
        assert!(error < 0.02, "after {} tokens: {error}", cache.len(id));
    }
}

/// Weights that changed are packed anew.
#[test]
fn a_step_is_seen_by_the_next_pass() {
    let mut learner = Learner::new(random_model(tiny_config(true, 2), 7).with_dtype(Dtype::Bf16), false);
    let (sequence, mask) = (tokens(1, 30, 50), vec![true; 30]);
    let losses: Vec<f64> = (0..20)
        .map(|_| {
            let loss = learner.cross_entropy(&[(&sequence[..], &mask[..])]).unwrap();
            learner.step(&uncouple::config::Optim::default(), 3e-3).unwrap();
            loss
        })
        .collect();
    assert!(losses[19] < 0.5 * losses[0], "{losses:?}");
}

#[test]
fn cosines_are_near_those_in_f32() {
    let model = random_model(tiny_config(true, 2), 7);
    let samples: Vec<StateAction> = (0..4).map(|i| StateAction { tokens: tokens(i, 24, 50), action: 16 }).collect();
    let cosines = |model| {
        let grams = Grams::new(model, &samples, SavedActivations::All).unwrap();
        uncouple::coupling::gram::cosines(&grams.sum(|_| true), 4)
    };
    let (exact, rounded) = (cosines(&model), cosines(&model.clone().with_dtype(Dtype::Bf16)));
    assert_ne!(exact, rounded);
    exact.iter().zip(&rounded).for_each(|(a, b)| assert!((a - b).abs() < 0.01, "{exact:?}, {rounded:?}"));
}
