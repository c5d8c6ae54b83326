//! PCGrad's case.

use super::{combine, cuda};
use crate::device::Result;
use crate::ops::case::{Case, F32, OpCase, Size, Trial, Work, randoms};
use std::fmt;

pub const CASES: &[&dyn Case] = &[&COMBINE];

const COMBINE: OpCase<Pair> = OpCase { op: "pcgrad", pass: "", shapes, run };

/// Two gradients: n = 0.3 · noise + factor · p.
struct Pair {
    n: usize,
    factor: f32,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.n, if self.factor < 0.0 { " at odds" } else { "" })
    }
}

/// At odds, in agreement, hardly related. The last ragged one is more than the blocks of the sums read at once.
fn shapes(size: Size) -> Vec<Pair> {
    let shapes = match size {
        Size::Ragged => vec![(8, -1.0), (2048, 2.0), (20_008, -1.0), (20_008, 1.0), (20_008, 0.0), (1_100_008, -1.0)],
        Size::Model => vec![(1 << 24, -1.0)],
        Size::Peers => vec![(494_000_000, -1.0)],
        Size::Task => vec![(1 << 24, -1.0)],
    };
    shapes.into_iter().map(|(n, factor)| Pair { n, factor }).collect()
}

fn run(&Pair { n, factor }: &Pair, t: &mut Trial<'_>) -> Result<()> {
    let positive = randoms(1, n);
    let mut want: Vec<f32> = positive.iter().zip(randoms(2, n)).map(|(p, x)| 0.3 * x + factor * p).collect();
    let on_gpu = t.gpu.map(|gpu| Ok((gpu, gpu.tensor(&positive)?, gpu.tensor(&want)?))).transpose()?;
    let (mut cosine, mut found) = (None, None);
    t.cpu(Work::Bytes(20 * n), || cosine = combine(&positive, &mut want));
    let Some((gpu, positive, sum)) = on_gpu else { return Ok(()) };
    t.cuda(gpu, Work::Bytes(20 * n), || {
        found = cuda::combine(gpu, &positive, &sum)?;
        Ok(())
    })?;
    t.close("the sum", &sum, &want, F32)?;
    let [found, cosine] = [found, cosine].map(|cosine| cosine.unwrap_or(f64::NAN));
    t.note((found - cosine).abs() / 1e-12, || format!("the cosine is {found}, should be {cosine}"));
    Ok(())
}
