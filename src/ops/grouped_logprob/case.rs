//! The head's cases: log-probs, their gradient, the policy loss.

use super::{HeadGrads, Target, TokenGrad, cuda};
use crate::device::{Dtype, Gpu, Result, Tensor};
use crate::ops::case::{Bf16s, Case, F32, OpCase, Size, Trial, Work, randoms};
use crate::ops::philox::block;
use half::bf16;
use std::collections::BTreeSet;
use std::fmt;

pub const CASES: &[&dyn Case] = &[&FORWARD, &BACKWARD, &BOTH, &LOSS];

const FORWARD: OpCase<Sizes> = OpCase { op: "grouped_logprob", pass: "forward", shapes, run: forward };
const BACKWARD: OpCase<Sizes> = OpCase { pass: "backward", shapes: shapes_of_backward, run: backward, ..FORWARD };
/// As the peers have it.
const BOTH: OpCase<Sizes> = OpCase { pass: "forward+backward", shapes: shapes_of_both, run: both, ..FORWARD };
const LOSS: OpCase<Sizes> = OpCase { pass: "loss", shapes: shapes_of_loss, run: loss, ..FORWARD };

/// Every row has one target, or, of ragged ones, none to three, in no order.
struct Sizes {
    rows: usize,
    vocab: usize,
    width: usize,
    temperature: f32,
    ragged: bool,
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.rows, self.width, self.vocab)
    }
}

/// Not all of them whole tiles, and more of a vocabulary than there are blocks for; Qwen2.5's. The CPU gets a tenth of it, so that the
/// head fits any machine.
fn shapes(size: Size) -> Vec<Sizes> {
    let shapes = match size {
        Size::Ragged => vec![
            (1, 17, 8, 0.8),
            (40, 300, 24, 0.7),
            (150, 129, 40, 1.0),
            (9, 257, 72, 2.0),
            (3, 640, 104, 0.1),
            (420, 11_700, 8, 1.0),
        ],
        Size::Model => vec![(1024, 32_000, 896, 0.8)],
        Size::Peers => [896, 1536, 2048].map(|width| (4096, 151_936, width, 1.0)).to_vec(),
        Size::Task => vec![(crate::device::cpu::BLOCK, 15_194, 896, 1.0)],
    };
    let sizes =
        |(rows, vocab, width, temperature)| Sizes { rows, vocab, width, temperature, ragged: size == Size::Ragged };
    shapes.into_iter().map(sizes).collect()
}

/// Without the large vocabulary: its root mean square says nothing of the few tokens that are targets.
fn shapes_of_backward(size: Size) -> Vec<Sizes> {
    shapes(size).into_iter().filter(|s| !s.ragged || s.vocab < 1000).collect()
}

fn shapes_of_both(size: Size) -> Vec<Sizes> {
    if size == Size::Peers { shapes(size) } else { Vec::new() }
}

/// As many uses as targets matter, and no more than one head.
fn shapes_of_loss(size: Size) -> Vec<Sizes> {
    let rows = if size == Size::Ragged { 40 } else { 16384 };
    let of_gpu = size != Size::Task;
    of_gpu.then_some(Sizes { rows, vocab: 300, width: 24, temperature: 0.8, ragged: true }).into_iter().collect()
}

/// A head, and what it reads.
struct Inputs {
    hidden: Bf16s,
    weight: Bf16s,
    targets: Vec<Target>,
    sizes: (usize, usize, f32),
}

/// The same on a GPU.
struct OnGpu {
    hidden: Tensor<bf16>,
    weight: Tensor<bf16>,
    targets: cuda::Targets,
    width: usize,
    temperature: f32,
}

impl Inputs {
    fn new(s: &Sizes) -> Inputs {
        // Log-probs far from those of equal chances.
        let scale = 2.0 / (s.width as f32).sqrt();
        let weight = randoms(2, s.vocab * s.width).into_iter().map(|w| scale * w).collect::<Vec<_>>();
        let (hidden, weight) = (Bf16s::randoms(1, s.rows * s.width), Bf16s::of(&weight));
        Inputs { hidden, weight, targets: targets(s), sizes: (s.rows, s.width, s.temperature) }
    }

    fn head(&self) -> super::Head<'_> {
        let (_, width, temperature) = self.sizes;
        super::Head { weight: self.weight.wide(), hidden: self.hidden.wide(), width, temperature, dtype: Dtype::F32 }
    }

    fn on(&self, gpu: &Gpu) -> Result<OnGpu> {
        let (rows, width, temperature) = self.sizes;
        let targets = cuda::Targets::new(gpu, &self.targets, rows)?;
        Ok(OnGpu { hidden: self.hidden.on(gpu)?, weight: self.weight.on(gpu)?, targets, width, temperature })
    }
}

impl OnGpu {
    fn head(&self) -> cuda::Head<'_> {
        cuda::Head { weight: &self.weight, hidden: &self.hidden, width: self.width, temperature: self.temperature }
    }
}

/// Of ragged ones the vocabulary's last is among them, and one token twice.
fn targets(s: &Sizes) -> Vec<Target> {
    let of_row = |row: u32| -> Vec<Target> {
        let random = block(5, 0, row.into());
        let count = if row == 0 { 3 } else { random[3] as usize % 4 };
        let tokens = if row == 0 { [s.vocab as u32 - 1, 0, 0] } else { [0, 1, 2].map(|i| random[i] % s.vocab as u32) };
        tokens[..if s.ragged { count } else { 1 }].iter().map(|&token| Target { row, token }).collect()
    };
    (0..s.rows as u32).rev().flat_map(of_row).collect()
}

/// So many for each weight and row that is read.
fn flops(s: &Sizes, each: f64) -> Work {
    let rows = targets(s).iter().map(|t| t.row).collect::<BTreeSet<_>>().len();
    Work::Flops(each * (rows * s.width * s.vocab) as f64)
}

fn forward(s: &Sizes, t: &mut Trial<'_>) -> Result<()> {
    let (inputs, mut want) = (Inputs::new(s), (Vec::new(), Vec::new()));
    t.cpu(flops(s, 2.0), || want = super::forward(inputs.head(), &inputs.targets));
    let Some(gpu) = t.gpu else { return Ok(()) };
    let on = inputs.on(gpu)?;
    let mut own = None;
    t.cuda(gpu, flops(s, 2.0), || {
        own = Some(cuda::forward(gpu, on.head(), &on.targets)?);
        Ok(())
    })?;
    // The kernel that this GPU uses, and the one that every GPU has.
    let portable = if t.compares() { Some(cuda::forward_portable(gpu, on.head(), &on.targets)?) } else { None };
    for (which, scores) in [("own", &own), ("portable", &portable)] {
        let Some(scores) = scores.as_ref().filter(|_| t.compares()) else { continue };
        let (logprob, entropy) = scores.read(gpu, &on.targets)?;
        t.close(&format!("log-prob ({which})"), &*gpu.tensor(&logprob)?, &want.0, 1e-4)?;
        t.close(&format!("entropy ({which})"), &*gpu.tensor(&entropy)?, &want.1, 1e-4)?;
    }
    Ok(())
}

fn backward(s: &Sizes, t: &mut Trial<'_>) -> Result<()> {
    let inputs = Inputs::new(s);
    let grads = randoms(7, 2 * inputs.targets.len());
    let grad = |i: usize| TokenGrad { logprob: grads[2 * i], entropy: grads[2 * i + 1] };
    let (mut d_weight, mut d_hidden) = (vec![0.0; s.vocab * s.width], vec![0.0; s.rows * s.width]);
    t.cpu(flops(s, 6.0), || {
        let sums = HeadGrads { weight: &mut d_weight, hidden: &mut d_hidden };
        super::forward_backward(inputs.head(), &inputs.targets, sums, &mut |i, _, _| grad(i));
    });
    let Some(gpu) = t.gpu else { return Ok(()) };
    let on = inputs.on(gpu)?;
    let by = |f: &dyn Fn(TokenGrad) -> f32| -> Vec<f32> { on.targets.order.iter().map(|&i| f(grad(i))).collect() };
    let (d_logprob, d_entropy) = (gpu.tensor(&by(&|g| g.logprob))?, gpu.tensor(&by(&|g| g.entropy))?);
    let scores = cuda::forward(gpu, on.head(), &on.targets)?;
    let sums = || Ok((gpu.zeros::<f32>(d_weight.len())?, gpu.zeros::<bf16>(d_hidden.len())?));
    let (own, portable) = (sums()?, if t.compares() { Some(sums()?) } else { None });
    let gradients =
        |(dw, dh)| cuda::Gradients { d_logprob: &d_logprob, d_entropy: &d_entropy, d_weight: Some(dw), d_hidden: dh };
    t.cuda(gpu, flops(s, 4.0), || cuda::backward(gpu, on.head(), &on.targets, &scores, gradients((&*own.0, &*own.1))))?;
    if let Some((dw, dh)) = &portable {
        cuda::backward_portable(gpu, on.head(), &on.targets, &scores, gradients((&**dw, &**dh)))?;
    }
    for (dw, dh) in [&own].into_iter().chain(&portable) {
        // Of logit gradients that were rounded to bf16: in units of the root mean square.
        let size = |x: &[f32]| 2.0 * (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt();
        t.near("dW", dw, &d_weight, size(&d_weight))?;
        t.near("dh", dh, &d_hidden, size(&d_hidden))?;
    }
    Ok(())
}

fn both(s: &Sizes, t: &mut Trial<'_>) -> Result<()> {
    let Some(gpu) = t.gpu else { return Ok(()) };
    let on = Inputs::new(s).on(gpu)?;
    let d = gpu.tensor(&randoms(7, on.targets.order.len()))?;
    let (dw, dh) = (gpu.zeros::<f32>(s.vocab * s.width)?, gpu.zeros::<bf16>(s.rows * s.width)?);
    let sums = cuda::Gradients { d_logprob: &d, d_entropy: &d, d_weight: Some(&dw), d_hidden: &dh };
    t.cuda(gpu, flops(s, 6.0), || {
        let scores = cuda::forward(gpu, on.head(), &on.targets)?;
        cuda::backward(gpu, on.head(), &on.targets, &scores, sums)
    })
}

const POLICY: cuda::Policy =
    cuda::Policy { epsilon_low: 0.2, epsilon_high: 0.28, dual_clip: 3.0, beta: 0.1, entropy_coef: 0.01, kl_ratio: 0 };

/// The uses of targets: target t is used t % 3 times.
struct Used {
    start: Vec<u32>,
    target: Vec<usize>,
    advantage: Vec<f32>,
    old: Vec<f32>,
    reference: Vec<f32>,
    weight: Vec<f32>,
}

impl Used {
    fn new(logprob: &[f32]) -> Used {
        let n = logprob.len();
        let target: Vec<usize> = (0..n).flat_map(|t| std::iter::repeat_n(t, t % 3)).collect();
        let start = (0..=n).map(|t| target.partition_point(|of| *of < t) as u32).collect();
        let noise = |seed: u64| randoms(seed, target.len());
        let shifted = |seed: u64| target.iter().zip(noise(seed)).map(|(t, x)| logprob[*t] + 0.3 * x).collect();
        let (advantage, old, reference, weight) = (noise(1), shifted(2), shifted(3), noise(4));
        Used { start, target, advantage, old, reference, weight }
    }

    /// The formula, in f64: gradients of log-probs and of entropies by target, the KL term by use.
    fn want(&self, logprob: &[f32]) -> [Vec<f32>; 3] {
        let (mut d_logprob, mut d_entropy) = (vec![0.0f32; logprob.len()], vec![0.0f32; logprob.len()]);
        let mut kl = Vec::new();
        for (u, &t) in self.target.iter().enumerate() {
            let (a, w) = (f64::from(self.advantage[u]), f64::from(self.weight[u]));
            let ratio = f64::from(logprob[t] - self.old[u]).exp();
            let x = f64::from(self.reference[u] - logprob[t]);
            let clipped = ratio < 0.8 && a < 0.0 || ratio > 1.28 && a > 0.0 || a < 0.0 && ratio > 3.0;
            let d = if clipped { 0.0 } else { -a * ratio };
            d_logprob[t] += (w * (d + 0.1 * (1.0 - x.exp()))) as f32;
            d_entropy[t] -= (w * 0.01) as f32;
            kl.push((x.exp() - x - 1.0) as f32);
        }
        [d_logprob, d_entropy, kl]
    }

    fn on(&self, gpu: &Gpu) -> Result<cuda::Uses> {
        Ok(cuda::Uses {
            start: gpu.tensor(&self.start)?,
            advantage: gpu.tensor(&self.advantage)?,
            old: gpu.tensor(&self.old)?,
            reference: gpu.tensor(&self.reference)?,
            weight: gpu.tensor(&self.weight)?,
            sequence: None,
        })
    }
}

/// `tests/kernels/grouped_logprob.rs` holds all settings to `grpo`'s own loss.
fn loss(s: &Sizes, t: &mut Trial<'_>) -> Result<()> {
    let Some(gpu) = t.gpu else { return Ok(()) };
    let on = Inputs::new(s).on(gpu)?;
    let scores = cuda::forward(gpu, on.head(), &on.targets)?;
    let logprob = gpu.read(&*scores.logprob())?;
    let used = Used::new(&logprob);
    let [d_logprob, d_entropy, kl] = used.want(&logprob);
    let (uses, mut found) = (used.on(gpu)?, None);
    t.cuda(gpu, Work::Bytes(28 * kl.len()), || {
        found = Some(cuda::policy_loss(gpu, &scores, &on.targets, &uses, POLICY)?);
        Ok(())
    })?;
    let Some(found) = found else { return Ok(()) };
    t.sums("d log-prob", &found.d_logprob, &d_logprob, 1)?;
    t.close("d entropy", &found.d_entropy, &d_entropy, F32)?;
    let of_kl = found.found.part(kl.len()..2 * kl.len()).expect("three lists of uses");
    t.close("KL", &of_kl, &kl, 1e-3)
}
