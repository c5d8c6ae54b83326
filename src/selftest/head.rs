//! The checks of the head: log-probs, their gradient, the policy loss.

use super::{BF16, F32, Probe, Size, close_sums, randoms, randoms_bf16};
use crate::bench::ceilings::Work;
use crate::device::{Dtype, Result, Tensor};
use crate::ops::grouped_logprob::{self, HeadGrads, Target, TokenGrad, cuda};
use crate::ops::philox::block;
use half::bf16;
use std::collections::BTreeSet;

/// Tokens, vocabulary and width, not all of them whole tiles.
fn shapes(p: &Probe) -> Vec<(usize, usize, usize)> {
    let mut shapes = vec![(1, 17, 8), (40, 300, 24), (150, 129, 40), (9, 257, 72)];
    if p.size == Size::Full {
        shapes.push((1024, 32000, 896));
    }
    shapes
}

struct Case {
    hidden: (Tensor<bf16>, Vec<f32>),
    weight: (Tensor<bf16>, Vec<f32>),
    width: usize,
    targets: Vec<Target>,
}

const TEMPERATURE: f32 = 0.8;

impl Case {
    /// Rows have no target or up to three, in no order.
    fn new(p: &Probe, (tokens, vocab, width): (usize, usize, usize)) -> Result<Case> {
        let (hidden, weight) = (randoms_bf16(1, tokens * width), randoms_bf16(2, vocab * width));
        let small: Vec<bf16> = weight.1.iter().map(|w| bf16::from_f32(w / (width as f32).sqrt())).collect();
        let weight_wide = small.iter().map(|w| w.to_f32()).collect();
        let target = |i: u64| {
            let [row, token, ..] = block(5, 0, i);
            Target { row: row % tokens as u32, token: token % vocab as u32 }
        };
        Ok(Case {
            hidden: (p.gpu.tensor(&hidden.0)?, hidden.1),
            weight: (p.gpu.tensor(&small)?, weight_wide),
            width,
            targets: (0..tokens as u64 + 2).map(target).collect(),
        })
    }

    fn head(&self) -> grouped_logprob::Head<'_> {
        let (weight, hidden, width) = (&self.weight.1[..], &self.hidden.1[..], self.width);
        grouped_logprob::Head { weight, hidden, width, temperature: TEMPERATURE, dtype: Dtype::F32 }
    }

    fn cuda_head(&self) -> cuda::Head<'_> {
        let (weight, hidden, width) = (&*self.weight.0, &*self.hidden.0, self.width);
        cuda::Head { weight, hidden, width, temperature: TEMPERATURE }
    }

    fn on_device(&self, p: &Probe) -> Result<cuda::Targets> {
        cuda::Targets::new(p.gpu, &self.targets, self.hidden.1.len() / self.width)
    }
}

/// So many for each weight and row that is read.
fn flops(case: &Case, vocab: usize, each: f64) -> Work {
    let rows = case.targets.iter().map(|t| t.row).collect::<BTreeSet<_>>().len();
    Work::Flops(each * (rows * case.width * vocab) as f64)
}

pub fn forward(p: &mut Probe) -> Result<()> {
    for shape in shapes(p) {
        let (gpu, case) = (p.gpu, Case::new(p, shape)?);
        let (logprob, entropy) = grouped_logprob::forward(case.head(), &case.targets);
        let targets = case.on_device(p)?;
        // The kernel that every GPU has, and then the one that this one uses.
        for forward in [cuda::forward_portable, cuda::forward] {
            p.time(flops(&case, shape.1, 2.0), || forward(gpu, case.cuda_head(), &targets).map(drop))?;
            let (got, got_entropy) = forward(gpu, case.cuda_head(), &targets)?.read(gpu, &targets)?;
            p.close(&format!("log-prob of {shape:?}"), &*gpu.tensor(&got)?, &logprob, 1e-4)?;
            p.close(&format!("entropy of {shape:?}"), &*gpu.tensor(&got_entropy)?, &entropy, 1e-4)?;
        }
    }
    Ok(())
}

pub fn backward(p: &mut Probe) -> Result<()> {
    for shape in shapes(p) {
        let (gpu, case, width) = (p.gpu, Case::new(p, shape)?, shape.2);
        let grads = randoms(7, 2 * case.targets.len());
        let grad = |i: usize| TokenGrad { logprob: grads[2 * i], entropy: grads[2 * i + 1] };
        let (mut d_weight, mut d_hidden) = (vec![0.0; case.weight.1.len()], vec![0.0; case.hidden.1.len()]);
        let sums = HeadGrads { weight: &mut d_weight, hidden: &mut d_hidden };
        grouped_logprob::forward_backward(case.head(), &case.targets, sums, &mut |i, _, _| grad(i));

        let targets = case.on_device(p)?;
        let scores = cuda::forward(gpu, case.cuda_head(), &targets)?;
        let by = |f: &dyn Fn(TokenGrad) -> f32| -> Vec<f32> { targets.order.iter().map(|&i| f(grad(i))).collect() };
        let (d_logprob, d_entropy) = (gpu.tensor(&by(&|g| g.logprob))?, gpu.tensor(&by(&|g| g.entropy))?);
        for backward in [cuda::backward_portable, cuda::backward] {
            let (dw, dh) = (gpu.zeros::<f32>(d_weight.len())?, gpu.zeros::<bf16>(d_hidden.len())?);
            let sums = cuda::Gradients { d_logprob: &d_logprob, d_entropy: &d_entropy, d_weight: &dw, d_hidden: &dh };
            p.time(flops(&case, shape.1, 4.0), || backward(gpu, case.cuda_head(), &targets, &scores, sums))?;
            // Of logit gradients that were rounded to bf16: in units of the largest terms of a sum.
            close_rounded(p, &format!("dW of {shape:?}"), &gpu.read(&*dw)?, &d_weight)?;
            let dh: Vec<f32> = gpu.read(&*dh)?.iter().map(|x| x.to_f32()).collect();
            close_rounded(p, &format!("dh of {shape:?}, width {width}"), &dh, &d_hidden)?;
        }
    }
    Ok(())
}

/// Compares in units of the root mean square: the noise of rounded terms has the size of the sum's terms, not of the sum.
fn close_rounded(p: &mut Probe, what: &str, got: &[f32], want: &[f32]) -> Result<()> {
    let size = (want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32).sqrt();
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = f64::from((g - w).abs() / (4.0 * BF16 * (size + w.abs())));
        p.note(error, || format!("{what}: element {i} is {g}, should be {w}"));
    }
    Ok(())
}

pub fn loss(p: &mut Probe) -> Result<()> {
    let (gpu, case) = (p.gpu, Case::new(p, (40, 300, 24))?);
    let targets = case.on_device(p)?;
    let scores = cuda::forward(gpu, case.cuda_head(), &targets)?;
    let logprob = gpu.read(&*scores.logprob())?;
    let n = logprob.len();
    // Target t is used t % 3 times.
    let start: Vec<u32> = (0..=n).map(|t| (0..t).map(|t| t as u32 % 3).sum()).collect();
    let of_use: Vec<usize> = (0..n).flat_map(|t| std::iter::repeat_n(t, t % 3)).collect();
    let noise = |seed: u64| randoms(seed, of_use.len());
    let shifted =
        |seed: u64| -> Vec<f32> { of_use.iter().zip(noise(seed)).map(|(t, x)| logprob[*t] + 0.3 * x).collect() };
    let (advantage, old, reference, weight) = (noise(1), shifted(2), shifted(3), noise(4));
    let o = cuda::Policy {
        epsilon_low: 0.2,
        epsilon_high: 0.28,
        dual_clip: 3.0,
        beta: 0.1,
        entropy_coef: 0.01,
        kl_ratio: 0,
    };
    let (mut d_logprob, mut d_entropy, mut kl) = (vec![0.0f32; n], vec![0.0f32; n], Vec::new());
    for (u, &t) in of_use.iter().enumerate() {
        let (a, w) = (f64::from(advantage[u]), f64::from(weight[u]));
        let ratio = f64::from(logprob[t] - old[u]).exp();
        let x = f64::from(reference[u] - logprob[t]);
        let clipped = ratio < 0.8 && a < 0.0 || ratio > 1.28 && a > 0.0 || a < 0.0 && ratio > 3.0;
        let d = if clipped { 0.0 } else { -a * ratio };
        d_logprob[t] += (w * (d + 0.1 * (1.0 - x.exp()))) as f32;
        d_entropy[t] -= (w * 0.01) as f32;
        kl.push((x.exp() - x - 1.0) as f32);
    }
    let uses = cuda::Uses {
        start: gpu.tensor(&start)?,
        advantage: gpu.tensor(&advantage)?,
        old: gpu.tensor(&old)?,
        reference: gpu.tensor(&reference)?,
        weight: gpu.tensor(&weight)?,
        sequence: None,
    };
    let got = cuda::policy_loss(gpu, &scores, &targets, &uses, o)?;
    p.time(Work::Bytes(28 * of_use.len()), || cuda::policy_loss(gpu, &scores, &targets, &uses, o).map(drop))?;
    close_sums(p, "d log-prob", &got.d_logprob, &d_logprob, 1)?;
    p.close("d entropy", &got.d_entropy, &d_entropy, F32)?;
    let found = got.found.part(kl.len()..2 * kl.len()).expect("three lists of uses");
    p.close("KL", &found, &kl, 1e-3)
}
