//! Inner products of per-sample gradients from one batch, against a backward pass for each sample.

mod common;

use common::numeric::{below, values};
use common::{random_model, tiny_config, tokens};
use uncouple::coupling::{Grams, SampleError, StateAction};
use uncouple::forest::Forest;
use uncouple::model::{Activations, Keep, Model, Params};
use uncouple::ops::gradient_cosine::{self as op, Way};
use uncouple::ops::grouped_logprob::TokenGrad;
use uncouple::ops::linear::WeightGrad;

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
