//! The case of sampling: the CPU's tokens for the same random numbers.

use super::{Sampled, SamplingParams, cuda, sample};
use crate::device::Result;
use crate::ops::case::{Case, OpCase, Size, Trial, Work, randoms};
use crate::ops::philox::{block, uniform};
use std::fmt;
use std::iter::repeat;

pub const CASES: &[&dyn Case] = &[&SAMPLE];

const SAMPLE: OpCase<Draw> = OpCase { op: "sampling", pass: "", shapes, run };

/// How far rounding may move a boundary between two tokens on the scale of the uniform number.
const ROUNDING: f32 = 4e-6;

struct Draw {
    rows: usize,
    vocab: usize,
    params: SamplingParams,
}

impl fmt::Display for Draw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Draw { rows, vocab, params } = self;
        let how = if *params == SamplingParams::default() { String::new() } else { format!(" {params:?}") };
        write!(f, "{rows}x{vocab}{how}")
    }
}

/// Each way to draw, and all ways together.
fn settings() -> [SamplingParams; 9] {
    let plain = SamplingParams::default();
    let all = SamplingParams { temperature: 0.7, top_k: 20, top_p: 0.8, min_p: 0.05, repetition_penalty: 1.3 };
    [
        plain,
        SamplingParams { temperature: 0.0, ..plain },
        penalised_greedy(),
        SamplingParams { temperature: 1.7, top_k: 5, ..plain },
        SamplingParams { top_p: 0.9, ..plain },
        SamplingParams { top_p: 0.0, ..plain },
        SamplingParams { min_p: 0.1, ..plain },
        SamplingParams { top_k: 1, ..all },
        all,
    ]
}

fn penalised_greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, repetition_penalty: 1.5, ..SamplingParams::default() }
}

fn shapes(size: Size) -> Vec<Draw> {
    let (sizes, largest) = match size {
        // What is seen of the largest vocabularies takes more shared memory, with what the kernel has by itself, than a block gets
        // unasked.
        Size::Ragged => (vec![(1, 4), (5, 131), (2, 4100)], Some(1 << 18)),
        Size::Model => (vec![(64, 151_936)], None),
        Size::Peers => (vec![(256, 151_936)], None),
        Size::Task => (vec![(8, 151_936)], None),
    };
    let draws = sizes.into_iter().flat_map(|(rows, vocab)| settings().map(|params| Draw { rows, vocab, params }));
    draws.chain(largest.map(|vocab| Draw { rows: 1, vocab, params: penalised_greedy() })).collect()
}

/// Logits have many ties: an eighth is their finest step.
fn run(&Draw { rows, vocab, params }: &Draw, t: &mut Trial<'_>) -> Result<()> {
    let logits: Vec<f32> = randoms(vocab as u64, rows * vocab).iter().map(|x| (16.0 * x).round() / 8.0).collect();
    let numbers: Vec<f32> = (0..rows as u64).map(|r| uniform(block(5, r, 0)[0])).collect();
    let context = |row: usize| -> Vec<u32> {
        (0..2 * row as u64 + 1).map(|i| block(8, row as u64, i / 2)[0] % vocab as u32).collect()
    };
    let contexts: Vec<Vec<u32>> = (0..rows).map(context).collect();
    let draw = |row: usize, u: f32| {
        let mut logits = logits[row * vocab..(row + 1) * vocab].to_vec();
        sample(&mut logits, &contexts[row], &params, u)
    };
    let mut want = Vec::new();
    t.cpu(Work::Bytes(4 * rows * vocab), || {
        want.clear();
        want.extend(numbers.iter().enumerate().map(|(row, u)| draw(row, *u)));
    });
    let Some(gpu) = t.gpu else { return Ok(()) };
    let seen = cuda::Seen::new(gpu, &contexts.iter().map(|c| &c[..]).collect::<Vec<_>>(), vocab)?;
    // What pads a row is larger than any logit.
    let stride = cuda::Logits::stride(vocab);
    let pad = |row: &[f32]| -> Vec<f32> { row.iter().copied().chain(repeat(f32::MAX)).take(stride).collect() };
    let there = cuda::Logits::new(gpu, rows, vocab)?;
    gpu.write(&there.values, &logits.chunks_exact(vocab).flat_map(pad).collect::<Vec<_>>())?;
    let (uniform, token, logprob) = (gpu.tensor(&numbers)?, gpu.uninit::<u32>(rows)?, gpu.uninit::<f32>(rows)?);
    t.cuda(gpu, Work::Bytes(4 * rows * vocab), || {
        cuda::sample(gpu, &there, Some(&seen), &params, &uniform, &token, &logprob)
    })?;
    let found = gpu.read(&token)?.into_iter().zip(gpu.read(&logprob)?);
    for (row, (want, (token, logprob))) in want.into_iter().zip(found).enumerate() {
        compare(t, row, want, Sampled { token, logprob }, |off| draw(row, numbers[row] + off));
    }
    Ok(())
}

/// With the CPU's token at the same number, or at one so close that rounding may tell them apart.
fn compare(t: &mut Trial<'_>, row: usize, want: Sampled, got: Sampled, near: impl Fn(f32) -> Sampled) {
    let same = |want: &Sampled| want.token == got.token;
    let found = Some(want).filter(same).or_else(|| [-ROUNDING, ROUNDING].map(near).into_iter().find(same));
    match found {
        None => t.note(f64::INFINITY, || format!("row {row} drew {}, should be {}", got.token, want.token)),
        Some(want) => {
            let error = f64::from((got.logprob - want.logprob).abs() / (1e-5 * (1.0 + want.logprob.abs())));
            t.note(error, || format!("log-prob of row {row} is {}, should be {}", got.logprob, want.logprob));
        }
    }
}
