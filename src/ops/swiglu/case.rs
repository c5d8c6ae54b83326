//! SwiGLU's cases.

use super::cuda;
use crate::device::Result;
use crate::ops::case::{BF16, Bf16s, Case, FFN, OpCase, Size, Sizes, Trial, Work, matrices};
use half::bf16;

pub const CASES: &[&dyn Case] = &[&FORWARD, &BACKWARD];

const FORWARD: OpCase<Sizes<2>> = OpCase { op: "swiglu", pass: "forward", shapes, run: forward };
const BACKWARD: OpCase<Sizes<2>> = OpCase { pass: "backward", run: backward, ..FORWARD };

fn shapes(size: Size) -> Vec<Sizes<2>> {
    matrices(size, FFN)
}

/// Some gates are so large that their exponential overflows or vanishes.
fn gates_and_ups(rows: usize, ffn: usize) -> Bf16s {
    let mut values = crate::ops::case::randoms(1, 2 * rows * ffn);
    values[..8].copy_from_slice(&[-200.0, -90.0, -1.0, 0.0, 1.0, 90.0, 200.0, -0.0]);
    Bf16s::of(&values)
}

fn forward(Sizes([rows, ffn]): &Sizes<2>, t: &mut Trial<'_>) -> Result<()> {
    let n = rows * ffn;
    let (gate_up, mut want) = (gates_and_ups(*rows, *ffn), vec![0.0; n]);
    t.cpu(Work::Bytes(12 * n), || super::forward(gate_up.wide(), *ffn, &mut want));
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (gate_up, y) = (gate_up.on(gpu)?, gpu.uninit::<bf16>(n)?);
    t.cuda(gpu, Work::Bytes(6 * n), || cuda::forward(gpu, &gate_up, *ffn, &y))?;
    t.close("y", &y, &want, BF16)
}

fn backward(Sizes([rows, ffn]): &Sizes<2>, t: &mut Trial<'_>) -> Result<()> {
    let n = rows * ffn;
    let (gate_up, dy) = (gates_and_ups(*rows, *ffn), Bf16s::randoms(2, n));
    let want = t.cpu_in_place(Work::Bytes(20 * n), &gate_up, |x| super::backward(dy.wide(), *ffn, x));
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (gate_up, dy) = (gate_up.on(gpu)?, dy.on(gpu)?);
    t.cuda(gpu, Work::Bytes(10 * n), || cuda::backward(gpu, &dy, *ffn, &gate_up))?;
    t.close("gradient", &gate_up, &want, BF16)
}
