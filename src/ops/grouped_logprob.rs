//! Grouped log-prob: the head's matrix product, log-softmax, gather, entropy, loss gradient and both gradients of the head, in
//! one pass over chunks of rows. `[tokens, vocab]` logits never exist.
//!
//! With l = h Wᵀ / T, p = softmax(l) and H = −Σ p ln p: ∂logp_c/∂l_v = 1[v = c] − p_v and ∂H/∂l_v = −p_v (ln p_v + H).

use super::{linear, residual};
use crate::device::cpu::{Mat, exp, gemm, simd};
use rayon::prelude::*;

/// Logits held at a time, elements.
const CHUNK_LOGITS: usize = 8 << 20;
/// Rows of a chunk: fewer waste the matrix product that forms dW, more the cache.
const CHUNK_ROWS: std::ops::RangeInclusive<usize> = 64..=1024;
/// Rows of one task.
const ROWS: usize = 256;
/// Vocabulary entries of one dW task.
const TILE: usize = 512;

/// Gradient of the loss with respect to one scored token's log-prob and to the entropy of its distribution.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TokenGrad {
    pub logprob: f32,
    pub entropy: f32,
}

/// A token to score: `token` as the successor of hidden state `row`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub row: u32,
    pub token: u32,
}

/// The head `[vocab, hidden]` and what it reads.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    pub weight: &'a [f32],
    /// `[rows, hidden]`
    pub hidden: &'a [f32],
    pub width: usize,
    pub temperature: f32,
}

/// Gradients that the backward pass adds to.
pub struct HeadGrads<'a> {
    /// `[vocab, hidden]`, or empty where it is not wanted.
    pub weight: &'a mut [f32],
    /// `[rows, hidden]`
    pub hidden: &'a mut [f32],
}

/// Log-prob and entropy (nats) of each target, in the order given.
pub fn forward(head: Head<'_>, targets: &[Target]) -> (Vec<f32>, Vec<f32>) {
    let (mut logprob, mut entropy) = (vec![0.0; targets.len()], vec![0.0; targets.len()]);
    run(head, targets, None, &mut |i, lp, h| {
        (logprob[i], entropy[i]) = (lp, h);
        TokenGrad::default()
    });
    (logprob, entropy)
}

/// Calls `loss(i, logprob, entropy)` once for each target, serially, in a fixed order (by row), and adds the gradients.
pub fn forward_backward(
    head: Head<'_>,
    targets: &[Target],
    grads: HeadGrads<'_>,
    loss: &mut dyn FnMut(usize, f32, f32) -> TokenGrad,
) {
    run(head, targets, Some(grads), loss)
}

/// One row of a chunk: its targets are `order[first .. first + count]`.
#[derive(Clone, Copy, Default)]
struct Row {
    row: usize,
    first: usize,
    count: usize,
    entropy: f32,
}

fn run(
    head: Head<'_>,
    targets: &[Target],
    mut grads: Option<HeadGrads<'_>>,
    loss: &mut dyn FnMut(usize, f32, f32) -> TokenGrad,
) {
    let width = head.width;
    let vocab = head.weight.len() / width;
    let mut order: Vec<usize> = (0..targets.len()).collect();
    order.sort_by_key(|&i| targets[i].row);
    let mut rows: Vec<Row> = Vec::new();
    for (at, &i) in order.iter().enumerate() {
        match rows.last_mut() {
            Some(last) if last.row == targets[i].row as usize => last.count += 1,
            _ => rows.push(Row { row: targets[i].row as usize, first: at, count: 1, entropy: 0.0 }),
        }
    }
    let chunk_rows = (CHUNK_LOGITS / vocab).clamp(*CHUNK_ROWS.start(), *CHUNK_ROWS.end());
    let (mut logits, mut hidden) = (Vec::new(), Vec::new());
    for rows in rows.chunks_mut(chunk_rows) {
        let scored = rows[0].first..rows[rows.len() - 1].first + rows[rows.len() - 1].count;
        let order = &order[scored.clone()];
        let mut logprob = vec![0.0f32; order.len()];
        logits.resize(rows.len() * vocab, 0.0f32);
        hidden.resize(rows.len() * width, 0.0f32);

        let mut tasks = Vec::new();
        let mut out = &mut logprob[..];
        for ((rows, logits), hidden) in
            rows.chunks_mut(ROWS).zip(logits.chunks_mut(ROWS * vocab)).zip(hidden.chunks_mut(ROWS * width))
        {
            let (own, rest) = std::mem::take(&mut out).split_at_mut(rows.iter().map(|r| r.count).sum());
            out = rest;
            tasks.push((rows, logits, hidden, own));
        }
        tasks.into_par_iter().for_each(|(rows, logits, hidden, mut logprob)| {
            for (r, h) in rows.iter().zip(hidden.chunks_exact_mut(width)) {
                h.copy_from_slice(&head.hidden[r.row * width..][..width]);
            }
            let shape = (rows.len(), vocab, width);
            let w = Mat::transposed(head.weight, width);
            gemm(shape, logits, vocab, false, 1.0 / head.temperature, Mat::rows(hidden, width), w);
            for (r, l) in rows.iter_mut().zip(logits.chunks_exact_mut(vocab)) {
                let (own, rest) = logprob.split_at_mut(r.count);
                logprob = rest;
                let at = r.first - scored.start;
                let raw = |l: &[f32], own: &mut [f32]| {
                    for (out, &i) in own.iter_mut().zip(&order[at..at + r.count]) {
                        *out = l[targets[i].token as usize];
                    }
                };
                raw(l, own);
                let (max, log_sum, entropy) = softmax(l);
                own.iter_mut().for_each(|x| *x = (*x - max) - log_sum);
                r.entropy = entropy;
            }
        });

        let mut token_grads = Vec::with_capacity(order.len());
        for r in rows.iter() {
            let at = r.first - scored.start;
            for (&i, &lp) in order[at..at + r.count].iter().zip(&logprob[at..]) {
                token_grads.push(loss(i, lp, r.entropy));
            }
        }
        let Some(grads) = grads.as_mut() else { continue };

        let blocks = rows.par_chunks(ROWS).zip(logits.par_chunks_mut(ROWS * vocab));
        let d_hidden: Vec<Vec<f32>> = blocks
            .map(|(rows, logits)| {
                for (r, p) in rows.iter().zip(logits.chunks_exact_mut(vocab)) {
                    let at = r.first - scored.start;
                    let g = &token_grads[at..at + r.count];
                    let own = order[at..at + r.count].iter().map(|&i| targets[i].token as usize).zip(g);
                    logits_grad(p, own, g, r.entropy, 1.0 / head.temperature);
                }
                let mut d = vec![0.0; rows.len() * width];
                linear::backward_input(logits, head.weight, width, &mut d);
                d
            })
            .collect();
        for (r, d) in rows.iter().zip(d_hidden.iter().flat_map(|d| d.chunks_exact(width))) {
            residual::forward(&mut grads.hidden[r.row * width..][..width], d);
        }
        grads.weight.par_chunks_mut(TILE * width).enumerate().for_each(|(tile, dw)| {
            linear::backward_weight(&logits, vocab, tile * TILE, &hidden, width, dw);
        });
    }
}

/// Replaces logits by probabilities; returns the maximum, the log of the sum of exp(l − maximum), and the entropy. Maximum and
/// log-sum stay apart: added up in f32, a likely token's small log-prob would drown in a large logit's last bits.
fn softmax(l: &mut [f32]) -> (f32, f32, f32) {
    simd(
        #[inline(always)]
        || {
            let max = l.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
            let (mut sum, mut weighted) = ([0.0f32; 16], [0.0f32; 16]);
            let mut chunks = l.chunks_exact_mut(16);
            for c in &mut chunks {
                for i in 0..16 {
                    let x = c[i] - max;
                    c[i] = exp(x);
                    sum[i] += c[i];
                    weighted[i] = c[i].mul_add(x, weighted[i]);
                }
            }
            for x in chunks.into_remainder() {
                let shifted = *x - max;
                *x = exp(shifted);
                sum[0] += *x;
                weighted[0] += *x * shifted;
            }
            let (sum, weighted) = (sum.iter().sum::<f32>(), weighted.iter().sum::<f32>());
            let inv = 1.0 / sum;
            l.iter_mut().for_each(|p| *p *= inv);
            (max, sum.ln(), sum.ln() - weighted * inv)
        },
    )
}

/// Replaces the probabilities `p` of one row by the gradient of its logits (before the temperature's 1/T, which is `scale`).
fn logits_grad<'a>(
    p: &mut [f32],
    targets: impl Iterator<Item = (usize, &'a TokenGrad)>,
    grads: &[TokenGrad],
    entropy: f32,
    scale: f32,
) {
    let total: f32 = grads.iter().map(|g| g.logprob).sum();
    let d_entropy: f32 = grads.iter().map(|g| g.entropy).sum();
    if d_entropy == 0.0 {
        let k = -total * scale;
        p.iter_mut().for_each(|p| *p *= k);
    } else {
        for p in p.iter_mut() {
            let log_p = if *p > 0.0 { p.ln() } else { 0.0 };
            *p *= -scale * (total + d_entropy * (log_p + entropy));
        }
    }
    for (token, g) in targets {
        p[token] += g.logprob * scale;
    }
}

/// On a GPU: hidden states and the head in bf16, everything else in f32. The caller combines log-probs into a loss between the two
/// passes, so both compute the logits' tiles, from which nothing rounded is ever read back.
pub mod cuda {
    use super::Target;
    use crate::device::{Arg, Dtype, Gpu, Launch, Matmul, Operand, Result, Slice, Tensor, expect};
    use crate::ops::embedding::{self, cuda::Tokens};
    use half::bf16;

    /// Rows, and vocabulary entries, of a tile.
    const TILE: usize = 128;
    /// Dynamic shared memory of the tile's stages, bytes.
    const STAGES: u32 = 48 << 10;
    /// Blocks that fill an H100: two for each multiprocessor. Fixed, so that sums have the same bits everywhere.
    const BLOCKS: usize = 264;
    /// Bytes of a chunk's logit gradients.
    const CHUNK: usize = 512 << 20;

    /// The head `[vocab, width]` and what it reads, `[tokens, width]`; `width` is a multiple of 8.
    #[derive(Clone, Copy)]
    pub struct Head<'a> {
        pub weight: &'a Slice<bf16>,
        pub hidden: &'a Slice<bf16>,
        pub width: usize,
        pub temperature: f32,
    }

    /// Targets on the device, sorted by the row that they read.
    pub struct Targets {
        /// For each of them, its place in the caller's list.
        pub order: Vec<usize>,
        rows: Tokens,
        start: Tensor<u32>,
        token: Tensor<u32>,
        /// Of each target, among the rows that are read.
        row: Tensor<u32>,
        largest: u32,
    }

    impl Targets {
        /// Refuses a row that is none of the `tokens`.
        pub fn new(gpu: &Gpu, targets: &[Target], tokens: usize) -> Result<Targets> {
            let mut order: Vec<usize> = (0..targets.len()).collect();
            order.sort_by_key(|&i| targets[i].row);
            let (mut rows, mut start, mut token, mut row) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for (at, target) in order.iter().map(|&i| targets[i]).enumerate() {
                if rows.last() != Some(&target.row) {
                    rows.push(target.row);
                    start.push(at as u32);
                }
                token.push(target.token);
                row.push(rows.len() as u32 - 1);
            }
            start.push(order.len() as u32);
            Ok(Targets {
                rows: Tokens::new(gpu, &rows, tokens)?,
                start: gpu.tensor(&start)?,
                largest: token.iter().copied().max().unwrap_or(0),
                token: gpu.tensor(&token)?,
                row: gpu.tensor(&row)?,
                order,
            })
        }

        fn rows(&self) -> usize {
            self.rows.ids.len()
        }
    }

    /// What the forward pass finds; `hidden`, `max`, `log_sum` and `entropy` have an entry for each row that is read.
    pub struct Scores {
        /// Of each target, in [`Targets::order`].
        pub logprob: Tensor<f32>,
        pub entropy: Tensor<f32>,
        max: Tensor<f32>,
        log_sum: Tensor<f32>,
        /// The rows gathered, `[rows, width]`.
        hidden: Tensor<bf16>,
    }

    impl Scores {
        /// Log-prob and entropy (nats) of each target, in the caller's order.
        pub fn read(&self, gpu: &Gpu, targets: &Targets) -> Result<(Vec<f32>, Vec<f32>)> {
            let (found, of_row, start) =
                (gpu.read(&*self.logprob)?, gpu.read(&*self.entropy)?, gpu.read(&*targets.start)?);
            let (mut logprob, mut entropy) = (vec![0.0; found.len()], vec![0.0; found.len()]);
            for (row, span) in start.windows(2).enumerate() {
                let span = span[0] as usize..span[1] as usize;
                for (&i, found) in targets.order[span.clone()].iter().zip(&found[span]) {
                    (logprob[i], entropy[i]) = (*found, of_row[row]);
                }
            }
            Ok((logprob, entropy))
        }
    }

    fn vocab(head: &Head, targets: &Targets) -> Result<usize> {
        let vocab = head.weight.len() / head.width.max(1);
        let fits = head.width.is_multiple_of(8) && vocab * head.width == head.weight.len() && vocab > 0;
        expect("grouped log-prob", fits && (targets.largest as usize) < vocab, || {
            let (weights, width, largest) = (head.weight.len(), head.width, targets.largest);
            format!("{weights} weights in rows of {width} (a multiple of 8) for tokens up to {largest}")
        })?;
        Ok(vocab)
    }

    /// Log-prob of every target, and the entropy of its distribution.
    pub fn forward(gpu: &Gpu, head: Head, targets: &Targets) -> Result<Scores> {
        let (vocab, rows, n) = (vocab(&head, targets)?, targets.rows(), targets.order.len());
        let hidden = gpu.uninit(rows * head.width)?;
        embedding::cuda::forward(gpu, &targets.rows, head.hidden, head.width, &hidden)?;
        let blocks = rows.div_ceil(TILE);
        let splits = BLOCKS.div_ceil(blocks.max(1)).min(vocab.div_ceil(TILE));
        let partial = gpu.uninit::<f32>(3 * splits * rows)?;
        let raw = gpu.uninit::<f32>(n)?;
        let found = Scores {
            logprob: gpu.uninit(n)?,
            entropy: gpu.uninit(rows)?,
            max: gpu.uninit(rows)?,
            log_sum: gpu.uninit(rows)?,
            hidden,
        };
        let [start, token] = [targets.start.arg(), targets.token.arg()];
        let [tall, wide, width] = [rows, vocab, head.width].map(|n| Arg::from(n as i32));
        let scale = Arg::from(1.0 / head.temperature);
        let args =
            [found.hidden.arg(), head.weight.arg(), start, token, partial.arg(), raw.arg(), tall, wide, width, scale];
        let (kernel, grid, block) = ("grouped_logprob_forward_bf16", [blocks as u32, splits as u32, 1], [256, 1, 1]);
        gpu.launch(Launch { kernel, grid, block, shared: STAGES, args: &args })?;
        let Scores { logprob, entropy, max, log_sum, .. } = &found;
        let sums = [max.arg(), log_sum.arg(), entropy.arg(), logprob.arg()];
        let mut args = vec![partial.arg(), raw.arg(), start];
        args.extend(sums);
        args.extend([tall, Arg::from(splits as i32)]);
        gpu.launch_threads("grouped_logprob_finish_f32", rows, &args)?;
        Ok(found)
    }

    /// The uses of targets by sequences: a token that sequences share is used by each. Those of target t (in [`Targets::order`]) are
    /// `start[t] .. start[t + 1]`.
    pub struct Uses {
        pub start: Tensor<u32>,
        pub advantage: Tensor<f32>,
        /// Log-prob under the policy that sampled.
        pub old: Tensor<f32>,
        /// Log-prob under the frozen reference; read if `beta` is not 0.
        pub reference: Tensor<f32>,
        /// The use's share of the loss.
        pub weight: Tensor<f32>,
    }

    /// The token-level policy loss; the kernel's struct of this name.
    #[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    #[repr(C)]
    pub struct Policy {
        pub epsilon_low: f32,
        pub epsilon_high: f32,
        /// 0: off.
        pub dual_clip: f32,
        pub beta: f32,
        pub entropy_coef: f32,
        /// 1: the KL term is multiplied by the ratio.
        pub kl_ratio: i32,
    }

    /// What the loss is, by use, and its gradient, by target.
    pub struct Loss {
        pub d_logprob: Tensor<f32>,
        pub d_entropy: Tensor<f32>,
        /// The weighted loss.
        pub term: Tensor<f32>,
        pub kl: Tensor<f32>,
        /// −1 at the lower bound of the ratio, 1 at the upper, else 0.
        pub clipped: Tensor<f32>,
    }

    /// −min(ρA, clip(ρ)A), dual clip, β·k3 and the entropy bonus, with ρ = exp(logp − old).
    pub fn policy_loss(gpu: &Gpu, scores: &Scores, targets: &Targets, uses: &Uses, o: Policy) -> Result<Loss> {
        let (n, count) = (targets.order.len(), uses.advantage.len());
        let lengths = [uses.start.len() - 1, uses.old.len(), uses.reference.len(), uses.weight.len()];
        expect("policy loss", lengths == [n, count, count, count], || {
            format!("{lengths:?} targets and values for {n} targets and {count} uses")
        })?;
        let [d_logprob, d_entropy] = [gpu.uninit(n)?, gpu.uninit(n)?];
        let [term, kl, clipped] = [gpu.uninit(count)?, gpu.uninit(count)?, gpu.uninit(count)?];
        let loss = Loss { d_logprob, d_entropy, term, kl, clipped };
        let mut args = vec![scores.logprob.arg(), scores.entropy.arg(), targets.row.arg(), uses.start.arg()];
        args.extend([&uses.advantage, &uses.old, &uses.reference, &uses.weight].map(|x| x.arg()));
        // No ratio of whole sequences.
        args.extend([Arg::NULL, Arg::NULL]);
        args.extend([&loss.d_logprob, &loss.d_entropy, &loss.term, &loss.kl, &loss.clipped].map(|x| x.arg()));
        args.extend([Arg::from(n as i32), Arg::from(o)]);
        gpu.launch_threads("grouped_logprob_loss_f32", n, &args)?;
        Ok(loss)
    }

    /// Adds to `d_weight` `[vocab, width]` and `d_hidden` `[tokens, width]` what the gradients `d_logprob` and `d_entropy` of the
    /// targets (in [`Targets::order`]) amount to.
    pub fn backward(
        gpu: &Gpu,
        head: Head,
        targets: &Targets,
        scores: &Scores,
        (d_logprob, d_entropy): (&Slice<f32>, &Slice<f32>),
        d_weight: &Slice<f32>,
        d_hidden: &Slice<bf16>,
    ) -> Result<()> {
        let (vocab, rows, width) = (vocab(&head, targets)?, targets.rows(), head.width);
        let lengths = [d_logprob.len(), d_entropy.len(), d_weight.len(), d_hidden.len()];
        let wanted = [targets.order.len(), targets.order.len(), vocab * width, head.hidden.len()];
        expect("grouped log-prob backward", lengths == wanted, || format!("gradients of {lengths:?} for {wanted:?}"))?;
        let stride = vocab.next_multiple_of(8);
        let chunk = (CHUNK / (2 * stride) / TILE * TILE).clamp(TILE, rows.next_multiple_of(TILE).max(TILE));
        let d_logits = gpu.uninit::<bf16>(chunk.min(rows) * stride)?;
        let d_rows = gpu.uninit::<bf16>(rows * width)?;
        for first in (0..rows).step_by(chunk) {
            let n = chunk.min(rows - first);
            // A chunk's rows begin here; what belongs to targets keeps the numbers of the whole batch.
            let at = |address: u64, bytes: usize| Arg::Address(address + (first * bytes) as u64);
            let hidden = scores.hidden.address() + (2 * first * width) as u64;
            let args = [
                Arg::Address(hidden),
                head.weight.arg(),
                at(targets.start.address(), 4),
                targets.token.arg(),
                at(scores.max.address(), 4),
                at(scores.log_sum.address(), 4),
                at(scores.entropy.address(), 4),
                d_logprob.arg(),
                d_entropy.arg(),
                d_logits.arg(),
                Arg::from(n as i32),
                Arg::from(vocab as i32),
                Arg::from(width as i32),
                Arg::from(stride as i32),
                Arg::from(1.0 / head.temperature),
            ];
            let grid = [n.div_ceil(TILE) as u32, stride.div_ceil(TILE) as u32, 1];
            let (kernel, block) = ("grouped_logprob_grad_bf16", [256, 1, 1]);
            gpu.launch(Launch { kernel, grid, block, shared: STAGES, args: &args })?;
            let matrix = |address: u64, stride: usize| Operand {
                address,
                dtype: Dtype::Bf16,
                stride,
                transposed: false,
                batch_stride: 0,
            };
            let (d, h) = (matrix(d_logits.address(), stride), matrix(hidden, width));
            let (w, d_h) =
                (matrix(head.weight.address(), width), matrix(d_rows.address() + (2 * first * width) as u64, width));
            let (alpha, batch, bias) = (1.0, 1, None);
            gpu.matmul(&Matmul { m: n, n: width, k: vocab, batch, alpha, beta: 0.0, a: d, b: w, c: d_h, bias })?;
            let (d, c) =
                (Operand { transposed: true, ..d }, Operand { dtype: Dtype::F32, ..matrix(d_weight.address(), width) });
            gpu.matmul(&Matmul { m: vocab, n: width, k: n, batch, alpha, beta: 1.0, a: d, b: h, c, bias })?;
        }
        embedding::cuda::backward(gpu, &targets.rows, &d_rows, width, d_hidden)
    }
}
