//! Speed of the CUDA kernels on the shapes of benches/peers/gpu_peers.py, beside what the device was seen to do at most.

use crate::device::{Dtype, Gpu, Matmul, Operand, Result, Slice, Tensor};
use crate::ops::adamw::{self, AdamW};
use crate::ops::grouped_logprob::{self, Target};
use crate::ops::philox::{block, normals};
use crate::ops::{embedding, rmsnorm, rope, swiglu};
use half::bf16;
use serde::Serialize;

/// Timed calls; their median counts.
const CALLS: usize = 50;
const WARM_UP: usize = 5;

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
        copied: 1 << 30,
        square: 8192,
        sets: 3,
    };
}

/// What the device did at most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ceilings {
    /// A large copy, bytes read plus bytes written.
    pub copy_gbps: f64,
    /// A large product of bf16 matrices by cuBLASLt.
    pub matmul_tflops: f64,
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
    let mut bench = Bench { gpu, ceilings: ceilings(gpu, &s)?, rows: Vec::new() };
    bench.norms(&s)?;
    bench.feed_forward(&s)?;
    bench.positions(&s)?;
    bench.optimiser(&s)?;
    for &width in s.widths {
        bench.head(&s, width)?;
    }
    Ok(KernelReport { device: gpu.describe(), ceilings: bench.ceilings, rows: bench.rows })
}

struct Bench<'a> {
    gpu: &'a Gpu,
    ceilings: Ceilings,
    rows: Vec<Row>,
}

/// What a call must move, or compute.
enum Work {
    Bytes(usize),
    Flops(f64),
}

impl Bench<'_> {
    fn row<T>(&mut self, name: String, work: Work, sets: &[T], call: impl Fn(&T) -> Result<()>) -> Result<()> {
        let seconds = median(self.gpu, sets, call)?;
        let (gbps, tflops, share) = match work {
            Work::Bytes(n) => {
                let rate = n as f64 / seconds / 1e9;
                (Some(rate), None, rate / self.ceilings.copy_gbps)
            }
            Work::Flops(n) => {
                let rate = n / seconds / 1e12;
                (None, Some(rate), rate / self.ceilings.matmul_tflops)
            }
        };
        self.rows.push(Row { name, seconds, gbps, tflops, share });
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
        self.row(format!("{name} forward+backward"), Work::Flops(3.0 * flops), &[()], |()| {
            let scores = grouped_logprob::cuda::forward(gpu, head, &targets)?;
            grouped_logprob::cuda::backward(gpu, head, &targets, &scores, (&d, &d), &dw, &dh)
        })
    }
}

fn ceilings(gpu: &Gpu, s: &Shapes) -> Result<Ceilings> {
    let (from, to) = (gpu.zeros::<u8>(s.copied)?, gpu.zeros::<u8>(s.copied)?);
    let copy = median(gpu, &[()], |()| gpu.copy(&from, &to))?;
    let n = s.square;
    let [a, b, c] = [random(gpu, n * n)?, random(gpu, n * n)?, random(gpu, n * n)?];
    let matrix = |x: &Slice<bf16>| {
        let (address, dtype) = (x.address(), Dtype::Bf16);
        Operand { address, dtype, stride: n, transposed: false, batch_stride: 0 }
    };
    let (a, b, c, alpha, beta, bias) = (matrix(&a), matrix(&b), matrix(&c), 1.0, 0.0, None);
    let product = Matmul { m: n, n, k: n, batch: 1, alpha, beta, a, b, c, bias };
    let matmul = median(gpu, &[()], |()| gpu.matmul(&product))?;
    Ok(Ceilings {
        copy_gbps: 2.0 * s.copied as f64 / copy / 1e9,
        matmul_tflops: 2.0 * (n as f64).powi(3) / matmul / 1e12,
    })
}

/// Seconds of one call, on each set in turn.
fn median<T>(gpu: &Gpu, sets: &[T], call: impl Fn(&T) -> Result<()>) -> Result<f64> {
    for set in sets.iter().cycle().take(WARM_UP) {
        call(set)?;
    }
    let mut times = Vec::with_capacity(CALLS);
    for set in sets.iter().cycle().take(CALLS) {
        times.push(gpu.timed(|| call(set))?.as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[CALLS / 2])
}

fn random_f32(gpu: &Gpu, n: usize) -> Result<Tensor<f32>> {
    gpu.tensor(&normal(n))
}

/// Never zeros: products of them run faster than real ones.
fn random(gpu: &Gpu, n: usize) -> Result<Tensor<bf16>> {
    gpu.tensor(&normal(n).into_iter().map(bf16::from_f32).collect::<Vec<_>>())
}

/// A million different ones, repeated: making more would take longer than timing them.
fn normal(n: usize) -> Vec<f32> {
    let some: Vec<f32> = (0..n.min(1 << 20).div_ceil(4) as u64).flat_map(|i| normals(block(7, 0, i))).collect();
    some.into_iter().cycle().take(n).collect()
}
