//! Adapters on the emulated device against those on the CPU.

use crate::common;
use crate::common::numeric::{relative, values};
use crate::pair::{pair, samples, sequences};

use half::bf16;
use uncouple::config::{Grpo, LORA_TARGETS, Lora, Optim};
use uncouple::coupling::StateAction;
use uncouple::coupling::gram::cosines;
use uncouple::forest::{Forest, ROOT};
use uncouple::grpo::LossNormalizer;
use uncouple::model::families::{FAMILIES, QWEN2};
use uncouple::model::{Adapter, Model, Params, Policy, SampleRequest, SavedActivations};
use uncouple::ops::sampling::SamplingParams;
use uncouple::train::learner::Learner;

/// Rounding to bf16 after every op, a few of them a layer.
const NOISE: f64 = 0.01;

fn lora(targets: &[&str]) -> Lora {
    Lora { rank: 8, alpha: 12.0, targets: targets.iter().map(|target| target.to_string()).collect() }
}

/// With a B that is not 0, of numbers that bf16 holds.
fn adapted(model: Model, lora: &Lora) -> Model {
    let mut adapter = Adapter::random(&model.config, lora, 5);
    let noise = values(17, adapter.params.flat.len(), 0.1);
    let sums = adapter.params.flat.iter_mut().zip(noise);
    sums.for_each(|(w, noise)| *w = bf16::from_f32(*w + noise).to_f32());
    model.with_adapter(adapter)
}

#[test]
fn gradients_of_every_family_are_those_of_the_cpu() {
    for family in FAMILIES {
        for (targets, recompute) in [(&LORA_TARGETS[..], false), (&["v_proj", "up_proj", "down_proj"][..], true)] {
            let model = adapted(common::narrow_of(family, true), &lora(targets));
            let all = sequences();
            let masks: Vec<Vec<bool>> = all.iter().map(|s| vec![true; s.len()]).collect();
            let batch: Vec<(&[u32], &[bool])> = all.iter().zip(&masks).map(|(s, m)| (&s[..], &m[..])).collect();
            let [cpu, gpu] = pair(&model, recompute).map(|mut learner| {
                let loss = learner.cross_entropy(&batch).unwrap();
                (loss, learner.take_grads().unwrap())
            });
            let name = family.model_type;
            assert!((cpu.0 - gpu.0).abs() < NOISE, "{name}: losses {} and {}", cpu.0, gpu.0);
            assert_eq!(gpu.1.layout, cpu.1.layout);
            for entry in &cpu.1.layout.entries {
                let of = |params: &Params| params.flat[entry.range.clone()].to_vec();
                let error = relative(&of(&gpu.1), &of(&cpu.1));
                assert!(error < 3.0 * NOISE, "{name}, {}: {error}", entry.name);
            }
        }
    }
}

#[test]
fn grpo_steps_move_the_adapter_alone() {
    let model = adapted(common::narrow(true), &lora(&LORA_TARGETS));
    let (samples, optim, grpo) = (samples(), Optim::default(), Grpo::default());
    let mut learners = pair(&model, true);
    // AdamW's first step has the gradient's sign, so that what rounding makes of a small gradient counts fully in the second loss.
    for (step, tolerance) in [1e-3, NOISE].into_iter().enumerate() {
        let [cpu, gpu] = learners.each_mut().map(|learner| {
            let norm = LossNormalizer::new(&samples, 1);
            let (report, _) = learner.backward_policy(&grpo, &samples, norm, 0.8, &mut |_, _| {}).unwrap();
            (report.loss, learner.step(&optim, 1e-3).unwrap())
        });
        assert!((cpu.0 - gpu.0).abs() < tolerance, "loss of step {step}: {} and {}", cpu.0, gpu.0);
        let (a, b) = (cpu.1.grad_norm, gpu.1.grad_norm);
        assert!((a - b).abs() <= 0.03 * a && !gpu.1.skipped, "norm of step {step}: {a} and {b}");
    }
    let before = model.adapter.as_ref().unwrap().params.flat.clone();
    let moved = learners.each_ref().map(|learner| {
        let after = learner.export().unwrap().params.into_owned();
        after.flat.iter().zip(&before).map(|(a, b)| a - b).collect::<Vec<f32>>()
    });
    let error = relative(&moved[1], &moved[0]);
    assert!(error < 0.25, "what two steps moved differs by {error}");
    // The weights themselves are those that came to the device, and the whole model comes back with its adapter.
    let back = learners[1].model().unwrap().into_owned();
    assert!(back.params == model.params);
    assert!(back.adapter.unwrap().params == *learners[1].export().unwrap().params);
}

#[test]
fn another_adapter_scores_and_the_own_one_comes_back() {
    let model = adapted(common::narrow(true), &lora(&LORA_TARGETS));
    let fresh = Adapter::random(&model.config, &lora(&LORA_TARGETS), 1).params;
    let (forest, plain) = (Forest::new(&sequences()), common::narrow(true));
    let nodes: Vec<u32> = (0..forest.len() as u32).filter(|&n| forest.parent[n as usize] != ROOT).collect();
    let base = Learner::new(plain, false).logprobs(&forest, &nodes, 1.0).unwrap().0;
    for mut learner in pair(&model, false) {
        let own = learner.logprobs(&forest, &nodes, 1.0).unwrap().0;
        let mut beside = Vec::new();
        let scored = learner.score_beside(&fresh, &mut |scorer| {
            scorer.forward(&forest, SavedActivations::Nothing)?;
            beside = scorer.logprobs(&forest, &nodes, 1.0)?.0;
            Ok(())
        });
        scored.unwrap();
        assert!(relative(&beside, &base) < NOISE, "a fresh adapter adds nothing: that is the base");
        assert!(relative(&own, &base) > 2.0 * NOISE, "the adapter of this test does");
        assert!(learner.logprobs(&forest, &nodes, 1.0).unwrap().0 == own);
    }
}

#[test]
fn tokens_are_drawn_as_on_the_cpu_and_graphs_follow_the_optimizer() {
    let model = adapted(common::narrow_of(&QWEN2, true), &lora(&LORA_TARGETS));
    let mut learners = pair(&model, false);
    // The log-probs of tokens that both lists have, mean distance.
    let apart = |a: &[(u32, f32)], b: &[(u32, f32)]| {
        let same: Vec<f32> = a.iter().zip(b).filter(|(a, b)| a.0 == b.0).map(|(a, b)| (a.1 - b.1).abs()).collect();
        assert!(same.len() + 5 >= a.len(), "{} of {} tokens are the same", same.len(), a.len());
        same.iter().sum::<f32>() / same.len() as f32
    };
    let mut before: Option<Vec<(u32, f32)>> = None;
    for round in 0..2 {
        let [cpu, gpu] = learners.each_mut().map(|learner| {
            let drawn = draw(learner.sampler());
            let norm = LossNormalizer::new(&samples(), 1);
            learner.backward_policy(&Grpo::default(), &samples(), norm, 1.0, &mut |_, _| {}).unwrap();
            learner.step(&Optim::default(), 0.005).unwrap();
            drawn
        });
        let off = apart(&cpu, &gpu);
        assert!(off < 0.03, "round {round}: log-probs are {off} apart");
        if let Some(before) = before.replace(gpu.clone()) {
            let moved = before.iter().zip(&gpu).map(|(a, b)| (a.1 - b.1).abs()).sum::<f32>() / gpu.len() as f32;
            assert!(moved > 3.0 * off, "the step moved log-probs by {moved}, the CPU's are {off} apart");
        }
    }
}

/// Tokens and log-probs after a prompt and after one token more.
fn draw(policy: &dyn Policy) -> Vec<(u32, f32)> {
    let mut decoder = policy.decoder().unwrap();
    let ids = [decoder.new_sequence(), decoder.new_sequence()];
    let mut drawn = Vec::new();
    for step in 0..2u32 {
        let prompt: Vec<u32> = if step == 0 { (0..30).collect() } else { vec![7] };
        decoder.append(&[(ids[0], &prompt), (ids[1], &[11 + step])]).unwrap();
        for i in 0..10 {
            let uniform = (i as f32 + 0.5) / 10.0;
            let requests = ids.map(|sequence| SampleRequest { sequence, seen: &[], uniform });
            let sampled = decoder.sample(&requests, &SamplingParams::default()).unwrap();
            drawn.extend(sampled.iter().map(|s| (s.token, s.logprob)));
        }
    }
    drawn
}

#[test]
fn cosines_of_adapters_gradients_are_those_of_the_cpu() {
    let sample = |i: u32, length: u32| {
        let tokens = (0..length).map(|at| if at < 3 { at } else { (7 * at + 13 * i + at * at * i) % 96 }).collect();
        StateAction { tokens, action: 3 + i as usize }
    };
    let samples: Vec<StateAction> = [40, 17, 70, 9, 23].into_iter().zip(1..).map(|(n, i)| sample(i, n)).collect();
    for targets in [&LORA_TARGETS[..], &["k_proj", "up_proj"]] {
        let model = adapted(common::narrow(true), &lora(targets));
        let [cpu, gpu] = pair(&model, true).map(|learner| learner.grams(&samples).unwrap());
        assert_eq!(gpu.tensors.len(), 2 * 2 * targets.len());
        assert!(gpu.tensors.iter().zip(&cpu.tensors).all(|(g, c)| g.name == c.name && c.name.contains("lora_")));
        let of = |grams: &uncouple::coupling::Grams| cosines(&grams.sum(|_| true), samples.len());
        let furthest = of(&gpu).iter().zip(of(&cpu)).map(|(g, c)| (g - c).abs()).fold(0.0, f64::max);
        assert!(furthest < 2.0 * NOISE, "{targets:?}: cosines off by {furthest}");
    }
}
