//! QK-norm (Dehghani et al. 2023, as Qwen3 has it): RMSNorm of each head's query and key, before they are rotated.
//!
//! One weight `[head_dim]` for all queries and one for all keys, side by side: `w` `[2, head_dim]`. Values are left alone.

pub(crate) mod case;

use super::attention::Shape;
use super::rmsnorm;

/// Norms the queries and keys of `qkv` `[rows, qkv_dim]` in place; `raw` `[rows, (heads + kv_heads) · head_dim]`, where it is
/// wanted, gets what they were.
pub fn forward(qkv: &mut [f32], shape: Shape, w: &[f32], eps: f32, mut raw: Option<&mut [f32]>) {
    let (d, normed) = (shape.head_dim, (shape.heads + shape.kv_heads) * shape.head_dim);
    let mut y = vec![0.0; d];
    for (i, row) in qkv.chunks_exact_mut(shape.qkv_dim()).enumerate() {
        if let Some(raw) = &mut raw {
            raw[i * normed..][..normed].copy_from_slice(&row[..normed]);
        }
        for (head, x) in row[..normed].chunks_exact_mut(d).enumerate() {
            rmsnorm::forward(x, weight(w, shape, head), eps, &mut y, &mut [0.0]);
            x.copy_from_slice(&y);
        }
    }
}

/// Turns the gradient `d_qkv` `[rows, qkv_dim]` by normed queries and keys into that by `raw` ones, in place; adds to `dw`
/// `[2, head_dim]`, unless the weight is frozen.
pub fn backward(d_qkv: &mut [f32], shape: Shape, raw: &[f32], w: &[f32], eps: f32, mut dw: Option<&mut [f32]>) {
    let (d, normed) = (shape.head_dim, (shape.heads + shape.kv_heads) * shape.head_dim);
    let mut dx = vec![0.0; d];
    let (mut y, mut rstd) = (vec![0.0; d], [0.0]);
    for (row, raw) in d_qkv.chunks_exact_mut(shape.qkv_dim()).zip(raw.chunks_exact(normed)) {
        for (head, (dy, x)) in row[..normed].chunks_exact_mut(d).zip(raw.chunks_exact(d)).enumerate() {
            let (w, at) = (weight(w, shape, head), usize::from(head >= shape.heads) * d);
            rmsnorm::forward(x, w, eps, &mut y, &mut rstd);
            dx.fill(0.0);
            rmsnorm::backward(dy, x, w, &rstd, &mut dx, dw.as_deref_mut().map(|dw| &mut dw[at..at + d]));
            dy.copy_from_slice(&dx);
        }
    }
}

/// Of queries, or of keys.
fn weight(w: &[f32], shape: Shape, head: usize) -> &[f32] {
    let (queries, keys) = w.split_at(shape.head_dim);
    if head < shape.heads { queries } else { keys }
}

/// On a GPU, in bf16: heads of a power of two from 16 to 256.
pub mod cuda {
    use super::Shape;
    use crate::device::{Arg, Gpu, Launch, Real, Result, Slice, expect};
    use crate::ops::rmsnorm;
    use half::bf16;

    /// Blocks of the backward pass, as those of [`rmsnorm`]: fixed, so that dw has the same bits everywhere.
    const GRID: usize = 264;

    /// Checks the sizes; the rows.
    fn rows(op: &'static str, qkv: usize, raw: Option<usize>, w: usize, shape: Shape) -> Result<usize> {
        let (d, wide) = (shape.head_dim, shape.qkv_dim());
        let rows = qkv / wide.max(1);
        let fits = d.is_power_of_two() && (16..=256).contains(&d) && w == 2 * d && qkv == rows * wide;
        let raw_fits = raw.is_none_or(|raw| raw == rows * (shape.heads + shape.kv_heads) * d);
        let heads = rows * (shape.heads + shape.kv_heads);
        expect(op, fits && raw_fits && heads * d / 8 <= i32::MAX as usize, || {
            format!(
                "{qkv} elements of qkv, {raw:?} raw ones and weights of {w} for {shape:?} (heads of a power of two from 16 to 256)"
            )
        })?;
        Ok(rows)
    }

    /// As [`super::forward`].
    ///
    /// # Errors
    /// If the sizes do not fit together, or the launch fails.
    pub fn forward(
        gpu: &Gpu,
        qkv: &Slice<bf16>,
        shape: Shape,
        w: &Slice<bf16>,
        eps: f32,
        raw: Option<&Slice<bf16>>,
    ) -> Result<()> {
        let rows = rows("qk_norm forward", qkv.len(), raw.map(Slice::len), w.len(), shape)?;
        let [tall, heads, kv_heads, wide] = sizes(rows, shape);
        let raw = raw.map_or(Arg::NULL, Slice::arg);
        let args = [qkv.arg(), raw, w.arg(), tall, heads, kv_heads, wide, Arg::from(eps)];
        let threads = rows * (shape.heads + shape.kv_heads) * shape.head_dim / 8;
        gpu.launch_threads("qk_norm_forward_bf16", threads, &args)
    }

    /// As [`super::backward`].
    ///
    /// # Errors
    /// If the sizes do not fit together, or a launch fails.
    pub fn backward<T: Real>(
        gpu: &Gpu,
        d_qkv: &Slice<bf16>,
        shape: Shape,
        raw: &Slice<bf16>,
        w: &Slice<bf16>,
        eps: f32,
        dw: Option<&Slice<T>>,
    ) -> Result<()> {
        let op = "qk_norm backward";
        let rows = rows(op, d_qkv.len(), Some(raw.len()), w.len(), shape)?;
        let heads_of_a_block = 256 * 8 / shape.head_dim;
        let blocks = GRID.min((rows * (shape.heads + shape.kv_heads)).div_ceil(heads_of_a_block));
        let partial = gpu.uninit::<f32>(blocks * w.len())?;
        let [tall, heads, kv_heads, wide] = sizes(rows, shape);
        let args = [d_qkv.arg(), raw.arg(), w.arg(), partial.arg(), tall, heads, kv_heads, wide, Arg::from(eps)];
        let (grid, block) = ([blocks as u32, 1, 1], [256, 1, 1]);
        gpu.launch(Launch { kernel: "qk_norm_backward_bf16", grid, block, shared: 0, args: &args })?;
        dw.map_or(Ok(()), |dw| rmsnorm::cuda::add_partial(gpu, op, &partial, blocks, dw))
    }

    fn sizes(rows: usize, shape: Shape) -> [Arg; 4] {
        [rows, shape.heads, shape.kv_heads, shape.head_dim].map(|n| Arg::from(n as i32))
    }
}
