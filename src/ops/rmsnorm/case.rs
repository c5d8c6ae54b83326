//! RMSNorm's cases.

use super::cuda;
use crate::device::Result;
use crate::ops::case::{BF16, Bf16s, Case, F32, HIDDEN, OpCase, Size, Sizes, Trial, Work, matrices};
use half::bf16;

pub const CASES: &[&dyn Case] = &[&FORWARD, &FORWARD_ADD, &BACKWARD];

const FORWARD: OpCase<Sizes<2>> = OpCase { op: "rmsnorm", pass: "forward", shapes, run: forward };
const FORWARD_ADD: OpCase<Sizes<2>> = OpCase { pass: "forward add", run: forward_add, ..FORWARD };
const BACKWARD: OpCase<Sizes<2>> = OpCase { pass: "backward", run: backward, ..FORWARD };

const EPS: f32 = 1e-6;

fn shapes(size: Size) -> Vec<Sizes<2>> {
    matrices(size, HIDDEN)
}

fn forward(Sizes([rows, hidden]): &Sizes<2>, t: &mut Trial<'_>) -> Result<()> {
    let n = rows * hidden;
    let (x, w) = (Bf16s::randoms(1, n), Bf16s::randoms(2, *hidden));
    let (mut want, mut want_rstd) = (vec![0.0; n], vec![0.0; *rows]);
    t.cpu(Work::Bytes(8 * n), || super::forward(x.wide(), w.wide(), EPS, &mut want, &mut want_rstd));
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (x, w, y, rstd) = (x.on(gpu)?, w.on(gpu)?, gpu.uninit::<bf16>(n)?, gpu.uninit::<f32>(*rows)?);
    t.cuda(gpu, Work::Bytes(4 * n), || cuda::forward(gpu, &x, &w, EPS, &y, &rstd))?;
    t.close("y", &y, &want, BF16)?;
    t.close("rstd", &rstd, &want_rstd, F32)
}

fn forward_add(Sizes([rows, hidden]): &Sizes<2>, t: &mut Trial<'_>) -> Result<()> {
    let n = rows * hidden;
    let (x, delta, w) = (Bf16s::randoms(1, n), Bf16s::randoms(2, n), Bf16s::randoms(3, *hidden));
    // The stream is kept in bf16, and what is kept is what is normalised.
    let (mut sums, mut want, mut want_rstd) = (vec![0.0; n], vec![0.0; n], vec![0.0; *rows]);
    t.cpu(Work::Bytes(16 * n), || {
        let both = x.wide().iter().zip(delta.wide());
        sums.iter_mut().zip(both).for_each(|(sum, (x, d))| *sum = bf16::from_f32(x + d).to_f32());
        super::forward(&sums, w.wide(), EPS, &mut want, &mut want_rstd);
    });
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (x, delta, w) = (x.on(gpu)?, delta.on(gpu)?, w.on(gpu)?);
    let (sum, y, rstd) = (gpu.uninit::<bf16>(n)?, gpu.uninit::<bf16>(n)?, gpu.uninit::<f32>(*rows)?);
    let add = |sum| cuda::forward_add(gpu, &x, &delta, &w, EPS, sum, &y, &rstd);
    if t.compares() {
        add(&sum)?;
        t.equal("the sum apart", &sum, &sums)?;
    }
    t.cuda(gpu, Work::Bytes(8 * n), || add(&x))?;
    t.equal("the sum in place", &x, &sums)?;
    t.close("y", &y, &want, BF16)?;
    t.close("rstd", &rstd, &want_rstd, F32)
}

fn backward(Sizes([rows, hidden]): &Sizes<2>, t: &mut Trial<'_>) -> Result<()> {
    let n = rows * hidden;
    let (dy, x, w) = (Bf16s::randoms(1, n), Bf16s::randoms(2, n), Bf16s::randoms(3, *hidden));
    let (dx, dw) = (Bf16s::randoms(4, n), Bf16s::randoms(5, *hidden));
    let (mut rstd, mut want_dw, mut want_dx) = (vec![1.0; *rows], dw.wide().to_vec(), vec![0.0; n]);
    t.cpu_before(|| {
        want_dx.copy_from_slice(dx.wide());
        super::forward(x.wide(), w.wide(), EPS, &mut vec![0.0; n], &mut rstd);
    });
    t.cpu(Work::Bytes(16 * n), || {
        super::backward(dy.wide(), x.wide(), w.wide(), &rstd, &mut want_dx, Some(&mut want_dw));
    });
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (dy, x, w, rstd) = (dy.on(gpu)?, x.on(gpu)?, w.on(gpu)?, gpu.tensor(&rstd)?);
    let (dx_too, dx, dw_wide, dw) = (dx.on(gpu)?, dx.on(gpu)?, gpu.tensor(dw.wide())?, dw.on(gpu)?);
    t.cuda(gpu, Work::Bytes(8 * n), || cuda::backward(gpu, &dy, &x, &w, &rstd, &dx, Some(&dw_wide)))?;
    cuda::backward(gpu, &dy, &x, &w, &rstd, &dx_too, Some(&dw))?;
    for dx in [&dx, &dx_too] {
        t.close("dx", dx, &want_dx, BF16)?;
    }
    // Sums over the rows: in units of their largest term.
    let noise = F32 * *rows as f32;
    t.close("dw in bf16", &dw, &want_dw, BF16 + noise)?;
    t.close("dw in f32", &dw_wide, &want_dw, noise)
}
