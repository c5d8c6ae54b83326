//! Inner products of per-sample gradients from one batch, against a backward pass for each sample.

mod common;

use common::numeric::{below, values};
use common::runs::tiny;
use common::{random_model, tiny_config, tokens};
use std::path::Path;
use std::process::Command;
use uncouple::coupling::gram::{TensorGram, cosines};
use uncouple::coupling::{CouplingError, Grams, SampleError, StateAction, Weights, measure};
use uncouple::forest::Forest;
use uncouple::model::{Activations, Keep, Model, Params};
use uncouple::ops::gradient_cosine::{self as op, Way};
use uncouple::ops::grouped_logprob::TokenGrad;
use uncouple::ops::linear::WeightGrad;
use uncouple::report::metrics;
use uncouple::train::run_folder::Existing;
use uncouple::train::suite;

/// Samples of (length, where the action begins).
fn samples(seed: u64, lengths: &[(usize, usize)]) -> Vec<StateAction> {
    let sample = |(i, (length, action)): (usize, &(usize, usize))| {
        // The first tokens are the same in all, and must not be shared.
        let text = [tokens(9, 3, 50), tokens(seed + i as u64, *length, 50)].concat();
        StateAction { tokens: text[..*length].to_vec(), action: *action }
    };
    lengths.iter().enumerate().map(sample).collect()
}

/// The gradient of −mean log p(action | state) by an ordinary backward pass.
fn single(model: &Model, sample: &StateAction) -> Params {
    let forest = Forest::new(&[&sample.tokens]);
    let nodes: Vec<u32> = forest.paths[0].iter().copied().skip(sample.action.max(1)).collect();
    let (mut acts, mut d_hidden) = (Activations::default(), Vec::new());
    let mut grads = Params::zeros(model.params.layout.clone());
    model.forward(&forest, Keep::All, &mut acts);
    let weight = 1.0 / nodes.len().max(1) as f32;
    let mut loss = |_: usize, _: f32, _: f32| TokenGrad { logprob: -weight, entropy: 0.0 };
    model.head_backward(&forest, &acts, &nodes, 1.0, &mut loss, &mut d_hidden, &mut grads);
    model.backward(&forest, &mut acts, &mut d_hidden, &mut grads);
    grads
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

/// Short enough for ghost products; long enough for slabs, ragged, over the model's blocks of 512 rows, with an empty action,
/// an action without a state, and a sample that begins with its action.
const SETS: [&[(usize, usize)]; 2] =
    [&[(5, 2), (9, 3), (4, 3), (7, 0)], &[(200, 180), (131, 5), (33, 33), (250, 240), (1, 0), (77, 1), (90, 60)]];

#[test]
fn every_tensor_agrees_with_the_loop_of_single_backward_passes() {
    for (case, tied, kv_heads) in [(0, true, 2), (0, false, 1), (1, true, 2), (1, false, 4)] {
        let model = random_model(tiny_config(tied, kv_heads), 3);
        let samples = samples(20, SETS[case]);
        let n = samples.len();
        let singles: Vec<Params> = samples.iter().map(|s| single(&model, s)).collect();
        for keep in [Keep::All, Keep::LayerInputs] {
            let got = Grams::new(&model, &samples, keep).unwrap();
            assert_eq!(got.tensors.len(), model.params.layout.entries.len());
            for (tensor, entry) in got.tensors.iter().zip(&model.params.layout.entries) {
                assert_eq!(tensor.name, entry.name);
                let dot = |a: &Params, b: &Params| -> f64 {
                    let pairs = a.flat[entry.range.clone()].iter().zip(&b.flat[entry.range.clone()]);
                    pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
                };
                let want: Vec<f64> = singles.iter().flat_map(|a| singles.iter().map(|b| dot(a, b))).collect();
                let off = distance(&tensor.gram, &want, n);
                assert!(off < 1e-5, "set {case}, tied {tied}, {}: off by {off:e}", tensor.name);
            }
            let [slab, ghost] = got.ways;
            assert_eq!(slab + ghost, 4 * 2 + 1);
            assert!(if case == 0 { ghost == 9 } else { slab >= 8 }, "set {case}: {slab} slabs, {ghost} ghosts");
        }
    }
}

#[test]
fn ghost_and_slab_agree_across_tiles() {
    let (rows, out, n_in) = (700, 12, 9);
    let (dy, x) = (values(1, rows * out, 1.0), values(2, rows * n_in, 1.0));
    let g = WeightGrad { dy: &dy, out, x: &x, in_features: n_in };
    let mut ends: Vec<usize> = (0..6).map(|i| below(3, i, rows)).collect();
    ends.extend([255, 256, 256, rows]);
    ends.sort();
    let n = ends.len();
    let groups = [0..5, 5..12];
    let (mut ghost, mut slab) = (vec![vec![0.0; n * n]; 2], vec![vec![0.0; n * n]; 2]);
    for tile in op::ghost_tiles(rows) {
        for (gram, part) in ghost.iter_mut().zip(op::ghost(g, &groups, &ends, tile)) {
            op::add_parts(gram, n, &part);
        }
    }
    for (gram, columns) in slab.iter_mut().zip(&groups) {
        for tile in op::slab_tiles(columns.clone(), n_in, n) {
            op::add_parts(gram, n, &op::slab(g, tile, &ends));
        }
    }
    for (ghost, slab) in ghost.iter().zip(&slab) {
        let off = distance(ghost, slab, n);
        assert!(off < 1e-5, "off by {off:e}");
        assert!((0..n).any(|i| slab[i * (n + 1)] > 0.0));
    }
}

#[test]
fn the_way_of_fewer_flops_is_taken() {
    assert_eq!(op::cheaper(800, 8, 896, 896), Way::Ghost);
    assert_eq!(op::cheaper(1200, 8, 896, 896), Way::Slab);
    assert!(op::flops(Way::Ghost, 800, 8, 896, 896) < op::flops(Way::Slab, 800, 8, 896, 896));
}

#[test]
fn weights_multiply_rows_and_columns() {
    let model = random_model(tiny_config(true, 2), 4);
    let samples = samples(5, SETS[0]);
    let plain = Grams::new(&model, &samples, Keep::All).unwrap();
    let (a, b) = (plain.sum(|_| true), plain.weighted(&[1.0, -2.0, 0.0, 0.5]).sum(|_| true));
    assert_eq!(b[1], -2.0 * a[1]);
    assert_eq!(b[5], 4.0 * a[5]);
    assert!(b[8..12].iter().all(|x| *x == 0.0));
    assert!(plain.logprob.iter().all(|lp| *lp < 0.0));
    assert!((0..4).all(|i| (plain.state[5 * i] - 1.0).abs() < 1e-12));
}

#[test]
fn actions_of_no_tokens_have_gradient_zero() {
    for tied in [true, false] {
        let model = random_model(tiny_config(tied, 2), 4);
        let grams = Grams::new(&model, &samples(5, &[(4, 4), (1, 0), (30, 40)]), Keep::All).unwrap();
        assert!(grams.sum(|_| true).iter().all(|x| *x == 0.0));
        assert_eq!(cosines(&grams.sum(|_| true), 3), [0.0; 9]);
        assert!(Grams::new(&model, &[], Keep::All).unwrap().tensors.iter().all(|t| t.gram.is_empty()));
    }
}

#[test]
fn samples_that_do_not_fit_are_named() {
    let model = random_model(tiny_config(true, 2), 4);
    let mut all = samples(5, SETS[0]);
    all[2].tokens[1] = 50;
    let error = Grams::new(&model, &all, Keep::All).unwrap_err();
    assert_eq!(error, SampleError::Token { sample: 2, token: 50, vocab: 50 });
    all[2].tokens = vec![1; 257];
    let error = Grams::new(&model, &all, Keep::All).unwrap_err();
    assert!(error.to_string().contains("sample 2 has 257 tokens") && error.to_string().contains("256"), "{error}");
}

/// Gram matrices of made-up gradients, one tensor.
fn made_up(gradients: &[[f64; 2]]) -> Grams {
    let n = gradients.len();
    let dot = |a: &[f64; 2], b: &[f64; 2]| a[0] * b[0] + a[1] * b[1];
    let gram: Vec<f64> = gradients.iter().flat_map(|a| gradients.iter().map(move |b| dot(a, b))).collect();
    let tensors = vec![
        TensorGram { name: "model.layers.0.mlp.down_proj.weight".into(), gram: gram.clone() },
        TensorGram { name: "model.norm.weight".into(), gram: vec![0.0; n * n] },
    ];
    Grams { samples: n, tensors, state: cosines(&gram, n), logprob: vec![-1.0; n], ways: [1, 0] }
}

#[test]
fn means_are_those_of_the_pairs() {
    // Two along x, two along y (one of them twice as long), a zero gradient among the positive, one sample in neither class.
    let grams = made_up(&[[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 0.0], [5.0, 5.0]]);
    let advantages = [1.0, 1.0, -1.0, -2.0, 1.0, 0.0];
    let m = measure(&grams, &advantages, Weights::One, 0).unwrap();
    assert_eq!((m.positive.clone(), m.negative.clone(), m.zero), (vec![0, 1, 4], vec![2, 3], 1));
    // pp: of three pairs, two with the zero gradient.
    assert!((m.cosine.pp.mean - 1.0 / 3.0).abs() < 1e-12 && m.cosine.pp.pairs == 6);
    assert_eq!((m.cosine.nn.mean, m.cosine.pn.mean, m.cosine.nn.std), (1.0, 0.0, 0.0));
    assert_eq!(m.projection.nn.mean, (2.0 + 0.5) / 2.0);
    assert_eq!(m.kinds.iter().map(|k| (&k.name[..], k.zero)).collect::<Vec<_>>(), [("mlp", 1), ("norm", 6)]);
    assert_eq!(m.layers.iter().map(|k| &k.name[..]).collect::<Vec<_>>(), ["layer 0", "final norm"]);
    // All numbers are finite, so that none is null.
    assert!(!serde_json::to_string(&m).unwrap().contains("null"));
    let w = measure(&grams, &advantages, Weights::Advantage, 0).unwrap();
    assert_eq!(w.inner_matrix[3 * 6 + 3], 16.0);
    assert_eq!(w.zero, 2, "A = 0 makes a gradient zero");
    assert_eq!(w.p_value, m.p_value, "the test does not look at the weights");
}

#[test]
fn the_permutation_test_tells_classes_from_chance() {
    let near = |i: usize, angle: f64| [(angle + 0.1 * i as f64).cos(), (angle + 0.1 * i as f64).sin()];
    let apart: Vec<_> = (0..8).map(|i| near(i, if i < 4 { 0.0 } else { 2.0 })).collect();
    let sides = [1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0];
    let mixed = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0];
    let p = |sides: &[f64]| measure(&made_up(&apart), sides, Weights::One, 7).unwrap().p_value;
    // 2 of the 70 ways to choose 4 of 8 are as far apart.
    assert!((0.01..0.06).contains(&p(&sides)), "{}", p(&sides));
    assert!(p(&mixed) > 0.3, "{}", p(&mixed));
    assert_eq!(p(&sides), p(&sides), "seeded");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let grams = made_up(&[[1.0, 0.0]; 4]);
    let error = |a: &[f64]| measure(&grams, a, Weights::One, 0).unwrap_err();
    assert_eq!(error(&[0.5; 4]), CouplingError::AllEqual(4));
    assert_eq!(error(&[1.0, 1.0, 2.0, 0.0]), CouplingError::FewOf { class: "negative", found: 0 });
    assert_eq!(error(&[-1.0, -1.0, 2.0, 0.0]), CouplingError::FewOf { class: "positive", found: 1 });
    assert_eq!(error(&[1.0, -1.0]), CouplingError::Lengths { samples: 4, advantages: 2 });
    assert_eq!(error(&[1.0, -1.0, f64::NAN, 0.0]), CouplingError::NotFinite(2));
}

#[test]
fn a_run_measures_its_coupling_and_two_runs_compare() {
    let dir = tempfile::tempdir().unwrap();
    let train = |name: &str, set: &[&str]| {
        let config = tiny(dir.path(), name, &[&["run.iterations=3", "rollout.group_size=8"], set].concat());
        uncouple::train::train(config.clone(), &*suite(&config).unwrap(), Existing::Refuse)
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let a = train("a", &["coupling.every=1", "coupling.samples=8"]);
    let coupling = a.summary.coupling.expect("measured");
    assert!([coupling.pp, coupling.nn, coupling.pn].iter().all(|c| c.abs() <= 1.0));
    let records = metrics::read(&a.folder).unwrap();
    let with = |key: &str| records.iter().filter(|r| r.values.contains_key(key)).count();
    assert!(with("coupling/pn") > 0 && with("coupling/pn") == with("coupling/attention/pp"));
    assert_eq!(with("seconds/coupling"), with("coupling/state/nn"));
    assert!(a.folder.join("coupling/final.html").exists());
    let off = train("off", &["coupling.every=0"]);
    assert!(off.summary.coupling.is_none() && !off.folder.join("coupling").exists());

    let cli = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_uncouple")).arg("coupling").args(args).output().unwrap();
        (out.status.success(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let path = |path: &Path| path.display().to_string();
    let (ok, text, error) = cli(&["--run", &path(&a.folder), "--json"]);
    assert!(ok, "{error}");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["cosine"]["pn"]["mean"], coupling.pn, "the same weights on the same samples");
    let saved = std::fs::read(a.folder.join("coupling/step-43.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&saved).unwrap();
    let n = json["samples"].as_u64().unwrap() as usize;
    assert_eq!(tensors.tensor("cosine").unwrap().shape(), [n, n]);
    let (ok, text, error) = cli(&["compare", &path(&a.folder), &path(&off.folder)]);
    assert!(ok && text.contains("pn B") && text.contains("layer 1"), "{text}{error}");
    let (ok, _, error) = cli(&["--run", &path(&off.folder)]);
    assert!(!ok && error.contains("probe.json: a run has one when it has measured its coupling"), "{error}");

    let (probe, model, out) = ("coupling/probe.json", "checkpoints/step-43", dir.path().join("out"));
    let measure = |probe: &Path| {
        let [model, probe, out] = [&a.folder.join(model), probe, &out].map(path);
        cli(&["--model", &model, "--probe", &probe, "--out", &out, "--json"])
    };
    let (ok, text, error) = measure(&a.folder.join(probe));
    assert!(ok && out.join("coupling.html").exists(), "{error}");
    let of_model: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(of_model["cosine"], json["cosine"], "the same weights on the same samples");
    let (ok, _, error) = measure(&a.folder.join("config.toml"));
    assert!(!ok && error.contains("config.toml: not a probe set"), "{error}");
}
