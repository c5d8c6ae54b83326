//! Attention's cases.

use super::cuda::{self, Backward};
use super::{Shape, Visibility};
use crate::device::{Dtype, Result};
use crate::ops::case::{Bf16s, Case, HIDDEN, OpCase, PEERS_ROWS, Size, Trial, Work, randoms};
use half::bf16;
use std::fmt;
use std::iter::repeat_n;

pub const CASES: &[&dyn Case] = &[&FORWARD, &BACKWARD];

const FORWARD: OpCase<Packed> = OpCase { op: "attention", pass: "forward", shapes, run: forward };
const BACKWARD: OpCase<Packed> = OpCase { pass: "backward", run: backward, ..FORWARD };

/// Trees: tokens that branches share, and the tokens of each branch.
struct Packed {
    trees: Vec<(usize, Vec<usize>)>,
    shape: Shape,
}

impl Packed {
    /// Where the subtree of each token ends.
    fn reach(&self) -> Vec<u32> {
        let mut reach = Vec::new();
        for (shared, branches) in &self.trees {
            let end = reach.len() + shared + branches.iter().sum::<usize>();
            reach.extend(repeat_n(end as u32, *shared));
            for branch in branches {
                reach.extend(repeat_n((reach.len() + branch) as u32, *branch));
            }
        }
        reach
    }

    /// So many for each column of a query and each key that it sees.
    fn flops(&self, each: f64) -> Work {
        let chain = |n: usize| n * (n + 1) / 2;
        let tree = |(shared, branches): &(usize, Vec<usize>)| {
            chain(*shared) + branches.iter().map(|n| n * shared + chain(*n)).sum::<usize>()
        };
        let pairs: usize = self.trees.iter().map(tree).sum();
        Work::Flops(each * pairs as f64 * self.shape.q_dim() as f64)
    }
}

/// As the peers call theirs where all trees are alike.
impl fmt::Display for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Shape { heads, kv_heads, head_dim }, n) = (self.shape, self.trees.len());
        let (first, branches) = &self.trees[0];
        if !self.trees.iter().all(|tree| *tree == self.trees[0]) {
            return write!(f, "hd{head_dim} {heads}+{kv_heads} heads, {:?}", self.trees);
        }
        match branches[..] {
            [] => write!(f, "hd{head_dim} {n}x{first}"),
            [tail, ..] => write!(f, "hd{head_dim} {n}x({first}+{}x{tail})", branches.len()),
        }
    }
}

/// One token, one sequence, several, and branches with shared prefixes; heads of all kinds.
fn shapes(size: Size) -> Vec<Packed> {
    let packed = |trees: &[(usize, &[usize])], [heads, kv_heads, head_dim]: [usize; 3]| {
        let trees = trees.iter().map(|(shared, branches)| (*shared, branches.to_vec())).collect();
        Packed { trees, shape: Shape { heads, kv_heads, head_dim } }
    };
    match size {
        Size::Ragged => vec![
            packed(&[(1, &[])], [1, 1, 64]),
            packed(&[(150, &[])], [2, 1, 128]),
            packed(&[(70, &[230, 90])], [1, 1, 128]),
            packed(&[(66, &[]), (3, &[]), (80, &[])], [2, 2, 64]),
            packed(&[(70, &[40, 1, 65])], [7, 1, 64]),
            packed(&[(257, &[])], [4, 2, 64]),
        ],
        Size::Model => vec![packed(&[(2048, &[]), (1000, &[])], [16, 2, 128])],
        Size::Peers => [64, 128].into_iter().flat_map(of_peers).collect(),
        Size::Task => vec![packed(&[(1024, &[])], [14, 2, 64]), packed(&[(768, &[64; 8])], [14, 2, 64])],
    }
}

/// As many query heads as fit the hidden width, each with keys of its own; sequences of one length, and groups of eight that share
/// their prompt.
fn of_peers(head_dim: usize) -> Vec<Packed> {
    let (heads, rows) = (HIDDEN[1] / head_dim, PEERS_ROWS);
    let shape = Shape { heads, kv_heads: heads, head_dim };
    let sequences = [512, 1024, 2048, 4096, 8192].map(|n| vec![(n, Vec::new()); rows / n]);
    let (prompt, answer) = (rows / 16, rows / 128);
    let groups = vec![(prompt, vec![answer; 8]); rows / (prompt + 8 * answer)];
    sequences.into_iter().chain([groups]).map(|trees| Packed { trees, shape }).collect()
}

/// Queries, keys and values: scores of some size, so that the softmax is not flat.
pub(in crate::ops) fn qkv(n: usize) -> Bf16s {
    Bf16s::of(&randoms(1, n).into_iter().map(|x| 1.5 * x).collect::<Vec<_>>())
}

fn forward(packed: &Packed, t: &mut Trial<'_>) -> Result<()> {
    let (shape, reach) = (packed.shape, packed.reach());
    let (n, qkv) = (reach.len(), qkv(reach.len() * shape.qkv_dim()));
    let (mut want, mut want_softmax) = (vec![0.0; n * shape.q_dim()], vec![0.0; 2 * n * shape.heads]);
    let visibility = Visibility::new(&reach);
    t.cpu(packed.flops(4.0), || {
        super::forward(Dtype::F32, qkv.wide(), shape, &visibility, &mut want, &mut want_softmax)
    });
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (qkv, visibility) = (qkv.on(gpu)?, cuda::Visibility::new(gpu, &reach)?);
    let (out, softmax) = (gpu.uninit::<bf16>(want.len())?, gpu.uninit::<f32>(want_softmax.len())?);
    // The kernel that this GPU uses, and then the one that every GPU has.
    t.cuda(gpu, packed.flops(4.0), || cuda::forward(gpu, &qkv, shape, &visibility, &out, &softmax))?;
    t.near("out", &out, &want, 1.5)?;
    t.close("maxima and sums", &softmax, &want_softmax, 1e-4)?;
    if t.compares() {
        let (out, softmax) = (gpu.uninit::<bf16>(want.len())?, gpu.uninit::<f32>(want_softmax.len())?);
        cuda::forward_portable(gpu, &qkv, shape, &visibility, &out, &softmax)?;
        t.near("out (portable)", &out, &want, 1.5)?;
        t.close("maxima and sums (portable)", &softmax, &want_softmax, 1e-4)?;
    }
    Ok(())
}

fn backward(packed: &Packed, t: &mut Trial<'_>) -> Result<()> {
    let (shape, reach) = (packed.shape, packed.reach());
    let (n, qkv) = (reach.len(), qkv(reach.len() * shape.qkv_dim()));
    let (mut out, mut softmax) = (vec![0.0; n * shape.q_dim()], vec![0.0; 2 * n * shape.heads]);
    let (visibility, d_out) = (Visibility::new(&reach), Bf16s::randoms(2, out.len()));
    t.cpu_before(|| super::forward(Dtype::F32, qkv.wide(), shape, &visibility, &mut out, &mut softmax));
    // The kernel reads the output as the device keeps it.
    let (out, mut want) = (Bf16s::of(&out), vec![0.0; n * shape.qkv_dim()]);
    t.cpu(packed.flops(10.0), || {
        super::backward(Dtype::F32, d_out.wide(), qkv.wide(), out.wide(), &softmax, shape, &visibility, &mut want);
    });
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (qkv, d_out, out, softmax) = (qkv.on(gpu)?, d_out.on(gpu)?, out.on(gpu)?, gpu.tensor(&softmax)?);
    let (visibility, d_qkv) = (cuda::Visibility::new(gpu, &reach)?, gpu.uninit::<bf16>(want.len())?);
    if !t.compares() {
        cuda::forward(gpu, &qkv, shape, &visibility, &out, &softmax)?;
    }
    let pass = Backward { d_out: &d_out, qkv: &qkv, out: &out, softmax: &softmax, d_qkv: &d_qkv };
    t.cuda(gpu, packed.flops(10.0), || cuda::backward(gpu, pass, shape, &visibility))?;
    let rms = (want.iter().map(|x| f64::from(x * x)).sum::<f64>() / want.len() as f64).sqrt() as f32;
    t.near("gradient", &d_qkv, &want, 4.0 * rms)?;
    if t.compares() {
        let d_qkv = gpu.uninit::<bf16>(want.len())?;
        cuda::backward_portable(gpu, Backward { d_qkv: &d_qkv, ..pass }, shape, &visibility)?;
        t.near("gradient (portable)", &d_qkv, &want, 4.0 * rms)?;
    }
    Ok(())
}
