//! Speed, beside the peer's in the same run: training step, generation, GRPO step on the 3.48 M-parameter model that
//! benches/peers/peer_cpu.py builds too. On a GPU: kernels, the training step, decoding (peers: benches/peers/gpu_peers.py).

pub mod ceilings;
pub mod counters;
mod coupling;
pub mod decode;
pub(crate) mod gcd;
pub(crate) mod gpu_shapes;
pub mod kernels;
mod peer;
pub(crate) mod real;
pub mod step;

pub use coupling::Growth;
pub use peer::PeerError;

use crate::config::{Config, Grpo, Optim};
use crate::device::cpu::{Mat, Product};
use crate::device::{Dtype, Result};
use crate::grpo::{LossNormalizer, Sample};
use crate::model::families::QWEN2;
use crate::model::{Architecture, Model, Params, Policy, SampleRequest};
use crate::ops::advantage::{Scale, advantages};
use crate::ops::philox;
use crate::ops::sampling::SamplingParams;
use crate::train::learner::Learner;
use rayon::prelude::*;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bench {
    /// Cross-entropy forward, backward, clipping and AdamW on 16 sequences of 256 tokens.
    TrainStep,
    /// 128 greedy tokens for each of 64 prompts of 64 tokens.
    Generate,
    /// One GRPO step as TRL's trainer takes it: 8 prompts of 64 tokens, 8 generations of 64 tokens each, one optimizer step.
    GrpoStep,
    /// All cosines of the gradients of 16 sequences of 256 tokens.
    GradientCosine,
    /// 64 prompts of 64 tokens into a KV cache.
    Prefill,
}

impl Bench {
    /// The benchmark's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Bench::TrainStep => "train-step",
            Bench::Generate => "generate",
            Bench::GrpoStep => "grpo-step",
            Bench::GradientCosine => "gradient-cosine",
            Bench::Prefill => "prefill",
        }
    }
}

/// One measurement, and the peer's on the same work.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchReport {
    /// The benchmark.
    pub name: &'static str,
    /// Median wall time of one call.
    pub seconds: f64,
    /// Seconds of the fastest call.
    pub fastest: f64,
    /// Seconds of the slowest call.
    pub slowest: f64,
    /// Tokens a second at the median.
    pub tokens_per_second: f64,
    /// Share of the machine's measured matrix-product rate that the arithmetic of the call amounts to.
    pub gemm_share: f64,
    /// The measured matrix-product rate, GFLOP/s, all cores.
    pub gemm_gflops: f64,
    /// What the peer's scripts measured; empty without a peer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
    /// Of the gradient cosines, at other sizes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub growth: Vec<Growth>,
}

/// A peer's time on the same work in the same run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Peer {
    /// The library, and how it was called.
    pub name: String,
    /// Median seconds of a call.
    pub seconds: f64,
    /// Its time over ours.
    pub ratio: f64,
}

/// The peers' model: hidden 256, 4 layers, 4 heads on 2 kv heads, ffn 704, vocabulary 2048, tied.
pub fn shape() -> Architecture {
    Architecture {
        family: &QWEN2,
        vocab_size: 2048,
        hidden_size: 256,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        intermediate_size: 704,
        max_position_embeddings: 1024,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        rope_scaling: None,
        tie_word_embeddings: true,
    }
}

const CALLS: usize = 9;
/// Why a learner's step has a result.
const ON_CPU: &str = "only a GPU can fail";

/// Runs a benchmark, and with `peer` (a Python) the peer script on the same work. Both report medians after warm-up.
///
/// # Errors
/// If the peer's script cannot be started, fails, or prints no time.
pub fn run(bench: Bench, peer: Option<&Path>) -> Result<BenchReport, PeerError> {
    let gemm_gflops = gemm_rate();
    let (tokens, flops, mut call): (usize, f64, Box<dyn FnMut()>) = match bench {
        Bench::TrainStep => (16 * 256, train_flops(16 * 256, 256), train_step()),
        Bench::Generate => (64 * 128, generate_flops(), generate()),
        Bench::GrpoStep => (64 * 64, grpo_flops(), grpo_step()),
        Bench::GradientCosine => (16 * 256, train_flops(16 * 256, 256), coupling::call()),
        Bench::Prefill => (64 * 64, 64.0 * 64.0 * token_flops(), prefill()),
    };
    call();
    call();
    let mut times: Vec<f64> = (0..CALLS)
        .map(|_| {
            let began = Instant::now();
            call();
            began.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let seconds = times[CALLS / 2];
    let growth = if bench == Bench::GradientCosine { coupling::growth() } else { Vec::new() };
    let peers = match peer {
        Some(python) => peer::run(python, bench)?,
        None => Vec::new(),
    };
    Ok(BenchReport {
        name: bench.name(),
        seconds,
        fastest: times[0],
        slowest: times[CALLS - 1],
        tokens_per_second: tokens as f64 / seconds,
        gemm_share: flops / seconds / 1e9 / gemm_gflops,
        gemm_gflops,
        growth,
        peers: peers.into_iter().map(|(name, t)| Peer { name, seconds: t, ratio: t / seconds }).collect(),
    })
}

/// Best rate of independent 512³ products, one per core at a time, GFLOP/s.
fn gemm_rate() -> f64 {
    const N: usize = 512;
    let tasks = 4 * rayon::current_num_threads();
    let (a, b) = (vec![0.5f32; N * N], vec![0.25f32; N * N]);
    let mut c = vec![0.0f32; tasks * N * N];
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let began = Instant::now();
        let product = Product::new(Dtype::F32, (N, N, N));
        c.par_chunks_mut(N * N).for_each(|c| product.run(c, N, Mat::rows(&a, N), Mat::rows(&b, N)));
        best = best.min(began.elapsed().as_secs_f64());
    }
    (2 * N * N * N * tasks) as f64 / best / 1e9
}

/// Multiply-adds of one token through the matrices (head included), times two.
fn token_flops() -> f64 {
    let c = shape();
    let attention =
        (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim + c.num_attention_heads * c.head_dim;
    let layer = c.hidden_size * (attention + 3 * c.intermediate_size);
    2.0 * (c.num_hidden_layers * layer + c.vocab_size * c.hidden_size) as f64
}

/// Scores and values of one query against `keys` keys, all layers.
fn attention_flops(keys: f64) -> f64 {
    let c = shape();
    4.0 * keys * (c.num_hidden_layers * c.num_attention_heads * c.head_dim) as f64
}

/// Forward and backward: three times the products forward, 3.5 times the attention (its backward recomputes the scores).
fn train_flops(tokens: usize, length: usize) -> f64 {
    tokens as f64 * (3.0 * token_flops() + 3.5 * attention_flops(length as f64 / 2.0))
}

fn generate_flops() -> f64 {
    64.0 * (192.0 * token_flops() + 192.0 * attention_flops(96.0))
}

fn grpo_flops() -> f64 {
    let rollout = (8.0 * 64.0 + 64.0 * 64.0) * token_flops() + 64.0 * 64.0 * attention_flops(96.0);
    rollout + train_flops(8 * 64 + 64 * 64, 128)
}

fn model() -> Model {
    let shape = shape();
    Model::new(shape.clone(), Params::random(&shape, 0))
}

fn tokens(stream: u64, n: usize) -> Vec<u32> {
    (0..n as u64).map(|i| philox::block(7, stream, i)[0] % shape().vocab_size as u32).collect()
}

fn train_step() -> Box<dyn FnMut()> {
    let mut learner = Learner::new(model(), false);
    let sequences: Vec<Vec<u32>> = (0..16).map(|i| tokens(i, 256)).collect();
    let mask = vec![true; 256];
    Box::new(move || {
        let batch: Vec<_> = sequences.iter().map(|s| (&s[..], &mask[..])).collect();
        learner.cross_entropy(&batch).expect(ON_CPU);
        learner.step(&Optim::default(), 1e-3).expect(ON_CPU);
    })
}

fn generate() -> Box<dyn FnMut()> {
    let model = model();
    let prompts: Vec<Vec<u32>> = (0..64).map(|i| tokens(i, 64)).collect();
    Box::new(move || {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        decode(&model, &prompts, 1, 128, &greedy).expect(ON_CPU);
    })
}

fn prefill() -> Box<dyn FnMut()> {
    let model = model();
    let prompts: Vec<Vec<u32>> = (0..64).map(|i| tokens(i, 64)).collect();
    Box::new(move || {
        let mut decoder = model.decoder().expect(ON_CPU);
        let inputs: Vec<_> = prompts.iter().map(|p| (decoder.new_sequence(), &p[..])).collect();
        decoder.append(&inputs).expect(ON_CPU);
    })
}

/// `copies` continuations of `new` tokens of each prompt, with their log-probs; a prompt is computed once.
fn decode(
    model: &dyn Policy,
    prompts: &[Vec<u32>],
    copies: usize,
    new: usize,
    params: &SamplingParams,
) -> Result<Vec<(Vec<u32>, Vec<f32>)>> {
    let mut decoder = model.decoder()?;
    let roots: Vec<_> = prompts.iter().map(|p| (decoder.new_sequence(), &p[..])).collect();
    decoder.append(&roots)?;
    let (mut ids, mut rows) = (Vec::new(), Vec::new());
    for (root, prompt) in roots {
        for copy in 0..copies {
            ids.push(if copy + 1 < copies { decoder.fork(root)? } else { root });
            rows.push((prompt.to_vec(), vec![0.0; prompt.len()]));
        }
    }
    for step in 0..new {
        let requests: Vec<SampleRequest<'_>> = ids
            .iter()
            .zip(&rows)
            .enumerate()
            .map(|(i, (id, (seen, _)))| {
                let uniform = philox::uniform(philox::block(3, i as u64, step as u64)[0]);
                SampleRequest { sequence: *id, seen, uniform }
            })
            .collect();
        let sampled = decoder.sample(&requests, params)?;
        for ((tokens, logprobs), sampled) in rows.iter_mut().zip(sampled) {
            tokens.push(sampled.token);
            logprobs.push(sampled.logprob);
        }
        if step + 1 < new {
            let inputs: Vec<_> = ids.iter().zip(&rows).map(|(s, (t, _))| (*s, &t[t.len() - 1..])).collect();
            decoder.append(&inputs)?;
        }
    }
    Ok(rows)
}

fn grpo_step() -> Box<dyn FnMut()> {
    let mut learner = Learner::new(model(), false);
    let prompts: Vec<Vec<u32>> = (0..8).map(|i| tokens(i, 64)).collect();
    let Config { grpo, optim, .. } = Config::default();
    Box::new(move || {
        let rows = decode(learner.sampler(), &prompts, 8, 64, &SamplingParams::default()).expect(ON_CPU);
        let reward = |tokens: &[u32]| tokens[64..].iter().filter(|t| **t % 2 == 1).count() as f64;
        let rewards: Vec<f64> = rows.iter().map(|(t, _)| reward(t)).collect();
        let advantage = advantages(&rewards, &[8; 8], Scale::Group, 1e-4);
        let samples: Vec<Sample> = rows
            .into_iter()
            .zip(advantage)
            .map(|((tokens, logprobs), a)| Sample {
                mask: (0..tokens.len()).map(|t| t >= 64).collect(),
                advantage: vec![a as f32; tokens.len()],
                old_logprobs: Some(logprobs),
                tokens,
                ..Sample::default()
            })
            .collect();
        learner_step(&mut learner, &grpo, &optim, &samples);
    })
}

fn learner_step(learner: &mut Learner, grpo: &Grpo, optim: &Optim, samples: &[Sample]) {
    learner.backward_policy(grpo, samples, LossNormalizer::new(samples, 1), 1.0, &mut |_, _| {}).expect(ON_CPU);
    learner.step(optim, 1e-4).expect(ON_CPU);
}
