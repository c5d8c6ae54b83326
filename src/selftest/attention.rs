//! The checks of attention over forests.

use super::{BF16, Probe, Size, randoms_bf16, widen};
use crate::bench::ceilings::Work;
use crate::device::{Dtype, Result, Slice};
use crate::forest::Forest;
use crate::ops::attention::cuda::{self, Backward};
use crate::ops::attention::{self, Shape, Visibility};
use half::bf16;

/// Forests of one token, of one sequence, of several, and of branches with shared prefixes; and heads.
fn cases(p: &Probe) -> Vec<(Forest, Shape)> {
    let sequence = |first: u32, n: usize| (first..first + n as u32).collect::<Vec<u32>>();
    let branch = |tail: u32, n: usize| [sequence(0, 70), sequence(tail, n)].concat();
    let shape = |heads, kv_heads, head_dim| Shape { heads, kv_heads, head_dim };
    let mut cases = vec![
        (Forest::new(&[sequence(0, 1)]), shape(1, 1, 64)),
        (Forest::new(&[sequence(0, 150)]), shape(2, 1, 128)),
        (Forest::new(&[sequence(0, 300), branch(300, 90)]), shape(1, 1, 128)),
        (Forest::new(&[sequence(0, 66), sequence(100, 3), sequence(200, 80)]), shape(2, 2, 64)),
        (Forest::new(&[branch(300, 40), branch(400, 1), branch(500, 65)]), shape(7, 1, 64)),
        (Forest::new(&[sequence(0, 257)]), shape(4, 2, 64)),
    ];
    if p.size == Size::Full {
        cases.push((Forest::new(&[sequence(0, 2048), sequence(5000, 1000)]), shape(16, 2, 128)));
    }
    cases
}

/// Queries, keys and values: scores of some size, so that the softmax is not flat.
pub(super) fn qkv(n: usize) -> (Vec<bf16>, Vec<f32>) {
    let narrow: Vec<bf16> = randoms_bf16(1, n).1.iter().map(|x| bf16::from_f32(1.5 * x)).collect();
    let wide = widen(&narrow);
    (narrow, wide)
}

/// Probabilities are rounded to bf16 before they weigh: errors have the size of what is weighed, `unit`, not of the sum.
pub(super) fn near(p: &mut Probe, what: &str, got: &Slice<bf16>, want: &[f32], unit: f32) -> Result<()> {
    for (i, (g, w)) in widen(&p.gpu.read(got)?).iter().zip(want).enumerate() {
        p.note(f64::from((g - w).abs() / (2.0 * BF16 * (unit + w.abs()))), || format!("{what}: {i} is {g}, not {w}"));
    }
    Ok(())
}

/// So many for each column of a query and each key that it sees.
fn flops(forest: &Forest, shape: Shape, each: f64) -> Work {
    let seen: f64 = forest.position.iter().map(|p| f64::from(p + 1)).sum();
    Work::Flops(each * seen * shape.q_dim() as f64)
}

pub fn forward(p: &mut Probe) -> Result<()> {
    for (forest, shape) in cases(p) {
        let (gpu, n) = (p.gpu, forest.len());
        let what = format!("{n} tokens, {shape:?}");
        let (narrow, wide) = qkv(n * shape.qkv_dim());
        let (mut want, mut want_softmax) = (vec![0.0; n * shape.q_dim()], vec![0.0; 2 * n * shape.heads]);
        attention::forward(Dtype::F32, &wide, shape, &Visibility::new(&forest.reach), &mut want, &mut want_softmax);
        let (qkv, visibility) = (gpu.tensor(&narrow)?, cuda::Visibility::new(gpu, &forest.reach)?);
        // The kernel that every GPU has, and then the one that this one uses.
        for forward in [cuda::forward_portable, cuda::forward] {
            let (out, softmax) = (gpu.uninit::<bf16>(want.len())?, gpu.uninit::<f32>(want_softmax.len())?);
            p.time(flops(&forest, shape, 4.0), || forward(gpu, &qkv, shape, &visibility, &out, &softmax))?;
            near(p, &what, &out, &want, 1.5)?;
            p.close(&format!("maxima and sums of {what}"), &*softmax, &want_softmax, 1e-4)?;
        }
    }
    Ok(())
}

pub fn backward(p: &mut Probe) -> Result<()> {
    for (forest, shape) in cases(p) {
        let (gpu, n) = (p.gpu, forest.len());
        let (narrow, wide) = qkv(n * shape.qkv_dim());
        let (d_narrow, d_wide) = randoms_bf16(2, n * shape.q_dim());
        let (mut out, mut softmax) = (vec![0.0; n * shape.q_dim()], vec![0.0; 2 * n * shape.heads]);
        let visibility = Visibility::new(&forest.reach);
        attention::forward(Dtype::F32, &wide, shape, &visibility, &mut out, &mut softmax);
        // The kernel reads the output as the device keeps it.
        let o_narrow: Vec<bf16> = out.iter().map(|x| bf16::from_f32(*x)).collect();
        let mut want = vec![0.0; wide.len()];
        attention::backward(Dtype::F32, &d_wide, &wide, &widen(&o_narrow), &softmax, shape, &visibility, &mut want);
        let [qkv, d_out, out] = [&narrow, &d_narrow, &o_narrow].map(|x| gpu.tensor(x));
        let (qkv, d_out, out, softmax) = (qkv?, d_out?, out?, gpu.tensor(&softmax)?);
        let visibility = cuda::Visibility::new(gpu, &forest.reach)?;
        let rms = (want.iter().map(|x| f64::from(x * x)).sum::<f64>() / want.len() as f64).sqrt() as f32;
        for backward in [cuda::backward_portable, cuda::backward] {
            let d_qkv = gpu.uninit::<bf16>(want.len())?;
            let pass = Backward { d_out: &d_out, qkv: &qkv, out: &out, softmax: &softmax, d_qkv: &d_qkv };
            p.time(flops(&forest, shape, 10.0), || backward(gpu, pass, shape, &visibility))?;
            near(p, &format!("gradient of {n} tokens, {shape:?}"), &d_qkv, &want, 4.0 * rms)?;
        }
    }
    Ok(())
}
