//! Sampling: repetition penalty, temperature, top-k, top-p, min-p (Hugging Face's definitions, in that order), then one draw by
//! inverting the cumulative distribution at a uniform number (see [`super::philox`]).

pub(crate) mod case;

use crate::device::cpu::{exp, simd};
use std::cmp::Ordering;

/// How a token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep only the k likeliest tokens (0: all).
    pub top_k: usize,
    /// Drop the least likely tokens whose probabilities add up to at most 1 − top_p (1: none).
    pub top_p: f32,
    /// Drop tokens less likely than min_p times the likeliest (0: none).
    pub min_p: f32,
    /// Divide the positive logits of tokens already seen by this, multiply the negative ones (1: off).
    pub repetition_penalty: f32,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// A drawn token and its log-prob under softmax(logits / temperature) over the whole vocabulary (temperature 1 when greedy):
/// the quantity that training recomputes, before penalty and truncation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Its log-prob, in nats.
    pub logprob: f32,
}

/// Draws from `logits` `[vocab]` (used as scratch). `seen` are the tokens of the sequence so far, `uniform` is in (0, 1).
pub fn sample(logits: &mut [f32], seen: &[u32], params: &SamplingParams, uniform: f32) -> Sampled {
    let scale = if params.temperature > 0.0 { 1.0 / params.temperature } else { 1.0 };
    let max = max(logits);
    let log_sum = weights(logits, max, scale).iter().map(|w| f64::from(*w)).sum::<f64>().ln() as f32;
    let logprob = |l: f32| (l - max) * scale - log_sum;
    let plain = logits.to_vec();
    penalise(logits, seen, params.repetition_penalty);
    let token = if params.temperature > 0.0 {
        truncate(logits, params);
        draw(logits, uniform)
    } else {
        argmax(logits)
    };
    Sampled { token: token as u32, logprob: logprob(plain[token]) }
}

/// Hugging Face's repetition penalty: each token of `seen` counts once.
pub fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = seen.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        let l = &mut logits[token as usize];
        *l = if *l > 0.0 { *l / penalty } else { *l * penalty };
    }
}

/// Divides by the temperature and sets every dropped logit to −∞. At least one token stays.
pub fn truncate(logits: &mut [f32], params: &SamplingParams) {
    logits.iter_mut().for_each(|l| *l /= params.temperature);
    if params.top_k > 0 && params.top_k < logits.len() {
        let mut sorted = logits.to_vec();
        let (_, kth, _) = sorted.select_nth_unstable_by(params.top_k - 1, |a, b| descending(*a, *b));
        let kth = *kth;
        drop_where(logits, |l| l < kth);
    }
    if params.top_p < 1.0 {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| descending(logits[b], logits[a]));
        let (max, mut cumulative) = (max(logits), 0.0);
        let total: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
        for &i in &order[..order.len() - 1] {
            cumulative += f64::from(logits[i] - max).exp() / total;
            if cumulative > 1.0 - f64::from(params.top_p) {
                break;
            }
            logits[i] = f32::NEG_INFINITY;
        }
    }
    if params.min_p > 0.0 {
        let floor = max(logits) + params.min_p.ln();
        drop_where(logits, |l| l < floor);
    }
}

/// The token at which the cumulative probability of softmax(logits) passes `uniform`.
fn draw(logits: &[f32], uniform: f32) -> usize {
    let weights = weights(logits, max(logits), 1.0);
    let target = f64::from(uniform) * weights.iter().map(|w| f64::from(*w)).sum::<f64>();
    let (mut cumulative, mut last) = (0.0, 0);
    for (i, w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        cumulative += f64::from(*w);
        last = i;
        if cumulative > target {
            break;
        }
    }
    last
}

/// exp((logit − max) · scale) of every token.
fn weights(logits: &[f32], max: f32, scale: f32) -> Vec<f32> {
    let mut weights = logits.to_vec();
    simd(
        #[inline(always)]
        || weights.iter_mut().for_each(|w| *w = exp((*w - max) * scale)),
    );
    weights
}

/// The first of the largest logits.
fn argmax(logits: &[f32]) -> usize {
    let max = max(logits);
    logits.iter().position(|l| *l == max).unwrap_or(0)
}

fn drop_where(logits: &mut [f32], drop: impl Fn(f32) -> bool) {
    logits.iter_mut().filter(|l| drop(**l)).for_each(|l| *l = f32::NEG_INFINITY);
}

fn max(logits: &[f32]) -> f32 {
    simd(
        #[inline(always)]
        || logits.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a }),
    )
}

fn descending(a: f32, b: f32) -> Ordering {
    b.total_cmp(&a)
}

/// On a GPU.
pub mod cuda {
    use super::SamplingParams;
    use crate::device::{Arg, Dtype, Gpu, Launch, Matmul, Operand, Packed, Result, Slice, Tensor, Unpacked, expect};
    use bytemuck::{Pod, Zeroable};
    use half::bf16;

    /// Room for rows of `vocab` logits, each padded to whole chunks of 16 bytes.
    pub struct Logits {
        /// The logits.
        pub values: Tensor<f32>,
        room: usize,
        vocab: usize,
    }

    impl Logits {
        /// That nobody has computed yet.
        ///
        /// # Errors
        /// If there is too little device memory.
        pub fn new(gpu: &Gpu, room: usize, vocab: usize) -> Result<Logits> {
            Ok(Logits { values: gpu.uninit(room * Logits::stride(vocab))?, room, vocab })
        }

        /// Most rows.
        pub fn room(&self) -> usize {
            self.room
        }

        /// Elements from one row to the next.
        pub fn stride(vocab: usize) -> usize {
            vocab.next_multiple_of(4)
        }

        /// `hidden` `[rows, width]` times the transpose of the head `[vocab, width]`; no more rows than there is room for.
        ///
        /// # Errors
        /// If the sizes do not fit together, or the product is refused.
        pub fn compute(&self, gpu: &Gpu, hidden: &Slice<bf16>, head: &Slice<bf16>, width: usize) -> Result<()> {
            let (m, n, stride) = (hidden.len() / width.max(1), self.vocab, Logits::stride(self.vocab));
            let fits = m <= self.room && [hidden.len(), head.len()] == [m * width, n * width];
            expect("logits", fits, || {
                let (inputs, weights, room) = (hidden.len(), head.len(), self.room);
                format!("{inputs} inputs and {weights} weights in rows of {width} for at most {room} rows of {n}")
            })?;
            let matrix = |address: u64, dtype: Dtype, stride: usize| Operand {
                address,
                dtype,
                stride,
                transposed: false,
                batch_stride: 0,
            };
            let a = matrix(hidden.address(), Dtype::Bf16, width);
            let b = Operand { transposed: true, ..matrix(head.address(), Dtype::Bf16, width) };
            let c = matrix(self.values.address(), Dtype::F32, stride);
            gpu.matmul(&Matmul { m, n, k: width, batch: 1, alpha: 1.0, beta: 0.0, a, b, c, bias: None })
        }
    }

    /// The tokens of each row's sequence so far, on the device: what the repetition penalty reads.
    pub struct Seen {
        tokens: Tensor<u32>,
        start: Tensor<u32>,
    }

    impl Seen {
        /// Refuses a token outside of the vocabulary.
        ///
        /// # Errors
        /// If a token is outside of the vocabulary, or there is too little device memory.
        pub fn new(gpu: &Gpu, rows: &[&[u32]], vocab: usize) -> Result<Seen> {
            let mut packed = Packed::default();
            let seen = Seen::pack(&mut packed, rows, vocab)?;
            Ok(seen(&mut packed.upload(gpu)?))
        }

        /// The same beside other lists.
        ///
        /// # Errors
        /// If a token is outside of the vocabulary.
        pub fn pack(
            packed: &mut Packed,
            rows: &[&[u32]],
            vocab: usize,
        ) -> Result<impl FnOnce(&mut Unpacked) -> Seen + use<>> {
            let tokens = rows.concat();
            let largest = tokens.iter().copied().max().unwrap_or(0) as usize;
            expect("sampling", tokens.is_empty() || largest < vocab, || {
                format!("token {largest} of a vocabulary of {vocab}")
            })?;
            let mut start = vec![0u32];
            start.extend(rows.iter().scan(0, |sum, row| {
                *sum += row.len() as u32;
                Some(*sum)
            }));
            let (tokens, start) = (packed.add(&tokens), packed.add(&start));
            Ok(move |on: &mut Unpacked| Seen { tokens: on.take(tokens), start: on.take(start) })
        }
    }

    /// As the kernel reads it.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    struct Params {
        temperature: f32,
        penalty: f32,
        top_k: i32,
        top_p: f32,
        ln_min_p: f32,
    }

    /// [`super::sample`] for a row of `logits` at each number of `uniform`: tokens and their log-probs, as many. A penalty needs `seen`.
    ///
    /// # Errors
    /// If the sizes do not fit together, a penalty has no `seen`, or the launch fails.
    pub fn sample(
        gpu: &Gpu,
        logits: &Logits,
        seen: Option<&Seen>,
        params: &SamplingParams,
        uniform: &Slice<f32>,
        token: &Slice<u32>,
        logprob: &Slice<f32>,
    ) -> Result<()> {
        let (rows, vocab, penalised) = (uniform.len(), logits.vocab, params.repetition_penalty != 1.0);
        let (lengths, known) = ([uniform.len(), token.len(), logprob.len()], seen.map_or(0, |s| s.start.len() - 1));
        let fits = lengths == [rows; 3] && rows <= logits.room && (!penalised || known == rows);
        expect("sampling", fits, || {
            let (room, penalty) = (logits.room, params.repetition_penalty);
            format!(
                "{lengths:?} numbers, tokens and log-probs for at most {room} rows; penalty {penalty} with {known} sequences"
            )
        })?;
        let as_read = Params {
            temperature: params.temperature,
            penalty: params.repetition_penalty,
            top_k: i32::try_from(params.top_k).unwrap_or(0),
            top_p: params.top_p,
            ln_min_p: params.min_p.ln(),
        };
        let [tokens, start] = seen.map_or([Arg::NULL; 2], |s| [s.tokens.arg(), s.start.arg()]);
        let mut args = vec![logits.values.arg(), tokens, start, uniform.arg(), token.arg(), logprob.arg()];
        args.extend([vocab, Logits::stride(vocab)].map(|n| Arg::from(n as i32)));
        args.push(Arg::from(as_read));
        // A bit for each token that was seen.
        let shared = if penalised { 4 * vocab.div_ceil(32) as u32 } else { 0 };
        let (kernel, grid, block) = ("sampling_sample_f32", [rows as u32, 1, 1], [1024, 1, 1]);
        gpu.launch(Launch { kernel, grid, block, shared, args: &args })
    }
}
