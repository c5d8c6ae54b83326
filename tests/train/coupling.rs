//! Inner products of per-sample gradients from one batch, against a backward pass for each sample.

use crate::common;

use common::numeric::{below, values};
use common::runs::tiny;
use common::{random_model, tiny_config, tokens};
use std::path::Path;
use std::process::Command;
use uncouple::agent::{command_tokens, guessed_command};
use uncouple::config::{ActionTokens, Format, Prompt};
use uncouple::coupling::gram::{TensorGram, cosines};
use uncouple::coupling::{
    CouplingError, Grams, Probe, ProbeCommand as Said, ProbeSample, SampleError, SampleWeights, Side, StateAction,
    Traits, measure,
};
use uncouple::forest::Forest;
use uncouple::model::tokenizer::Tokenizer;
use uncouple::model::{Activations, Model, Params, SavedActivations};
use uncouple::ops::gradient_cosine::{self as op, GramMethod};
use uncouple::ops::grouped_logprob::TokenGrad;
use uncouple::ops::linear::WeightGrad;
use uncouple::report::metrics;
use uncouple::report::page::Heat;
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
    model.forward(&forest, SavedActivations::All, &mut acts);
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
        for keep in [SavedActivations::All, SavedActivations::LayerInputs] {
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
            let [slab, ghost] = got.methods;
            assert_eq!(slab + ghost, 4 * 2 + 1);
            assert!(if case == 0 { ghost == 9 } else { slab >= 8 }, "set {case}: {slab} slabs, {ghost} ghosts");
        }
    }
}

#[test]
fn ghost_and_slab_agree_across_tiles() {
    let (rows, out, n_in) = (700, 12, 9);
    let (dy, x) = (values(1, rows * out, 1.0), values(2, rows * n_in, 1.0));
    let g = WeightGrad { dy: &dy, out, first: 0, x: &x, in_features: n_in };
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
    assert_eq!(op::cheaper(800, 8, 896, 896), GramMethod::Ghost);
    assert_eq!(op::cheaper(1200, 8, 896, 896), GramMethod::Materialized);
    assert!(op::flops(GramMethod::Ghost, 800, 8, 896, 896) < op::flops(GramMethod::Materialized, 800, 8, 896, 896));
}

#[test]
fn weights_multiply_rows_and_columns() {
    let model = random_model(tiny_config(true, 2), 4);
    let samples = samples(5, SETS[0]);
    let plain = Grams::new(&model, &samples, SavedActivations::All).unwrap();
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
        let grams = Grams::new(&model, &samples(5, &[(4, 4), (1, 0), (30, 40)]), SavedActivations::All).unwrap();
        assert!(grams.sum(|_| true).iter().all(|x| *x == 0.0));
        assert_eq!(cosines(&grams.sum(|_| true), 3), [0.0; 9]);
        assert!(Grams::new(&model, &[], SavedActivations::All).unwrap().tensors.iter().all(|t| t.gram.is_empty()));
    }
}

#[test]
fn samples_that_do_not_fit_are_named() {
    let model = random_model(tiny_config(true, 2), 4);
    let mut all = samples(5, SETS[0]);
    all[2].tokens[1] = 50;
    let error = Grams::new(&model, &all, SavedActivations::All).unwrap_err();
    assert_eq!(error, SampleError::Token { sample: 2, token: 50, vocab: 50 });
    all[2].tokens = vec![1; 257];
    let error = Grams::new(&model, &all, SavedActivations::All).unwrap_err();
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
    Grams { samples: n, tensors, state: cosines(&gram, n), logprob: vec![-1.0; n], methods: [1, 0] }
}

/// Traits of samples that share neither state nor verb.
fn apart(sides: &[f64]) -> Vec<Traits> {
    sides.iter().enumerate().map(|(i, side)| Traits { side: *side, state: i, verb: i }).collect()
}

#[test]
fn means_are_those_of_the_pairs() {
    // Two along x, two along y (one of them twice as long), a zero gradient among the positive, one sample in neither class.
    let grams = made_up(&[[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 0.0], [5.0, 5.0]]);
    let traits = apart(&[1.0, 1.0, -1.0, -2.0, 1.0, 0.0]);
    let m = measure(&grams, &traits, SampleWeights::One, 0).unwrap();
    assert_eq!((m.positive.clone(), m.negative.clone(), m.zero), (vec![0, 1, 4], vec![2, 3], 1));
    // pp: of three pairs, two with the zero gradient.
    assert!((m.cosine.pp.mean - 1.0 / 3.0).abs() < 1e-12 && m.cosine.pp.pairs == 3);
    assert_eq!((m.cosine.nn.mean, m.cosine.pn.mean, m.cosine.nn.std), (1.0, 0.0, 0.0));
    assert_eq!(m.projection.nn.mean, (2.0 + 0.5) / 2.0);
    assert_eq!(m.kinds.iter().map(|k| (&k.name[..], k.zero)).collect::<Vec<_>>(), [("mlp", 1), ("norm", 6)]);
    assert_eq!(m.layers.iter().map(|k| &k.name[..]).collect::<Vec<_>>(), ["layer 0", "final norm"]);
    assert_eq!((m.projection.pp.pairs, m.projection.pn.pairs, m.projection.np.pairs), (6, 6, 6), "(i, j) and (j, i)");
    let w = measure(&grams, &traits, SampleWeights::Advantage, 0).unwrap();
    assert_eq!(w.inner_matrix[3 * 6 + 3], 16.0);
    assert_eq!(w.zero, 2, "A = 0 makes a gradient zero");
    assert_eq!(w.sums, m.sums, "the sums do not look at the weights");
}

/// Two states; in the first a good and a bad `go`, in the second a good `go` and a bad `take`.
#[test]
fn pairs_are_counted_in_the_stratum_of_what_they_share() {
    let grams = made_up(&[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]);
    let of = |side, state, verb| Traits { side, state, verb };
    let traits = [of(1.0, 0, 0), of(-1.0, 0, 0), of(1.0, 1, 0), of(-1.0, 1, 1)];
    let m = measure(&grams, &traits, SampleWeights::One, 0).unwrap();
    let pn = m.strata.named().map(|(name, _, stratum)| (name, stratum.cosine.pn.pairs, stratum.cosine.pn.mean));
    assert_eq!(pn, [("same_state", 2, 1.0), ("same_verb", 1, 0.0), ("other_verb", 1, 0.0)]);
    assert_eq!((m.strata.same_verb.cosine.pp.pairs, m.strata.other_verb.cosine.nn.pairs), (1, 1));
    // g_2 is half of g_3: a step along g_3 does twice the work of one along g_2.
    let projection = m.strata.same_state.projection;
    assert_eq!((projection.pn.mean, projection.np.mean), ((1.0 + 2.0) / 2.0, (1.0 + 0.5) / 2.0));
    // No pair: no number.
    let json = serde_json::to_value(&m).unwrap();
    assert_eq!(json["strata"]["same_state"]["cosine"]["pp"]["pairs"], 0);
    assert!(json["strata"]["same_state"]["cosine"]["pp"]["mean"].is_null());
    let pairs = |c: uncouple::coupling::Means| c.pp.pairs + c.nn.pairs + c.pn.pairs;
    assert_eq!(m.strata.named().iter().map(|(_, _, s)| pairs(s.cosine)).sum::<usize>(), 6, "each pair in one stratum");
}

/// |Σ ±g|² / Σ |g|², by hand: signed (1, 0) + (1, 0) − (1, 0) − (0, 2), unsigned (3, 2); the last sample is in neither class.
#[test]
fn sums_set_what_is_taught_against_what_is_untaught() {
    let grams = made_up(&[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]);
    let m = measure(&grams, &apart(&[0.5, 2.0, -1.0, -1.0, 0.0]), SampleWeights::One, 0).unwrap();
    assert_eq!((m.sums.signed, m.sums.unsigned), (5.0 / 7.0, 13.0 / 7.0));
    let nothing = measure(&made_up(&[[0.0, 0.0]; 4]), &apart(&[1.0, 1.0, -1.0, -1.0]), SampleWeights::One, 0).unwrap();
    assert!(serde_json::to_value(nothing).unwrap()["sums"]["signed"].is_null(), "0 / 0 is no number");
}

#[test]
fn the_permutation_test_draws_labels_within_states() {
    let near = |i: usize, angle: f64| [(angle + 0.1 * i as f64).cos(), (angle + 0.1 * i as f64).sin()];
    let grams = made_up(&(0..8).map(|i| near(i, if i < 4 { 0.0 } else { 2.0 })).collect::<Vec<_>>());
    let sides = [1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0];
    let mixed = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0];
    let test = |sides: &[f64], state: fn(usize) -> usize| {
        let of = |(i, side): (usize, &f64)| Traits { side: *side, state: state(i), verb: 0 };
        let traits: Vec<Traits> = sides.iter().enumerate().map(of).collect();
        let m = measure(&grams, &traits, SampleWeights::One, 7).unwrap();
        (m.p_value, m.permuted)
    };
    // One state: 2 of the 70 ways to choose 4 of 8 are as far apart.
    let (p, permuted) = test(&sides, |_| 0);
    assert!((0.01..0.06).contains(&p.unwrap()) && permuted == 8, "{p:?}");
    assert!(test(&mixed, |_| 0).0.unwrap() > 0.3);
    assert_eq!(test(&sides, |_| 0), test(&sides, |_| 0), "seeded");
    // A good and a bad action in each of four states: 2 of 16 ways.
    let (p, permuted) = test(&sides, |i| i % 4);
    assert!((0.08..0.18).contains(&p.unwrap()) && permuted == 8, "{p:?}");
    // Two such states, and four states of one sample each, whose labels stay: 1 of 4 ways.
    let (p, permuted) = test(&sides, |i| if i % 4 < 2 { i % 4 } else { i });
    assert!((0.2..0.3).contains(&p.unwrap()) && permuted == 4, "{p:?}");
    // Classes that are states as a whole: how alike the states are says nothing about the actions.
    assert_eq!(test(&sides, |i| i / 4), (None, 0));
    assert_eq!(test(&sides, |i| i), (None, 0));
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let grams = made_up(&[[1.0, 0.0]; 4]);
    let error = |a: &[f64]| measure(&grams, &apart(a), SampleWeights::One, 0).unwrap_err();
    assert_eq!(error(&[0.5; 4]), CouplingError::AllEqual(4));
    assert_eq!(error(&[1.0, 1.0, 2.0, 0.0]), CouplingError::FewOf { class: "negative", found: 0 });
    assert_eq!(error(&[-1.0, -1.0, 2.0, 0.0]), CouplingError::FewOf { class: "positive", found: 1 });
    assert_eq!(error(&[1.0, -1.0]), CouplingError::Lengths { samples: 4, traits: 2 });
    assert_eq!(error(&[1.0, -1.0, f64::NAN, 0.0]), CouplingError::NotFinite(2));
}

fn sample(state: &[u32], action: &[u32], advantage: f64, label: i8) -> ProbeSample {
    ProbeSample { tokens: [state, action].concat(), action: state.len(), command: None, advantage, label, count: 1 }
}

#[test]
fn what_was_sampled_twice_is_one_sample_with_its_mean_advantage() {
    let (a, b) = ([1, 2], [1, 3]);
    let third = f64::from(1.0f32 / 3.0);
    let candidates = vec![
        // A whole group took it: advantages of both signs, whose sum is 0 but for rounding.
        sample(&a, &[7], third, 1),
        sample(&a, &[7], third, 1),
        sample(&a, &[7], -f64::from(2.0f32 / 3.0), 1),
        // Three of four times well.
        sample(&a, &[8], 0.5, -1),
        sample(&a, &[8], 0.5, 1),
        sample(&a, &[8], -0.5, 1),
        sample(&a, &[8], 0.5, 0),
        sample(&a, &[9], -1.0, -1),
        sample(&b, &[7], 1.0, 1),
        sample(&b, &[9], -1.0, -1),
        sample(&b, &[9], -0.5, -1),
    ];
    let probe = Probe::choose(3, candidates, 8).unwrap();
    let held: Vec<_> = probe.samples.iter().map(|s| (&s.tokens[..], s.advantage, s.label, s.count)).collect();
    let held_once =
        [(&[1, 2, 8][..], 0.25, 1, 4), (&[1, 3, 7], 1.0, 1, 1), (&[1, 2, 9], -1.0, -1, 1), (&[1, 3, 9], -0.75, -1, 2)];
    assert_eq!(held, held_once, "each once, and what cancels left out");
    let traits = probe.traits(Side::Advantage);
    assert_eq!(traits.iter().map(|t| t.state).collect::<Vec<_>>(), [0, 1, 0, 1]);

    // The same samples from a file, as a user may have made it, with its repetitions.
    let dir = tempfile::tempdir().unwrap();
    let read = |samples: &[ProbeSample]| {
        let file = dir.path().join("probe.json");
        std::fs::write(&file, serde_json::json!({"iteration": 0, "samples": samples}).to_string()).unwrap();
        Probe::read(file)
    };
    let twice = [&probe.samples[..], &probe.samples[..]].concat();
    let again = read(&twice).unwrap();
    assert_eq!(again.samples.len(), 4);
    assert_eq!(again.samples.iter().map(|s| s.count).collect::<Vec<_>>(), [8, 2, 2, 4]);
    let json = r#"{"iteration": 0, "samples": [{"tokens": [1, 2], "action": 1, "advantage": 0.5, "label": 1}]}"#;
    std::fs::write(dir.path().join("old.json"), json).unwrap();
    assert_eq!(Probe::read(dir.path().join("old.json")).unwrap().samples[0].count, 1);
    let beyond = ProbeSample { action: 5, ..sample(&a, &[7], 1.0, 1) };
    let error = read(&[sample(&a, &[7], 1.0, 1), beyond]).unwrap_err().to_string();
    assert!(error.contains("probe.json") && error.contains("sample 1: its action begins at token 5"), "{error}");
    let command = Some(Said { text: "go".into(), tokens: 1..3 });
    let error = read(&[ProbeSample { command, ..sample(&a, &[7], 1.0, 1) }]).unwrap_err().to_string();
    assert!(error.contains("sample 0: its command's tokens 1..3"), "{error}");
}

#[test]
fn states_with_both_a_good_and_a_bad_action_come_first() {
    // States 0 to 9 hold a good action only, 10 to 13 a good and a bad one, 14 to 19 a bad one only.
    let of = |state: u32| {
        let good = (state < 14).then(|| sample(&[state], &[50], 1.0, 1));
        let bad = (state >= 10).then(|| sample(&[state], &[51], -1.0, -1));
        good.into_iter().chain(bad)
    };
    let states = |count| -> Vec<u32> {
        let probe = Probe::choose(0, (0..20).flat_map(of).collect(), count).unwrap();
        probe.samples.iter().map(|s| s.tokens[0]).collect()
    };
    assert_eq!(states(4), [10, 12, 10, 12]);
    assert_eq!(states(12), [10, 11, 12, 13, 0, 5, 10, 11, 12, 13, 14, 17]);
    let one_sided = (0..10).flat_map(of).collect();
    assert_eq!(Probe::choose(0, one_sided, 8), None);
}

#[test]
fn the_tokens_of_a_command_are_found_in_every_format() {
    let texts = ["go to the café 1", "<think>", "</think><action>", "</action>", "<planning> put apple 1 in box 2."];
    let tokenizer = Tokenizer::train(&texts, 280).unwrap();
    let prompt = |format, tags| Prompt { format, tags, ..Prompt::default() };
    let held = |format, tags, text: &str, command: &str| {
        let turn = tokenizer.encode(text).unwrap();
        let tokens = command_tokens(&tokenizer, &prompt(format, tags), &turn, command).unwrap();
        let (before, after) = (&turn[..tokens.start], &turn[tokens.end..]);
        let decode = |tokens: &[u32]| tokenizer.decode(tokens, false).unwrap();
        (decode(before), decode(&turn[tokens]), decode(after))
    };
    let exactly = |before: &str, command: &str, after: &str, held: (String, String, String)| {
        // A token that holds a character of the command counts whole.
        assert!(held.1.contains(command), "{held:?}: not {command:?}");
        assert!(before.starts_with(&held.0) && after.ends_with(&held.2), "{held:?}: not {command:?}");
        assert!(held.1.len() <= command.len() + 6, "{held:?}: more than {command:?}");
    };
    exactly("", "go to the café 1", "", held(Format::Compact, false, "go to the café 1", "go to the café 1"));
    let thought = "<think>go to the café 1</think><action>go to the café 1</action>";
    let (before, after) = ("<think>go to the café 1</think><action>", "</action>");
    exactly(before, "go to the café 1", after, held(Format::Think, false, thought, "go to the café 1"));
    exactly("<planning> ", "put apple 1", "", held(Format::Chat, true, "<planning> put apple 1", "put apple 1"));
    // Normalised commands: the first line, in lower case, without its full stop.
    exactly("", "Put Apple 1", ".\nput apple 1", held(Format::Chat, false, "Put Apple 1.\nput apple 1", "put apple 1"));
    // What could not be read counts with all that it says.
    let (_, all, _) = held(Format::Think, false, "put apple 1 in box 2", "<think>put apple 1");
    assert_eq!(all, "put apple 1 in box 2");
    // One byte a token: the two tokens of an é that ends the command belong to it.
    let bytes = Tokenizer::train(&["x"], 260).unwrap();
    let turn = bytes.encode("é <é>").unwrap();
    assert_eq!(command_tokens(&bytes, &prompt(Format::Compact, false), &turn, "é <é").unwrap(), 0..6);
    assert_eq!(command_tokens(&bytes, &prompt(Format::Compact, false), &turn, "é").unwrap(), 0..2);

    assert_eq!(guessed_command(thought).1, "go to the café 1");
    assert_eq!(guessed_command("<planning> put apple 1 ").1, "put apple 1");
    assert_eq!(guessed_command(" look").1, "look");
}

/// What follows a command has no part in its log-prob: leaving it out is exact.
#[test]
fn counted_tokens_are_those_of_the_command() {
    let model = random_model(tiny_config(true, 2), 6);
    let all = tokens(3, 12, 50);
    let command = Some(Said { text: "go".into(), tokens: 7..9 });
    let one = ProbeSample { tokens: all.clone(), action: 5, command, advantage: 1.0, label: 1, count: 1 };
    let probe = Probe { iteration: 0, samples: vec![one] };
    let [StateAction { tokens, action }] = &probe.samples(ActionTokens::Action)[..] else { panic!() };
    assert_eq!((tokens.len(), *action), (9, 7));
    assert_eq!(probe.samples(ActionTokens::All), [StateAction { tokens: all.clone(), action: 5 }]);
    let square = |sample: StateAction| Grams::new(&model, &[sample], SavedActivations::All).unwrap().sum(|_| true)[0];
    // −mean log p of tokens 7 and 8 among all twelve, by an ordinary backward pass.
    let forest = Forest::new(&[&all]);
    let (mut acts, mut d_hidden) = (Activations::default(), Vec::new());
    let mut grads = Params::zeros(model.params.layout.clone());
    model.forward(&forest, SavedActivations::All, &mut acts);
    let mut loss = |_: usize, _: f32, _: f32| TokenGrad { logprob: -0.5, entropy: 0.0 };
    model.head_backward(&forest, &acts, &forest.paths[0][7..9], 1.0, &mut loss, &mut d_hidden, &mut grads);
    model.backward(&forest, &mut acts, &mut d_hidden, &mut grads);
    let want: f64 = grads.flat.iter().map(|g| f64::from(*g).powi(2)).sum();
    let got = square(probe.samples(ActionTokens::Action).remove(0));
    assert!((got - want).abs() < 1e-5 * want, "{got} {want}");
    assert!((square(probe.samples(ActionTokens::All).remove(0)) - want).abs() > 1e-2 * want);
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
    assert_eq!(with("coupling/layer_1/pn"), with("coupling/pn"), "each layer has its mean");
    let last = records.iter().rev().find(|r| r.values.contains_key("coupling/pn")).unwrap();
    let heat = Heat::of_records(&records).unwrap();
    let names: Vec<&str> = heat.rows.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(names, ["embedding", "layer 0", "layer 1", "attention", "mlp", "norm", "bias"]);
    assert_eq!(heat.rows[2].1[2], Some(last.values["coupling/layer_1/pn"]));
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
    let narrow = |text: &str| text.lines().filter(|l| l.contains(['│', '┌'])).all(|l| l.chars().count() <= 80);
    assert!(narrow(&text), "{text}");
    let (_, text, _) = cli(&["--run", &path(&a.folder)]);
    assert!(narrow(&text) && text.contains("all gradients (") && text.contains(" ± "), "{text}");
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

/// Spearman's, against numpy.corrcoef of the lists' ranks, of which equal values share the mean.
#[test]
fn rank_correlations_are_those_of_numpy() {
    use uncouple::coupling::{pairs, rank_correlation};
    let a = [0.3, -1.0, 2.5, 2.5, 0.0, 7.0, -4.0];
    let b = [1.0, 0.5, 0.5, 3.0, -2.0, 2.0, -2.0];
    let found = rank_correlation(&a, &b).unwrap();
    assert!((found - 0.761_499_937_545_732_8).abs() < 1e-12, "{found}");
    assert_eq!(rank_correlation(&a, &a.map(|x| x * x * x)), Some(1.0), "only order counts");
    assert_eq!(rank_correlation(&a, &[1.0; 7]), None, "a constant has no order");
    assert_eq!(rank_correlation(&[], &[]), None);
    // Above the diagonal, row by row.
    assert_eq!(pairs(&[9.0, 1.0, 2.0, 1.0, 9.0, 3.0, 2.0, 3.0, 9.0], 3), [1.0, 2.0, 3.0]);
}
