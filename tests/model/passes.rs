//! The whole model against a plain f64 implementation: forward, gradient by finite differences, forest against sequences,
//! recomputation, and cached decoding.

use crate::common;
use crate::common::numeric::relative;

use common::{dense, random_model, tiny_config, tokens};
use std::sync::Arc;
use uncouple::forest::{Forest, ROOT};
use uncouple::model::{Activations, Architecture, KvCache, Model, Params, SavedActivations};
use uncouple::ops::grouped_logprob::TokenGrad;

/// Three sequences that share prefixes, one alone, one of a single token.
fn sequences(vocab: usize) -> Vec<Vec<u32>> {
    let prefix = tokens(1, 70, vocab);
    let branch = |seed, n| [prefix.clone(), tokens(seed, n, vocab)].concat();
    vec![branch(2, 30), branch(3, 81), [branch(2, 10), tokens(9, 7, vocab)].concat(), tokens(4, 33, vocab), vec![5]]
}

/// Σ weight · logp + weight · entropy over every scored node, and the gradient of every parameter.
fn loss_and_gradient(model: &Model, forest: &Forest, keep: SavedActivations, entropy: f32) -> (f64, Params) {
    let mut acts = Activations::default();
    model.forward(forest, keep, &mut acts);
    let nodes: Vec<u32> = (0..forest.len() as u32).filter(|&n| forest.parent[n as usize] != ROOT).collect();
    let (mut grads, mut d_hidden, mut total) = (Params::zeros(model.params.layout.clone()), Vec::new(), 0.0);
    let mut loss = |i: usize, logp: f32, h: f32| {
        let n = nodes[i] as usize;
        let w = common::weight(forest.tokens[n], forest.position[n]);
        total += f64::from(w) * f64::from(logp) + f64::from(w * entropy) * f64::from(h);
        TokenGrad { logprob: w, entropy: w * entropy }
    };
    model.head_backward(forest, &acts, &nodes, 0.8, &mut loss, &mut d_hidden, &mut grads);
    model.backward(forest, &mut acts, &mut d_hidden, &mut grads);
    (total, grads)
}

#[test]
fn forward_agrees_with_f64() {
    for (seed, tied, kv_heads) in [(1, true, 2), (2, false, 1), (3, true, 4)] {
        let model = random_model(tiny_config(tied, kv_heads), seed);
        let all = sequences(model.config.vocab_size);
        let forest = Forest::new(&all);
        let mut acts = Activations::default();
        model.forward(&forest, SavedActivations::Nothing, &mut acts);
        let h = model.config.hidden_size;
        for (sequence, path) in all.iter().zip(&forest.paths) {
            let want = dense::hidden(&model, sequence);
            for (t, &node) in path.iter().enumerate() {
                for (j, want) in want[t].iter().enumerate() {
                    let got = f64::from(acts.hidden[node as usize * h + j]);
                    assert!((got - want).abs() < 2e-5, "hidden[{t}][{j}]: {got} against {want}");
                }
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for (tied, kv_heads) in [(true, 2), (false, 1)] {
        let model = random_model(tiny_config(tied, kv_heads), 7);
        let all = [tokens(1, 9, 50), tokens(2, 6, 50)];
        let forest = Forest::new(&all);
        let (_, grads) = loss_and_gradient(&model, &forest, SavedActivations::All, 0.3);
        let value = |m: &Model| -> f64 { all.iter().map(|s| dense::loss(m, s, 0.8, 0.3)).sum() };
        for entry in &model.params.layout.entries {
            let direction = tokens(entry.range.start as u64 + 11, entry.range.len(), 2);
            let shifted = |step: f32| {
                let mut m = model.clone();
                for (i, &s) in entry.range.clone().zip(&direction) {
                    m.params.flat[i] += step * (2.0 * s as f32 - 1.0);
                }
                value(&m)
            };
            let step = 1.0f32 / 1024.0;
            let numeric = (shifted(step) - shifted(-step)) / (2.0 * f64::from(step));
            let exact: f64 = entry
                .range
                .clone()
                .zip(&direction)
                .map(|(i, &s)| f64::from(grads.flat[i]) * (2.0 * f64::from(s) - 1.0))
                .sum();
            let scale = grads.flat[entry.range.clone()].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            assert!(
                (numeric - exact).abs() < 2e-3 * (scale + 1e-2),
                "{}: {numeric} against {exact} (norm {scale})",
                entry.name
            );
        }
    }
}

#[test]
fn forest_gives_the_loss_and_gradient_of_its_sequences() {
    let model = random_model(tiny_config(true, 2), 3);
    let all = sequences(model.config.vocab_size);
    let forest = Forest::new(&all);
    // A shared token carries the sum of its terms: weigh each node by the number of sequences that pass through it.
    let mut count = vec![0.0f32; forest.len()];
    forest.paths.iter().flatten().for_each(|&n| count[n as usize] += 1.0);
    let mut acts = Activations::default();
    model.forward(&forest, SavedActivations::All, &mut acts);
    let nodes: Vec<u32> = (0..forest.len() as u32).filter(|&n| forest.parent[n as usize] != ROOT).collect();
    let (mut shared, mut d_hidden, mut total) = (Params::zeros(model.params.layout.clone()), Vec::new(), 0.0);
    let mut loss = |i: usize, logp: f32, _: f32| {
        let n = nodes[i] as usize;
        let w = common::weight(forest.tokens[n], forest.position[n]) * count[n];
        total += f64::from(w) * f64::from(logp);
        TokenGrad { logprob: w, entropy: 0.0 }
    };
    model.head_backward(&forest, &acts, &nodes, 0.8, &mut loss, &mut d_hidden, &mut shared);
    model.backward(&forest, &mut acts, &mut d_hidden, &mut shared);

    let (mut apart, mut sum) = (Params::zeros(model.params.layout.clone()), 0.0);
    for sequence in &all {
        let (loss, grads) = loss_and_gradient(&model, &Forest::new(&[sequence]), SavedActivations::All, 0.0);
        sum += loss;
        apart.flat.iter_mut().zip(&grads.flat).for_each(|(a, g)| *a += g);
    }
    assert!((total - sum).abs() < 1e-4 * sum.abs().max(1.0), "loss {total} against {sum}");
    assert!(relative(&shared.flat, &apart.flat) < 2e-6, "gradient differs by {}", relative(&shared.flat, &apart.flat));
}

#[test]
fn recomputation_changes_nothing() {
    let model = random_model(tiny_config(true, 2), 5);
    let forest = Forest::new(&sequences(model.config.vocab_size));
    let (a, kept) = loss_and_gradient(&model, &forest, SavedActivations::All, 0.1);
    for keep in [SavedActivations::LayerInputs, SavedActivations::FirstLayers(1), SavedActivations::FirstLayers(9)] {
        let (b, recomputed) = loss_and_gradient(&model, &forest, keep, 0.1);
        assert_eq!(a, b, "{keep:?}");
        assert_eq!(kept.flat, recomputed.flat, "{keep:?}");
    }
}

#[test]
fn gradient_does_not_depend_on_the_number_of_threads() {
    let model = Arc::new(random_model(tiny_config(true, 2), 5));
    let forest = Forest::new(&sequences(model.config.vocab_size));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| loss_and_gradient(&model, &forest, SavedActivations::All, 0.1))
    };
    let (a, b) = (run(1), run(3));
    assert_eq!(a.0, b.0);
    assert_eq!(a.1.flat, b.1.flat);
}

#[test]
fn decoding_agrees_with_the_forward_pass() {
    let model = random_model(tiny_config(true, 2), 9);
    let all = sequences(model.config.vocab_size);
    let forest = Forest::new(&all);
    let mut acts = Activations::default();
    model.forward(&forest, SavedActivations::Nothing, &mut acts);
    let h = model.config.hidden_size;
    let mut cache = KvCache::new(&model);
    let check = |hidden: &[f32], sequence: usize, t: usize| {
        let want = &acts.hidden[forest.paths[sequence][t] as usize * h..][..h];
        assert!(relative(hidden, want) < 1e-5, "sequence {sequence}, token {t}: {}", relative(hidden, want));
    };
    // The shared prefix is prefilled once in two pieces, then forked; the branches go on in steps of mixed length.
    let root = cache.new_sequence();
    model.append(&mut cache, &[(root, &all[0][..41])]);
    model.append(&mut cache, &[(root, &all[0][41..70])]);
    let ids = [root, cache.fork(root), cache.fork(root)];
    assert_eq!(cache.len(ids[2]), 70);
    for (start, steps) in [(70, [1, 5, 1]), (75, [5, 1, 3])] {
        let at: Vec<usize> = ids.iter().map(|&s| cache.len(s)).collect();
        let inputs: Vec<_> = (0..3).map(|i| (ids[i], &all[i][at[i]..at[i] + steps[i]])).collect();
        let out = model.append(&mut cache, &inputs);
        (0..3).for_each(|i| check(&out[i * h..(i + 1) * h], i, at[i] + steps[i] - 1));
        assert!(cache.len(ids[0]) >= start);
    }
    cache.free(ids[1]);
    let alone = cache.new_sequence();
    let (rest, at) = (&all[3], cache.len(ids[0]));
    let out = model.append(&mut cache, &[(ids[0], &all[0][at..]), (alone, &rest[..])]);
    check(&out[..h], 0, all[0].len() - 1);
    check(&out[h..], 3, rest.len() - 1);
}

/// A model whose layers are large enough that all threads work on each in turn: beside others or alone, on one thread or several, a
/// row's numbers are the same, and those of the forward pass.
#[test]
fn threads_that_decode_together_change_no_bit() {
    let config =
        Architecture { hidden_size: 256, intermediate_size: 1300, num_hidden_layers: 2, ..tiny_config(true, 2) };
    let model = random_model(Architecture { max_position_embeddings: 512, ..config }, 4);
    let all: Vec<Vec<u32>> =
        [7, 150, 1, 33].iter().map(|n| tokens(*n as u64, *n + 2, model.config.vocab_size)).collect();
    let run = |threads: usize, which: &[usize]| -> Vec<Vec<f32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut cache = KvCache::new(&model);
            let ids: Vec<_> = which.iter().map(|_| cache.new_sequence()).collect();
            let prompts: Vec<_> = which.iter().zip(&ids).map(|(&i, id)| (*id, &all[i][..all[i].len() - 2])).collect();
            let mut states = model.append(&mut cache, &prompts);
            for back in [2, 1] {
                let next: Vec<_> =
                    which.iter().zip(&ids).map(|(&i, id)| (*id, &all[i][all[i].len() - back..][..1])).collect();
                states.extend(model.append(&mut cache, &next));
            }
            states.chunks(model.config.hidden_size).map(<[f32]>::to_vec).collect()
        })
    };
    let together = run(2, &[0, 1, 2, 3]);
    assert!(together == run(1, &[0, 1, 2, 3]) && together == run(5, &[0, 1, 2, 3]));
    let forest = Forest::unshared(&all);
    let mut acts = Activations::default();
    model.forward(&forest, SavedActivations::Nothing, &mut acts);
    let h = model.config.hidden_size;
    for i in 0..4 {
        let alone = run(3, &[i]);
        for (step, alone) in alone.iter().enumerate() {
            assert!(*alone == together[step * 4 + i], "sequence {i}, step {step}");
            let node = forest.paths[i][all[i].len() - 3 + step] as usize;
            assert!(relative(alone, &acts.hidden[node * h..][..h]) < 1e-5, "sequence {i}, step {step}");
        }
    }
}
