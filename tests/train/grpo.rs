//! The policy loss: TRL's values on the golden inputs, finite differences for every option, sharing of prefixes, and the
//! way from episodes to samples.

use proptest::prelude::*;
use std::collections::HashMap;
use uncouple::agent::{Episode, Finish, Tag, Turn};
use uncouple::config::{Aggregation, Config, Grpo, RatioLevel, StepAdvantage};
use uncouple::env::{Split, Task};
use uncouple::forest::{Forest, ROOT};
use uncouple::grpo::{LossNormalizer, LossReport, PolicyLoss, Sample, episode_return, samples};
use uncouple::ops::advantage::{Scale, advantages};
use uncouple::rollout::Played;

/// The arrays the loss reads of a forest, with prefixes shared or not.
fn forest(samples: &[Sample], share: bool) -> Forest {
    let mut seen: HashMap<(u32, u32, usize), u32> = HashMap::new();
    let mut out = Forest::default();
    for (i, sample) in samples.iter().enumerate() {
        let mut parent = ROOT;
        let mut path = Vec::new();
        for &token in &sample.tokens {
            let fresh = out.tokens.len() as u32;
            parent = *seen.entry((parent, token, if share { 0 } else { i })).or_insert(fresh);
            if parent == fresh {
                out.tokens.push(token);
            }
            path.push(parent);
        }
        out.paths.push(path);
    }
    out
}

/// Runs the loss with a log-prob and an entropy for each (row, position): the report, and the gradients by node.
fn run(
    config: &Grpo,
    forest: &Forest,
    samples: &[Sample],
    norm: LossNormalizer,
    logprob: &dyn Fn(usize, usize) -> f32,
    entropy: &dyn Fn(usize, usize) -> f32,
) -> (LossReport, HashMap<u32, (f64, f64)>) {
    let mut place = HashMap::new();
    for (row, path) in forest.paths.iter().enumerate() {
        for (at, &node) in path.iter().enumerate() {
            place.insert(node, (row, at));
        }
    }
    let mut loss = PolicyLoss::new(config, forest, samples, norm);
    let nodes = loss.nodes().to_vec();
    assert!(nodes.windows(2).all(|w| w[0] < w[1]), "nodes are ascending and distinct");
    let values: Vec<f32> = nodes.iter().map(|n| logprob(place[n].0, place[n].1)).collect();
    if loss.needs_logprobs() {
        loss.set_logprobs(&values);
    }
    let mut grads = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        let g = loss.token(i, values[i], entropy(place[node].0, place[node].1));
        grads.insert(*node, (f64::from(g.logprob), f64::from(g.entropy)));
    }
    (loss.finish(), grads)
}

// ---- TRL's values ----

struct Tensors(Vec<u8>);

impl Tensors {
    fn f64s(&self, name: &str) -> Vec<f64> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        let bytes = view.data();
        match view.dtype() {
            safetensors::Dtype::F32 => {
                bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            safetensors::Dtype::I64 => {
                bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect()
            }
            safetensors::Dtype::I32 => {
                bytes.chunks_exact(4).map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            safetensors::Dtype::BOOL | safetensors::Dtype::U8 => bytes.iter().map(|&b| f64::from(b)).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }
}

#[test]
fn losses_and_metrics_are_those_of_trl() {
    for model in ["tiny-tied", "tiny-untied-gqa"] {
        let folder = format!("{}/tests/fixtures/golden/golden/{model}", env!("CARGO_MANIFEST_DIR"));
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(format!("{folder}/golden.json")).unwrap()).unwrap();
        let tensors = Tensors(std::fs::read(format!("{folder}/golden.safetensors")).unwrap());
        let g = &json["grpo"];
        let ids = |v: &serde_json::Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap() };
        let group_size = g["group_size"].as_u64().unwrap() as usize;
        let completions: Vec<Vec<u32>> = g["completions"].as_array().unwrap().iter().map(ids).collect();
        let rows = completions.len();
        let width = tensors.f64s("grpo.policy_logps").len() / rows;
        let [policy, entropy, old, reference, tool] =
            ["policy_logps", "entropy", "old_logps", "ref_logps", "tool_mask"]
                .map(|name| tensors.f64s(&format!("grpo.{name}")));
        let mut checked = 0;
        for (name, case) in g["cases"].as_object().unwrap() {
            let number = |key: &str| case[key].as_f64().unwrap() as f32;
            let flag = |key: &str| case[key].as_bool().unwrap();
            let config = Grpo {
                aggregation: match case["loss"].as_str().unwrap() {
                    "dapo" => Aggregation::TokenMean,
                    "bnpo" => Aggregation::MicroTokenMean,
                    "grpo" => Aggregation::SequenceMean,
                    "dr_grpo" => Aggregation::Constant,
                    other => panic!("loss {other}"),
                },
                constant_length: g["max_completion_length"].as_u64().unwrap() as u32,
                epsilon_low: number("lo"),
                epsilon_high: number("hi"),
                beta: number("beta"),
                kl_ratio: flag("bc"),
                ratio: if case["level"] == "sequence" { RatioLevel::Sequence } else { RatioLevel::Token },
                ..Grpo::default()
            };
            let advantage: Vec<f32> =
                serde_json::from_value(g["advantages"][case["scale"].as_str().unwrap()].clone()).unwrap();
            let mut prompt_lens = Vec::new();
            let all: Vec<Sample> = (0..rows)
                .map(|i| {
                    let mut tokens = ids(&g["prompts"][i / group_size]);
                    let p = tokens.len();
                    prompt_lens.push(p);
                    tokens.extend(&completions[i]);
                    let n = tokens.len();
                    // Value of a [rows, width] array at each token; prompts hold NaN, which must never be read.
                    let spread = |x: &[f64]| -> Vec<f32> {
                        (0..n).map(|t| if t < p { f32::NAN } else { x[i * width + t - p] as f32 }).collect()
                    };
                    let empty = flag("empty") && g["empty_row_index"] == i;
                    Sample {
                        mask: (0..n)
                            .map(|t| t >= p && !empty && (!flag("tool") || tool[i * width + t - p] != 0.0))
                            .collect(),
                        advantage: vec![advantage[i]; n],
                        old_logprobs: flag("old").then(|| spread(&old)),
                        ref_logprobs: Some(spread(&reference)),
                        tokens,
                        ..Sample::default()
                    }
                })
                .collect();
            let micro = case["micro"].as_u64().unwrap() as usize;
            let norm = LossNormalizer::new(&all, micro);
            assert_eq!(norm.tokens() as u64, case["num_items_in_batch"].as_u64().unwrap(), "{model} {name}");
            for k in 0..micro {
                let from = k * rows / micro;
                let part = &all[from..(k + 1) * rows / micro];
                let at = |x: &[f64], row: usize, t: usize| x[(from + row) * width + t - prompt_lens[from + row]] as f32;
                let (report, _) =
                    run(&config, &forest(part, true), part, norm, &|row, t| at(&policy, row, t), &|row, t| {
                        at(&entropy, row, t)
                    });
                let mut expect = vec![("loss", report.loss, case["losses"][k].as_f64().unwrap())];
                let metrics = &case["metrics"];
                let mut metric = |key: &'static str, ours: f64| {
                    if let Some(theirs) = metrics.get(key) {
                        expect.push((key, ours, theirs[k].as_f64().unwrap()));
                    }
                };
                metric("kl", report.kl);
                // The stored entropies are those at temperature 1.
                if case["temp"] == 1.0 {
                    metric("entropy", report.entropy);
                }
                metric("clip_ratio/low_mean", report.clip_ratio_low_mean);
                metric("clip_ratio/high_mean", report.clip_ratio_high_mean);
                metric("clip_ratio/region_mean", report.clip_ratio_region_mean);
                metric("clip_ratio/low_min", report.clip_ratio_low_min);
                metric("clip_ratio/high_max", report.clip_ratio_high_max);
                for (key, ours, theirs) in expect {
                    assert!((ours - theirs).abs() < 2e-6, "{model} {name} {key}: {ours}, TRL has {theirs}");
                    checked += 1;
                }
            }
        }
        assert!(checked > 100, "{model}: {checked} values compared");
        let rewards: Vec<f64> = serde_json::from_value(g["rewards"].clone()).unwrap();
        for (key, scale) in [("group", Scale::Group), ("none", Scale::None), ("batch", Scale::Batch)] {
            let theirs: Vec<f64> = serde_json::from_value(g["advantages_f64"][key].clone()).unwrap();
            let eps = g["advantage_eps"].as_f64().unwrap();
            for (a, b) in advantages(&rewards, &vec![group_size; rows / group_size], scale, eps).iter().zip(theirs) {
                assert!((a - b).abs() < 1e-12, "{model} {key}: {a}, TRL has {b}");
            }
        }
    }
}

// ---- gradients ----

/// A batch in which rows share prefixes: few token values, so that the trie is dense.
fn batch() -> impl Strategy<Value = Vec<Sample>> {
    let token = (0u32..2, any::<bool>(), -2.0f32..2.0, -0.6f32..0.6, -0.6f32..0.6);
    prop::collection::vec(prop::collection::vec(token, 1..7), 1..5).prop_map(|rows| {
        rows.iter()
            .map(|row| Sample {
                tokens: row.iter().map(|t| t.0).collect(),
                mask: row.iter().map(|t| t.1).collect(),
                advantage: row.iter().map(|t| t.2).collect(),
                old_logprobs: Some(row.iter().map(|t| t.3 - 1.0).collect()),
                ref_logprobs: Some(row.iter().map(|t| t.4 - 1.0).collect()),
                ..Sample::default()
            })
            .collect()
    })
}

fn options() -> impl Strategy<Value = Grpo> {
    let aggregation = prop_oneof![
        Just(Aggregation::TokenMean),
        Just(Aggregation::MicroTokenMean),
        Just(Aggregation::SequenceMean),
        Just(Aggregation::Constant)
    ];
    let ratio = prop_oneof![Just(RatioLevel::Token), Just(RatioLevel::Sequence)];
    let switch = |on: f32| prop_oneof![Just(0.0f32), Just(on)];
    (aggregation, ratio, switch(1.5), switch(0.3), any::<bool>(), switch(0.2)).prop_map(
        |(aggregation, ratio, dual_clip, beta, kl_ratio, entropy_coef)| Grpo {
            aggregation,
            ratio,
            dual_clip,
            beta,
            kl_ratio,
            entropy_coef,
            constant_length: 5,
            ..Grpo::default()
        },
    )
}

/// Log-prob and entropy of a node: any numbers will do, as long as rows that share a node agree.
fn noise(node: u32, salt: u32) -> f32 {
    let x = (node + 1).wrapping_mul(0x9e37_79b9) ^ salt.wrapping_mul(0x85eb_ca6b);
    let x = (x ^ (x >> 15)).wrapping_mul(0x2c1b_3c6d);
    ((x ^ (x >> 12)) % 1000) as f32 / 1000.0 - 1.5
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn gradients_are_those_of_the_loss(batch in batch(), config in options(), detached: bool, salt: u32) {
        let shared = forest(&batch, true);
        let norm = LossNormalizer::new(&batch, 2);
        let logprob = |row: usize, at: usize| noise(shared.paths[row][at], salt);
        let entropy = |row: usize, at: usize| noise(shared.paths[row][at], salt ^ 1) + 2.0;
        // The detached old policy is the current one, held fixed while the log-probs move.
        let held: Vec<Sample> = batch.iter().enumerate().map(|(row, s)| {
            let own: Vec<f32> = (0..s.tokens.len()).map(|at| logprob(row, at)).collect();
            Sample { old_logprobs: if detached { Some(own) } else { s.old_logprobs.clone() }, ..s.clone() }
        }).collect();
        let asked: Vec<Sample> = batch.iter().map(|s| {
            Sample { old_logprobs: if detached { None } else { s.old_logprobs.clone() }, ..s.clone() }
        }).collect();
        let (report, grads) = run(&config, &shared, &asked, norm, &logprob, &entropy);
        let loss = |node: u32, dl: f32, de: f32| {
            let moved = |row: usize, at: usize| shared.paths[row][at] == node;
            run(
                &config, &shared, &held, norm,
                &|row, at| logprob(row, at) + if moved(row, at) { dl } else { 0.0 },
                &|row, at| entropy(row, at) + if moved(row, at) { de } else { 0.0 },
            ).0.loss
        };
        prop_assert!((report.loss - loss(ROOT, 0.0, 0.0)).abs() < 1e-12);
        for (&node, &(by_logprob, by_entropy)) in &grads {
            // A power of two, so that every step is exact in f32 up to the rounding of the base.
            let h = 1.0 / 262144.0f32;
            let base = noise(node, salt);
            let (up, down) = (base + h, base - h);
            let here = loss(node, 0.0, 0.0);
            let left = (here - loss(node, -h, 0.0)) / f64::from(base - down);
            let right = (loss(node, h, 0.0) - here) / f64::from(up - base);
            // Between the one-sided slopes, up to the curvature; they differ at a corner of the clip only.
            let slack = 2e-5 * (1.0 + left.abs().max(right.abs()));
            prop_assert!((left.min(right) - slack..=left.max(right) + slack).contains(&by_logprob),
                "node {node}: {by_logprob}, by differences {left} and {right}");
            let slope = (loss(node, 0.0, 0.5) - loss(node, 0.0, -0.5)) / 1.0;
            prop_assert!((slope - by_entropy).abs() < 1e-6, "node {node}: {by_entropy}, by differences {slope}");
        }
    }

    #[test]
    fn a_forest_is_as_good_as_its_sequences(batch in batch(), config in options(), salt: u32) {
        let (shared, alone) = (forest(&batch, true), forest(&batch, false));
        let norm = LossNormalizer::new(&batch, 1);
        let logprob = |row: usize, at: usize| noise(shared.paths[row][at], salt);
        let entropy = |row: usize, at: usize| noise(shared.paths[row][at], salt ^ 1) + 2.0;
        let (a, by_shared) = run(&config, &shared, &batch, norm, &logprob, &entropy);
        let (b, by_alone) = run(&config, &alone, &batch, norm, &logprob, &entropy);
        let pairs = [
            (a.loss, b.loss), (a.kl, b.kl), (a.entropy, b.entropy),
            (a.clip_ratio_low_mean, b.clip_ratio_low_mean), (a.clip_ratio_high_max, b.clip_ratio_high_max),
        ];
        for (x, y) in pairs {
            prop_assert!((x - y).abs() < 1e-9, "{a:?} and {b:?}");
        }
        let mut summed: HashMap<u32, f64> = HashMap::new();
        for (row, sample) in batch.iter().enumerate() {
            for at in sample.loss_positions() {
                *summed.entry(shared.paths[row][at]).or_default() += by_alone[&alone.paths[row][at]].0;
            }
        }
        prop_assert_eq!(summed.len(), by_shared.len());
        for (node, sum) in summed {
            prop_assert!((by_shared[&node].0 - sum).abs() < 1e-5 * (1.0 + sum.abs()));
        }
    }

    /// Micro-batches of any size add up to the whole, except where the definition is per micro-batch.
    #[test]
    fn micro_batches_add_up(batch in batch(), config in options(), cut in 0usize..5, salt: u32) {
        prop_assume!(config.aggregation != Aggregation::MicroTokenMean);
        let cut = cut.min(batch.len());
        let norm = LossNormalizer::new(&batch, 2);
        let alone = forest(&batch, false);
        let value = |from: usize, salt: u32| {
            let paths = &alone.paths;
            move |row: usize, at: usize| noise(paths[from + row][at], salt)
        };
        let loss = |from: usize, to: usize| {
            let part = &batch[from..to];
            run(&config, &forest(part, false), part, norm, &value(from, salt), &value(from, salt ^ 1)).0.loss
        };
        let (whole, parts) = (loss(0, batch.len()), loss(0, cut) + loss(cut, batch.len()));
        prop_assert!((whole - parts).abs() < 1e-9, "{whole} and {parts}");
    }
}

#[test]
fn dual_clip_bounds_the_loss_of_a_bad_token() {
    let sample = Sample {
        tokens: vec![0, 1],
        mask: vec![false, true],
        advantage: vec![-2.0; 2],
        old_logprobs: Some(vec![-3.0; 2]),
        ..Sample::default()
    };
    let batch = [sample];
    let packed = forest(&batch, true);
    let at_ratio = |dual_clip: f32, ratio: f32| {
        let config = Grpo { dual_clip, ..Grpo::default() };
        let value = move |_: usize, _: usize| ratio.ln() - 3.0;
        let (report, grads) = run(&config, &packed, &batch, LossNormalizer::new(&batch, 1), &value, &|_, _| 0.0);
        (report.loss, grads[&1].0)
    };
    let (loss, grad) = at_ratio(0.0, 5.0);
    assert!((loss - 10.0).abs() < 1e-5 && (grad - 10.0).abs() < 1e-5);
    let (loss, grad) = at_ratio(3.0, 5.0);
    assert!((loss - 6.0).abs() < 1e-6 && grad == 0.0);
    assert_eq!(at_ratio(3.0, 2.0), at_ratio(0.0, 2.0));
}

/// A trajectory in two sequences weighs as much as one in a single sequence, in every aggregation.
#[test]
fn the_parts_of_a_trajectory_weigh_as_the_whole() {
    let row = |tokens: &[u32], mask: &[bool], advantage: f32| Sample {
        tokens: tokens.to_vec(),
        mask: mask.to_vec(),
        advantage: vec![advantage; tokens.len()],
        old_logprobs: Some(vec![-1.5; tokens.len()]),
        ..Sample::default()
    };
    let two = row(&[1, 2, 3, 1, 2, 4, 5], &[false, false, true, false, false, true, true], 1.3);
    let other = row(&[7, 8, 9], &[false, true, true], -0.8);
    let parts = [two.part(0..3), two.part(3..7), other.clone()];
    assert_eq!(
        (parts[0].trajectory_loss_tokens, parts[1].trajectory_loss_tokens, &parts[1].tokens[..]),
        (3, 3, &[1, 2, 4, 5][..])
    );
    for aggregation in
        [Aggregation::TokenMean, Aggregation::MicroTokenMean, Aggregation::SequenceMean, Aggregation::Constant]
    {
        let config = Grpo { aggregation, ..Grpo::default() };
        let loss = |samples: &[Sample], group: &[Sample]| {
            run(&config, &forest(group, false), group, LossNormalizer::new(samples, 1), &|_, _| -1.2, &|_, _| 0.0)
                .0
                .loss
        };
        let whole = [two.clone(), other.clone()];
        let expected = loss(&whole, &whole);
        assert!(expected != 0.0 && (loss(&parts, &parts) - expected).abs() < 1e-12, "{aggregation:?}");
        if aggregation != Aggregation::MicroTokenMean {
            let apart = loss(&parts, &parts[..1]) + loss(&parts, &parts[1..]);
            assert!((apart - expected).abs() < 1e-12, "{aggregation:?}, in two micro-batches");
        }
    }
}

#[test]
fn a_batch_without_loss_tokens_is_zero() {
    let batch = [Sample { tokens: vec![1, 2], mask: vec![true, false], advantage: vec![1.0; 2], ..Sample::default() }];
    for aggregation in
        [Aggregation::TokenMean, Aggregation::MicroTokenMean, Aggregation::SequenceMean, Aggregation::Constant]
    {
        let config = Grpo { aggregation, ..Grpo::default() };
        let norm = LossNormalizer::new(&batch, 1);
        let (report, grads) = run(&config, &forest(&batch, true), &batch, norm, &|_, _| 0.0, &|_, _| 0.0);
        assert_eq!(report, LossReport::default());
        assert!(grads.is_empty());
    }
}

// ---- episodes to samples ----

/// An episode of two turns of two tokens each, after two tokens of observation each.
fn episode(group: usize, success: bool, valid: [bool; 2], finish: Finish) -> Episode {
    let turn = |from: usize, valid| Turn {
        start: 0,
        observation: "a room".into(),
        action: "look".into(),
        command: Some("look".into()),
        tokens: from..from + 2,
        thought: 0,
        valid,
        refusal: None,
        reward: 0.0,
        progressed: None,
    };
    let last = Turn { reward: f32::from(u8::from(success)), ..turn(6, valid[1]) };
    Episode {
        task: Task { id: format!("task-{group}"), kind: "test".into(), split: Split::Train },
        group,
        sample: 0,
        tokens: (0..8).collect(),
        logprobs: vec![0.0, 0.0, -1.0, -2.0, 0.0, 0.0, -3.0, -4.0],
        turns: vec![turn(2, valid[0]), last],
        finish,
        success,
        seconds: 0.0,
    }
}

fn config(advantage: Scale) -> Config {
    let mut config = Config::default();
    config.grpo.advantage = advantage;
    config.rollout.invalid_reward = -0.25;
    config
}

#[test]
fn only_sampled_tokens_carry_loss() {
    let out = samples(&[episode(0, true, [true; 2], Finish::Won)], &config(Scale::Group));
    assert_eq!(out[0].mask, [false, false, true, true, false, false, true, true]);
    assert_eq!(out[0].old_logprobs.as_deref(), Some(&[0.0, 0.0, -1.0, -2.0, 0.0, 0.0, -3.0, -4.0][..]));
    // A group of one teaches nothing.
    assert_eq!(out[0].advantage, [0.0; 8]);
}

#[test]
fn invalid_turns_count_in_the_return() {
    let episodes = [
        episode(0, true, [false, true], Finish::Won),
        episode(0, false, [true, true], Finish::StepLimit),
        episode(1, false, [true, false], Finish::StepLimit),
        episode(1, false, [true, true], Finish::StepLimit),
    ];
    let out = samples(&episodes, &config(Scale::None));
    // Returns 0.75 and 0, then -0.25 and 0.
    for (sample, want) in out.iter().zip([0.375, -0.375, -0.125, 0.125]) {
        assert_eq!(sample.advantage, [want; 8]);
    }
}

/// An episode that was paid in both of its turns.
fn paid(group: usize, rewards: [f32; 2]) -> Episode {
    let mut episode = episode(group, false, [true; 2], Finish::Lost);
    episode.turns.iter_mut().zip(rewards).for_each(|(turn, reward)| turn.reward = reward);
    episode
}

#[test]
fn a_return_is_what_the_environment_paid() {
    let config = config(Scale::None);
    for (rewards, sum) in [([0.0, 0.5], 0.5), ([0.25, 0.5], 0.75), ([-1.0, 0.5], -0.5), ([1.0, 2.0], 3.0)] {
        assert_eq!(episode_return(&paid(0, rewards), &config), sum);
    }
    // Success alone pays nothing: its environment does.
    assert_eq!(episode_return(&Episode { success: true, ..paid(0, [0.0; 2]) }, &config), 0.0);
    let graded = [paid(0, [0.0, 0.5]), paid(0, [0.25, 0.0]), paid(0, [-0.75, 0.0])];
    let out = samples(&graded, &config);
    for (sample, want) in out.iter().zip([0.5, 0.25, -0.75]) {
        assert_eq!(sample.advantage, [want; 8]);
    }
}

#[test]
fn gigpo_discounts_what_each_step_was_paid() {
    let mut config = config(Scale::None);
    config.grpo.step_advantage = StepAdvantage::Gigpo;
    (config.grpo.step_weight, config.grpo.step_discount) = (1.0, 0.5);
    // All turns are at the same observation: returns 1.0 and 0.5, -0.5 and 1.0; their mean is 0.5.
    let got = of_steps(&[paid(0, [0.75, 0.5]), paid(0, [-1.0, 1.0])], &config);
    assert_eq!(got, [[0.5, 0.0], [-1.0, 0.5]]);
}

#[test]
fn a_failed_environment_leaves_the_group() {
    let failed = || episode(0, false, [true; 2], Finish::EnvFailed("gone".into()));
    let good = [episode(0, true, [true; 2], Finish::Won), episode(0, false, [true; 2], Finish::StepLimit)];
    let played = Played::new(vec![good[0].clone(), failed(), good[1].clone(), failed()]);
    assert_eq!((&played.episodes[..], &played.failed[..]), (&good[..], &[failed(), failed()][..]));
    assert!(samples(&[], &config(Scale::Group)).is_empty());
}

// ---- advantages of single turns ----

/// An episode of turns (observation, what was written, understood), one token each.
fn played(group: usize, success: bool, turns: &[(&str, &str, bool)]) -> Episode {
    let turn = |(i, (observation, action, valid)): (usize, &(&str, &str, bool))| Turn {
        start: 0,
        observation: observation.to_string(),
        action: action.to_string(),
        command: Some(Tag::split(action).map_or(*action, |(_, rest)| rest).trim().into()),
        tokens: 2 * i + 1..2 * i + 2,
        thought: 0,
        valid: *valid,
        refusal: None,
        reward: f32::from(u8::from(success && i + 1 == turns.len())),
        progressed: None,
    };
    let finish = if success { Finish::Won } else { Finish::StepLimit };
    let n = 2 * turns.len();
    Episode {
        tokens: vec![0; n],
        logprobs: vec![0.0; n],
        turns: turns.iter().enumerate().map(turn).collect(),
        finish,
        ..episode(group, success, [true; 2], Finish::Won)
    }
}

/// Advantages of the turns of each episode, less their episode's.
fn of_steps(episodes: &[Episode], config: &Config) -> Vec<Vec<f32>> {
    let plain = Config { grpo: Grpo { step_advantage: StepAdvantage::None, ..config.grpo.clone() }, ..config.clone() };
    let (with, without) = (samples(episodes, config), samples(episodes, &plain));
    let mut all = Vec::new();
    for ((episode, with), without) in episodes.iter().zip(with).zip(without) {
        let more: Vec<f32> = with.advantage.iter().zip(&without.advantage).map(|(a, b)| a - b).collect();
        assert!((0..more.len()).all(|t| with.mask[t] || more[t] == 0.0), "only what the agent wrote");
        all.push(episode.turns.iter().map(|t| more[t.tokens.start]).collect());
    }
    all
}

#[test]
fn gigpo_compares_turns_of_a_group_at_the_same_observation() {
    let mut config = config(Scale::None);
    config.grpo.step_advantage = StepAdvantage::Gigpo;
    (config.grpo.step_weight, config.grpo.step_discount) = (2.0, 0.5);
    let episodes = [
        // Returns 0.25, 0.5, 1.
        played(0, true, &[("start", "a", true), ("hall", "b", true), ("attic", "c", true)]),
        // Returns -0.0625, -0.125, -0.25 (the last turn is invalid), 0.
        played(0, false, &[("start", "a", true), ("hall", "x", true), ("hall", "x", false), ("cellar", "y", true)]),
        // Another group: nothing to compare with.
        played(1, true, &[("start", "a", true)]),
        played(1, true, &[("start", "a", true)]),
    ];
    let start = (0.25 - 0.0625) / 2.0;
    let hall = (0.5 - 0.125 - 0.25) / 3.0;
    let want = [
        vec![2.0 * (0.25 - start), 2.0 * (0.5 - hall), 0.0],
        vec![2.0 * (-0.0625 - start), 2.0 * (-0.125 - hall), 2.0 * (-0.25 - hall), 0.0],
        vec![0.0],
        vec![0.0],
    ];
    let got = of_steps(&episodes, &config);
    for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
        assert!((f64::from(*got) - want).abs() < 1e-6, "{got} and {want}");
    }
}

#[test]
fn tags_are_rewarded_for_being_what_they_say() {
    let turns = |turns: &[(&str, bool)]| {
        let turns: Vec<_> = turns.iter().map(|(text, valid)| ("o", *text, *valid)).collect();
        played(0, true, &turns)
    };
    let rewards = |episode: &Episode, paid| -> Vec<Option<(Tag, f64)>> {
        (0..episode.turns.len()).map(|t| Tag::reward(&episode.turns, t, paid)).collect()
    };
    let episode = turns(&[
        ("<planning> go hall", true),
        ("<explore> open box", true),
        ("<explore> open box", true),
        ("<explore>take key", false),
        ("<reflection> take key", true),
        ("go hall", false),
        ("<reflection> go attic", true),
        ("<reflection> look", true),
        ("<explore> take key", true),
        ("<monitor> look", true),
    ]);
    use Tag::{Explore, Monitor, Planning, Reflection};
    let want = [
        Some((Planning, 1.0)),
        Some((Explore, 1.0)),
        Some((Explore, 0.0)),
        None,
        Some((Reflection, 0.0)),
        None,
        Some((Reflection, 1.0)),
        Some((Reflection, 0.0)),
        Some((Explore, 0.0)),
        Some((Monitor, 0.0)),
    ];
    assert_eq!(rewards(&episode, 1.0), want);
    assert_eq!(rewards(&episode, 0.25)[0], Some((Planning, 0.25)), "a plan earns what the environment paid");

    let mut config = config(Scale::None);
    config.grpo.step_advantage = StepAdvantage::Tags;
    // Explorers of the group: 1, 0, 0; its planners: 1, 0; the only reflection is alone.
    let first =
        turns(&[("<planning> a", true), ("<explore> b", true), ("<explore> b", true), ("<reflection> c", true)]);
    let lost = [("o", "<planning> a", true), ("o", "<explore> a", true), ("o", "b", true)];
    let second = played(0, false, &lost);
    let third = 1.0f32 / 3.0;
    let got = of_steps(&[first, second], &config);
    for (got, want) in got.iter().flatten().zip([0.5, 1.0 - third, -third, 0.0, -0.5, -third, 0.0]) {
        assert!((got - want).abs() < 1e-6, "{got} and {want}");
    }
}
