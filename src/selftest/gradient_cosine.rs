//! The check of the inner products of per-sample gradients.

use super::{BF16, Probe, Size, randoms_bf16};
use crate::bench::ceilings::Work;
use crate::device::Result;
use crate::ops::gradient_cosine::{self as op, GramMethod, cuda::Samples};
use crate::ops::linear::{WeightGrad, cuda};

/// Errors are in units of the gradients' lengths.
pub fn both_ways(p: &mut Probe) -> Result<()> {
    // Tokens of the samples, none among them; inputs; and which columns of how many outputs.
    let mut cases = vec![(vec![3, 0, 140], 24, 8..24, 40), (vec![1], 8, 0..16, 16)];
    if p.size == Size::Full {
        cases.push((vec![512; 16], 896, 0..896, 1152));
    }
    for (lengths, n_in, columns, out) in cases {
        let (gpu, samples, rows) = (p.gpu, lengths.len(), lengths.iter().sum::<usize>());
        let ends: Vec<usize> = (1..=samples).map(|i| lengths[..i].iter().sum()).collect();
        let ((x, x_wide), (dy, dy_wide)) = (randoms_bf16(1, rows * n_in), randoms_bf16(2, rows * out));
        let mut want = vec![0.0f64; samples * samples];
        let wide = WeightGrad { dy: &dy_wide, out, x: &x_wide, in_features: n_in };
        for tile in op::slab_tiles(columns.clone(), n_in, samples) {
            op::add_parts(&mut want, samples, &op::slab(wide, tile, &ends));
        }
        let (x, dy, batch) = (gpu.tensor(&x)?, gpu.tensor(&dy)?, Samples::new(gpu, ends)?);
        let g = cuda::WeightGrad { dy: &dy, out, x: &x, in_features: n_in };
        for (way, allowed) in [(GramMethod::Materialized, f64::from(BF16)), (GramMethod::Ghost, 1e-5)] {
            let gram = gpu.tensor(&vec![1.0f64; samples * samples])?;
            let flops = op::flops(way, rows, samples, n_in, columns.len());
            p.time(Work::Flops(flops), || batch.add(gpu, way, g, columns.clone(), &gram))?;
            for (at, (got, want_at)) in gpu.read(&*gram)?.iter().zip(&want).enumerate() {
                let unit = (want[at / samples * (samples + 1)] * want[at % samples * (samples + 1)]).sqrt();
                let error = (got - 1.0 - want_at).abs() / (allowed * unit.max(1.0));
                p.note(error, || {
                    format!("{way:?} of {lengths:?}: element {at} is {got}, should be {} more than 1", want_at)
                });
            }
        }
    }
    Ok(())
}
