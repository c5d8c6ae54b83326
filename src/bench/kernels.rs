//! Speed of the CUDA kernels on the shapes of benches/peers/gpu_peers.py, beside what the device was seen to do at most.

use super::ceilings::{Ceilings, Work, median, random, random_f32};
use crate::device::{Gpu, Result};
use crate::forest::Forest;
use crate::ops::adamw::{self, AdamW};
use crate::ops::attention::cuda::Backward;
use crate::ops::decode_attention::cuda::{self as decode_attention, PAGE};
use crate::ops::gradient_cosine::{GramMethod, cuda as gradient_cosine};
use crate::ops::grouped_logprob::{self, Target};
use crate::ops::linear::cuda::WeightGrad;
use crate::ops::philox::block;
use crate::ops::{attention, embedding, rmsnorm, rope, swiglu};
use half::bf16;
use serde::Serialize;

/// The shapes measured.
#[derive(Debug, Clone, Copy)]
pub struct Shapes {
    pub rows: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub vocab: usize,
    /// Parameters of AdamW's row, a multiple of 8.
    pub params: usize,
    /// Rows of the head.
    pub scored: usize,
    /// Widths of the head.
    pub widths: &'static [usize],
    /// Tokens that attention has at once.
    pub attended: usize,
    /// Tokens of a sequence among them.
    pub lengths: &'static [usize],
    pub head_dims: &'static [usize],
    /// Sequences being decoded, and the tokens of each.
    pub decoded: (usize, usize),
    /// Samples whose gradients are compared, and the elements of each in a slab.
    pub compared: (usize, usize),
    /// Bytes copied, and the side of the square product, for the ceilings.
    pub copied: usize,
    pub square: usize,
    /// Input sets taken in turn: together larger than the L2 cache.
    pub sets: usize,
}

impl Shapes {
    /// Those of the peers.
    pub const FULL: Shapes = Shapes {
        rows: 16384,
        hidden: 2048,
        ffn: 11008,
        vocab: 151936,
        params: 494_000_000,
        scored: 4096,
        widths: &[896, 1536, 2048],
        attended: 16384,
        lengths: &[512, 1024, 2048, 4096, 8192],
        head_dims: &[64, 128],
        decoded: (256, 1024),
        compared: (32, 2048 * 2048),
        copied: 1 << 30,
        square: 8192,
        sets: 3,
    };

    /// Those that a simulated device gets through.
    pub const SMALL: Shapes = Shapes {
        rows: 2,
        hidden: 128,
        ffn: 8,
        vocab: 130,
        params: 64,
        scored: 3,
        widths: &[8],
        attended: 128,
        lengths: &[64],
        head_dims: &[64],
        decoded: (2, 33),
        compared: (3, 72),
        copied: 256,
        square: 16,
        sets: 2,
    };
}

/// One kernel, or the few of one op.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    /// Median of the calls.
    pub seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gbps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tflops: Option<f64>,
    /// Of the ceiling that bounds it.
    pub share: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelReport {
    pub device: String,
    pub ceilings: Ceilings,
    pub rows: Vec<Row>,
}

/// Measures the ceilings, then every row.
pub fn run(gpu: &Gpu, s: Shapes) -> Result<KernelReport> {
    let mut bench = Bench { gpu, ceilings: Ceilings::measure(gpu, s.copied, s.square)?, rows: Vec::new() };
    bench.norms(&s)?;
    bench.feed_forward(&s)?;
    bench.positions(&s)?;
    for &head_dim in s.head_dims {
        for &length in s.lengths {
            bench.attention(&s, head_dim, Packed::Sequences { length })?;
        }
        bench.attention(&s, head_dim, Packed::Groups { prompt: s.attended / 16, answers: 8 })?;
        bench.decode_attention(&s, head_dim)?;
    }
    bench.optimiser(&s)?;
    for &width in s.widths {
        bench.head(&s, width)?;
    }
    bench.gradient_cosine(&s)?;
    Ok(KernelReport { device: gpu.describe(), ceilings: bench.ceilings, rows: bench.rows })
}

/// What attention's tokens are.
enum Packed {
    Sequences {
        length: usize,
    },
    /// Prompts, with answers of an eighth of it each.
    Groups {
        prompt: usize,
        answers: usize,
    },
}

struct Bench<'a> {
    gpu: &'a Gpu,
    ceilings: Ceilings,
    rows: Vec<Row>,
}

impl Bench<'_> {
    fn row<T>(&mut self, name: String, work: Work, sets: &[T], call: impl Fn(&T) -> Result<()>) -> Result<()> {
        let seconds = median(self.gpu, sets, call)?;
        let (gbps, tflops) = match work {
            Work::Bytes(n) => (Some(n as f64 / seconds / 1e9), None),
            Work::Flops(n) => (None, Some(n / seconds / 1e12)),
        };
        self.rows.push(Row { name, seconds, gbps, tflops, share: self.ceilings.floor(work) / seconds });
        Ok(())
    }

    fn norms(&mut self, s: &Shapes) -> Result<()> {
        let (gpu, n, hidden) = (self.gpu, s.rows * s.hidden, s.hidden);
        let make = |_| Ok((random(gpu, n)?, random(gpu, n)?, random(gpu, n)?));
        let sets: Vec<_> = (0..s.sets).map(make).collect::<Result<_>>()?;
        let (w, rstd, dw) = (random(gpu, hidden)?, gpu.uninit::<f32>(s.rows)?, gpu.zeros::<f32>(hidden)?);
        let name = |what: &str| format!("rmsnorm {}x{hidden} {what}", s.rows);
        self.row(name("forward"), Work::Bytes(4 * n), &sets, |(x, y, _)| {
            rmsnorm::cuda::forward(gpu, x, &w, 1e-6, y, &rstd)
        })?;
        self.row(name("forward add"), Work::Bytes(8 * n), &sets, |(x, y, delta)| {
            rmsnorm::cuda::forward_add(gpu, x, delta, &w, 1e-6, x, y, &rstd)
        })?;
        self.row(name("backward"), Work::Bytes(8 * n), &sets, |(x, dy, dx)| {
            rmsnorm::cuda::backward(gpu, dy, x, &w, &rstd, dx, &dw)
        })
    }

    fn feed_forward(&mut self, s: &Shapes) -> Result<()> {
        let (gpu, n, ffn) = (self.gpu, s.rows * s.ffn, s.ffn);
        let make = |_| Ok((random(gpu, 2 * n)?, random(gpu, n)?));
        let sets: Vec<_> = (0..s.sets).map(make).collect::<Result<_>>()?;
        let name = |what: &str| format!("swiglu {}x{ffn} {what}", s.rows);
        self.row(name("forward"), Work::Bytes(6 * n), &sets, |(x, y)| swiglu::cuda::forward(gpu, x, ffn, y))?;
        self.row(name("backward"), Work::Bytes(10 * n), &sets, |(x, dy)| swiglu::cuda::backward(gpu, dy, ffn, x))
    }

    fn positions(&mut self, s: &Shapes) -> Result<()> {
        let (gpu, n, hidden) = (self.gpu, s.rows * s.hidden, s.hidden);
        let tokens: Vec<u32> = (0..s.rows as u64).map(|i| block(1, 0, i)[0] % s.vocab as u32).collect();
        let tokens = embedding::cuda::Tokens::new(gpu, &tokens, s.vocab)?;
        let table = random(gpu, s.vocab * hidden)?;
        let ys: Vec<_> = (0..s.sets).map(|_| random(gpu, n)).collect::<Result<_>>()?;
        let name = format!("embedding {}x{hidden} forward", s.rows);
        self.row(name, Work::Bytes(4 * n), &ys, |y| embedding::cuda::forward(gpu, &tokens, &table, hidden, y))?;
        const HEAD: usize = 128;
        let tables = rope::cuda::Tables::new(gpu, &rope::Tables::new(1e6, HEAD, s.rows))?;
        let position = gpu.tensor(&(0..s.rows as u32).collect::<Vec<_>>())?;
        let name = format!("rope {}x{hidden}", s.rows);
        self.row(name, Work::Bytes(4 * n), &ys, |x| {
            rope::cuda::rotate(gpu, x, hidden, hidden / HEAD, &position, &tables, false)
        })
    }

    /// As many query heads as fit the hidden width, each with keys of its own, as the peers have them.
    fn attention(&mut self, s: &Shapes, head_dim: usize, packed: Packed) -> Result<()> {
        let (gpu, heads) = (self.gpu, s.hidden / head_dim);
        let shape = attention::Shape { heads, kv_heads: heads, head_dim };
        let (sequences, name) = match packed {
            Packed::Sequences { length } => {
                let n = s.attended / length;
                let of = |i: usize| vec![i as u32; length];
                ((0..n).map(of).collect::<Vec<_>>(), format!("attention hd{head_dim} {n}x{length}"))
            }
            Packed::Groups { prompt, answers } => {
                let (tail, groups) = (prompt / 8, s.attended / (prompt + answers * (prompt / 8)));
                let of = |i: usize| [vec![i as u32 / answers as u32; prompt], vec![(groups + i) as u32; tail]].concat();
                let name = format!("attention hd{head_dim} {groups}x({prompt}+{answers}x{tail})");
                ((0..groups * answers).map(of).collect(), name)
            }
        };
        let forest = Forest::new(&sequences);
        let (n, visibility) = (forest.len(), attention::cuda::Visibility::new(gpu, &forest.reach)?);
        let seen: f64 = forest.position.iter().map(|p| f64::from(p + 1)).sum();
        let flops = 4.0 * seen * (heads * head_dim) as f64;
        let make = |_| Ok([random(gpu, n * shape.qkv_dim())?, random(gpu, n * shape.q_dim())?]);
        let sets: Vec<_> = (0..s.sets).map(make).collect::<Result<_>>()?;
        let (softmax, d_out) = (gpu.uninit(2 * n * heads)?, random(gpu, n * shape.q_dim())?);
        let d_qkv = gpu.uninit(n * shape.qkv_dim())?;
        self.row(format!("{name} forward"), Work::Flops(flops), &sets, |[qkv, out]| {
            attention::cuda::forward(gpu, qkv, shape, &visibility, out, &softmax)
        })?;
        self.row(format!("{name} backward"), Work::Flops(2.5 * flops), &sets, |[qkv, out]| {
            let pass = Backward { d_out: &d_out, qkv, out, softmax: &softmax, d_qkv: &d_qkv };
            attention::cuda::backward(gpu, pass, shape, &visibility)
        })
    }

    /// The last token of each sequence; eight query heads to a kv head.
    fn decode_attention(&mut self, s: &Shapes, head_dim: usize) -> Result<()> {
        let (gpu, (n, context)) = (self.gpu, s.decoded);
        let shape = attention::Shape { heads: 16, kv_heads: 2, head_dim };
        let pages = context.div_ceil(PAGE);
        let cache = decode_attention::Cache::new(gpu, shape, 1, n * pages)?;
        let tables: Vec<Vec<u32>> =
            (0..n * pages).map(|p| p as u32).collect::<Vec<_>>().chunks(pages).map(<[u32]>::to_vec).collect();
        let last: Vec<(u32, u32)> = (0..n as u32).map(|i| (i, context as u32 - 1)).collect();
        let rows = decode_attention::Rows::new(gpu, &cache, &last, &tables.iter().map(|t| &t[..]).collect::<Vec<_>>())?;
        let (qkv, out) = (random(gpu, n * shape.qkv_dim())?, gpu.uninit(n * shape.q_dim())?);
        let (name, bytes) = (format!("decode_attention hd{head_dim} {n}x{context}"), 8 * n * context * head_dim);
        self.row(name, Work::Bytes(bytes), &[()], |()| decode_attention::forward(gpu, &qkv, &rows, &cache, 0, &out))
    }

    fn optimiser(&mut self, s: &Shapes) -> Result<()> {
        let (gpu, n) = (self.gpu, s.params);
        let (p, m, v) = (gpu.zeros::<f32>(n)?, gpu.zeros::<f32>(n)?, gpu.zeros::<f32>(n)?);
        let (copy, g, norm) = (gpu.zeros::<bf16>(n)?, random(gpu, n)?, gpu.zeros::<f32>(2)?);
        let o = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.0, grad_scale: 1.0, step: 1 };
        let state = adamw::cuda::State { p: &p, m: &m, v: &v, copy: &copy };
        self.row(format!("adamw norm {n}"), Work::Bytes(2 * n), &[()], |()| {
            adamw::cuda::grad_norm(gpu, &g, 1.0, &norm)
        })?;
        let scale = gpu.tensor(&[1.0f32])?;
        let nearest = adamw::cuda::Rounding::Nearest;
        self.row(format!("adamw {n}"), Work::Bytes(28 * n), &[()], |()| {
            adamw::cuda::step(gpu, &o, true, &state, &*g, &scale, nearest)
        })
    }

    fn head(&mut self, s: &Shapes, width: usize) -> Result<()> {
        let (gpu, rows, vocab) = (self.gpu, s.scored, s.vocab);
        let (weight, hidden) = (random(gpu, vocab * width)?, random(gpu, rows * width)?);
        let target = |row: u32| Target { row, token: block(2, 0, row.into())[0] % vocab as u32 };
        let targets: Vec<Target> = (0..rows as u32).map(target).collect();
        let targets = grouped_logprob::cuda::Targets::new(gpu, &targets, rows)?;
        let head = grouped_logprob::cuda::Head { weight: &weight, hidden: &hidden, width, temperature: 1.0 };
        let (name, flops) =
            (format!("grouped_logprob {rows}x{width}x{vocab}"), 2.0 * (rows * width) as f64 * vocab as f64);
        self.row(format!("{name} forward"), Work::Flops(flops), &[()], |()| {
            grouped_logprob::cuda::forward(gpu, head, &targets).map(drop)
        })?;
        let d = random_f32(gpu, rows)?;
        let (dw, dh) = (gpu.zeros::<f32>(vocab * width)?, gpu.zeros::<bf16>(rows * width)?);
        let sums = grouped_logprob::cuda::Gradients { d_logprob: &d, d_entropy: &d, d_weight: &dw, d_hidden: &dh };
        self.row(format!("{name} forward+backward"), Work::Flops(3.0 * flops), &[()], |()| {
            let scores = grouped_logprob::cuda::forward(gpu, head, &targets)?;
            grouped_logprob::cuda::backward(gpu, head, &targets, &scores, sums)
        })
    }

    /// Of one slab, and by ghosts of as many tokens as attention has.
    fn gradient_cosine(&mut self, s: &Shapes) -> Result<()> {
        let (gpu, (samples, n), rows, hidden) = (self.gpu, s.compared, s.attended, s.hidden);
        let gram = gpu.zeros::<f64>(samples * samples)?;
        let slabs: Vec<_> = (0..s.sets).map(|_| random(gpu, samples * n)).collect::<Result<_>>()?;
        self.row(format!("gradient_cosine {samples}x{n} slab"), Work::Bytes(2 * samples * n), &slabs, |slab| {
            gradient_cosine::slab_gram(gpu, slab, samples, &gram)
        })?;
        let ends = (1..=samples).map(|i| i * rows / samples).collect();
        let batch = gradient_cosine::Samples::new(gpu, ends)?;
        let (x, dy) = (random(gpu, rows * hidden)?, random(gpu, rows * hidden)?);
        let g = WeightGrad { dy: &dy, out: hidden, x: &x, in_features: hidden };
        let (name, flops) =
            (format!("gradient_cosine {rows}x{hidden}x{hidden} ghost"), 2.0 * (rows * rows) as f64 * hidden as f64);
        self.row(name, Work::Flops(flops), &[()], |()| batch.add(gpu, GramMethod::Ghost, g, 0..hidden, &gram))
    }
}
