//! Labels, judgments, their term of the loss, and whole small runs with them.

use crate::common;

use common::runs::{left, tiny};
use std::path::Path;
use uncouple::agent::{Episode, Prompter, Turn};
use uncouple::config::{Aggregation, Config, Disagreement, Gcd, GcdMode, Grpo, LabelSource, Prompt};
use uncouple::env::household::Household;
use uncouple::env::{EnvError, Environment, Split, Suite, Task};
use uncouple::forest::Forest;
use uncouple::gcd::judgment::{
    Accuracy, Judged, Pair, PairDraw, opening, pairs, question, taught_answer, verdict, verdict_rate,
};
use uncouple::gcd::label::{Agreement, JudgeLabels, Label, LabelCounts, Labelled, labels};
use uncouple::gcd::theory;
use uncouple::grpo::{LossNormalizer, PolicyLoss, Sample};
use uncouple::model::families::QWEN2;
use uncouple::model::{Architecture, Model, Params, Tokenizer};
use uncouple::ops::philox::Stream;
use uncouple::ops::sampling::SamplingParams;
use uncouple::report::metrics;
use uncouple::rollout::{Actor, Answer, RolloutSettings};
use uncouple::train::run_folder::Existing;
use uncouple::train::{TrainError, suite, train};

use Label::{Bad, Good};

/// An episode of turns (observation, action, valid, progressed); each turn is two tokens after one of its observation.
fn episode(turns: &[(&str, &str, bool, Option<bool>)]) -> Episode {
    let task = Task { id: "t".into(), kind: "t".into(), split: Split::Train };
    let mut episode = Episode::new(task, 0, 0);
    for (i, (observation, action, valid, progressed)) in turns.iter().enumerate() {
        episode.tokens.extend([100, i as u32, i as u32 % 2 + 50]);
        episode.turns.push(Turn {
            start: 0,
            observation: observation.to_string(),
            action: action.to_string(),
            command: Some(action.trim().to_string()),
            tokens: 3 * i + 1..3 * i + 3,
            thought: 0,
            valid: *valid,
            refusal: None,
            reward: 0.0,
            progressed: *progressed,
        });
    }
    episode.logprobs = vec![-0.5; episode.tokens.len()];
    episode
}

fn by_loop(observations: &[&str], cycle: u32) -> Vec<bool> {
    let turns: Vec<_> = observations.iter().enumerate().map(|(i, o)| (*o, format!("do {i}"))).collect();
    let turns: Vec<_> = turns.iter().map(|(o, a)| (*o, &a[..], true, None)).collect();
    let config = Gcd { labels: vec![LabelSource::Loop], cycle, ..Gcd::default() };
    labels(&episode(&turns), 0, &JudgeLabels::new(), &config).iter().map(|l| *l == Some(Bad)).collect()
}

#[test]
fn loop_finds_every_kind_of_loop_and_nothing_else() {
    let config = Gcd { labels: vec![LabelSource::Loop], ..Gcd::default() };
    let of = |turns: &[_]| labels(&episode(turns), 0, &JudgeLabels::new(), &config);
    // The same action in the same observation again; an invalid command.
    let turns = [("a", "x", true, None), ("b", "x", true, None), ("c", "y", false, None), ("a", " x ", true, None)];
    assert_eq!(of(&turns), [None, None, Some(Bad), Some(Bad)]);
    // Period 1: the command changed nothing.
    assert_eq!(by_loop(&["a", "a", "b"], 4), [true, false, false]);
    // Going back shows nothing new only the second time.
    assert_eq!(by_loop(&["a", "b", "a", "b", "c"], 4), [false, false, true, false, false]);
    // Period 3, once a whole round has shown nothing new, as far as the longest cycle allows.
    let round = ["a", "b", "c", "a", "b", "c", "a", "d"];
    assert_eq!(by_loop(&round, 3), [false, false, false, false, true, true, false, false]);
    assert_eq!(by_loop(&round, 2), [false; 8]);
    assert_eq!(of(&[]), []);
}

#[test]
fn sources_are_combined_as_configured() {
    let turns = [
        ("a", "x", true, Some(true)),
        ("a", "x", true, Some(true)),
        ("b", "y", false, Some(false)),
        ("c", "z", false, None),
        ("d", "z", true, None),
    ];
    let of = |labels_of: &[LabelSource], disagreement| {
        let config = Gcd { labels: labels_of.to_vec(), disagreement, ..Gcd::default() };
        labels(&episode(&turns), 0, &JudgeLabels::from([((0, 4), Good), ((1, 0), Bad)]), &config)
    };
    let (l, o) = (LabelSource::Loop, LabelSource::Oracle);
    assert_eq!(of(&[o], Disagreement::First), [Some(Good), Some(Good), Some(Bad), None, None]);
    assert_eq!(of(&[l, o], Disagreement::First), [Some(Bad), Some(Bad), Some(Bad), Some(Bad), None]);
    assert_eq!(of(&[o, l], Disagreement::First), [Some(Good), Some(Good), Some(Bad), Some(Bad), None]);
    for order in [[l, o], [o, l]] {
        assert_eq!(of(&order, Disagreement::Unknown), [None, None, Some(Bad), Some(Bad), None]);
    }
    let j = LabelSource::Judge;
    assert_eq!(of(&[l, j], Disagreement::First)[3..], [Some(Bad), Some(Good)]);
    let agreement = Agreement::of_loop([&episode(&turns)], &Gcd::default());
    assert_eq!(agreement, Agreement { both: 1, by_cheap: 3, by_oracle: 1 });
    assert_eq!((agreement.precision(), agreement.recall()), (Some(1.0 / 3.0), Some(1.0)));
    assert_eq!(Agreement::default().precision(), None);
}

#[test]
fn verdicts_are_read_strictly() {
    for label in [Good, Bad] {
        assert_eq!(verdict(&taught_answer("go shelf 1", label)), Some(label));
    }
    for text in [
        "",
        "good",
        "Verdict: good",
        "\nVerdict: good",
        " \nVerdict: bad",
        "I would.\nVerdict: Good",
        "I would.\nVerdict: good.",
        "I would.\nVerdict: good\n",
        "I would. Verdict: good",
        "I would.\nverdict: good",
        "Verdict: bad\nVerdict: good",
        "I would.\nVerdict: good\nVerdict: bad",
        "I would.\nVerdict: ",
    ] {
        assert_eq!(verdict(text), None, "{text:?}");
    }
}

#[test]
fn a_verdict_in_a_turn_is_judging_that_leaks_into_acting() {
    let turns = [
        ("a", "put apple 1.\nVerdict: bad", false, None),
        ("a", "go shelf 1", true, None),
        ("a", "look. verdict:good", true, None),
        ("a", "read the verdict", true, None),
    ];
    assert_eq!(verdict_rate(&[episode(&turns)]), 0.5);
    assert_eq!((verdict_rate(&[episode(&turns[1..2])]), verdict_rate(&[])), (0.0, 0.0));
}

fn prompter() -> Prompter {
    let texts: Vec<String> = (0..40).map(|i| format!("You see a shelf {i}. go shelf. Was it right?")).collect();
    Prompter::new(Tokenizer::train(&texts, 300).unwrap(), &Prompt::default()).unwrap()
}

/// `good` and `bad` turns in one episode, all different.
fn mixed(good: usize, bad: usize) -> Episode {
    let names: Vec<String> = (0..good + bad).map(|i| format!("place {i}")).collect();
    let turns: Vec<_> = names.iter().enumerate().map(|(i, n)| (&n[..], "go", true, Some(i < good))).collect();
    episode(&turns)
}

fn generate() -> Config {
    let mut config = Config::default();
    config.gcd.mode = GcdMode::Generate;
    config
}

fn drawn(episodes: &[Episode], prompter: &Prompter, config: &Config, draw: PairDraw) -> (Vec<Pair>, LabelCounts) {
    pairs(Labelled { episodes, judge_labels: &JudgeLabels::new() }, prompter, config, draw).unwrap()
}

#[test]
fn pairs_are_balanced_where_labels_allow_and_drawn_by_the_seed() {
    let (config, prompter) = (generate(), prompter());
    let draw = |episodes: &[Episode], count, seed| {
        drawn(episodes, &prompter, &config, PairDraw { count, context: 1024, seed, stream: 0 })
    };
    let split = |good, bad, count| {
        let (pairs, counts) = draw(&[mixed(good, bad)], count, 1);
        assert_eq!(counts, LabelCounts { good, bad, unknown: 0 });
        let good = pairs.iter().filter(|p| p.label == Good).count();
        (good, pairs.len() - good)
    };
    assert_eq!(split(20, 20, 10), (5, 5));
    assert_eq!(split(3, 20, 10), (3, 7));
    assert_eq!(split(20, 2, 10), (8, 2));
    assert_eq!(split(0, 20, 10), (0, 10));
    assert_eq!(split(2, 3, 10), (2, 3));
    let both = [mixed(9, 9), mixed(4, 4)];
    assert_eq!(draw(&both, 6, 1).0, draw(&both, 6, 1).0);
    assert_ne!(draw(&both, 6, 1).0, draw(&both, 6, 2).0);
    // The second episode begins as the first: nothing is judged twice. In the order of the episodes.
    let all = draw(&both, 100, 1).0;
    assert_eq!(all.len(), 18);
    assert!(all.is_sorted_by_key(|p| (p.episode, p.turn)));
    // What leaves no room for an answer is not judged.
    assert!(drawn(&both, &prompter, &config, PairDraw { count: 10, context: 40, seed: 1, stream: 0 }).0.is_empty());
}

#[test]
fn a_judgment_goes_on_where_the_judged_turn_ended() {
    let (config, prompter) = (generate(), prompter());
    let mut ended = mixed(1, 1);
    ended.tokens[2] = prompter.end();
    let draw = PairDraw { count: 9, context: 1024, seed: 1, stream: 0 };
    let all = drawn(&[ended.clone()], &prompter, &config, draw).0;
    let encode = |text: &str| prompter.tokenizer().encode(text).unwrap();
    let format = config.prompt.format;
    // Not by the question alone is a judgment told from a command.
    assert!(!opening(format).is_empty());
    let asked = [encode(&format!("{}<|im_start|>", question(format))), encode(opening(format))].concat();
    assert_eq!(all[0].prompt, [&ended.tokens[..3], &asked].concat());
    assert_eq!(all[1].prompt, [&ended.tokens[..6], &[prompter.end()], &asked].concat(), "an unfinished turn is closed");
}

/// Pairs of which `right[i]` of 4 judgments are right.
fn judged(right: &[(Label, usize)]) -> Judged {
    let pair = |(i, (label, _)): (usize, &(Label, usize))| Pair {
        episode: i,
        turn: 0,
        label: *label,
        prompt: vec![1, 2, 3 + i as u32],
    };
    let answer = |k: usize| Answer { tokens: vec![9, k as u32], logprobs: vec![-1.0, -2.0], ended: true };
    let wrong = |k: usize, label| (k == 3).then_some(if label == Good { Bad } else { Good });
    let of = |(label, right): &(Label, usize)| {
        (0..4).map(|k| (answer(k), if k < *right { Some(*label) } else { wrong(k, *label) })).collect()
    };
    let judgments = right.iter().map(of).collect();
    Judged { counts: LabelCounts::default(), pairs: right.iter().enumerate().map(pair).collect(), judgments }
}

#[test]
fn rewards_become_advantages_within_a_pair() {
    let mut config = generate();
    config.grpo.advantage = uncouple::ops::advantage::Scale::None;
    config.gcd.baseline = uncouple::config::Baseline::Pair;
    let judged = judged(&[(Good, 1), (Bad, 4), (Bad, 3)]);
    let samples = judged.samples(&config);
    let advantages: Vec<f32> = samples.iter().map(|s| s.advantage[0]).collect();
    let expected = [0.75, -0.25, -0.25, -0.25, 0.0, 0.0, 0.0, 0.0, 0.25, 0.25, 0.25, -0.75];
    assert_eq!(advantages, expected);
    let first = &samples[0];
    assert_eq!((first.episode, &first.tokens[..], first.judgment), (0, &[1, 2, 3, 9, 0][..], true));
    assert_eq!(first.mask, [false, false, false, true, true]);
    assert_eq!(first.old_logprobs, Some(vec![0.0, 0.0, 0.0, -1.0, -2.0]));
    let expected = Accuracy {
        all: Some(8.0 / 12.0),
        good: Some(0.25),
        bad: Some(7.0 / 8.0),
        // Of the wrong judgments only the fourth of a pair has a verdict.
        unparsable: Some(2.0 / 12.0),
    };
    assert_eq!(judged.accuracy(), expected);
    assert_eq!(Judged::default().accuracy(), Accuracy::default());
}

#[test]
fn a_policy_that_calls_everything_bad_learns_better_only_from_the_whole_batch() {
    let mut config = generate();
    config.grpo.advantage = uncouple::ops::advantage::Scale::None;
    let judged = judged(&[(Good, 0), (Bad, 4), (Good, 0), (Bad, 4)]);
    for (baseline, [good, bad]) in
        [(uncouple::config::Baseline::Pair, [0.0, 0.0]), (uncouple::config::Baseline::Batch, [-0.5, 0.5])]
    {
        config.gcd.baseline = baseline;
        let advantages: Vec<f32> = judged.samples(&config).iter().map(|s| s.advantage[0]).collect();
        let expected: Vec<f32> = [good, bad, good, bad].iter().flat_map(|a| [*a; 4]).collect();
        assert_eq!(advantages, expected, "{baseline:?}");
    }
}

/// Samples over four tokens, with random advantages and log-probs; judgments share their trajectory's first tokens.
fn batch() -> Vec<Sample> {
    let row = |tokens: &[u32], from: usize, advantage: f32, judgment| Sample {
        tokens: tokens.to_vec(),
        mask: (0..tokens.len()).map(|t| t >= from).collect(),
        advantage: vec![advantage; tokens.len()],
        old_logprobs: Some((0..tokens.len()).map(|t| -1.0 - 0.1 * t as f32).collect()),
        ref_logprobs: Some((0..tokens.len()).map(|t| -1.2 + 0.05 * t as f32).collect()),
        judgment,
        ..Sample::default()
    };
    vec![
        row(&[0, 1, 2, 3], 1, 0.7, false),
        row(&[0, 1, 2, 1, 1], 3, -1.0, true),
        row(&[0, 1, 2, 1, 2, 3], 3, 1.0, true),
        row(&[0, 1, 3], 2, -0.4, false),
        row(&[0, 1, 3, 2, 0, 1, 0], 5, 0.5, true),
    ]
}

/// Loss of a tabular model, log p(token | parent token) = log softmax(table[parent]); with its gradient by the table.
fn tabular(config: &Grpo, samples: &[Sample], norm: LossNormalizer, table: &[f64]) -> (f64, Vec<f64>) {
    let forest = Forest::new(&samples.iter().map(|s| &s.tokens[..]).collect::<Vec<_>>());
    let mut loss = PolicyLoss::new(config, &forest, samples, norm);
    let nodes = loss.nodes().to_vec();
    let probabilities = |node: u32| {
        let parent = forest.tokens[forest.parent[node as usize] as usize] as usize;
        let row = &table[4 * parent..4 * parent + 4];
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        (parent, row.iter().map(|x| x.exp() / sum).collect::<Vec<f64>>())
    };
    let mut grad = vec![0.0; 16];
    for (i, &node) in nodes.iter().enumerate() {
        let (parent, p) = probabilities(node);
        let token = forest.tokens[node as usize] as usize;
        let d = loss.token(i, p[token].ln() as f32, 0.0);
        for k in 0..4 {
            grad[4 * parent + k] += f64::from(d.logprob) * (f64::from(u8::from(k == token)) - p[k]);
        }
    }
    (loss.finish().loss, grad)
}

const AGGREGATIONS: [Aggregation; 4] =
    [Aggregation::TokenMean, Aggregation::MicroTokenMean, Aggregation::SequenceMean, Aggregation::Constant];

#[test]
fn the_loss_is_grpo_plus_lambda_gcd() {
    let samples = batch();
    let table: Vec<f64> = (0..16).map(|i| (i * 7 % 5) as f64 * 0.3).collect();
    for aggregation in AGGREGATIONS {
        let config = Grpo { aggregation, beta: 0.1, ..Grpo::default() };
        let part = |judgment| -> Vec<Sample> { samples.iter().filter(|s| s.judgment == judgment).cloned().collect() };
        let alone = |part: &[Sample]| tabular(&config, part, LossNormalizer::new(part, 1), &table);
        let (policy, gcd) = (alone(&part(false)), alone(&part(true)));
        for lambda in [0.0f32, 0.5, 1.0] {
            let norm = LossNormalizer::new(&samples, 1).with_lambda(lambda);
            let (loss, grad) = tabular(&config, &samples, norm, &table);
            let sum = |a: f64, b: f64| a + f64::from(lambda) * b;
            assert!((loss - sum(policy.0, gcd.0)).abs() < 1e-6, "{aggregation:?} {lambda}");
            for (g, (a, b)) in grad.iter().zip(policy.1.iter().zip(&gcd.1)) {
                assert!((g - sum(*a, *b)).abs() < 1e-6, "{aggregation:?} {lambda}");
            }
        }
    }
}

#[test]
fn the_gradient_of_the_combined_loss_is_that_of_finite_differences() {
    let samples = batch();
    let table: Vec<f64> = (0..16).map(|i| (i * 5 % 7) as f64 * 0.2).collect();
    for aggregation in AGGREGATIONS {
        let config = Grpo { aggregation, beta: 0.1, ..Grpo::default() };
        let norm = LossNormalizer::new(&samples, 1).with_lambda(0.7);
        let (_, grad) = tabular(&config, &samples, norm, &table);
        for i in 0..16 {
            let at = |step: f64| {
                let mut moved = table.clone();
                moved[i] += step;
                tabular(&config, &samples, norm, &moved).0
            };
            let step = 1e-2;
            // Log-probs pass through f32, hence the wide step, made exact to fourth order.
            let difference = (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step);
            assert!((difference - grad[i]).abs() < 3e-5, "{aggregation:?} {i}: {difference} and {}", grad[i]);
        }
    }
}

#[test]
fn answers_do_not_depend_on_how_many_are_written_at_once() {
    let prompter = prompter();
    let config = Architecture {
        family: &QWEN2,
        vocab_size: prompter.tokenizer().vocab_size(),
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
        intermediate_size: 48,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        rope_scaling: None,
        tie_word_embeddings: true,
    };
    let model = Model::new(config.clone(), Params::random(&config, 3));
    let prompts: Vec<Vec<u32>> = (1..6).map(|i| (0..7 * i).map(|t| t * i % 256).collect()).collect();
    let settings = |max_live, stream| RolloutSettings {
        sampling: SamplingParams::default(),
        max_steps: 1,
        max_turn_tokens: 9,
        max_episode_tokens: 0,
        max_live,
        seed: 5,
        stream,
        distances: false,
    };
    let write = |max_live, stream| {
        Actor::new(&model, &prompter, settings(max_live, stream), &|| false).answers(&prompts, 3).unwrap()
    };
    let all = write(100, Stream::Rollout(0));
    assert_eq!((all.len(), all[4].len()), (5, 3));
    assert!(all.iter().flatten().all(|a| a.ended || a.tokens.len() == 9));
    assert!(all[0][0] != all[0][1], "answers to one prompt differ");
    let tokens = |all: &[Vec<Answer>]| all.iter().flatten().map(|a| a.tokens.clone()).collect::<Vec<_>>();
    assert_eq!(tokens(&write(6, Stream::Rollout(0))), tokens(&all));
    assert_eq!(tokens(&write(1, Stream::Rollout(0))), tokens(&all));
    assert_ne!(tokens(&write(100, Stream::Rollout(1))), tokens(&all));
}

#[test]
fn the_simulated_advantage_of_a_flawed_action_follows_the_theory() {
    for r in [0.3, 1.0] {
        let points = theory::curve(r, 10, 7);
        assert_eq!(points.len(), 11);
        for p in &points {
            assert!((p.simulated - p.expected).abs() <= 4.0 * p.error + 1e-12, "r {r}: {p:?}");
            assert!(p.error < 2e-3 && p.expected <= 0.0);
        }
        assert_eq!(points.iter().min_by(|a, b| a.expected.total_cmp(&b.expected)).unwrap().q, 0.5);
        assert_eq!((points[0].simulated, theory::expected(1.0, r)), (0.0, 0.0));
    }
}

// ---- whole runs ----

/// A tiny run with GCD; wide enough that a judgment can be written and is learnt in the cold start.
fn tiny_gcd(dir: &Path, name: &str, set: &[&str]) -> Config {
    let gcd = ["gcd.mode=generate", "gcd.pairs=6", "gcd.judgments=4", "gcd.max_tokens=24", "sft.steps=80"];
    tiny(dir, name, &[&gcd[..], set].concat())
}

fn run(config: &Config, existing: Existing) -> Result<std::path::PathBuf, TrainError> {
    train(config.clone(), &*suite(config).unwrap(), existing).map(|outcome| outcome.folder)
}

#[test]
fn a_run_judges_learns_and_reports() {
    let dir = tempfile::tempdir().unwrap();
    let path = run(&tiny_gcd(dir.path(), "a", &[]), Existing::Refuse).unwrap_or_else(|e| panic!("{e}"));
    let records = metrics::read(&path).unwrap();
    let grpo: Vec<_> = records.iter().filter(|r| r.phase == "grpo").collect();
    for name in ["gcd/accuracy", "gcd/unparsable", "gcd/labels/good", "gcd/labels/bad", "seconds/gcd_share"] {
        assert!(grpo.iter().all(|r| r.values.contains_key(name)), "{name}");
    }
    for record in &grpo {
        let of = |name: &str| record.values[name];
        let turns = of("gcd/labels/good") + of("gcd/labels/bad") + of("gcd/labels/unknown");
        assert_eq!(turns, of("episode_length") * 8.0, "every turn is good, bad or unknown");
        assert!(of("gcd/pairs") <= 6.0 && (0.0..1.0).contains(&of("seconds/gcd_share")));
        assert!(of("sampling/sampling_logp_difference/max") < 1e-3, "judgments are scored as they were sampled");
    }
    assert!(grpo.iter().any(|r| r.values["gcd/unparsable"] < 1.0), "the cold start teaches the form of a verdict");
    let summary = std::fs::read_to_string(path.join("summary.json")).unwrap();
    let accuracy = serde_json::from_str::<serde_json::Value>(&summary).unwrap()["judgment_accuracy"].as_f64().unwrap();
    assert_eq!(records.last().unwrap().values["judgment_accuracy"], accuracy);

    let same = run(&tiny_gcd(dir.path(), "b", &[]), Existing::Refuse).unwrap();
    assert!(left(&same) == left(&path), "the same seed gives the same run");
    let free = run(&tiny_gcd(dir.path(), "c", &["gcd.lambda=0"]), Existing::Refuse).unwrap();
    assert!(left(&free).files != left(&path).files, "judgments are learnt from");
}

#[test]
fn a_resumed_run_with_gcd_goes_on_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let set = |n| ["grpo.beta=0.1", "run.checkpoint_every=1", n];
    let whole = run(&tiny_gcd(dir.path(), "whole", &set("run.iterations=2")), Existing::Refuse).unwrap();
    run(&tiny_gcd(dir.path(), "a", &set("run.iterations=1")), Existing::Refuse).unwrap();
    let resumed = run(&tiny_gcd(dir.path(), "a", &set("run.iterations=2")), Existing::Resume).unwrap();
    assert!(left(&resumed) == left(&whole));
}

#[test]
fn without_weight_the_trajectories_learn_as_if_nothing_were_judged() {
    let dir = tempfile::tempdir().unwrap();
    // Without a cold start of their own, judgments change neither the tokenizer nor the first weights.
    let set = ["gcd.cold_start=0", "gcd.lambda=0", "sft.steps=40"];
    let judged = run(&tiny_gcd(dir.path(), "a", &set), Existing::Refuse).unwrap();
    let off = run(&tiny_gcd(dir.path(), "b", &[&set[..], &["gcd.mode=off"]].concat()), Existing::Refuse).unwrap();
    let norm = |path: &Path| {
        let records = metrics::read(path).unwrap();
        records.iter().find(|r| r.phase == "grpo").map(|r| r.values["grad_norm"]).unwrap()
    };
    assert!((norm(&judged) - norm(&off)).abs() < 1e-5 * norm(&off), "{} and {}", norm(&judged), norm(&off));
}

/// Household games, but one training task is a held-out one.
struct Leaky(Household, u64);

impl Suite for Leaky {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        let held_out = split == Split::Train && index == self.1;
        if held_out { self.0.task(Split::L2, 0) } else { self.0.task(split, index) }
    }
    fn len(&self, split: Split) -> Option<u64> {
        self.0.len(split)
    }
    fn open_for_training(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        self.0.open_for_training(task)
    }
    fn open(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        self.0.open(task)
    }
}

#[test]
fn the_split_guard_refuses_held_out_games_in_lessons_and_judgments() {
    let dir = tempfile::tempdir().unwrap();
    for (name, index) in [("cold", 3), ("judged", 6)] {
        let config = tiny_gcd(dir.path(), name, &[]);
        let error =
            train(config, &Leaky(Household::new(0), index), Existing::Refuse).err().expect("refused").to_string();
        assert!(error.contains("split guard refuses") && error.contains("held out for L2"), "{error}");
    }
}
