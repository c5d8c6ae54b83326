//! PCGrad (Yu et al. 2020) between the gradient p of positive advantages and the gradient n of negative ones.
//!
//! Where p·n < 0, p ← p − (p·n / n·n) n and n ← n − (n·p / p·p) p, each off the other as it was; their sum is
//! (1 − p·n / p·p) p + (1 − p·n / n·n) n.
//!
//! Both are gradients of the objective, the sign of the advantage included. On policy the score has mean 0 in every state, so
//! that what pushes the good up pushes the bad down, too: over a whole batch the two seldom disagree, however coupled single
//! samples are (first 12 iterations of the embedded default: cosines from 0.00 to 0.26, nothing projected). The metric
//! `decouple/cosine` says what it was.

pub(crate) mod case;

use rayon::prelude::*;

/// Elements of one task: fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 1 << 14;

/// Replaces `negative` by the sum of both, projected where they disagree. Returns the cosine between them as they were; `None`
/// when one of them is 0.
pub fn combine(positive: &[f32], negative: &mut [f32]) -> Option<f64> {
    let (pn, pp, nn) = (dot(positive, negative), dot(positive, positive), dot(negative, negative));
    let (a, b) = if pn < 0.0 { (1.0 - pn / pp, 1.0 - pn / nn) } else { (1.0, 1.0) };
    negative.par_chunks_mut(CHUNK).zip(positive.par_chunks(CHUNK)).for_each(|(negative, positive)| {
        for (n, p) in negative.iter_mut().zip(positive) {
            *n = (a * f64::from(*p) + b * f64::from(*n)) as f32;
        }
    });
    (pp > 0.0 && nn > 0.0).then(|| pn / (pp.sqrt() * nn.sqrt()))
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let part = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let parts: Vec<f64> = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)).map(part).collect();
    parts.iter().sum()
}

/// On a GPU. Lengths are multiples of 8: tensors in a flat buffer are padded.
pub mod cuda {
    use crate::device::{Arg, Gpu, Launch, Result, Slice, expect};

    /// Blocks of the sums: four for each multiprocessor of an H100. Fixed, so that they have the same bits everywhere.
    const GRID: usize = 528;

    /// As [`super::combine`]; one small read.
    ///
    /// # Errors
    /// If the lengths differ or are no multiple of 8, or a launch fails.
    pub fn combine(gpu: &Gpu, positive: &Slice<f32>, negative: &Slice<f32>) -> Result<Option<f64>> {
        let n = positive.len();
        expect("pcgrad", n.is_multiple_of(8) && negative.len() == n, || {
            format!("gradients of {n} and {} elements (a multiple of 8)", negative.len())
        })?;
        let blocks = GRID.min(n.div_ceil(8 * 256).max(1));
        let (partial, factors) = (gpu.uninit::<f64>(3 * blocks)?, gpu.uninit::<f64>(3)?);
        let (block, shared, len) = ([256, 1, 1], 0, Arg::from(n as u64));
        let args = [positive.arg(), negative.arg(), partial.arg(), len];
        gpu.launch(Launch { kernel: "pcgrad_dots_f32", grid: [blocks as u32, 1, 1], block, shared, args: &args })?;
        let args = [partial.arg(), factors.arg(), Arg::from(blocks as i32)];
        gpu.launch(Launch { kernel: "pcgrad_finish_f64", grid: [1; 3], block, shared, args: &args })?;
        let args = [positive.arg(), negative.arg(), factors.arg(), len];
        gpu.launch_threads("pcgrad_combine_f32", n / 8, &args)?;
        let cosine = gpu.read(&*factors)?[2];
        Ok(cosine.is_finite().then_some(cosine))
    }
}
