//! Greedy decoding, the repetition penalty, stopping, and the distributions that sampling draws from.

use super::echo;
use super::inputs::{Inputs, NEW_TOKENS};
use super::tensors::Tensors;
use crate::model::{KvCache, Model};
use crate::ops::sampling::{self, SamplingParams};
use serde_json::{Value, json};

const PENALTY: f32 = 1.1;

pub fn compute(model: &Model, inputs: &Inputs, raw: &Value, tensors: &mut Tensors) -> Value {
    let g = &inputs.generate;
    let greedy = decode(model, &g.prompts, 1.0);
    let penalised = decode(model, &g.prompts, PENALTY);
    let stopped = stop(&greedy.tokens, &g.eos_ids_for_stop_case, inputs.forward.pad_id);

    let mut cache = KvCache::new(model);
    let id = cache.new_sequence();
    let hidden = model.append(&mut cache, &[(id, &g.prompts[g.sampling_prompt])]);
    let logits = model.next_logits(&cache, &hidden, false);
    let vocab = logits.len();
    let (mut probs, mut cases) = (Vec::new(), Vec::new());
    for (case, raw) in g.sampling_cases.iter().zip(raw["sampling_cases"].as_array().into_iter().flatten()) {
        let params = SamplingParams {
            temperature: case.temperature,
            top_k: case.top_k,
            top_p: case.top_p,
            min_p: case.min_p,
            repetition_penalty: 1.0,
        };
        let mut kept = logits.clone();
        sampling::truncate(&mut kept, &params);
        let mut echoed = echo(raw, &["temperature", "top_k", "top_p", "min_p"]);
        echoed.insert("kept".into(), json!(kept.iter().filter(|l| l.is_finite()).count()));
        cases.push(Value::from(echoed));
        probs.extend(softmax(&kept));
    }
    tensors.insert_f32("sampling.logits", &[vocab], logits);
    tensors.insert_f32("sampling.probs", &[g.sampling_cases.len(), vocab], probs);

    let mut json = echo(raw, &["prompts"]);
    json.insert("new_tokens_greedy".into(), json!(greedy.tokens));
    json.insert("min_top1_top2_gap".into(), json!(greedy.gap));
    json.insert(format!("new_tokens_repetition_penalty_{PENALTY}"), json!(penalised.tokens));
    json.insert("repetition_penalty_min_gap".into(), json!(penalised.gap));
    json.extend(echo(raw, &["eos_ids_for_stop_case"]));
    json.insert("new_tokens_stop_case".into(), json!(stopped));
    json.extend(echo(raw, &["sampling_prompt"]));
    json.insert("sampling_cases".into(), cases.into());
    json.into()
}

struct Decoded {
    tokens: Vec<Vec<u32>>,
    /// Smallest distance between the two best logits of any step.
    gap: f32,
}

/// Greedy decoding of all prompts as one batch, each in its own sequence of the cache.
fn decode(model: &Model, prompts: &[Vec<u32>], penalty: f32) -> Decoded {
    let mut cache = KvCache::new(model);
    let ids: Vec<_> = prompts.iter().map(|_| cache.new_sequence()).collect();
    let mut sequences = prompts.to_vec();
    let mut fed = vec![0; prompts.len()];
    let mut gap = f32::INFINITY;
    for _ in 0..NEW_TOKENS {
        let inputs: Vec<_> = ids.iter().zip(&sequences).zip(&fed).map(|((s, q), f)| (*s, &q[*f..])).collect();
        let hidden = model.append(&mut cache, &inputs);
        fed = sequences.iter().map(Vec::len).collect();
        let mut logits = model.next_logits(&cache, &hidden, false);
        for (sequence, row) in sequences.iter_mut().zip(logits.chunks_exact_mut(model.config.vocab_size)) {
            sampling::penalise(row, sequence, penalty);
            let (best, runner_up) = top_two(row);
            gap = gap.min(row[best] - row[runner_up]);
            sequence.push(best as u32);
        }
    }
    let tokens = sequences.iter().zip(prompts).map(|(s, p)| s[p.len()..].to_vec()).collect();
    Decoded { tokens, gap }
}

/// Rows end with their first end token and are filled up with the pad id to the longest row.
fn stop(rows: &[Vec<u32>], eos: &[u32], pad: u32) -> Vec<Vec<u32>> {
    let ends: Vec<usize> =
        rows.iter().map(|r| r.iter().position(|t| eos.contains(t)).map_or(r.len(), |at| at + 1)).collect();
    let longest = ends.iter().copied().max().unwrap_or(0);
    let fill = |(row, end): (&Vec<u32>, &usize)| (0..longest).map(|i| if i < *end { row[i] } else { pad }).collect();
    rows.iter().zip(&ends).map(fill).collect()
}

fn top_two(row: &[f32]) -> (usize, usize) {
    let (mut best, mut second) = if row[1] > row[0] { (1, 0) } else { (0, 1) };
    for i in 2..row.len() {
        if row[i] > row[best] {
            (best, second) = (i, best);
        } else if row[i] > row[second] {
            second = i;
        }
    }
    (best, second)
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|l| f64::from(l - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| (w / sum) as f32).collect()
}
