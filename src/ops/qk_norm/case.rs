//! QK-norm's cases.

use super::{Shape, cuda};
use crate::device::Result;
use crate::ops::case::{BF16, Bf16s, Case, OpCase, PEERS_ROWS, Size, TASK_ROWS, Trial, Work};
use half::bf16;
use std::fmt;

pub const CASES: &[&dyn Case] = &[&FORWARD, &BACKWARD];

const FORWARD: OpCase<QkvRows> = OpCase { op: "qk_norm", pass: "forward", shapes, run: forward };
const BACKWARD: OpCase<QkvRows> = OpCase { pass: "backward", run: backward, ..FORWARD };

const EPS: f32 = 1e-6;

struct QkvRows {
    rows: usize,
    shape: Shape,
}

impl fmt::Display for QkvRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { heads, kv_heads, head_dim } = self.shape;
        write!(f, "{}x{heads}+{kv_heads} hd{head_dim}", self.rows)
    }
}

/// 300 rows of 8 heads of 256 are more than the backward pass has blocks.
fn shapes(size: Size) -> Vec<QkvRows> {
    let shapes = match size {
        Size::Ragged => {
            vec![(1, 1, 1, 16), (257, 2, 1, 64), (5, 12, 2, 128), (3, 3, 3, 256), (33, 7, 1, 32), (300, 5, 3, 256)]
        }
        Size::Model => vec![(4096, 16, 8, 128)],
        Size::Peers => vec![(PEERS_ROWS, 16, 8, 128)],
        Size::Task => vec![(TASK_ROWS, 16, 8, 128)],
    };
    let rows = |(rows, heads, kv_heads, head_dim)| QkvRows { rows, shape: Shape { heads, kv_heads, head_dim } };
    shapes.into_iter().map(rows).collect()
}

fn forward(&QkvRows { rows, shape }: &QkvRows, t: &mut Trial<'_>) -> Result<()> {
    let normed = rows * (shape.heads + shape.kv_heads) * shape.head_dim;
    let (x, w) = (Bf16s::randoms(1, rows * shape.qkv_dim()), Bf16s::randoms(2, 2 * shape.head_dim));
    let mut want_raw = vec![0.0; normed];
    let want = t.cpu_in_place(Work::Bytes(12 * normed), &x, |x| {
        super::forward(x, shape, w.wide(), EPS, Some(&mut want_raw));
    });
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (in_place, x, w, raw) = (x.on(gpu)?, x.on(gpu)?, w.on(gpu)?, gpu.uninit::<bf16>(normed)?);
    t.cuda(gpu, Work::Bytes(6 * normed), || cuda::forward(gpu, &x, shape, &w, EPS, Some(&raw)))?;
    t.close("rows", &x, &want, BF16)?;
    t.equal("queries and keys as they were", &raw, &want_raw)?;
    cuda::forward(gpu, &in_place, shape, &w, EPS, None)?;
    t.close("rows, nothing kept", &in_place, &want, BF16)
}

fn backward(&QkvRows { rows, shape }: &QkvRows, t: &mut Trial<'_>) -> Result<()> {
    let (heads, d) = (rows * (shape.heads + shape.kv_heads), shape.head_dim);
    let (dy, raw) = (Bf16s::randoms(1, rows * shape.qkv_dim()), Bf16s::randoms(2, heads * d));
    let (w, mut want_dw) = (Bf16s::randoms(3, 2 * d), vec![0.0; 2 * d]);
    let want = t.cpu_in_place(Work::Bytes(12 * heads * d), &dy, |dy| {
        super::backward(dy, shape, raw.wide(), w.wide(), EPS, Some(&mut want_dw));
    });
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (dy, raw, w, dw) = (dy.on(gpu)?, raw.on(gpu)?, w.on(gpu)?, gpu.zeros::<f32>(2 * d)?);
    t.cuda(gpu, Work::Bytes(6 * heads * d), || cuda::backward(gpu, &dy, shape, &raw, &w, EPS, Some(&dw)))?;
    t.close("gradient", &dy, &want, BF16)?;
    t.sums("dw", &dw, &want_dw, heads)
}
