//! LoRA's cases: two products of a small rank beside a linear map's, into some columns of a fused result.

use super::cuda::{self, Columns, LowRank};
use super::{Stored, linear};
use crate::device::{Dtype, Result};
use crate::ops::case::{Bf16s, Case, FFN, HIDDEN, OpCase, PEERS_ROWS, Size, Sizes, TASK_ROWS, Trial, Work};
use half::bf16;

pub const CASES: &[&dyn Case] = &[&FORWARD, &BACKWARD];

const FORWARD: OpCase<Sizes<4>> = OpCase { op: "lora", pass: "forward", shapes, run: forward };
const BACKWARD: OpCase<Sizes<4>> = OpCase { pass: "backward", run: backward, ..FORWARD };

const SCALE: f32 = 2.0;

/// Rows, inputs, outputs and rank.
fn shapes(size: Size) -> Vec<Sizes<4>> {
    let shapes = match size {
        Size::Ragged => vec![[1, 8, 16, 8], [33, 64, 40, 16], [130, 72, 8, 8]],
        Size::Model => vec![[2048, 896, 4864, 16]],
        Size::Peers => vec![[PEERS_ROWS, HIDDEN[1], FFN[1], 16]],
        Size::Task => vec![[TASK_ROWS, HIDDEN[0], FFN[0], 16]],
    };
    shapes.into_iter().map(Sizes).collect()
}

/// The result has twice as many columns: those of the map are the second half.
fn fused(out: usize) -> [usize; 2] {
    [2 * out, out]
}

/// What the size of the errors is when a factor was rounded before: that of the numbers.
fn size(of: &[f32]) -> f32 {
    (of.iter().map(|x| x * x).sum::<f32>() / of.len().max(1) as f32).sqrt()
}

fn flops(Sizes([rows, n_in, n_out, rank]): &Sizes<4>) -> Work {
    Work::Flops(2.0 * (rows * rank * (n_in + n_out)) as f64)
}

fn forward(s @ Sizes([rows, n_in, n_out, rank]): &Sizes<4>, t: &mut Trial<'_>) -> Result<()> {
    let (x, a) = (Bf16s::randoms(1, rows * n_in), Bf16s::randoms(2, rank * n_in));
    let (b, [stride, first]) = (Bf16s::randoms(3, n_out * rank), fused(*n_out));
    let y = Bf16s::randoms(4, rows * stride);
    let mut want = y.wide().to_vec();
    t.cpu(flops(s), || {
        let weight = |w, n| linear::Weight::new(Dtype::F32, w, n);
        let b = [(weight(b.wide(), *rank), first)];
        super::forward(
            x.wide(),
            &super::LowRank { a: weight(a.wide(), *n_in), b: &b, scale: SCALE },
            &mut want,
            stride,
        );
    });
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (x, a, b, y, u) = (x.on(gpu)?, a.on(gpu)?, b.on(gpu)?, y.on(gpu)?, gpu.uninit::<bf16>(rows * rank)?);
    let of = LowRank { a: &a, b: &b, rank: *rank, scale: SCALE };
    t.cuda(gpu, flops(s), || cuda::forward(gpu, &x, of, &u, Columns { of: &y, stride, first }))?;
    t.near("y", &y, &want, size(&want))
}

fn backward(s @ Sizes([rows, n_in, n_out, rank]): &Sizes<4>, t: &mut Trial<'_>) -> Result<()> {
    let (x, a) = (Bf16s::randoms(1, rows * n_in), Bf16s::randoms(2, rank * n_in));
    let (b, [stride, first]) = (Bf16s::randoms(3, n_out * rank), fused(*n_out));
    let (dy, dx) = (Bf16s::randoms(4, rows * stride), Bf16s::randoms(5, rows * n_in));
    let (mut want, mut want_u, mut want_v) = (dx.wide().to_vec(), vec![0.0; rows * rank], vec![0.0; rows * rank]);
    t.cpu(flops(s), || {
        let of = Stored { a: a.wide(), b: &[(b.wide(), first)], rank: *rank, scale: SCALE, dtype: Dtype::F32 };
        super::backward(x.wide(), dy.wide(), stride, &of, &mut want, &mut [&mut want_u], &mut want_v);
    });
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (x, a, b, dy, dx) = (x.on(gpu)?, a.on(gpu)?, b.on(gpu)?, dy.on(gpu)?, dx.on(gpu)?);
    let (u, v) = (gpu.uninit::<bf16>(rows * rank)?, gpu.uninit::<bf16>(rows * rank)?);
    let of = LowRank { a: &a, b: &b, rank: *rank, scale: SCALE };
    let columns = Columns { of: &dy, stride, first };
    t.cuda(gpu, flops(s), || cuda::backward(gpu, &x, columns, of, &dx, [&u, &v]))?;
    t.near("dx", &dx, &want, size(&want))?;
    t.sums("u", &u, &want_u, *n_in)?;
    t.sums("v", &v, &want_v, *n_out)
}
