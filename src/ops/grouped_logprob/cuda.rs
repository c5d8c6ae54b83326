//! Grouped log-prob on a GPU: hidden states and the head in bf16, everything else in f32. The caller combines log-probs into a loss
//! between the two passes, so both compute the logits' tiles, from which nothing rounded is ever read again. A Hopper GPU has kernels
//! of its own for the tiles.

use super::Target;
use crate::device::{Arg, Dtype, Error, Gpu, Launch, Matmul, Operand, Packed, Result, Slice, SubSlice, Tensor, expect};
use crate::ops::embedding::{self, cuda::Tokens};
use half::bf16;
use std::ops::Range;

/// Rows, and vocabulary entries, of a tile.
const TILE: usize = 128;
/// Dynamic shared memory of the tile's stages, bytes.
const STAGES: u32 = 48 << 10;
/// Blocks that fill an H100: two for each multiprocessor. Fixed, so that sums have the same bits everywhere.
const BLOCKS: usize = 264;
/// The same of Hopper's kernels: vocabulary entries of a tile, bytes of the stages, a block for each multiprocessor.
const HOPPER_ENTRIES: usize = 256;
const HOPPER_STAGES: u32 = 196672;
const HOPPER_BLOCKS: usize = 132;
/// Bytes of a chunk's logit gradients.
pub(crate) const CHUNK: usize = 512 << 20;

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
    /// Where each row's begin, and the end.
    starts: Vec<u32>,
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
        let mut packed = Packed::default();
        let rows = Tokens::pack(&mut packed, &rows, tokens)?;
        let lists = [&start, &token, &row].map(|list| packed.add(list));
        let mut on = packed.upload(gpu)?;
        let [on_start, on_token, row] = lists.map(|list| on.take(list));
        let largest = token.iter().copied().max().unwrap_or(0);
        Ok(Targets { rows: rows(&mut on), starts: start, start: on_start, largest, token: on_token, row, order })
    }

    fn rows(&self) -> usize {
        self.rows.ids.len()
    }
}

/// What the forward pass finds; `hidden`, `max`, `log_sum` and `entropy` have an entry for each row that is read.
pub struct Scores {
    /// The log-prob of each target, in [`Targets::order`], then the entropies: read in one copy.
    found: Tensor<f32>,
    targets: usize,
    max: Tensor<f32>,
    log_sum: Tensor<f32>,
    /// The rows gathered, `[rows, width]`.
    hidden: Tensor<bf16>,
}

impl Scores {
    /// The log-prob of each target, in [`Targets::order`].
    pub fn logprob(&self) -> SubSlice<'_, f32> {
        self.part(0..self.targets)
    }

    /// The entropy (nats) of each row that is read.
    pub fn entropy(&self) -> SubSlice<'_, f32> {
        self.part(self.targets..self.found.len())
    }

    fn part(&self, range: Range<usize>) -> SubSlice<'_, f32> {
        self.found.part(range).expect("both fill what was found")
    }

    /// Log-prob and entropy (nats) of each target, in the caller's order.
    pub fn read(&self, gpu: &Gpu, targets: &Targets) -> Result<(Vec<f32>, Vec<f32>)> {
        let found = gpu.read(&*self.found)?;
        let (found, of_row) = found.split_at(self.targets);
        let (mut logprob, mut entropy) = (vec![0.0; found.len()], vec![0.0; found.len()]);
        for (row, span) in targets.starts.windows(2).enumerate() {
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

/// Log-prob of every target, and the entropy of its distribution. By the kernel that is the GPU's own, if there is one.
pub fn forward(gpu: &Gpu, head: Head, targets: &Targets) -> Result<Scores> {
    Kernels { gpu, hopper: gpu.is_hopper() }.forward(head, targets)
}

/// The same, by the kernel that every GPU has.
pub fn forward_portable(gpu: &Gpu, head: Head, targets: &Targets) -> Result<Scores> {
    Kernels { gpu, hopper: false }.forward(head, targets)
}

/// What the loss says of the targets (in [`Targets::order`]), and what the backward pass adds to.
#[derive(Clone, Copy)]
pub struct Gradients<'a> {
    /// Gradients of the targets' log-probs and entropies.
    pub d_logprob: &'a Slice<f32>,
    pub d_entropy: &'a Slice<f32>,
    /// `[vocab, width]`; none where the head is frozen.
    pub d_weight: Option<&'a Slice<f32>>,
    /// `[tokens, width]`
    pub d_hidden: &'a Slice<bf16>,
}

/// Adds what the gradients of the targets' log-probs and entropies amount to.
pub fn backward(gpu: &Gpu, head: Head, targets: &Targets, scores: &Scores, g: Gradients) -> Result<()> {
    Kernels { gpu, hopper: gpu.is_hopper() }.backward(head, targets, scores, g)
}

/// The same, by the kernel that every GPU has.
pub fn backward_portable(gpu: &Gpu, head: Head, targets: &Targets, scores: &Scores, g: Gradients) -> Result<()> {
    Kernels { gpu, hopper: false }.backward(head, targets, scores, g)
}

/// Parts of a vocabulary of so many tiles. Each is a block for each tile of rows; chosen are those that leave the least of `fill` places
/// idle. A block takes a quarter of a tile's time to begin and to end.
fn splits(blocks: usize, tiles: usize, fill: usize) -> usize {
    let time = |splits: usize| (blocks * splits).div_ceil(fill) * (4 * tiles.div_ceil(splits) + 1);
    (1..=fill.min(tiles)).min_by_key(|&splits| time(splits)).unwrap_or(1)
}

/// Which kernels compute the logits' tiles.
#[derive(Clone, Copy)]
struct Kernels<'a> {
    gpu: &'a Gpu,
    hopper: bool,
}

impl Kernels<'_> {
    fn forward(self, head: Head, targets: &Targets) -> Result<Scores> {
        let Kernels { gpu, hopper } = self;
        let (vocab, rows, n) = (vocab(&head, targets)?, targets.rows(), targets.order.len());
        let hidden = gpu.uninit(rows * head.width)?;
        embedding::cuda::forward(gpu, &targets.rows, head.hidden, head.width, &hidden)?;
        let blocks = rows.div_ceil(TILE);
        let (fill, entries) = if hopper { (HOPPER_BLOCKS, HOPPER_ENTRIES) } else { (BLOCKS, TILE) };
        let splits = splits(blocks, vocab.div_ceil(entries), fill);
        let partial = gpu.uninit::<f32>(3 * splits * rows)?;
        let raw = gpu.uninit::<f32>(n)?;
        let found = Scores {
            found: gpu.uninit(n + rows)?,
            targets: n,
            max: gpu.uninit(rows)?,
            log_sum: gpu.uninit(rows)?,
            hidden,
        };
        let [start, token] = [targets.start.arg(), targets.token.arg()];
        let [tall, wide, width] = [rows, vocab, head.width].map(|n| Arg::from(n as i32));
        let scale = Arg::from(1.0 / head.temperature);
        let [hidden, weight] = self.operands(&found.hidden, &head)?;
        let args = [hidden, weight, start, token, partial.arg(), raw.arg(), tall, wide, width, scale];
        let (kernel, block, shared) = match hopper {
            true => ("grouped_logprob_hopper_forward_bf16", [384, 1, 1], HOPPER_STAGES),
            false => ("grouped_logprob_forward_bf16", [256, 1, 1], STAGES),
        };
        gpu.launch(Launch { kernel, grid: [blocks as u32, splits as u32, 1], block, shared, args: &args })?;
        let sums = [found.max.arg(), found.log_sum.arg(), found.entropy().arg(), found.logprob().arg()];
        let mut args = vec![partial.arg(), raw.arg(), start];
        args.extend(sums);
        args.extend([tall, Arg::from(splits as i32)]);
        gpu.launch_threads("grouped_logprob_finish_f32", rows, &args)?;
        Ok(found)
    }

    /// The rows that are read, and the head, as the kernels take them.
    fn operands(self, hidden: &Slice<bf16>, head: &Head) -> Result<[Arg; 2]> {
        let map = |matrix| self.gpu.tensor_map(matrix, head.width, 64);
        if self.hopper { Ok([map(hidden)?, map(head.weight)?]) } else { Ok([hidden.arg(), head.weight.arg()]) }
    }

    fn backward(self, head: Head, targets: &Targets, scores: &Scores, g: Gradients) -> Result<()> {
        let (gpu, vocab, rows, width) = (self.gpu, vocab(&head, targets)?, targets.rows(), head.width);
        let d_weight = g.d_weight.map_or(vocab * width, Slice::len);
        let lengths = [g.d_logprob.len(), g.d_entropy.len(), d_weight, g.d_hidden.len()];
        let wanted = [targets.order.len(), targets.order.len(), vocab * width, head.hidden.len()];
        expect("grouped log-prob backward", lengths == wanted, || format!("gradients of {lengths:?} for {wanted:?}"))?;
        let stride = vocab.next_multiple_of(8);
        let chunk = (CHUNK / (2 * stride) / TILE * TILE).clamp(TILE, rows.next_multiple_of(TILE).max(TILE));
        let d_logits = gpu.uninit::<bf16>(chunk.min(rows) * stride)?;
        let d_rows = gpu.uninit::<bf16>(rows * width)?;
        for first in (0..rows).step_by(chunk) {
            let of = first..first.saturating_add(chunk).min(rows);
            let n = of.len();
            let outside = || Error::Shape { op: "grouped log-prob backward", sizes: format!("{rows} rows") };
            let hidden = scores.hidden.part(of.start * width..of.end * width).ok_or_else(outside)?;
            self.logit_grads(head, targets, scores, g, (of, &hidden), &d_logits)?;
            let matrix = |address: u64, stride: usize| Operand {
                address,
                dtype: Dtype::Bf16,
                stride,
                transposed: false,
                batch_stride: 0,
            };
            let (d, h) = (matrix(d_logits.address(), stride), matrix(hidden.address(), width));
            let w = matrix(head.weight.address(), width);
            let d_h = matrix(d_rows.address() + (2 * first * width) as u64, width);
            let (alpha, batch, bias) = (1.0, 1, None);
            gpu.matmul(&Matmul { m: n, n: width, k: vocab, batch, alpha, beta: 0.0, a: d, b: w, c: d_h, bias })?;
            let Some(d_weight) = g.d_weight else { continue };
            let d = Operand { transposed: true, ..d };
            let c = Operand { dtype: Dtype::F32, ..matrix(d_weight.address(), width) };
            gpu.matmul(&Matmul { m: vocab, n: width, k: n, batch, alpha, beta: 1.0, a: d, b: h, c, bias })?;
        }
        embedding::cuda::backward(gpu, &targets.rows, &d_rows, width, g.d_hidden)
    }

    /// The gradients of the logits of some rows, whose hidden states are given. What belongs to targets keeps the numbers of the whole
    /// batch.
    fn logit_grads(
        self,
        head: Head,
        targets: &Targets,
        scores: &Scores,
        g: Gradients,
        (rows, hidden): (Range<usize>, &Slice<bf16>),
        d_logits: &Slice<bf16>,
    ) -> Result<()> {
        let (gpu, n, vocab) = (self.gpu, rows.len(), vocab(&head, targets)?);
        let stride = vocab.next_multiple_of(8);
        let at = |address: u64| Arg::Address(address + 4 * rows.start as u64);
        let [hidden, weight] = self.operands(hidden, &head)?;
        let args = [
            hidden,
            weight,
            at(targets.start.address()),
            targets.token.arg(),
            at(scores.max.address()),
            at(scores.log_sum.address()),
            at(scores.entropy().address()),
            g.d_logprob.arg(),
            g.d_entropy.arg(),
            d_logits.arg(),
            Arg::from(n as i32),
            Arg::from(vocab as i32),
            Arg::from(head.width as i32),
            Arg::from(stride as i32),
            Arg::from(1.0 / head.temperature),
        ];
        if self.hopper {
            let tiles = (n.div_ceil(TILE) * stride.div_ceil(HOPPER_ENTRIES)) as u32;
            let (kernel, grid) = ("grouped_logprob_hopper_grad_bf16", [tiles.min(gpu.multiprocessors()), 1, 1]);
            gpu.launch(Launch { kernel, grid, block: [384, 1, 1], shared: HOPPER_STAGES, args: &args })
        } else {
            let grid = [n.div_ceil(TILE) as u32, stride.div_ceil(TILE) as u32, 1];
            let (kernel, block) = ("grouped_logprob_grad_bf16", [256, 1, 1]);
            gpu.launch(Launch { kernel, grid, block, shared: STAGES, args: &args })
        }
    }
}

/// The uses of targets by sequences: a token that sequences share is used by each. Those of target t (in [`Targets::order`]) are
/// `start[t] .. start[t + 1]`.
pub struct Uses {
    pub start: Tensor<u32>,
    pub advantage: Tensor<f32>,
    /// Log-prob under the policy that sampled; not a number: the policy's own, so that the ratio is 1.
    pub old: Tensor<f32>,
    /// Log-prob under the frozen reference; read if `beta` is not 0.
    pub reference: Tensor<f32>,
    /// The use's share of the loss.
    pub weight: Tensor<f32>,
    /// Ratios of whole sequences, and the gradients that reach the log-probs by them; `None`: each token's own ratio.
    pub sequence: Option<[Tensor<f32>; 2]>,
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

/// The loss's gradient, by target, and what it is, by use.
pub struct Loss {
    pub d_logprob: Tensor<f32>,
    pub d_entropy: Tensor<f32>,
    /// `[3, uses]`: the weighted loss, the KL term, and −1 at the lower bound of the ratio, 1 at the upper, else 0.
    pub found: Tensor<f32>,
}

/// −min(ρA, clip(ρ)A), dual clip, β·k3 and the entropy bonus, with ρ = exp(logp − old).
pub fn policy_loss(gpu: &Gpu, scores: &Scores, targets: &Targets, uses: &Uses, o: Policy) -> Result<Loss> {
    let (n, count) = (targets.order.len(), uses.advantage.len());
    let lengths = [uses.start.len() - 1, uses.old.len(), uses.reference.len(), uses.weight.len()];
    let of_sequences = uses.sequence.iter().flatten().all(|list| list.len() == count);
    expect("policy loss", lengths == [n, count, count, count] && of_sequences, || {
        format!("{lengths:?} targets and values for {n} targets and {count} uses")
    })?;
    let loss = Loss { d_logprob: gpu.uninit(n)?, d_entropy: gpu.uninit(n)?, found: gpu.uninit(3 * count)? };
    let mut args = vec![scores.logprob().arg(), scores.entropy().arg(), targets.row.arg(), uses.start.arg()];
    args.extend([&uses.advantage, &uses.old, &uses.reference, &uses.weight].map(|x| x.arg()));
    args.extend(uses.sequence.as_ref().map_or([Arg::NULL; 2], |lists| lists.each_ref().map(|x| x.arg())));
    args.extend([loss.d_logprob.arg(), loss.d_entropy.arg(), loss.found.arg()]);
    args.extend([Arg::from(n as i32), Arg::from(count as i32), Arg::from(o)]);
    gpu.launch_threads("grouped_logprob_loss_f32", n, &args)?;
    Ok(loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_keeps_nine_tenths_of_the_multiprocessors_busy_at_any_number_of_rows() {
        let tiles = 151_936usize.div_ceil(HOPPER_ENTRIES);
        for rows in (128..20_000usize).step_by(333) {
            let blocks = rows.div_ceil(TILE);
            let splits = splits(blocks, tiles, HOPPER_BLOCKS);
            let longest = (blocks * splits).div_ceil(HOPPER_BLOCKS) * tiles.div_ceil(splits);
            let busy = (blocks * tiles) as f64 / (HOPPER_BLOCKS * longest) as f64;
            assert!(busy > 0.89, "{rows} rows in {splits} parts: {busy:.2}");
        }
    }
}
