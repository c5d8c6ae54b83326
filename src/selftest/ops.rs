//! One check for each op and direction, in the order of a model's step.

use super::{
    BF16, Check, F32, Probe, Size, attention, close_sums, decode, gradient_cosine, head, randoms, randoms_bf16,
    sampling, widen,
};
use crate::bench::ceilings::Work;
use crate::device::{Dtype, Real, Result};
use crate::ops::adamw::{self, AdamW, clip_scale};
use crate::ops::advantage::{self, Scale};
use crate::ops::attention::Shape;
use crate::ops::linear::Weight;
use crate::ops::philox::block;
use crate::ops::{embedding, linear, pcgrad, qk_norm, rmsnorm, rope, swiglu};
use half::bf16;

/// Every check there is.
pub const CHECKS: &[Check] = &[
    Check { name: "embedding forward", run: embedding_forward },
    Check { name: "embedding place", run: embedding_place },
    Check { name: "embedding backward", run: embedding_backward },
    Check { name: "rmsnorm forward", run: rmsnorm_forward },
    Check { name: "rmsnorm forward add", run: rmsnorm_forward_add },
    Check { name: "rmsnorm backward", run: rmsnorm_backward },
    Check { name: "linear forward", run: linear_forward },
    Check { name: "linear backward", run: linear_backward },
    Check { name: "rope", run: rope_both_ways },
    Check { name: "qk_norm forward", run: qk_norm_forward },
    Check { name: "qk_norm backward", run: qk_norm_backward },
    Check { name: "attention forward", run: attention::forward },
    Check { name: "attention backward", run: attention::backward },
    Check { name: "decode_attention", run: decode::append_and_forward },
    Check { name: "swiglu forward", run: swiglu_forward },
    Check { name: "swiglu backward", run: swiglu_backward },
    Check { name: "advantage", run: advantages },
    Check { name: "adamw norm", run: grad_norm },
    Check { name: "adamw", run: adamw_steps },
    Check { name: "adamw stochastic", run: adamw_stochastic },
    Check { name: "pcgrad", run: pcgrad },
    Check { name: "device graph", run: graph_replay },
    Check { name: "grouped_logprob forward", run: head::forward },
    Check { name: "grouped_logprob backward", run: head::backward },
    Check { name: "grouped_logprob loss", run: head::loss },
    Check { name: "sampling", run: sampling::draws },
    Check { name: "gradient_cosine", run: gradient_cosine::both_ways },
];

const EPS: f32 = 1e-6;
const VOCAB: usize = 37;

/// Low ones often, most of the others never.
fn tokens(n: usize) -> Vec<u32> {
    (0..n as u64).map(|i| block(3, 0, i)[0] % VOCAB as u32).map(|t| t * t / VOCAB as u32).collect()
}

fn embedding_place(p: &mut Probe) -> Result<()> {
    for (rows, hidden) in p.shapes() {
        let gpu = p.gpu;
        let ((narrow, wide), (table, mut want)) = (randoms_bf16(1, rows * hidden), randoms_bf16(2, 2 * rows * hidden));
        // Every other row of the table, from the last row on.
        let moves: Vec<(u32, u32)> = (0..rows as u32).map(|i| (rows as u32 - 1 - i, 2 * i + 1)).collect();
        for (from, to) in &moves {
            let (from, to) = (*from as usize * hidden, *to as usize * hidden);
            want[to..to + hidden].copy_from_slice(&wide[from..from + hidden]);
        }
        let (y, table) = (gpu.tensor(&narrow)?, gpu.tensor(&table)?);
        let moves = embedding::cuda::Moves::new(gpu, &moves, [rows, 2 * rows])?;
        p.time(Work::Bytes(4 * rows * hidden), || embedding::cuda::place(gpu, &y, &moves, hidden, &table))?;
        p.equal(&format!("{rows} x {hidden}"), &*table, &want)?;
    }
    Ok(())
}

fn embedding_forward(p: &mut Probe) -> Result<()> {
    for (rows, hidden) in p.shapes() {
        let (gpu, tokens) = (p.gpu, tokens(rows));
        let (table, wide) = randoms_bf16(1, VOCAB * hidden);
        let mut want = vec![0.0; rows * hidden];
        embedding::forward(&tokens, &wide, hidden, &mut want);
        let (tokens, table) = (embedding::cuda::Tokens::new(gpu, &tokens, VOCAB)?, gpu.tensor(&table)?);
        let y = gpu.uninit::<bf16>(rows * hidden)?;
        p.time(Work::Bytes(4 * rows * hidden), || embedding::cuda::forward(gpu, &tokens, &table, hidden, &y))?;
        p.equal(&format!("{rows} x {hidden}"), &y, &want)?;
    }
    Ok(())
}

fn embedding_backward(p: &mut Probe) -> Result<()> {
    for (rows, hidden) in p.shapes() {
        let (gpu, tokens) = (p.gpu, tokens(rows));
        let ((dy, dy_wide), (d_table, mut want)) = (randoms_bf16(1, rows * hidden), randoms_bf16(2, VOCAB * hidden));
        let (d_wide, d_narrow) = (gpu.tensor(&want)?, gpu.tensor(&d_table)?);
        embedding::backward(&tokens, &dy_wide, hidden, &mut want);
        let (tokens, dy) = (embedding::cuda::Tokens::new(gpu, &tokens, VOCAB)?, gpu.tensor(&dy)?);
        embedding::cuda::backward(gpu, &tokens, &dy, hidden, &d_narrow)?;
        p.time(Work::Bytes(2 * rows * hidden), || embedding::cuda::backward(gpu, &tokens, &dy, hidden, &d_wide))?;
        // The same sums in the same order.
        p.equal(&format!("f32, {rows} x {hidden}"), &d_wide, &want)?;
        p.close(&format!("bf16, {rows} x {hidden}"), &d_narrow, &want, BF16)?;
    }
    Ok(())
}

fn rmsnorm_forward(p: &mut Probe) -> Result<()> {
    for (rows, hidden) in p.shapes() {
        let (gpu, n) = (p.gpu, rows * hidden);
        let ((x, x_wide), (w, w_wide)) = (randoms_bf16(1, n), randoms_bf16(2, hidden));
        let (mut want, mut want_rstd) = (vec![0.0; n], vec![0.0; rows]);
        rmsnorm::forward(&x_wide, &w_wide, EPS, &mut want, &mut want_rstd);
        let (x, w, y, rstd) = (gpu.tensor(&x)?, gpu.tensor(&w)?, gpu.uninit::<bf16>(n)?, gpu.uninit::<f32>(rows)?);
        p.time(Work::Bytes(4 * n), || rmsnorm::cuda::forward(gpu, &x, &w, EPS, &y, &rstd))?;
        p.close(&format!("y of {rows} x {hidden}"), &y, &want, BF16)?;
        p.close("rstd", &rstd, &want_rstd, F32)?;
    }
    Ok(())
}

fn rmsnorm_forward_add(p: &mut Probe) -> Result<()> {
    for (rows, hidden) in p.shapes() {
        let (gpu, n) = (p.gpu, rows * hidden);
        let ((x, x_wide), (delta, delta_wide)) = (randoms_bf16(1, n), randoms_bf16(2, n));
        let (w, w_wide) = randoms_bf16(3, hidden);
        // The stream is kept in bf16, and what is kept is what is normalised.
        let sums: Vec<f32> = x_wide.iter().zip(&delta_wide).map(|(x, d)| bf16::from_f32(x + d).to_f32()).collect();
        let (mut want, mut want_rstd) = (vec![0.0; n], vec![0.0; rows]);
        rmsnorm::forward(&sums, &w_wide, EPS, &mut want, &mut want_rstd);
        let (x, delta, w) = (gpu.tensor(&x)?, gpu.tensor(&delta)?, gpu.tensor(&w)?);
        let (y, rstd) = (gpu.uninit::<bf16>(n)?, gpu.uninit::<f32>(rows)?);
        p.time(Work::Bytes(8 * n), || rmsnorm::cuda::forward_add(gpu, &x, &delta, &w, EPS, &x, &y, &rstd))?;
        p.equal(&format!("sum of {rows} x {hidden}"), &x, &sums)?;
        p.close(&format!("y of {rows} x {hidden}"), &y, &want, BF16)?;
        p.close("rstd", &rstd, &want_rstd, F32)?;
    }
    Ok(())
}

fn rmsnorm_backward(p: &mut Probe) -> Result<()> {
    for (rows, hidden) in p.shapes() {
        let (gpu, n) = (p.gpu, rows * hidden);
        let ((dy, dy_wide), (x, x_wide), (w, w_wide)) =
            (randoms_bf16(1, n), randoms_bf16(2, n), randoms_bf16(3, hidden));
        let ((dx, mut want_dx), (dw, mut want_dw)) = (randoms_bf16(4, n), randoms_bf16(5, hidden));
        let (dw_wide, dw) = (gpu.tensor(&want_dw)?, gpu.tensor(&dw)?);
        let mut rstd = vec![0.0; rows];
        rmsnorm::forward(&x_wide, &w_wide, EPS, &mut vec![0.0; n], &mut rstd);
        rmsnorm::backward(&dy_wide, &x_wide, &w_wide, &rstd, &mut want_dx, &mut want_dw);
        let (dy, x, w, rstd) = (gpu.tensor(&dy)?, gpu.tensor(&x)?, gpu.tensor(&w)?, gpu.tensor(&rstd)?);
        let [one, two] = [gpu.tensor(&dx)?, gpu.tensor(&dx)?];
        rmsnorm::cuda::backward(gpu, &dy, &x, &w, &rstd, &one, &dw)?;
        p.time(Work::Bytes(8 * n), || rmsnorm::cuda::backward(gpu, &dy, &x, &w, &rstd, &two, &dw_wide))?;
        for dx in [&one, &two] {
            p.close(&format!("dx of {rows} x {hidden}"), dx, &want_dx, BF16)?;
        }
        // Sums over the rows: in units of their largest term.
        let noise = F32 * rows as f32;
        p.close("dw in bf16", &dw, &want_dw, BF16 + noise)?;
        p.close("dw in f32", &dw_wide, &want_dw, noise)?;
    }
    Ok(())
}

/// Rows, inputs and outputs. What cuBLASLt can do at all has rows of whole 16 bytes where it is fast.
fn products(p: &Probe) -> Vec<(usize, usize, usize)> {
    let mut sizes = vec![(1, 8, 16), (33, 64, 40), (130, 72, 8)];
    if p.size == Size::Full {
        sizes.push((2048, 896, 4864));
    }
    sizes
}

/// Of a product.
fn flops(rows: usize, n_in: usize, n_out: usize) -> Work {
    Work::Flops(2.0 * (rows * n_in * n_out) as f64)
}

fn linear_forward(p: &mut Probe) -> Result<()> {
    for (rows, n_in, n_out) in products(p) {
        let (gpu, what) = (p.gpu, format!("{rows} x {n_in} to {n_out}"));
        let ((x, x_wide), (w, w_wide)) = (randoms_bf16(1, rows * n_in), randoms_bf16(2, n_out * n_in));
        let (b, b_wide) = randoms_bf16(3, n_out);
        let (x, w, b, y) = (gpu.tensor(&x)?, gpu.tensor(&w)?, gpu.tensor(&b)?, gpu.uninit::<bf16>(rows * n_out)?);
        let mut want = vec![0.0; rows * n_out];
        linear::forward(&x_wide, Weight::new(Dtype::F32, &w_wide, n_in), Some(&b_wide), &mut want);
        p.time(flops(rows, n_in, n_out), || linear::cuda::forward(gpu, &x, &w, Some(&*b), n_in, &y))?;
        close_sums(p, &format!("with a bias, {what}"), &y, &want, n_in)?;

        let wide = gpu.uninit::<f32>(rows * n_out)?;
        linear::forward(&x_wide, Weight::new(Dtype::F32, &w_wide, n_in), None, &mut want);
        linear::cuda::forward(gpu, &x, &w, None, n_in, &wide)?;
        close_sums(p, &format!("to f32, {what}"), &wide, &want, n_in)?;
    }
    Ok(())
}

fn linear_backward(p: &mut Probe) -> Result<()> {
    for (rows, n_in, n_out) in products(p) {
        let (gpu, what) = (p.gpu, format!("{rows} x {n_in} to {n_out}"));
        let ((dy, dy_wide), (x, x_wide)) = (randoms_bf16(1, rows * n_out), randoms_bf16(2, rows * n_in));
        let ((w, w_wide), (dw0, dw0_wide)) = (randoms_bf16(3, n_out * n_in), randoms_bf16(4, n_out * n_in));
        let (dy, x, w) = (gpu.tensor(&dy)?, gpu.tensor(&x)?, gpu.tensor(&w)?);
        let (dx, mut want) = (gpu.uninit::<bf16>(rows * n_in)?, vec![0.0; rows * n_in]);
        linear::backward_input(Dtype::F32, &dy_wide, &w_wide, n_in, &mut want);
        linear::cuda::backward_input(gpu, &dy, &w, n_in, &dx)?;
        close_sums(p, &format!("dx, {what}"), &dx, &want, n_out)?;

        let (dw_wide, dw) = (gpu.tensor(&dw0_wide)?, gpu.tensor(&dw0)?);
        let mut want = dw0_wide;
        linear::backward_weight(Dtype::F32, &dy_wide, n_out, 0, &x_wide, n_in, &mut want);
        linear::cuda::backward_weight(gpu, &dy, &x, n_in, &dw_wide)?;
        p.time(flops(rows, n_in, n_out), || linear::cuda::backward_weight(gpu, &dy, &x, n_in, &dw))?;
        close_sums(p, &format!("dw in f32, {what}"), &dw_wide, &want, rows)?;
        close_sums(p, &format!("dw in bf16, {what}"), &dw, &want, rows)?;

        let (ones, mut want) = (gpu.tensor(&vec![bf16::ONE; rows])?, randoms(5, n_out));
        let db = gpu.tensor(&want)?;
        linear::backward_bias(&dy_wide, &mut want);
        linear::cuda::backward_bias(gpu, &dy, &ones, &db)?;
        close_sums(p, &format!("db, {what}"), &db, &want, rows)?;
    }
    Ok(())
}

fn rope_both_ways(p: &mut Probe) -> Result<()> {
    let mut shapes = vec![(1, 1, 1, 16), (257, 2, 1, 64), (5, 12, 2, 128), (33, 14, 2, 64)];
    if p.size == Size::Full {
        shapes.push((4096, 16, 2, 128));
    }
    for (rows, heads, kv_heads, head_dim) in shapes {
        let (gpu, tables) = (p.gpu, rope::Tables::new(1e6, head_dim, 600));
        let (row_len, turned) = ((heads + 2 * kv_heads) * head_dim, heads + kv_heads);
        let position: Vec<u32> = (0..rows as u64).map(|i| block(5, 0, i)[0] % 600).collect();
        let (on_gpu, positions) = (rope::cuda::Tables::new(gpu, &tables)?, gpu.tensor(&position)?);
        for inverse in [false, true] {
            let (x, mut want) = randoms_bf16(1, rows * row_len);
            rope::rotate(&mut want, row_len, turned, &position, &tables, inverse);
            let x = gpu.tensor(&x)?;
            p.time(Work::Bytes(4 * rows * turned * head_dim), || {
                rope::cuda::rotate(gpu, &x, row_len, turned, &positions, &on_gpu, inverse)
            })?;
            p.close(&format!("{rows} rows of {heads} + 2 x {kv_heads} heads of {head_dim}"), &x, &want, BF16)?;
        }
    }
    Ok(())
}

/// Rows, and heads of queries and keys.
fn normed_shapes(p: &Probe) -> Vec<(usize, Shape)> {
    let shape = |heads, kv_heads, head_dim| Shape { heads, kv_heads, head_dim };
    let mut shapes = vec![(1, shape(1, 1, 16)), (257, shape(2, 1, 64)), (5, shape(12, 2, 128))];
    shapes.extend((p.size == Size::Full).then(|| (4096, shape(16, 8, 128))));
    shapes
}

fn qk_norm_forward(p: &mut Probe) -> Result<()> {
    for (rows, shape) in normed_shapes(p) {
        let (gpu, normed) = (p.gpu, rows * (shape.heads + shape.kv_heads) * shape.head_dim);
        let ((x, mut want), (w, w_wide)) =
            (randoms_bf16(1, rows * shape.qkv_dim()), randoms_bf16(2, 2 * shape.head_dim));
        let mut want_raw = vec![0.0; normed];
        qk_norm::forward(&mut want, shape, &w_wide, EPS, Some(&mut want_raw));
        let (x, w, raw) = (gpu.tensor(&x)?, gpu.tensor(&w)?, gpu.uninit::<bf16>(normed)?);
        p.time(Work::Bytes(6 * normed), || qk_norm::cuda::forward(gpu, &x, shape, &w, EPS, Some(&raw)))?;
        p.close(&format!("{rows} rows of {shape:?}"), &x, &want, BF16)?;
        p.equal("queries and keys as they were", &raw, &want_raw)?;
    }
    Ok(())
}

fn qk_norm_backward(p: &mut Probe) -> Result<()> {
    for (rows, shape) in normed_shapes(p) {
        let (gpu, heads, d) = (p.gpu, rows * (shape.heads + shape.kv_heads), shape.head_dim);
        let ((dy, mut want), (raw, raw_wide)) = (randoms_bf16(1, rows * shape.qkv_dim()), randoms_bf16(2, heads * d));
        let ((w, w_wide), mut want_dw) = (randoms_bf16(3, 2 * d), vec![0.0; 2 * d]);
        qk_norm::backward(&mut want, shape, &raw_wide, &w_wide, EPS, &mut want_dw);
        let (dy, raw, w) = (gpu.tensor(&dy)?, gpu.tensor(&raw)?, gpu.tensor(&w)?);
        let dw = gpu.zeros::<f32>(2 * d)?;
        p.time(Work::Bytes(6 * heads * d), || qk_norm::cuda::backward(gpu, &dy, shape, &raw, &w, EPS, &dw))?;
        p.close(&format!("{rows} rows of {shape:?}"), &dy, &want, BF16)?;
        close_sums(p, "dw", &dw, &want_dw, heads)?;
    }
    Ok(())
}

fn swiglu_forward(p: &mut Probe) -> Result<()> {
    for (rows, ffn) in p.shapes() {
        let (gpu, n) = (p.gpu, rows * ffn);
        let ((gate_up, wide), mut want) = (randoms_bf16(1, 2 * n), vec![0.0; n]);
        swiglu::forward(&wide, ffn, &mut want);
        let (gate_up, y) = (gpu.tensor(&gate_up)?, gpu.uninit::<bf16>(n)?);
        p.time(Work::Bytes(6 * n), || swiglu::cuda::forward(gpu, &gate_up, ffn, &y))?;
        p.close(&format!("{rows} x {ffn}"), &y, &want, BF16)?;
    }
    Ok(())
}

fn swiglu_backward(p: &mut Probe) -> Result<()> {
    for (rows, ffn) in p.shapes() {
        let (gpu, n) = (p.gpu, rows * ffn);
        let ((gate_up, mut want), (dy, dy_wide)) = (randoms_bf16(1, 2 * n), randoms_bf16(2, n));
        swiglu::backward(&dy_wide, ffn, &mut want);
        let (gate_up, dy) = (gpu.tensor(&gate_up)?, gpu.tensor(&dy)?);
        p.time(Work::Bytes(10 * n), || swiglu::cuda::backward(gpu, &dy, ffn, &gate_up))?;
        p.close(&format!("{rows} x {ffn}"), &gate_up, &want, BF16)?;
    }
    Ok(())
}

fn advantages(p: &mut Probe) -> Result<()> {
    // One, two, constant, more than a warp, empty, and a constant whose mean is off in the last bit.
    let sizes = [1, 2, 8, 8, 40, 0, 7, 100];
    let (gpu, n, eps) = (p.gpu, sizes.iter().sum::<usize>(), 1e-4f32);
    let mut rewards = randoms(9, n);
    rewards[3..11].fill(1.0);
    rewards[59..66].fill(0.1);
    let start: Vec<u32> = (0..=sizes.len()).map(|g| sizes[..g].iter().sum::<usize>() as u32).collect();
    let wide: Vec<f64> = rewards.iter().map(|&r| f64::from(r)).collect();
    let (reward, start) = (gpu.tensor(&rewards)?, gpu.tensor(&start)?);
    for scale in [Scale::Group, Scale::Batch, Scale::None] {
        let want: Vec<f32> =
            advantage::advantages(&wide, &sizes, scale, f64::from(eps)).into_iter().map(|a| a as f32).collect();
        let got = gpu.uninit::<f32>(n)?;
        p.time(Work::Bytes(8 * n), || advantage::cuda::advantages(gpu, &reward, &start, scale, eps, &got))?;
        p.close(&format!("{scale:?}"), &got, &want, F32)?;
        for equal in [0..1, 3..11, 59..66] {
            if let Some(part) = got.part(equal.clone()) {
                p.equal("equal rewards", &part, &want[equal])?;
            }
        }
    }
    Ok(())
}

fn flat_sizes(p: &Probe) -> Vec<usize> {
    let mut sizes = vec![8, 2048, 40_008];
    if p.size == Size::Full {
        sizes.push(1 << 24);
    }
    sizes
}

fn grad_norm(p: &mut Probe) -> Result<()> {
    for n in flat_sizes(p) {
        let (gpu, (narrow, wide)) = (p.gpu, randoms_bf16(6, n));
        let want = adamw::grad_norm(&wide);
        let (narrow, wide) = (gpu.tensor(&narrow)?, gpu.tensor(&wide)?);
        let norm = gpu.uninit::<f32>(2)?;
        for clip in [1.0, 1e6, 0.0] {
            let want = [want as f32, clip_scale(want, clip)];
            adamw::cuda::grad_norm(gpu, &wide, clip, &norm)?;
            p.close(&format!("f32, {n}"), &norm, &want, F32)?;
            p.time(Work::Bytes(2 * n), || adamw::cuda::grad_norm(gpu, &narrow, clip, &norm))?;
            p.close(&format!("bf16, {n}"), &norm, &want, F32)?;
        }
    }
    Ok(())
}

const OPTIMIZER: AdamW =
    AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.5, step: 1 };

fn adamw_steps(p: &mut Probe) -> Result<()> {
    for (n, decay) in flat_sizes(p).into_iter().zip([true, false, true, true]) {
        adamw_three_steps::<bf16>(p, n, decay, bf16::from_f32)?;
        adamw_three_steps::<f32>(p, n, decay, |x| x)?;
    }
    Ok(())
}

fn adamw_three_steps<T: Real>(p: &mut Probe, n: usize, decay: bool, to: fn(f32) -> T) -> Result<()> {
    let (gpu, mut weights, mut m, mut v) = (p.gpu, randoms(1, n), vec![0.0; n], vec![0.0; n]);
    let (gpu_p, gpu_m, gpu_v) = (gpu.tensor(&weights)?, gpu.tensor(&m)?, gpu.tensor(&v)?);
    let (copy, scale) = (gpu.uninit::<bf16>(n)?, gpu.tensor(&[OPTIMIZER.grad_scale])?);
    let state = adamw::cuda::State { p: &gpu_p, m: &gpu_m, v: &gpu_v, copy: &copy };
    for step in 1..=3 {
        let o = AdamW { step, ..OPTIMIZER };
        let (_, wide) = randoms_bf16(10 + u64::from(step), n);
        adamw::step(&o, decay, &mut weights, &wide, &mut m, &mut v);
        let g: Vec<T> = wide.iter().map(|x| to(*x)).collect();
        let g = gpu.tensor(&g)?;
        p.time(Work::Bytes((26 + size_of::<T>()) * n), || {
            adamw::cuda::step(gpu, &o, decay, &state, &g, &scale, adamw::cuda::Rounding::Nearest)
        })?;
    }
    p.close(&format!("weights of {n}, {}", T::NAME), &gpu_p, &weights, F32)?;
    p.close("m", &gpu_m, &m, F32)?;
    p.close("v", &gpu_v, &v, F32)?;
    let rounded: Vec<f32> = gpu.read(&gpu_p)?.into_iter().map(|p| bf16::from_f32(p).to_f32()).collect();
    p.equal("the copy", &copy, &rounded)
}

fn adamw_stochastic(p: &mut Probe) -> Result<()> {
    let (gpu, n, seed, stream) = (p.gpu, 4096, 77u64 << 33, 5u64);
    // A third of the way from one bf16 to the next; no step, so that the copy is of the weights themselves.
    let third = f32::from_bits(1.0f32.to_bits() + 0x5555);
    let still = AdamW { lr: 0.0, ..OPTIMIZER };
    let bits = |i: usize| block(seed, stream, i as u64 / 8)[i % 8 / 2] >> (16 * (i % 2)) & 0xFFFF;
    let want: Vec<f32> = (0..n).map(|i| bf16::from_bits(((third.to_bits() + bits(i)) >> 16) as u16).to_f32()).collect();
    let (weights, m, v) = (gpu.tensor(&vec![third; n])?, gpu.zeros::<f32>(n)?, gpu.zeros::<f32>(n)?);
    let (copy, scale) = (gpu.uninit::<bf16>(n)?, gpu.tensor(&[1.0f32])?);
    let state = adamw::cuda::State { p: &weights, m: &m, v: &v, copy: &copy };
    let rounding = adamw::cuda::Rounding::Stochastic { seed, stream };
    let (narrow, wide) = (gpu.zeros::<bf16>(n)?, gpu.zeros::<f32>(n)?);
    adamw::cuda::step(gpu, &still, true, &state, &narrow, &scale, rounding)?;
    p.equal("with gradients in bf16", &copy, &want)?;
    gpu.zero(&copy)?;
    p.time(Work::Bytes(30 * n), || adamw::cuda::step(gpu, &still, true, &state, &wide, &scale, rounding))?;
    p.equal("with gradients in f32", &copy, &want)
}

/// Gradients at odds, and others that agree.
fn pcgrad(p: &mut Probe) -> Result<()> {
    for (n, sign) in [(8, -1.0), (20_008, -1.0), (20_008, 1.0)] {
        let positive = randoms(1, n);
        let mut want: Vec<f32> = positive.iter().zip(randoms(2, n)).map(|(p, x)| 0.3 * x + sign * p).collect();
        let (on_gpu, sum) = (p.gpu.tensor(&positive)?, p.gpu.tensor(&want)?);
        let cosine = pcgrad::combine(&positive, &mut want).unwrap_or(f64::NAN);
        let found = pcgrad::cuda::combine(p.gpu, &on_gpu, &sum)?.unwrap_or(f64::NAN);
        p.close(&format!("the sum of {n}"), &sum, &want, F32)?;
        p.time(Work::Bytes(20 * n), || pcgrad::cuda::combine(p.gpu, &on_gpu, &sum).map(drop))?;
        let found = p.gpu.tensor(&[found as f32])?;
        p.close("the cosine", &found, &[cosine as f32], F32)?;
    }
    Ok(())
}

/// A norm and a product, captured once and replayed with other inputs.
fn graph_replay(p: &mut Probe) -> Result<()> {
    let (gpu, rows, hidden) = (p.gpu, 5, 64);
    let (w, w_wide) = randoms_bf16(1, hidden);
    let (matrix, matrix_wide) = randoms_bf16(2, hidden * hidden);
    let (w, matrix, x) = (gpu.tensor(&w)?, gpu.tensor(&matrix)?, gpu.zeros::<bf16>(rows * hidden)?);
    let (h, y) = (gpu.zeros::<bf16>(rows * hidden)?, gpu.zeros::<f32>(rows * hidden)?);
    let rstd = gpu.zeros::<f32>(rows)?;
    let graph = gpu.capture(|| {
        rmsnorm::cuda::forward(gpu, &x, &w, EPS, &h, &rstd)?;
        linear::cuda::forward(gpu, &h, &matrix, None, hidden, &y)
    })?;
    for seed in [3, 4] {
        let ((input, wide), mut normed) = (randoms_bf16(seed, rows * hidden), vec![0.0; rows * hidden]);
        gpu.write(&x, &input)?;
        p.time(flops(rows, hidden, hidden), || graph.replay())?;
        rmsnorm::forward(&wide, &w_wide, EPS, &mut normed, &mut vec![0.0; rows]);
        p.close("the norm", &h, &normed, BF16)?;
        let (normed, mut want) = (widen(&gpu.read(&h)?), vec![0.0; rows * hidden]);
        linear::forward(&normed, Weight::new(Dtype::F32, &matrix_wide, hidden), None, &mut want);
        close_sums(p, "the product", &y, &want, hidden)?;
    }
    Ok(())
}
