//! The check of sampling: the CPU's tokens for the same random numbers.

use super::{Probe, Size, randoms};
use crate::bench::ceilings::Work;
use crate::device::Result;
use crate::ops::philox::{self, block};
use crate::ops::sampling::{SamplingParams, cuda, sample};
use std::iter::repeat;

/// How far rounding may move a boundary between two tokens on the scale of the uniform number.
const ROUNDING: f32 = 4e-6;

pub fn draws(p: &mut Probe) -> Result<()> {
    let plain = SamplingParams::default();
    let all = SamplingParams { temperature: 0.7, top_k: 20, top_p: 0.8, min_p: 0.05, repetition_penalty: 1.3 };
    let settings = [
        plain,
        SamplingParams { temperature: 0.0, ..plain },
        SamplingParams { temperature: 0.0, repetition_penalty: 1.5, ..plain },
        SamplingParams { temperature: 1.7, top_k: 5, ..plain },
        SamplingParams { top_p: 0.9, ..plain },
        SamplingParams { top_p: 0.0, ..plain },
        SamplingParams { min_p: 0.1, ..plain },
        SamplingParams { top_k: 1, ..all },
        all,
    ];
    let mut shapes = vec![(1, 4), (5, 131), (2, 4100)];
    if p.size == Size::Full {
        shapes.push((64, 151_936));
    }
    for (rows, vocab) in shapes {
        for params in &settings {
            draw(p, rows, vocab, params)?;
        }
    }
    // What is seen of the largest vocabularies takes more shared memory, with what the kernel has by itself, than a block gets unasked.
    draw(p, 1, 1 << 18, &SamplingParams { temperature: 0.0, repetition_penalty: 1.5, ..plain })
}

/// Logits have many ties: an eighth is their finest step.
fn draw(p: &mut Probe, rows: usize, vocab: usize, params: &SamplingParams) -> Result<()> {
    let gpu = p.gpu;
    let what = format!("{rows} rows of {vocab}, {params:?}");
    let logits: Vec<f32> = randoms(vocab as u64, rows * vocab).iter().map(|x| (16.0 * x).round() / 8.0).collect();
    let uniform: Vec<f32> = (0..rows as u64).map(|r| philox::uniform(block(5, r, 0)[0])).collect();
    let context = |row: usize| -> Vec<u32> {
        (0..2 * row as u64 + 1).map(|i| block(8, row as u64, i / 2)[0] % vocab as u32).collect()
    };
    let contexts: Vec<Vec<u32>> = (0..rows).map(context).collect();
    let seen = cuda::Seen::new(gpu, &contexts.iter().map(|c| &c[..]).collect::<Vec<_>>(), vocab)?;
    // What pads a row is larger than any logit.
    let stride = cuda::Logits::stride(vocab);
    let pad = |row: &[f32]| -> Vec<f32> { row.iter().copied().chain(repeat(f32::MAX)).take(stride).collect() };
    let there = cuda::Logits::new(gpu, rows, vocab)?;
    gpu.write(&there.values, &logits.chunks_exact(vocab).flat_map(pad).collect::<Vec<_>>())?;
    let (numbers, token, logprob) = (gpu.tensor(&uniform)?, gpu.uninit::<u32>(rows)?, gpu.uninit::<f32>(rows)?);
    p.time(Work::Bytes(4 * rows * vocab), || {
        cuda::sample(gpu, &there, Some(&seen), params, &numbers, &token, &logprob)
    })?;
    let (token, logprob) = (gpu.read(&token)?, gpu.read(&logprob)?);
    for (row, logits) in logits.chunks_exact(vocab).enumerate() {
        let u = uniform[row];
        let at = |u: f32| sample(&mut logits.to_vec(), &contexts[row], params, u);
        // The CPU's token at the same number, or at one so close that rounding may tell them apart.
        let want = at(u);
        let near = || [at(u - ROUNDING), at(u + ROUNDING)].into_iter().find(|s| s.token == token[row]);
        match if want.token == token[row] { Some(want) } else { near() } {
            None => p.note(f64::INFINITY, || {
                format!("{what}: row {row} drew {} at {u}, should be {}", token[row], want.token)
            }),
            Some(want) => {
                let (got, want) = (logprob[row], want.logprob);
                p.note(f64::from(got - want).abs() / f64::from(1e-5 * (1.0 + want.abs())), || {
                    format!("{what}: log-prob of row {row} is {got}, should be {want}")
                });
            }
        }
    }
    Ok(())
}
