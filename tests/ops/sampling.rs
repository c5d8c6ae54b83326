//! Sampling against the golden distributions, and draws against the distribution they come from.

use crate::common;

use common::numeric::{values, wide};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use uncouple::ops::philox;
use uncouple::ops::sampling::{Sampled, SamplingParams, penalise, sample, truncate};

const GREEDY: SamplingParams =
    SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 };

fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
    logits.iter().map(|l| (l - max).exp() / sum).collect()
}

fn kept(logits: &[f32], params: &SamplingParams) -> Vec<usize> {
    let mut logits = logits.to_vec();
    truncate(&mut logits, params);
    (0..logits.len()).filter(|i| logits[*i].is_finite()).collect()
}

/// Draws at fixed uniform numbers.
fn draws(logits: &[f32], seen: &[u32], params: &SamplingParams, n: u64) -> impl Iterator<Item = Sampled> {
    (0..n).map(move |i| sample(&mut logits.to_vec(), seen, params, philox::uniform(philox::block(11, 5, i)[0])))
}

/// χ² of the draws against `probs`: a token that cannot be drawn must not be; the rest within 5 standard deviations.
fn assert_follows(what: &str, draws: impl Iterator<Item = Sampled>, probs: &[f64]) {
    let mut counts = vec![0.0; probs.len()];
    draws.for_each(|s| counts[s.token as usize] += 1.0);
    let n: f64 = counts.iter().sum();
    let (mut chi2, mut cells) = (0.0, 0.0);
    // Cells with few expected draws are pooled.
    let (mut rare, mut rare_probs) = (0.0, 0.0);
    for (token, (count, p)) in counts.iter().zip(probs).enumerate() {
        assert!(*p > 0.0 || *count == 0.0, "{what}: drew the dropped token {token}");
        if p * n >= 10.0 {
            chi2 += (count - p * n).powi(2) / (p * n);
            cells += 1.0;
        } else {
            rare += count;
            rare_probs += p;
        }
    }
    if rare_probs * n >= 10.0 {
        chi2 += (rare - rare_probs * n).powi(2) / (rare_probs * n);
        cells += 1.0;
    }
    let freedom: f64 = cells - 1.0;
    assert!(chi2 <= freedom + 5.0 * (2.0 * freedom).sqrt() + 1e-9, "{what}: χ² {chi2} with {freedom} degrees");
}

#[test]
fn golden_cases() {
    for model in ["tiny-tied", "tiny-untied-gqa", "mini-hd64", "mini-hd128"] {
        let dir = format!("{}/tests/fixtures/golden/golden/{model}", env!("CARGO_MANIFEST_DIR"));
        let golden: Value = serde_json::from_slice(&fs::read(format!("{dir}/golden.json")).unwrap()).unwrap();
        let bytes = fs::read(format!("{dir}/golden.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let read = |name: &str| -> Vec<f32> {
            tensors.tensor(name).unwrap().data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let (logits, probs) = (read("sampling.logits"), wide(&read("sampling.probs")));
        let cases = golden["generate"]["sampling_cases"].as_array().unwrap();
        assert_eq!(cases.len() * logits.len(), probs.len());
        for (case, probs) in cases.iter().zip(probs.chunks(logits.len())) {
            let number = |key: &str, off: f64| case[key].as_f64().unwrap_or(off);
            let params = SamplingParams {
                temperature: number("temperature", 1.0) as f32,
                top_k: number("top_k", 0.0) as usize,
                top_p: number("top_p", 1.0) as f32,
                min_p: number("min_p", 0.0) as f32,
                repetition_penalty: 1.0,
            };
            let what = format!("{model} {case}");
            let mut truncated = logits.clone();
            truncate(&mut truncated, &params);
            assert_eq!(truncated.iter().filter(|l| l.is_finite()).count(), number("kept", 0.0) as usize, "{what}");
            for (got, want) in softmax(&wide(&truncated)).iter().zip(probs) {
                assert!((got - want).abs() <= 1e-6 && (*got == 0.0) == (*want == 0.0), "{what}: {got} for {want}");
            }
            if model == "tiny-tied" {
                assert_follows(&what, draws(&logits, &[], &params, 4_000), probs);
            }
        }
    }
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let best = |logits: &[f32]| sample(&mut logits.to_vec(), &[], &GREEDY, 0.99).token;
    assert_eq!(best(&[3.0]), 0);
    assert_eq!(best(&[0.0, 2.0, 1.0, 2.0]), 1);
    assert_eq!(best(&[-5.0, -5.0, -7.0]), 0);
    for n in [16, 257] {
        let logits = values(n as u64, n, 4.0);
        let top = (0..n).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        assert_eq!(best(&logits) as usize, top);
    }
}

#[test]
fn log_prob_is_over_the_whole_vocabulary_before_penalty_and_truncation() {
    let logits = values(3, 257, 6.0);
    let truncated = SamplingParams { temperature: 0.7, top_k: 20, top_p: 0.8, min_p: 0.05, repetition_penalty: 1.3 };
    for (params, temperature) in [
        (SamplingParams::default(), 1.0),
        (SamplingParams { temperature: 1.7, ..Default::default() }, f64::from(1.7f32)),
        (truncated, f64::from(0.7f32)),
        (GREEDY, 1.0),
        (SamplingParams { temperature: 0.0, ..truncated }, 1.0),
    ] {
        let probs = softmax(&logits.iter().map(|l| f64::from(*l) / temperature).collect::<Vec<_>>());
        for s in draws(&logits, &[1, 5, 9], &params, 200) {
            let want = probs[s.token as usize].ln();
            assert!((f64::from(s.logprob) - want).abs() < 1e-5, "{params:?}: {} for {want}", s.logprob);
        }
    }
}

#[test]
fn draws_follow_the_distribution() {
    let logits = values(4, 40, 3.0);
    for temperature in [0.5f32, 1.0, 2.0] {
        let params = SamplingParams { temperature, ..Default::default() };
        let probs = softmax(&logits.iter().map(|l| f64::from(*l / temperature)).collect::<Vec<_>>());
        assert_follows(&format!("temperature {temperature}"), draws(&logits, &[], &params, 50_000), &probs);
    }
}

/// The cumulative distribution is inverted exactly, up to both ends.
#[test]
fn uniform_numbers_map_to_tokens_in_order() {
    let at = |logits: &[f32], u: f32| sample(&mut logits.to_vec(), &[], &SamplingParams::default(), u).token;
    let quarters = [0.0f32; 4];
    for (u, want) in
        [(philox::uniform(0), 0), (0.24, 0), (0.26, 1), (0.51, 2), (0.76, 3), (philox::uniform(u32::MAX), 3)]
    {
        assert_eq!(at(&quarters, u), want, "at {u}");
    }
    assert_eq!(at(&[0.0, -200.0], philox::uniform(u32::MAX)), 0, "a token of probability 0 is never drawn");
    assert_eq!(at(&[-200.0, 0.0], philox::uniform(0)), 1, "a token of probability 0 is never drawn");
}

#[test]
fn repetition_penalty_counts_each_seen_token_once() {
    let mut logits = [2.0f32, -2.0, 0.0, 3.0, -1.0];
    penalise(&mut logits, &[0, 1, 0, 2, 1, 0], 2.0);
    assert_eq!(logits, [1.0, -4.0, 0.0, 3.0, -1.0]);
    penalise(&mut logits, &[3, 4], 1.0);
    assert_eq!(logits, [1.0, -4.0, 0.0, 3.0, -1.0]);

    let greedy = SamplingParams { repetition_penalty: 1.5, ..GREEDY };
    assert_eq!(sample(&mut [2.0, 1.5], &[0], &greedy, 0.5).token, 1);
    assert_eq!(sample(&mut [-1.0, -1.4], &[0], &greedy, 0.5).token, 1);
    let params = SamplingParams { repetition_penalty: 1.5, ..Default::default() };
    let logits = [2.0, -1.0, 0.5, 1.0];
    let penalised = [2.0 / 1.5, -1.5, 0.5, 1.0];
    assert_follows("penalised", draws(&logits, &[0, 1], &params, 20_000), &softmax(&penalised));
}

#[test]
fn truncation_keeps_what_its_definition_says() {
    let logits = [0.1f32, 0.4, 0.2, 0.3].map(f32::ln);
    let d = SamplingParams::default();
    for (params, want) in [
        (d, vec![0, 1, 2, 3]),
        (SamplingParams { top_k: 2, ..d }, vec![1, 3]),
        (SamplingParams { top_k: 9, ..d }, vec![0, 1, 2, 3]),
        // The token that crosses the threshold stays.
        (SamplingParams { top_p: 0.75, ..d }, vec![1, 2, 3]),
        (SamplingParams { top_p: 0.65, ..d }, vec![1, 3]),
        (SamplingParams { top_p: 0.0, ..d }, vec![1]),
        (SamplingParams { min_p: 0.6, ..d }, vec![1, 3]),
        (SamplingParams { min_p: 1.0, ..d }, vec![1]),
        // In order: top-p sees only what top-k left, renormalised (4/7 and 3/7).
        (SamplingParams { top_k: 2, top_p: 0.5, ..d }, vec![1]),
    ] {
        assert_eq!(kept(&logits, &params), want, "{params:?}");
    }
    assert_eq!(kept(&[1.0, 2.0, 2.0, 0.0], &SamplingParams { top_k: 1, ..d }), [1, 2], "ties with the k-th stay");
}
