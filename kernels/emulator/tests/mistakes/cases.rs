//! Small launches of the kernels in which mistakes are planted.

use kernel_emulator::{Arg, Buffer, Fault, Schedule, Swizzle, TensorMap, Tiling, args};

/// What a case computes: several results, each of a size of its own.
pub type Results = Vec<Vec<f32>>;
type Outcome = Result<Results, Fault>;
type Case = fn(&Runs) -> Outcome;

/// How kernels are run: under one schedule, or under all.
pub struct Runs(pub Option<Schedule>);

impl Runs {
    fn launch<const N: usize>(
        &self,
        kernel: &str,
        grid: [u32; N],
        block: u32,
        shared: usize,
        args: &[Arg],
    ) -> Result<(), Fault> {
        let mut extents = [1; 3];
        extents[..N].copy_from_slice(&grid);
        let grid = kernel_emulator::Dim(extents);
        match self.0 {
            Some(schedule) => kernel_emulator::launch_under(schedule, kernel, grid, block, shared, args),
            None => kernel_emulator::launch(kernel, grid, block, shared, args),
        }
    }
}

/// Each with its kernels' file.
pub const CASES: [(&str, Case); 15] = [
    ("attention_hopper", attention_hopper),
    ("attention_backward_hopper", attention_backward_hopper),
    ("grouped_logprob_hopper", grouped_logprob_hopper),
    ("attention", attention),
    ("grouped_logprob", grouped_logprob),
    ("gradient_cosine", gradient_cosine),
    ("decode_attention", decode_attention),
    ("rmsnorm", rmsnorm),
    ("qk_norm", qk_norm),
    ("sampling", sampling),
    ("adamw", adamw),
    ("adamw_8bit", adamw_8bit),
    ("embedding", embedding),
    ("swiglu", swiglu),
    ("advantage", advantage),
];

/// Between -1 and 1, the same every time.
fn randoms(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

fn narrow(seed: u32, n: usize) -> Buffer {
    Buffer::new(&randoms(seed, n).iter().map(|x| (x.to_bits() >> 16) as u16).collect::<Vec<_>>())
}

fn wide(seed: u32, n: usize) -> Buffer {
    Buffer::new(&randoms(seed, n))
}

fn fresh(n: usize) -> Buffer {
    Buffer::poisoned::<f32>(n)
}

fn fresh_narrow(n: usize) -> Buffer {
    Buffer::poisoned::<u16>(n)
}

fn widen(x: &Buffer) -> Result<Vec<f32>, Fault> {
    Ok(x.read::<u16>()?.into_iter().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect())
}

/// A matrix of bf16 as Hopper's kernels take it.
fn map(of: &Buffer, width: usize) -> Arg<'_> {
    let (address, sizes, strides) = (of.address(), vec![width, of.size() / (2 * width)], vec![2 * width]);
    let tiling = Tiling { address, element_bytes: 2, sizes, strides, tile: vec![64, 64], swizzle: Swizzle::B128 };
    Arg::Map(of, TensorMap::new(&tiling).expect("a sound map"))
}

/// Two branches of a stem, each a third of the tokens: who is seen how far, each tile's least and greatest, tiles in reverse order.
struct Forest {
    tokens: usize,
    reach: Buffer,
    tiles: Buffer,
    order: Buffer,
}

impl Forest {
    fn new(tokens: usize) -> Forest {
        let third = tokens / 3;
        let end = |token: usize| if (third..2 * third).contains(&token) { 2 * third } else { tokens } as u32;
        let mut reach: Vec<u32> = (0..tokens).map(end).collect();
        let least = reach.chunks(64).map(|tile| *tile.iter().min().unwrap_or(&0));
        let greatest = reach.chunks(64).map(|tile| *tile.iter().max().unwrap_or(&0));
        let tiles = Buffer::new(&least.chain(greatest).collect::<Vec<_>>());
        reach.resize(tokens.next_multiple_of(128), 0);
        let order = Buffer::new(&(0..tokens.div_ceil(128) as u32).rev().collect::<Vec<_>>());
        Forest { tokens, reach: Buffer::new(&reach), tiles, order }
    }
}

/// Two heads that share keys.
const HEADS: [i32; 2] = [2, 1];

fn attention_hopper(runs: &Runs) -> Outcome {
    let Forest { tokens, reach, tiles, order } = Forest::new(330);
    let (qkv, o, softmax) = (narrow(1, tokens * 512), fresh_narrow(tokens * 256), fresh(tokens * 4));
    let [heads, kv_heads] = HEADS;
    let args = args![map(&qkv, 512), &reach, &tiles, &order, &o, &softmax, tokens as i32, heads, kv_heads, 0.3f32];
    runs.launch("attention_hopper_forward_hd128_bf16", [2], 384, 164_976, args)?;
    Ok(vec![widen(&o)?, softmax.read()?])
}

/// Of heads of 64, and what the backward pass goes on from.
struct Attention {
    forest: Forest,
    qkv: Buffer,
    o: Buffer,
    softmax: Buffer,
}

impl Attention {
    fn forward(runs: &Runs) -> Result<Attention, Fault> {
        let forest = Forest::new(200);
        let tokens = forest.tokens;
        let (qkv, o, softmax) = (narrow(1, tokens * 256), fresh_narrow(tokens * 128), fresh(tokens * 4));
        let [heads, kv_heads] = HEADS;
        let args = args![&qkv, &forest.reach, &forest.tiles, &o, &softmax, tokens as i32, heads, kv_heads, 0.4f32];
        runs.launch("attention_forward_hd64_bf16", [2, 2], 256, 768 * 64, args)?;
        Ok(Attention { forest, qkv, o, softmax })
    }
}

fn attention_backward_hopper(runs: &Runs) -> Outcome {
    let Attention { forest, qkv, o, softmax } = Attention::forward(&Runs(Some(Schedule::Forward)))?;
    let Forest { tokens, reach, tiles, order } = forest;
    let padded = tokens.next_multiple_of(64);
    let (d_o, rows, d_qkv) = (narrow(2, tokens * 128), fresh(4 * padded), fresh_narrow(tokens * 256));
    let ([heads, kv_heads], count) = (HEADS, tokens as i32);
    let args = args![&d_o, &o, &softmax, &rows, count, heads];
    runs.launch("attention_backward_hopper_rows_hd64_bf16", [padded as u32 / 16], 256, 0, args)?;
    for (kernel, grid, shared) in [("kv", [1, 2], 1280 * 64 + 1616), ("q", [2, 2], 1280 * 64 + 848)] {
        let args = args![
            map(&d_o, 128),
            map(&qkv, 256),
            &rows,
            &reach,
            &tiles,
            &order,
            &d_qkv,
            count,
            heads,
            kv_heads,
            0.4f32
        ];
        runs.launch(&format!("attention_backward_hopper_{kernel}_hd64_bf16"), grid, 384, shared, args)?;
    }
    Ok(vec![widen(&d_qkv)?])
}

fn attention(runs: &Runs) -> Outcome {
    let Attention { forest, qkv, o, softmax } = Attention::forward(runs)?;
    let Forest { tokens, reach, tiles, .. } = forest;
    let (d_o, delta, d_qkv) = (narrow(2, tokens * 128), fresh(2 * tokens), fresh_narrow(tokens * 256));
    let ([heads, kv_heads], count) = (HEADS, tokens as i32);
    let args = args![&d_o, &o, &delta, 2 * count];
    runs.launch("attention_backward_delta_hd64_bf16", [tokens as u32 / 16 + 1], 256, 0, args)?;
    for (kernel, grid, shared) in [("kv", [1, 4], 768 * 64 + 1536), ("q", [2, 4], 768 * 64)] {
        let args = args![&d_o, &qkv, &softmax, &delta, &reach, &tiles, &d_qkv, count, heads, kv_heads, 0.4f32];
        runs.launch(&format!("attention_backward_{kernel}_hd64_bf16"), grid, 128, shared, args)?;
    }
    Ok(vec![widen(&o)?, softmax.read()?, widen(&d_qkv)?])
}

/// A head over `[rows, width]`, with two targets a row.
struct Head {
    hidden: Buffer,
    weight: Buffer,
    start: Buffer,
    tokens: Buffer,
    logit: Buffer,
    gradient: Buffer,
}

const ROWS: usize = 140;
const VOCAB: usize = 300;
const SCALE: f32 = 0.7;

impl Head {
    fn new(width: usize) -> Head {
        Head {
            hidden: narrow(1, ROWS * width),
            weight: narrow(2, VOCAB * width),
            start: Buffer::new(&(0..=ROWS as u32).map(|row| 2 * row).collect::<Vec<_>>()),
            tokens: Buffer::new(&(0..2 * ROWS as u32).map(|i| i * 37 % VOCAB as u32).collect::<Vec<_>>()),
            logit: fresh(2 * ROWS),
            gradient: wide(3, 2 * ROWS),
        }
    }

    /// Of each row some maximum, logarithm of the sum, and entropy: whatever they are, the gradient's formula takes them.
    fn statistics() -> [Buffer; 3] {
        let constant = |x: f32| Buffer::new(&[x; ROWS]);
        [constant(3.0), constant(4.0), constant(2.0)]
    }
}

fn grouped_logprob_hopper(runs: &Runs) -> Outcome {
    const WIDTH: usize = 328;
    const STRIDE: usize = VOCAB.next_multiple_of(8) + 8;
    let Head { hidden, weight, start, tokens, logit, gradient } = &Head::new(WIDTH);
    let (rows, vocab, width) = (ROWS as i32, VOCAB as i32, WIDTH as i32);
    let partial = fresh(3 * ROWS);
    let args = args![map(hidden, WIDTH), map(weight, WIDTH), start, tokens, &partial, logit, rows, vocab, width, SCALE];
    runs.launch("grouped_logprob_hopper_forward_bf16", [2, 1], 384, 196_672, args)?;
    let ([max, log, entropy], d_logits) = (Head::statistics(), fresh_narrow(ROWS * STRIDE));
    let (hidden, weight, stride) = (map(hidden, WIDTH), map(weight, WIDTH), STRIDE as i32);
    let args = args![
        hidden, weight, start, tokens, &max, &log, &entropy, gradient, gradient, &d_logits, rows, vocab, width, stride,
        SCALE
    ];
    runs.launch("grouped_logprob_hopper_grad_bf16", [2], 384, 196_672, args)?;
    Ok(vec![partial.read()?, logit.read()?, widen(&d_logits)?])
}

fn grouped_logprob(runs: &Runs) -> Outcome {
    const WIDTH: usize = 168;
    const STRIDE: usize = VOCAB.next_multiple_of(8) + 8;
    let Head { hidden, weight, start, tokens, logit, gradient } = &Head::new(WIDTH);
    let (rows, vocab, width) = (ROWS as i32, VOCAB as i32, WIDTH as i32);
    let partial = fresh(3 * 2 * ROWS);
    let args = args![hidden, weight, start, tokens, &partial, logit, rows, vocab, width, SCALE];
    runs.launch("grouped_logprob_forward_bf16", [2, 2], 256, 48 << 10, args)?;
    let [max, log, entropy, logprob] = [ROWS, ROWS, ROWS, 2 * ROWS].map(fresh);
    let args = args![&partial, logit, start, &max, &log, &entropy, &logprob, rows, 2i32];
    runs.launch("grouped_logprob_finish_f32", [1], 256, 0, args)?;
    let (d_logits, stride) = (fresh_narrow(ROWS * STRIDE), STRIDE as i32);
    let args = args![
        hidden, weight, start, tokens, &max, &log, &entropy, gradient, gradient, &d_logits, rows, vocab, width, stride,
        SCALE
    ];
    runs.launch("grouped_logprob_grad_bf16", [2, 3], 256, 48 << 10, args)?;
    Ok(vec![entropy.read()?, logprob.read()?, widen(&d_logits)?])
}

fn gradient_cosine(runs: &Runs) -> Outcome {
    let (samples, n) = (20, 64 * 7 + 8);
    let (g, partial, gram) = (narrow(1, samples * n), fresh(samples * samples), Buffer::new(&vec![0.0f64; 400]));
    runs.launch("gradient_cosine_gram_bf16", [1], 128, 32 << 10, args![&g, &partial, samples as i32, n])?;
    runs.launch("gradient_cosine_gram_finish_f64", [2], 256, 0, args![&partial, &gram, samples as i32, 1i32])?;
    let (tokens, a, b) = (170, 136, 40);
    let (x, d, start) = (narrow(2, tokens * a), narrow(3, tokens * b), Buffer::new(&[0u32, 130, tokens as u32]));
    let ghost = fresh(4);
    let args = args![&x, &d, &start, &ghost, 2i32, a as i32, b as i32, b as i32];
    runs.launch("gradient_cosine_ghost_bf16", [3, 1], 256, 48 << 10, args)?;
    let gram = gram.read::<f64>()?.into_iter().map(|x| x as f32).collect();
    Ok(vec![gram, ghost.read()?])
}

/// Two sequences, one of two splits.
fn decode_attention(runs: &Runs) -> Outcome {
    let (rows, [heads, kv_heads], table_len, stride) = (2, [6, 2], 22, 2 * 2 * 32 * 64);
    let qkv = narrow(1, rows * 10 * 64);
    let (sequence, position) = (Buffer::new(&[0u32, 1]), Buffer::new(&[700u32, 37]));
    let pages: Vec<u32> = (0..22).rev().chain([22, 23]).chain([0; 20]).collect();
    let (table, cache) = (Buffer::new(&pages), narrow(2, 24 * stride));
    let (cos, sin) = (wide(3, 701 * 32), wide(4, 701 * 32));
    let (heads, kv_heads, n, splits) = (heads, kv_heads, rows as i32, 2);
    let args = args![
        &qkv,
        &sequence,
        &position,
        &table,
        &cache,
        &cos,
        &sin,
        n,
        heads,
        kv_heads,
        64i32,
        table_len,
        stride as i32
    ];
    runs.launch("decode_attention_append_bf16", [1], 256, 0, args)?;
    let attend = |tiled: bool| -> Result<Vec<f32>, Fault> {
        let wide_rows = rows * 6;
        let (o, sums, stats) = (fresh_narrow(wide_rows * 64), fresh(wide_rows * 2 * 64), fresh(wide_rows * 2 * 2));
        let lists: &[Arg] = args![&qkv, &sequence, &position, &table, &cache, &o, &sums, &stats];
        let (count, sizes): (&[Arg], &[Arg]) = (args![n], args![heads, kv_heads, table_len, stride as i32, 0.4f32]);
        match tiled {
            true => {
                let args = [lists, count, sizes].concat();
                runs.launch("decode_attention_tiled_hd64_bf16", [1, 2, 2], 512, 1152 * 64 + 10496, &args)?
            }
            false => runs.launch("decode_attention_hd64_bf16", [2, 2, 2], 128, 0, &[lists, sizes].concat())?,
        }
        let args = args![&position, &sums, &stats, &o, n, heads, splits];
        runs.launch("decode_attention_combine_hd64_bf16", [1], 256, 0, args)?;
        widen(&o)
    };
    Ok(vec![attend(false)?, attend(true)?, widen(&cache)?, widen(&qkv)?])
}

fn rmsnorm(runs: &Runs) -> Outcome {
    let (rows, hidden) = (7, 520);
    let (x, w, y, rstd) = (narrow(1, rows * hidden), narrow(2, hidden), fresh_narrow(rows * hidden), fresh(rows));
    let (count, columns, eps) = (rows as i32, hidden as i32, 1e-6f32);
    let args = args![&x, &w, &y, &rstd, columns, eps];
    runs.launch("rmsnorm_forward_bf16", [rows as u32], 96, 0, args)?;
    let (dy, dx, partial, dw) =
        (narrow(3, rows * hidden), narrow(4, rows * hidden), fresh(3 * hidden), wide(5, hidden));
    let args = args![&dy, &x, &w, &rstd, &dx, &partial, count, columns];
    runs.launch("rmsnorm_backward_bf16", [3], 96, 0, args)?;
    let block = kernel_emulator::Dim([8, 32, 1]);
    let args = args![&partial, &dw, 3i32, columns];
    let kernel = "rmsnorm_backward_dw_f32";
    match runs.0 {
        Some(schedule) => kernel_emulator::launch_under(schedule, kernel, 9, block, 0, args)?,
        None => kernel_emulator::launch(kernel, 9, block, 0, args)?,
    }
    Ok(vec![widen(&y)?, rstd.read()?, widen(&dx)?, dw.read()?])
}

fn qk_norm(runs: &Runs) -> Outcome {
    let (rows, [heads, kv_heads], head_dim) = (13, [3, 1], 64);
    let qkv = narrow(1, rows * 5 * head_dim);
    let (raw, w, partial) = (fresh_narrow(rows * 4 * head_dim), narrow(2, 2 * head_dim), fresh(2 * 2 * head_dim));
    let (count, d, eps) = (rows as i32, head_dim as i32, 1e-6f32);
    runs.launch("qk_norm_forward_bf16", [2], 256, 0, args![&qkv, &raw, &w, count, heads, kv_heads, d, eps])?;
    let args = args![&qkv, &raw, &w, &partial, count, heads, kv_heads, d, eps];
    runs.launch("qk_norm_backward_bf16", [2], 256, 0, args)?;
    Ok(vec![widen(&qkv)?, partial.read()?])
}

/// Rows of which one token is drawn with every filter, by chance alone, and as the largest.
fn sampling(runs: &Runs) -> Outcome {
    let (rows, vocab, stride) = (2, 5002, 5004);
    let mut logits: Vec<f32> = randoms(1, rows * stride).iter().map(|x| 4.0 * x).collect();
    // What is no token's.
    logits.chunks_mut(stride).for_each(|row| row[vocab as usize..].fill(9.0));
    // The likeliest tokens of each row.
    let seen = logits.chunks(stride).flat_map(|row| {
        let mut tokens: Vec<u32> = (0..vocab as u32).collect();
        tokens.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
        tokens.truncate(100);
        tokens
    });
    let (seen, logits) = (Buffer::new(&seen.collect::<Vec<_>>()), Buffer::new(&logits));
    let seen_start = Buffer::new(&(0..=rows as u32).map(|row| 100 * row).collect::<Vec<_>>());
    let uniform = Buffer::new(&randoms(3, rows).iter().map(|x| 0.5 + 0.49 * x).collect::<Vec<_>>());
    let mut results = Vec::new();
    for (temperature, penalty, top_k, top_p, min_p) in
        [(0.8f32, 1.3f32, 900u32, 0.9f32, -6.0f32), (1.0, 1.0, 0, 1.0, f32::NEG_INFINITY), (0.0, 1.3, 0, 1.0, -9.0)]
    {
        let (token, logprob) = (Buffer::poisoned::<u32>(rows), fresh(rows));
        let params = [temperature.to_bits(), penalty.to_bits(), top_k, top_p.to_bits(), min_p.to_bits()];
        let args = args![&logits, &seen, &seen_start, &uniform, &token, &logprob, vocab, stride as i32, params];
        runs.launch("sampling_sample_f32", [rows as u32], 1024, 628, args)?;
        results.push(token.read::<u32>()?.into_iter().map(|t| t as f32).collect());
        results.push(logprob.read()?);
    }
    Ok(results)
}

fn adamw(runs: &Runs) -> Outcome {
    let n = 5000;
    let (p, m, v, g) = (wide(1, n), wide(2, n), Buffer::new(&vec![0.5f32; n]), wide(3, n));
    let (copy, partial, norm) = (fresh_narrow(n), fresh(3), fresh(2));
    runs.launch("adamw_grad_norm_partial_f32", [3], 256, 0, args![&g, &partial, n as u64])?;
    runs.launch("adamw_grad_norm_finish_f32", [1], 256, 0, args![&partial, &norm, 3i32, 1.0f32])?;
    let step = [0.01f32, 1.0, 0.9, 0.9, 0.95, 1e-8];
    let scale = Arg::Inside(&norm, 4);
    let turns = Buffer::new(&[100u32, 500]);
    let args = args![&p, &g, &m, &v, &copy, scale, &turns, 2i32, n as u64, step, 7u64, 3u64];
    runs.launch("adamw_step_stochastic_f32", [3], 256, 0, args)?;
    let (p, copy) = (p.read::<f32>()?, widen(&copy)?);
    let rounding = copy.iter().zip(&p).map(|(copy, p)| copy - p).collect();
    Ok(vec![norm.read()?, p, m.read()?, v.read()?, copy, rounding])
}

fn adamw_8bit(runs: &Runs) -> Outcome {
    // Two thread blocks, and a warp whose block is short.
    let n: usize = 2 * 2048 + 72;
    let blocks = n.div_ceil(256);
    let codes = |seed| Buffer::new(&randoms(seed, n).iter().map(|x| (128.0 * (x + 1.0)) as u8).collect::<Vec<_>>());
    let map = |least: f32| (0..256).map(move |i| least + (1.0 - least) * i as f32 / 255.0);
    let maps = Buffer::new(&map(-1.0).chain(map(0.0)).collect::<Vec<_>>());
    let (p, g, copy, m, v) = (wide(1, n), wide(2, n), fresh_narrow(n), codes(3), codes(4));
    let (m_max, v_max) = (Buffer::new(&vec![0.3f32; blocks]), Buffer::new(&vec![0.2f32; blocks]));
    let (scale, step) = (Buffer::new(&[0.5f32]), [0.01f32, 1.0, 0.9, 0.9, 0.95, 1e-8]);
    let args = args![&p, &g, &m, &v, &m_max, &v_max, &copy, &scale, &maps, n as u64, step];
    runs.launch("adamw_8bit_step_f32", [3], 256, 0, args)?;
    let args = args![&g, &m, &v, &m_max, &v_max, &copy, &scale, &maps, n as u64, step, 7u64, 3u64, 5u64];
    runs.launch("adamw_8bit_step_bf16", [3], 256, 0, args)?;
    // In words, since a byte alone may look like one that nobody wrote.
    let read = |codes: &Buffer| -> Result<Vec<f32>, Fault> {
        Ok(codes.read::<u32>()?.into_iter().flat_map(u32::to_ne_bytes).map(f32::from).collect())
    };
    // How the weights were rounded is all that random bits change.
    let last_bits = copy.read::<u16>()?.into_iter().map(|bits| f32::from(bits & 1)).collect();
    Ok(vec![p.read()?, widen(&copy)?, last_bits, read(&m)?, read(&v)?, m_max.read()?, v_max.read()?])
}

fn embedding(runs: &Runs) -> Outcome {
    let (tokens, hidden, vocab) = (9, 72, 5);
    let (token, table) = (Buffer::new(&[4u32, 1, 0, 1, 1, 3, 4, 2, 4]), narrow(1, vocab * hidden));
    let (y, d_table) = (fresh_narrow(tokens * hidden), wide(2, vocab * hidden));
    runs.launch("embedding_forward_bf16", [1], 256, 0, args![&token, &table, &y, tokens as i32, hidden as i32])?;
    let (id, start) = (Buffer::new(&[0u32, 1, 2, 3, 4]), Buffer::new(&[0u32, 1, 4, 5, 6, 9]));
    let order = Buffer::new(&[2u32, 1, 3, 4, 7, 5, 0, 6, 8]);
    let args = args![&id, &start, &order, &y, &d_table, hidden as i32];
    runs.launch("embedding_backward_f32", [5, 1], 128, 0, args)?;
    Ok(vec![widen(&y)?, d_table.read()?])
}

fn swiglu(runs: &Runs) -> Outcome {
    let (rows, width) = (5, 72);
    let (gate_up, d) = (narrow(1, rows * 2 * width), narrow(2, rows * width));
    let y = fresh_narrow(rows * width);
    runs.launch("swiglu_forward_bf16", [1], 256, 0, args![&gate_up, &y, rows as i32, width as i32])?;
    runs.launch("swiglu_backward_bf16", [1], 256, 0, args![&d, &gate_up, rows as i32, width as i32])?;
    Ok(vec![widen(&y)?, widen(&gate_up)?])
}

fn advantage(runs: &Runs) -> Outcome {
    let (n, groups) = (90, 3);
    let (reward, start) = (wide(1, n), Buffer::new(&[0u32, 40, 41, n as u32]));
    let (std, advantages) = (fresh(1), fresh(n));
    runs.launch("advantage_batch_std_f32", [1], 64, 0, args![&reward, &std, n as i32])?;
    let args = args![&reward, &start, Arg::Null, &advantages, groups, 0i32, 1e-4f32];
    runs.launch("advantage_group_f32", [1], 256, 0, args)?;
    Ok(vec![std.read()?, advantages.read()?])
}
