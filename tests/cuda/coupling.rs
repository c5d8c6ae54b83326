//! Inner products of per-sample gradients on the emulated device, against the CPU's and the goldens'.

use crate::common;
use crate::emulated;

use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::Path;
use uncouple::config::Optim;
use uncouple::coupling::gram::cosines;
use uncouple::coupling::{CouplingError, Grams, SampleError, StateAction};
use uncouple::model::backend::cuda::CudaModel;
use uncouple::model::{SavedActivations, checkpoint};
use uncouple::train::TrainError;
use uncouple::train::engine::cuda_grams;
use uncouple::train::learner::Learner;

/// Samples of (length, where the action begins). Their first tokens are the same.
fn samples(lengths: &[(usize, usize)]) -> Vec<StateAction> {
    let token = |i: usize, at: usize| if at < 3 { at as u32 } else { ((7 * at + 13 * i + at * at * i) % 96) as u32 };
    let sample = |(i, &(length, action)): (usize, &(usize, usize))| StateAction {
        tokens: (0..length).map(|at| token(i, at)).collect(),
        action,
    };
    lengths.iter().enumerate().map(sample).collect()
}

/// Largest distance of an entry, relative to the norms of its two gradients.
fn distance(got: &[f64], want: &[f64], n: usize) -> f64 {
    let norm = |i: usize| want[i * (n + 1)].sqrt();
    let off = |ij: usize| match norm(ij / n) * norm(ij % n) {
        0.0 => got[ij].abs(),
        scale => (got[ij] - want[ij]).abs() / scale,
    };
    (0..n * n).map(off).fold(0.0, f64::max)
}

fn furthest(got: &[f64], want: &[f64]) -> f64 {
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max)
}

/// Rounding to bf16 after every op moves a gradient by about a hundredth of its length, and its square by two.
const NOISE: f64 = 0.03;

#[test]
fn every_tensor_agrees_with_the_cpu() {
    let gpu = emulated::quick_gpu();
    // With an empty action, an empty sample and one of several tiles of keys.
    let samples = samples(&[(40, 30), (17, 3), (0, 0), (70, 50), (9, 9), (23, 20)]);
    for tied in [true, false] {
        let model = common::narrow(tied);
        let want = Grams::new(&model, &samples, SavedActivations::All).unwrap();
        let got = cuda_grams::grams(&gpu, &CudaModel::new(&gpu, &model, 0).unwrap(), &samples, SavedActivations::All)
            .unwrap();
        let n = samples.len();
        assert_eq!(got.samples, n);
        for (got, want) in got.tensors.iter().zip(&want.tensors) {
            assert_eq!(got.name, want.name);
            // The gradient of a key's bias is 0 but for rounding.
            if !got.name.ends_with("k_proj.bias") {
                let off = distance(&got.gram, &want.gram, n);
                println!("tied {tied}, {}: {off:.4}", got.name);
                assert!(off < NOISE, "tied {tied}, {}: off by {off}", got.name);
            }
        }
        assert_eq!(got.tensors.len(), want.tensors.len());
        let of = |g: &Grams| cosines(&g.sum(|name| !name.ends_with("k_proj.bias")), n);
        let off = furthest(&of(&got), &of(&want));
        println!("tied {tied}, cosines: {off:.4}");
        assert!(off < NOISE / 3.0, "tied {tied}: cosines off by {off}");
        assert!(furthest(&got.state, &want.state) < NOISE / 2.0 && furthest(&got.logprob, &want.logprob) < NOISE);
        assert_eq!(got.methods.iter().sum::<usize>(), 7 * 2 + 1);

        let mut learner = Learner::new(model, false);
        learner.to_gpu(&gpu, &Optim::default(), 1).unwrap();
        assert_eq!(learner.grams(&samples).unwrap(), got, "the learner measures where it trains, recomputing");
    }
}

#[test]
fn samples_that_cannot_be_measured_are_refused() {
    let (gpu, model) = (emulated::quick_gpu(), common::narrow(true));
    let on_device = CudaModel::new(&gpu, &model, 0).unwrap();
    let measure = |samples: &[StateAction]| cuda_grams::grams(&gpu, &on_device, samples, SavedActivations::All);
    let error = measure(&[StateAction { tokens: vec![1, 96], action: 1 }]).unwrap_err();
    let named = SampleError::Token { sample: 0, token: 96, vocab: 96 };
    assert!(matches!(error, TrainError::Coupling(CouplingError::Sample(e)) if e == named));
    assert!(measure(&[]).unwrap().tensors.iter().all(|t| t.gram.is_empty()));
}

/// Samples that fill a tile each, under wide matrices.
#[test]
fn long_samples_are_compared_by_pairs_of_tokens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/models/mini-hd64");
    let (gpu, model) = (emulated::quick_gpu(), checkpoint::load(&folder).unwrap());
    let samples = samples(&[(120, 100), (128, 90)]);
    let got =
        cuda_grams::grams(&gpu, &CudaModel::new(&gpu, &model, 0).unwrap(), &samples, SavedActivations::All).unwrap();
    assert_eq!(got.methods, [4 * 2, 3 * 2 + 1], "gate, up, down, and the head");
    let want = Grams::new(&model, &samples, SavedActivations::All).unwrap();
    for (got, want) in got.tensors.iter().zip(&want.tensors).filter(|(t, _)| t.name.contains("mlp")) {
        let off = distance(&got.gram, &want.gram, 2);
        println!("{}: {off:.4}", got.name);
        assert!(off < NOISE, "{}: off by {off}", got.name);
    }
}

/// The goldens' cosines, by the error that Hugging Face's own bf16 makes of a gradient.
fn golden(name: &str) {
    let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
    let file = |kind: &str| fs::read(set.join(format!("golden/{name}/golden.{kind}"))).unwrap();
    let (json, bytes) = (serde_json::from_slice::<Value>(&file("json")).unwrap(), file("safetensors"));
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |tensor: &str| -> Vec<f64> {
        let data = stored.tensor(tensor).unwrap().data();
        data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let of = &json["persample"];
    let sequences: Vec<Vec<u32>> = serde_json::from_value(of["sequences"].clone()).unwrap();
    let prompts: Vec<usize> = serde_json::from_value(of["prompt_lens"].clone()).unwrap();
    let advantages: Vec<f64> = serde_json::from_value(of["advantages"].clone()).unwrap();
    let samples: Vec<StateAction> =
        sequences.into_iter().zip(prompts).map(|(tokens, action)| StateAction { tokens, action }).collect();
    let allowed = json["bf16_by_hf"]["ce_grads"]["rel_l2"].as_f64().unwrap();

    let (gpu, model) = (emulated::quick_gpu(), checkpoint::load(&set.join("models").join(name)).unwrap());
    let on_device = CudaModel::new(&gpu, &model, 0).unwrap();
    let grams = cuda_grams::grams(&gpu, &on_device, &samples, SavedActivations::All).unwrap();
    let n = samples.len();
    let cosine = |g: &Grams| cosines(&g.sum(|_| true), n);
    let inner = grams.weighted(&advantages).sum(|_| true);
    let off = [
        furthest(&cosine(&grams), &stored("persample.cosine_unweighted")),
        furthest(&cosines(&inner, n), &stored("persample.cosine")),
        // Of a square, twice the error of its root.
        distance(&inner, &stored("persample.inner"), n) / 2.0,
    ];
    println!("{name}: {off:?} of {allowed}");
    assert!(off.iter().all(|off| *off < allowed), "{name}: off by {off:?}, not {allowed}");
}

#[test]
fn golden_hd64() {
    golden("mini-hd64");
}

#[test]
fn golden_hd128() {
    golden("mini-hd128");
}
