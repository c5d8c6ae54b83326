//! The cases of matrix products: what cuBLASLt is held to.

use super::{RightFactor, Weight, cuda};
use crate::device::{Dtype, Result};
use crate::ops::case::{Bf16s, Case, FFN, HIDDEN, OpCase, PEERS_ROWS, Size, Sizes, TASK_ROWS, Trial, Work, randoms};
use half::bf16;

pub const CASES: &[&dyn Case] = &[&FORWARD, &BACKWARD_INPUT, &BACKWARD_WEIGHT];

const FORWARD: OpCase<Sizes<3>> = OpCase { op: "linear", pass: "forward", shapes, run: forward };
const BACKWARD_INPUT: OpCase<Sizes<3>> = OpCase { pass: "backward input", run: backward_input, ..FORWARD };
const BACKWARD_WEIGHT: OpCase<Sizes<3>> = OpCase { pass: "backward weight", run: backward_weight, ..FORWARD };

/// Rows, inputs and outputs. What cuBLASLt can do at all has rows of whole 16 bytes where it is fast.
fn shapes(size: Size) -> Vec<Sizes<3>> {
    let shapes = match size {
        Size::Ragged => vec![[1, 8, 16], [33, 64, 40], [130, 72, 8]],
        Size::Model => vec![[2048, 896, 4864]],
        Size::Peers => vec![[PEERS_ROWS, HIDDEN[1], FFN[1]]],
        Size::Task => vec![[TASK_ROWS, HIDDEN[0], FFN[0]]],
    };
    shapes.into_iter().map(Sizes).collect()
}

fn flops(Sizes([rows, n_in, n_out]): &Sizes<3>) -> Work {
    Work::Flops(2.0 * (rows * n_in * n_out) as f64)
}

fn forward(s @ Sizes([rows, n_in, n_out]): &Sizes<3>, t: &mut Trial<'_>) -> Result<()> {
    let (x, w, b) = (Bf16s::randoms(1, rows * n_in), Bf16s::randoms(2, n_out * n_in), Bf16s::randoms(3, *n_out));
    let (mut want, mut want_biased) = (vec![0.0; rows * n_out], vec![0.0; rows * n_out]);
    t.cpu_before(|| {
        super::forward(x.wide(), Weight::new(Dtype::F32, w.wide(), *n_in), Some(b.wide()), &mut want_biased)
    });
    t.cpu(flops(s), || super::forward(x.wide(), Weight::new(Dtype::F32, w.wide(), *n_in), None, &mut want));
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (x, w, b, y) = (x.on(gpu)?, w.on(gpu)?, b.on(gpu)?, gpu.uninit::<bf16>(rows * n_out)?);
    t.cuda(gpu, flops(s), || cuda::forward(gpu, &x, &w, Some(&*b), *n_in, &y))?;
    t.sums("with a bias", &y, &want_biased, *n_in)?;
    let wide = gpu.uninit::<f32>(rows * n_out)?;
    cuda::forward(gpu, &x, &w, None, *n_in, &wide)?;
    t.sums("to f32", &wide, &want, *n_in)
}

fn backward_input(s @ Sizes([rows, n_in, n_out]): &Sizes<3>, t: &mut Trial<'_>) -> Result<()> {
    let (dy, w) = (Bf16s::randoms(1, rows * n_out), Bf16s::randoms(3, n_out * n_in));
    let mut want = vec![0.0; rows * n_in];
    t.cpu(flops(s), || super::backward_input(dy.wide(), &RightFactor::new(Dtype::F32, w.wide(), *n_in), &mut want));
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (dy, w, dx) = (dy.on(gpu)?, w.on(gpu)?, gpu.uninit::<bf16>(rows * n_in)?);
    t.cuda(gpu, flops(s), || cuda::backward_input(gpu, &dy, &w, *n_in, &dx))?;
    t.sums("dx", &dx, &want, *n_out)
}

/// And of the bias.
fn backward_weight(s @ Sizes([rows, n_in, n_out]): &Sizes<3>, t: &mut Trial<'_>) -> Result<()> {
    let (dy, x) = (Bf16s::randoms(1, rows * n_out), Bf16s::randoms(2, rows * n_in));
    let (dw, db) = (Bf16s::randoms(4, n_out * n_in), randoms(5, *n_out));
    let (mut want, mut want_db) = (dw.wide().to_vec(), db.clone());
    t.cpu_before(|| super::backward_bias(dy.wide(), &mut want_db));
    t.cpu(flops(s), || {
        super::backward_weight(dy.wide(), *n_out, 0, &RightFactor::new(Dtype::F32, x.wide(), *n_in), &mut want)
    });
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (dy, x, dw_wide, dw) = (dy.on(gpu)?, x.on(gpu)?, gpu.tensor(dw.wide())?, dw.on(gpu)?);
    let g = cuda::WeightGrad { dy: &dy, out: *n_out, first: 0, x: &x, in_features: *n_in };
    t.cuda(gpu, flops(s), || cuda::backward_weight(gpu, g, &dw))?;
    t.sums("dw in bf16", &dw, &want, *rows)?;
    cuda::backward_weight(gpu, g, &dw_wide)?;
    t.sums("dw in f32", &dw_wide, &want, *rows)?;
    let (ones, db) = (gpu.tensor(&vec![bf16::ONE; *rows])?, gpu.tensor(&db)?);
    cuda::backward_bias(gpu, &dy, &ones, &db)?;
    t.sums("db", &db, &want_db, *rows)
}
