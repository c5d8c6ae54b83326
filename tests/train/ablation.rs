//! What GCD is compared with: value heads, isolated ones, PCGrad, the contrastive loss; their gradients and small runs with them.

use crate::common;

use common::numeric::{assert_close, assert_gradient, values, wide};
use common::runs::{left, tiny};
use common::{dense, random_model, tiny_config, tokens};
use std::path::{Path, PathBuf};
use uncouple::agent::Tag;
use uncouple::config::{Config, Decouple, DecoupleMethod, GcdMode, Grpo, Optim, Override, RatioLevel};
use uncouple::forest::Forest;
use uncouple::gcd::Label::{self, Bad, Good};
use uncouple::gcd::contrast::contrast;
use uncouple::gcd::critic::{Classified, classify};
use uncouple::grpo::{LossNormalizer, LossPart, PolicyLoss, Sample};
use uncouple::model::{Model, checkpoint};
use uncouple::ops::pcgrad;
use uncouple::report::metrics::{self, Record};
use uncouple::train::auxiliary::{LabelledAction, learn};
use uncouple::train::critic::Critic;
use uncouple::train::learner::Learner;
use uncouple::train::run_folder::{Existing, RunFolder};
use uncouple::train::{suite, train};

const LABELS: [Label; 5] = [Good, Bad, Bad, Good, Bad];

// ---- the losses, in f64 ----

/// Mean −ln p(label) of a value head `[weight.., bias]` on hidden states `[pairs, width]`.
fn cross_entropy(head: &[f64], hidden: &[f64], labels: &[Label]) -> f64 {
    let (bias, weight) = head.split_last().unwrap();
    let each = hidden.chunks(weight.len()).zip(labels).map(|(h, label)| {
        let logit: f64 = bias + weight.iter().zip(h).map(|(w, h)| w * h).sum::<f64>();
        let good = 1.0 / (1.0 + (-logit).exp());
        -(if *label == Good { good } else { 1.0 - good }).ln()
    });
    each.sum::<f64>() / labels.len() as f64
}

/// The supervised contrastive loss, written out.
fn contrastive(embeddings: &[f64], labels: &[Label], config: &Decouple) -> f64 {
    let n = labels.len();
    let width = embeddings.len() / n;
    let unit = |i: usize| {
        let row = &embeddings[i * width..][..width];
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter().map(|x| x / norm).collect::<Vec<f64>>()
    };
    let likeness = |i: usize, j: usize| {
        let dot: f64 = unit(i).iter().zip(unit(j)).map(|(a, b)| a * b).sum();
        (dot / f64::from(config.temperature)).exp()
    };
    let (mut sum, mut anchors) = (0.0, 0.0);
    for i in 0..n {
        let all: f64 = (0..n).filter(|&j| j != i).map(|j| likeness(i, j)).sum();
        let positives: Vec<usize> = (0..n).filter(|&j| j != i && labels[j] == labels[i]).collect();
        if !positives.is_empty() {
            anchors += 1.0;
            sum -= positives.iter().map(|&p| (likeness(i, p) / all).ln()).sum::<f64>() / positives.len() as f64;
        }
    }
    f64::from(config.weight) * sum / anchors
}

#[test]
fn the_value_heads_loss_and_gradient_are_those_of_f64() {
    let (head, hidden) = (values(1, 8, 1.0), values(2, 35, 1.5));
    let (bias, weight) = head.split_last().unwrap();
    let got = classify(weight, *bias, &hidden, &LABELS, 0.75);
    let (wide_head, wide_hidden) = (wide(&head), wide(&hidden));
    assert!((got.loss - 0.75 * cross_entropy(&wide_head, &wide_hidden, &LABELS)).abs() < 1e-9);
    let d_head: Vec<f64> = got.d_weight.iter().chain([&got.d_bias]).map(|d| f64::from(*d) / 0.75).collect();
    assert_gradient("head", |x| cross_entropy(x, &wide_hidden, &LABELS), &wide_head, &d_head);
    let d_hidden: Vec<f64> = got.d_hidden.iter().map(|d| f64::from(*d) / 0.75).collect();
    assert_gradient("hidden", |x| cross_entropy(&wide_head, x, &LABELS), &wide_hidden, &d_hidden);
    // Certain and wrong, or certain and right: finite.
    let sure = classify(&[100.0], 0.0, &[9.0, 9.0], &[Bad, Good], 1.0);
    assert!((sure.loss - 450.0).abs() < 1e-6 && sure.d_bias == 0.5, "{sure:?}");
    assert_eq!((sure.accuracy.all, sure.accuracy.good, sure.accuracy.bad), (Some(0.5), Some(1.0), Some(0.0)));
    assert_eq!(classify(&[1.0], 0.0, &[], &[], 1.0), Classified { d_weight: vec![0.0], ..Classified::default() });
}

#[test]
fn the_contrastive_loss_and_gradient_are_those_of_f64() {
    let embeddings = values(3, 35, 2.0);
    for labels in [LABELS, [Good, Bad, Bad, Bad, Bad]] {
        for temperature in [0.1, 1.0] {
            let config = Decouple { temperature, weight: 0.4, ..Decouple::default() };
            let (loss, gradient) = contrast(&embeddings, &labels, &config);
            let want = contrastive(&wide(&embeddings), &labels, &config);
            assert!((loss - want).abs() < 1e-6 * want.abs(), "{loss} and {want}");
            assert_gradient("contrast", |x| contrastive(x, &labels, &config), &wide(&embeddings), &wide(&gradient));
        }
    }
    let config = Decouple::default();
    assert_eq!(contrast(&embeddings, &[Good; 5], &config), (0.0, vec![0.0; 35]), "nothing to set against them");
    assert_eq!(contrast(&[], &[], &config), (0.0, vec![]));
    let apart = contrast(&[1.0, 0.0, 1.0, 0.0, -1.0, 0.0], &[Good, Good, Bad], &config).0;
    let mixed = contrast(&[1.0, 0.0, -1.0, 0.0, 1.0, 0.0], &[Good, Good, Bad], &config).0;
    assert!(apart < mixed);
}

// ---- through the model ----

/// Labelled actions that share states; the last two are of one episode.
fn labelled() -> Vec<LabelledAction> {
    let state = tokens(1, 7, 50);
    let action = |tail: u64, from: usize, to: usize, label| {
        let tokens = [&state[..], &tokens(tail, to - 7, 50)].concat();
        LabelledAction { tokens, action: from..to, label }
    };
    vec![
        action(2, 7, 10, Good),
        action(3, 7, 9, Bad),
        action(4, 9, 13, Bad),
        action(5, 7, 11, Good),
        LabelledAction { tokens: tokens(5, 16, 50), action: 12..16, label: Bad },
    ]
}

/// A learner, a value head that is not 0, and the same head `[weight.., bias]`.
fn learner(model: Model) -> (Learner, Critic, Vec<f64>) {
    let width = model.config.hidden_size;
    let mut critic = Critic::new(width);
    critic.accumulate(&Classified { d_weight: values(8, width, 1.0), d_bias: -1.0, ..Classified::default() });
    critic.step(&Optim::default(), 0.2);
    let head = wide(&critic.params().flat);
    assert!(head.iter().all(|w| w.abs() > 0.1), "the head has learnt something");
    (Learner::new(model, false), critic, head)
}

fn config(mode: GcdMode, method: DecoupleMethod) -> Config {
    let mut config = Config::default();
    (config.gcd.mode, config.gcd.lambda) = (mode, 0.6);
    config.decouple = Decouple { method, temperature: 0.5, weight: 0.8 };
    config
}

/// The mean hidden state of tokens `from..to`, in f64.
fn mean(model: &Model, probe: &LabelledAction, from: usize) -> Vec<f64> {
    let rows = dense::hidden(model, &probe.tokens);
    let rows = &rows[from..probe.action.end];
    (0..rows[0].len()).map(|k| rows.iter().map(|row| row[k]).sum::<f64>() / rows.len() as f64).collect()
}

/// The configured losses in f64.
fn losses(config: &Config, model: &Model, head: &[f64], actions: &[LabelledAction]) -> f64 {
    let labels: Vec<Label> = actions.iter().map(|p| p.label).collect();
    let ends: Vec<f64> = actions.iter().flat_map(|p| mean(model, p, p.action.end - 1)).collect();
    let actions: Vec<f64> = actions.iter().flat_map(|p| mean(model, p, p.action.start)).collect();
    let contrast = match config.decouple.method {
        DecoupleMethod::Contrastive => contrastive(&actions, &labels, &config.decouple),
        _ => 0.0,
    };
    let weight = if config.gcd.mode == GcdMode::ValueHead { f64::from(config.gcd.lambda) } else { 0.0 };
    weight * cross_entropy(head, &ends, &labels) + contrast
}

#[test]
fn gradients_through_the_model_are_those_of_finite_differences() {
    let cases = [(GcdMode::ValueHead, DecoupleMethod::None), (GcdMode::Isolated, DecoupleMethod::Contrastive)];
    for (mode, method) in cases {
        let (config, actions) = (config(mode, method), labelled());
        let (mut learner, mut critic, head) = learner(random_model(tiny_config(true, 2), 7));
        learn(&config, &mut learner, Some(&mut critic), &actions).unwrap();
        let model = learner.model().unwrap().into_owned();
        for entry in &model.params.layout.entries {
            let direction = tokens(entry.range.start as u64 + 11, entry.range.len(), 2);
            let shifted = |step: f32| {
                let mut m = model.clone();
                for (i, &s) in entry.range.clone().zip(&direction) {
                    m.params.flat[i] += step * (2.0 * s as f32 - 1.0);
                }
                losses(&config, &m, &head, &actions)
            };
            let step = 1.0f32 / 1024.0;
            let numeric = (shifted(step) - shifted(-step)) / (2.0 * f64::from(step));
            let grads = &learner.grads().unwrap().flat[entry.range.clone()];
            let exact: f64 =
                grads.iter().zip(&direction).map(|(g, &s)| f64::from(*g) * (2.0 * f64::from(s) - 1.0)).sum();
            let scale = grads.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let name = &entry.name;
            assert!((numeric - exact).abs() < 2e-3 * (scale + 1e-2), "{method:?} {name}: {numeric} against {exact}");
        }
    }
}

#[test]
fn micro_batches_of_pairs_change_nothing() {
    let gradient = |micro_tokens| {
        let mut config = config(GcdMode::ValueHead, DecoupleMethod::Contrastive);
        config.grpo.micro_tokens = micro_tokens;
        let (mut learner, mut critic, _) = learner(random_model(tiny_config(true, 2), 7));
        let learned = learn(&config, &mut learner, Some(&mut critic), &labelled()).unwrap();
        (learner.grads().unwrap().flat.clone(), learned.unique_tokens)
    };
    let ((whole, packed), (parts, apart)) = (gradient(1000), gradient(20));
    assert_close("gradient", &parts, &wide(&whole), 1e-5);
    assert!(packed < apart, "one batch shares more than several: {packed} and {apart}");
}

#[test]
fn an_isolated_head_learns_and_leaves_every_shared_gradient_as_it_was() {
    let actions = labelled();
    let (mut learner, mut critic, _) = learner(random_model(tiny_config(true, 2), 7));
    let sample = Sample {
        tokens: actions[0].tokens.clone(),
        mask: vec![true; 10],
        advantage: vec![1.0; 10],
        ..Sample::default()
    };
    let batch = [sample];
    learner.backward_policy(&Grpo::default(), &batch, LossNormalizer::new(&batch, 1), 1.0, &mut |_, _| {}).unwrap();
    let alone = learner.grads().unwrap().into_owned();
    assert!(alone.flat.iter().any(|g| *g != 0.0));
    let mut loss = f64::INFINITY;
    for _ in 0..20 {
        let config = config(GcdMode::Isolated, DecoupleMethod::None);
        let learned = learn(&config, &mut learner, Some(&mut critic), &actions).unwrap();
        assert_eq!(learned.unique_tokens, 0);
        let now = learned.losses[0].1;
        assert!(now < loss, "{now} after {loss}");
        loss = now;
        critic.step(&Optim::default(), 0.01);
    }
    assert!(learner.grads().unwrap().flat.iter().zip(&alone.flat).all(|(a, b)| a.to_bits() == b.to_bits()));
    learn(&config(GcdMode::ValueHead, DecoupleMethod::None), &mut learner, Some(&mut critic), &actions).unwrap();
    assert!(learner.grads().unwrap().flat != alone.flat);
    // What the head reads is what the model computes.
    let ends: Vec<f64> = actions.iter().flat_map(|p| mean(&learner.model().unwrap(), p, p.action.start)).collect();
    let spans: Vec<_> =
        actions.iter().map(|p| uncouple::train::learner::Span { tokens: &p.tokens, span: p.action.clone() }).collect();
    assert_close("mean hidden", &learner.mean_hidden(&spans, 30).unwrap(), &ends, 1e-5);
}

// ---- PCGrad ----

#[test]
fn gradients_that_disagree_are_projected_off_each_other() {
    let mut sum = [0.0, -1.0, 0.0];
    let cosine = pcgrad::combine(&[1.0, 1.0, 0.0], &mut sum).unwrap();
    // p' = (1, 0, 0), n' = (1/2, -1/2, 0).
    assert_eq!(sum, [1.5, -0.5, 0.0]);
    assert!((cosine + 0.5f64.sqrt()).abs() < 1e-12);
    let mut sum = [2.0, 1.0];
    assert!(pcgrad::combine(&[1.0, -1.0], &mut sum).unwrap() > 0.0);
    assert_eq!(sum, [3.0, 0.0], "where they agree they add up");
    let mut sum = [0.0; 2];
    assert_eq!(pcgrad::combine(&[1.0, -1.0], &mut sum), None);
    assert_eq!(sum, [1.0, -1.0]);
    // Long enough for several tasks: the sum never works against either.
    let (p, n) = (values(1, 40_000, 1.0), values(1, 40_000, 1.0).iter().map(|x| 0.1 - x).collect::<Vec<f32>>());
    let mut sum = n.clone();
    assert!(pcgrad::combine(&p, &mut sum).unwrap() < -0.9);
    for g in [&p, &n] {
        let along: f64 = g.iter().zip(&sum).map(|(g, s)| f64::from(*g) * f64::from(*s)).sum();
        assert!(along > 0.0, "{along}");
    }
}

#[test]
fn the_parts_of_the_loss_add_up_to_the_whole() {
    let row = |seed: u64, n: usize, judgment| Sample {
        tokens: tokens(seed, n, 2),
        mask: (0..n).map(|t| t % 3 != 1).collect(),
        advantage: values(seed, n, 1.0),
        old_logprobs: Some(values(seed + 9, n, 0.5).iter().map(|x| x - 1.0).collect()),
        ref_logprobs: Some(values(seed + 5, n, 0.5).iter().map(|x| x - 1.0).collect()),
        judgment,
        ..Sample::default()
    };
    let samples = [row(1, 9, false), row(2, 7, true), row(3, 8, false), row(4, 5, true)];
    let forest = Forest::new(&samples.iter().map(|s| &s.tokens[..]).collect::<Vec<_>>());
    for ratio in [RatioLevel::Token, RatioLevel::Sequence] {
        // Nothing is clipped, so that a difference quotient meets no kink.
        let clip = Grpo { epsilon_low: 0.999, epsilon_high: 1e3, ..Grpo::default() };
        let config = Grpo { ratio, beta: 0.1, entropy_coef: 0.02, ..clip };
        let moved = |part: LossPart, samples: &[Sample], node: usize, step: f32| {
            let norm = LossNormalizer::new(samples, 1).with_lambda(0.5).with_part(part);
            let mut loss = PolicyLoss::new(&config, &forest, samples, norm);
            let mut logprobs = values(7, loss.nodes().len(), 0.4).iter().map(|x| x - 1.0).collect::<Vec<f32>>();
            logprobs[node] += step;
            if loss.needs_logprobs() {
                loss.set_logprobs(&logprobs);
            }
            let grads: Vec<f64> = (0..logprobs.len())
                .flat_map(|i| {
                    let g = loss.token(i, logprobs[i], 1.0);
                    [f64::from(g.logprob), f64::from(g.entropy)]
                })
                .collect();
            (loss.finish().loss, grads)
        };
        let of = |part, samples: &[Sample]| moved(part, samples, 0, 0.0);
        let whole = of(LossPart::All, &samples);
        let parts = [LossPart::Positive, LossPart::Negative, LossPart::Judgments].map(|part| of(part, &samples));
        let sum: f64 = parts.iter().map(|(loss, _)| loss).sum();
        assert!((sum - whole.0).abs() < 1e-9, "{ratio:?}");
        for (i, whole) in whole.1.iter().enumerate() {
            let sum: f64 = parts.iter().map(|(_, grads)| grads[i]).sum();
            assert!((sum - whole).abs() < 1e-6, "{ratio:?} {i}: {sum} and {whole}");
        }
        assert!(parts.iter().all(|(_, grads)| grads.iter().any(|g| *g != 0.0)), "every part has something");
        for node in 0..whole.1.len() / 2 {
            let step = 1.0 / 128.0;
            let loss = |step| moved(LossPart::Negative, &samples, node, step).0;
            let (quotient, exact) = ((loss(step) - loss(-step)) * 64.0, parts[1].1[2 * node]);
            assert!((quotient - exact).abs() < 1e-4, "{ratio:?} {node}: {quotient} and {exact}");
        }
        let bad = samples.clone().map(|s| Sample { advantage: vec![-1.0; s.tokens.len()], judgment: false, ..s });
        let empty = of(LossPart::Positive, &bad);
        assert!(empty.0 == 0.0 && empty.1.iter().all(|g| *g == 0.0), "{ratio:?}: no advantage is positive");
    }
}

// ---- whole runs ----

fn run(dir: &Path, name: &str, set: &[&str]) -> PathBuf {
    resume(dir, name, set, Existing::Refuse)
}

fn resume(dir: &Path, name: &str, set: &[&str], existing: Existing) -> PathBuf {
    let config = tiny(dir, name, &[&["gcd.pairs=6"], set].concat());
    train(config.clone(), &*suite(&config).unwrap(), existing).unwrap_or_else(|e| panic!("{name}: {e}")).folder
}

/// The last checkpoint's file.
fn file(run: &Path, name: &str) -> Vec<u8> {
    let checkpoint = RunFolder::finished_checkpoints(run).unwrap().pop().unwrap().1;
    std::fs::read(checkpoint.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn grpo(run: &Path) -> Vec<Record> {
    metrics::read(run).unwrap().into_iter().filter(|r| r.phase == "grpo").collect()
}

#[test]
fn an_isolated_run_trains_the_policy_bit_for_bit_as_grpo_alone() {
    let dir = tempfile::tempdir().unwrap();
    let off = run(dir.path(), "off", &[]);
    let isolated = run(dir.path(), "isolated", &["gcd.mode=isolated"]);
    let head = run(dir.path(), "head", &["gcd.mode=value-head"]);
    for name in ["model.safetensors", "adamw_m.safetensors", "adamw_v.safetensors"] {
        assert!(file(&isolated, name) == file(&off, name), "{name}");
        assert!(file(&head, name) != file(&off, name), "{name}: a value head's gradient flows into the policy");
    }
    assert!(file(&isolated, "critic_v.safetensors") != file(&head, "critic_m.safetensors"));
    for path in [&isolated, &head] {
        for record in grpo(path) {
            assert!(record.values["gcd/critic_loss"] > 0.0 && (0.0..=1.0).contains(&record.values["gcd/accuracy"]));
        }
        let summary = std::fs::read_to_string(path.join("summary.json")).unwrap();
        assert!(summary.contains("judgment_accuracy"), "{summary}");
        let checkpoint = RunFolder::finished_checkpoints(path).unwrap().pop().unwrap().1;
        checkpoint::load(&checkpoint).expect("still a model directory");
    }
    assert!(left(&off).files.iter().all(|(name, _)| !name.contains("critic")));
}

#[test]
fn runs_with_a_value_head_resume_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let set = |n| ["gcd.mode=value-head", "decouple.method=contrastive", "run.checkpoint_every=1", n];
    let whole = run(dir.path(), "whole", &set("run.iterations=3"));
    run(dir.path(), "a", &set("run.iterations=1"));
    let resumed = resume(dir.path(), "a", &set("run.iterations=3"), Existing::Resume);
    assert!(left(&resumed) == left(&whole));
}

#[test]
fn every_decoupling_trains_with_and_without_gcd() {
    let dir = tempfile::tempdir().unwrap();
    let judged = ["gcd.mode=generate", "gcd.judgments=4", "gcd.max_tokens=24", "sft.steps=80"];
    for (gcd, set) in [("off", &[][..]), ("gcd", &judged[..])] {
        let name = |method| format!("{gcd}-{method}");
        let plain = run(dir.path(), &name("none"), set);
        for (method, metric) in [("pcgrad", "decouple/cosine"), ("contrastive", "decouple/contrastive_loss")] {
            let path = run(
                dir.path(),
                &name(method),
                &[set, &[&format!("decouple.method={method}"), "grpo.micro_tokens=64"]].concat(),
            );
            let records = grpo(&path);
            assert!(records.iter().any(|r| r.values.contains_key(metric)), "{gcd} {method}");
            assert!(records.iter().all(|r| r.values["sampling/sampling_logp_difference/max"] < 1e-3));
            assert!(file(&path, "model.safetensors") != file(&plain, "model.safetensors"), "{gcd} {method}");
        }
        let unweighted = [set, &["decouple.method=contrastive", "decouple.weight=0"]].concat();
        let same = run(dir.path(), &name("unweighted"), &unweighted);
        let norm = |path: &Path| grpo(path)[0].values["grad_norm"];
        assert!((norm(&same) - norm(&plain)).abs() < 1e-5 * norm(&plain));
    }
}

#[test]
fn step_advantages_train() {
    let dir = tempfile::tempdir().unwrap();
    let plain = run(dir.path(), "plain", &[]);
    let gigpo = run(dir.path(), "gigpo", &["grpo.step_advantage=gigpo"]);
    assert!(file(&gigpo, "model.safetensors") != file(&plain, "model.safetensors"));
    let error = Config::load(None, &[Override::parse("grpo.step_advantage=tags").unwrap()]).unwrap_err().to_string();
    assert!(error.contains("set prompt.tags = true"), "{error}");
}

#[test]
fn the_cold_start_teaches_tags_and_their_rewards_train() {
    let dir = tempfile::tempdir().unwrap();
    let tags =
        ["prompt.tags=true", "sft.steps=120", "rollout.max_turn_tokens=20", "env.max_steps=20", "rollout.group_size=8"];
    let with = run(dir.path(), "tags", &[&tags[..], &["grpo.step_advantage=tags"]].concat());
    let without = run(dir.path(), "untold", &tags);
    assert!(file(&with, "model.safetensors") != file(&without, "model.safetensors"));
    let db = rusqlite::Connection::open(with.join("trajectories.sqlite")).unwrap();
    let sql = "select action from turns join episodes on episode = id where phase = 'grpo'";
    let mut statement = db.prepare(sql).unwrap();
    let actions: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    let tagged = actions.iter().filter(|a| Tag::split(a).is_some()).count();
    assert!(2 * tagged > actions.len(), "{tagged} of {}: {actions:?}", actions.len());
    // Judgments and tags together.
    let both = ["gcd.mode=generate", "gcd.judgments=4", "gcd.max_tokens=24", "grpo.step_advantage=tags"];
    run(dir.path(), "both", &[&tags[..], &both].concat());
}
