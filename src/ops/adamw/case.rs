//! AdamW's cases.

use super::cuda::{self, Decays, OptimizerState, Rounding};
use super::{AdamW, clip_scale, grad_norm, step};
use crate::device::{Gpu, Real, Result, Slice, Tensor};
use crate::ops::case::{Bf16s, Case, F32, OpCase, Size, Trial, Work, randoms};
use crate::ops::philox::block;
use half::bf16;
use std::fmt;
use std::ops::Range;

pub const CASES: &[&dyn Case] = &[&NORM, &STEP, &STOCHASTIC];

const NORM: OpCase<Clipped> = OpCase { op: "adamw", pass: "norm", shapes: norms, run: norm };
const STEP: OpCase<Update> = OpCase { op: "adamw", pass: "", shapes: updates, run: update };
const STOCHASTIC: OpCase<Update> = OpCase { pass: "stochastic", run: stochastic, ..STEP };

const OPTIMIZER: AdamW =
    AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.5, step: 1 };

/// So many parameters. The last ragged number is more than the blocks of the norm read at once.
fn lengths(size: Size) -> Vec<usize> {
    match size {
        Size::Ragged => vec![8, 2048, 40_008, 1_100_008],
        Size::Model | Size::Task => vec![1 << 24],
        Size::Peers => vec![494_000_000],
    }
}

struct Clipped {
    n: usize,
    clip: f32,
}

impl fmt::Display for Clipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.n, if self.clip == 1.0 { "".into() } else { format!(" clipped at {}", self.clip) })
    }
}

fn norms(size: Size) -> Vec<Clipped> {
    let mut norms: Vec<Clipped> = lengths(size).into_iter().map(|n| Clipped { n, clip: 1.0 }).collect();
    norms.extend([1e6, 0.0].map(|clip| Clipped { n: 2048, clip }).into_iter().filter(|_| size == Size::Ragged));
    norms
}

fn norm(&Clipped { n, clip }: &Clipped, t: &mut Trial<'_>) -> Result<()> {
    let (g, mut want) = (Bf16s::randoms(6, n), 0.0);
    t.cpu(Work::Bytes(4 * n), || want = grad_norm(g.wide()));
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (want, norm) = ([want as f32, clip_scale(want, clip)], gpu.uninit::<f32>(2)?);
    if t.compares() {
        cuda::grad_norm(gpu, &*gpu.tensor(g.wide())?, clip, &norm)?;
        t.close("of f32", &norm, &want, F32)?;
    }
    let g = g.on(gpu)?;
    t.cuda(gpu, Work::Bytes(2 * n), || cuda::grad_norm(gpu, &g, clip, &norm))?;
    t.close("of bf16", &norm, &want, F32)
}

struct Update {
    n: usize,
    step: u32,
}

impl fmt::Display for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.n, if self.step == 1 { "" } else { " later" })
    }
}

/// The first step, from moments of zero, and a later one.
fn updates(size: Size) -> Vec<Update> {
    let mut updates: Vec<Update> = lengths(size).into_iter().map(|n| Update { n, step: 1 }).collect();
    updates.extend((size == Size::Ragged).then_some(Update { n: 20_008, step: 3 }));
    updates
}

/// Weights, gradients and moments before a step.
struct Start {
    p: Vec<f32>,
    g: Bf16s,
    m: Vec<f32>,
    v: Vec<f32>,
}

/// The same on a GPU, and the weights' copy.
struct OnGpu {
    p: Tensor<f32>,
    m: Tensor<f32>,
    v: Tensor<f32>,
    copy: Tensor<bf16>,
    scale: Tensor<f32>,
}

impl Start {
    fn new(&Update { n, step }: &Update) -> Start {
        let moment = |seed| if step == 1 { vec![0.0; n] } else { randoms(seed, n) };
        let (p, g, m, mut v) = (randoms(1, n), Bf16s::randoms(2, n), moment(3), moment(4));
        v.iter_mut().for_each(|v| *v = v.abs());
        Start { p, g, m, v }
    }

    fn on(&self, gpu: &Gpu) -> Result<OnGpu> {
        let [p, m, v] = [&self.p, &self.m, &self.v].map(|x| gpu.tensor(x));
        let scale = gpu.tensor(&[OPTIMIZER.grad_scale])?;
        Ok(OnGpu { p: p?, m: m?, v: v?, copy: gpu.uninit(self.p.len())?, scale })
    }
}

impl OnGpu {
    fn step<T: Real>(&self, gpu: &Gpu, o: &AdamW, g: &Slice<T>, rounding: Rounding) -> Result<()> {
        let state = OptimizerState { p: &self.p, m: &self.m, v: &self.v, copy: &self.copy };
        let decays = Decays::new(gpu, stretches(g.len()).map(|(of, decays)| (of.len(), decays)))?;
        cuda::step(gpu, o, &decays, &state, g, &self.scale, rounding)
    }
}

/// What decays: the middle, so that there is a stretch before it and one behind, if there is room for them.
fn stretches(n: usize) -> [(Range<usize>, bool); 3] {
    let third = n / 24 * 8;
    [(0..third, false), (third..n - third, true), (n - third..n, false)]
}

fn update(shape: &Update, t: &mut Trial<'_>) -> Result<()> {
    let (n, o, start) = (shape.n, AdamW { step: shape.step, ..OPTIMIZER }, Start::new(shape));
    let (mut p, mut m, mut v) = (start.p.clone(), start.m.clone(), start.v.clone());
    t.cpu(Work::Bytes(28 * n), || {
        for (of, decays) in stretches(n) {
            let g = &start.g.wide()[of.clone()];
            step(&o, decays, &mut p[of.clone()], g, &mut m[of.clone()], &mut v[of]);
        }
    });
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (narrow, g) = (start.on(gpu)?, start.g.on(gpu)?);
    t.cuda(gpu, Work::Bytes(28 * n), || narrow.step(gpu, &o, &g, Rounding::Nearest))?;
    if !t.compares() {
        return Ok(());
    }
    let wide = start.on(gpu)?;
    wide.step(gpu, &o, &*gpu.tensor(start.g.wide())?, Rounding::Nearest)?;
    for (what, found) in [("bf16", &narrow), ("f32", &wide)] {
        t.close(&format!("weights by {what}"), &found.p, &p, F32)?;
        t.close(&format!("m by {what}"), &found.m, &m, F32)?;
        t.close(&format!("v by {what}"), &found.v, &v, F32)?;
        let rounded = Bf16s::of(&gpu.read(&found.p)?);
        t.equal(&format!("the copy by {what}"), &found.copy, rounded.wide())?;
    }
    Ok(())
}

/// Weights a third of the way from one bf16 to the next; no step, so that the copy is of the weights themselves.
fn stochastic(shape: &Update, t: &mut Trial<'_>) -> Result<()> {
    let (n, seed, stream) = (shape.n, 77u64 << 33, 5u64);
    let Some(gpu) = t.gpu else { return Ok(()) };
    let third = f32::from_bits(1.0f32.to_bits() + 0x5555);
    let still = AdamW { lr: 0.0, step: shape.step, ..OPTIMIZER };
    let bits = |i: usize| block(seed, stream, i as u64 / 8)[i % 8 / 2] >> (16 * (i % 2)) & 0xFFFF;
    let mut want = vec![0.0; n];
    t.cpu_before(|| {
        let up = |i: usize| bf16::from_bits(((third.to_bits() + bits(i)) >> 16) as u16).to_f32();
        want.iter_mut().enumerate().for_each(|(i, want)| *want = up(i));
    });
    let rounding = Rounding::Stochastic { seed, stream };
    let start = Start { p: vec![third; n], g: Bf16s::of(&vec![0.0; n]), m: vec![0.0; n], v: vec![0.0; n] };
    let (found, g) = (start.on(gpu)?, start.g.on(gpu)?);
    t.cuda(gpu, Work::Bytes(28 * n), || found.step(gpu, &still, &g, rounding))?;
    t.equal("with gradients in bf16", &found.copy, &want)?;
    // As many that are rounded up as are due: 4 standard deviations of n draws between neighbours 2⁻⁷ apart.
    let mean = want.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
    let deviation = 2f64.powi(-7) * (2.0 / 9.0 / n as f64).sqrt();
    t.note((mean - f64::from(third)).abs() / (4.0 * deviation), || format!("the mean is {mean}, should be {third}"));
    if t.compares() {
        gpu.zero(&found.copy)?;
        found.step(gpu, &still, &*gpu.tensor(start.g.wide())?, rounding)?;
        t.equal("with gradients in f32", &found.copy, &want)?;
    }
    Ok(())
}
