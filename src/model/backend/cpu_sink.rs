//! Where the backward pass puts the gradients of weights.

use super::{Gradients, Sink};
use crate::device::Dtype;
use crate::model::Params;
use crate::ops::linear::{self, RightFactor, WeightGrad};
use crate::ops::{embedding, residual};
use rayon::prelude::*;
use std::convert::Infallible;
use std::ops::Range;

/// Gradients in host memory.
pub struct Cpu;

impl Gradients for Cpu {
    type Error = Infallible;
    type Vector<'a> = &'a [f32];
    type Matrix<'a> = WeightGrad<'a>;
    type Tokens = [u32];
    type Rows = [f32];
}

/// The ordinary gradient: everything is added up.
pub(in crate::model) struct Accumulate<'a> {
    /// Of the products.
    pub dtype: Dtype,
    pub grads: &'a mut Params,
    pub rows: [usize; 1],
}

/// Rows of one tile of a weight gradient. In f32 each tile packs all of x anew, in bf16 x was packed before: smaller ones leave no core
/// waiting for another's last.
fn weight_tile(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F32 => 512,
        Dtype::Bf16 => 128,
    }
}

impl Sink<Cpu> for Accumulate<'_> {
    fn spans(&self) -> &[usize] {
        &self.rows
    }

    fn vector(&mut self, range: &Range<usize>, _span: usize, d: &[f32]) -> Result<(), Infallible> {
        residual::forward(&mut self.grads.flat[range.clone()], d);
        Ok(())
    }

    /// One list of tiles for all of them, so that no core waits for another.
    fn matrices(&mut self, grads: &[(Range<usize>, WeightGrad<'_>)]) -> Result<(), Infallible> {
        let dtype = self.dtype;
        let (mut tiles, mut rest, mut at) = (Vec::new(), &mut self.grads.flat[..], 0);
        let inputs: Vec<RightFactor<'_>> =
            grads.iter().map(|(_, grad)| RightFactor::new(dtype, grad.x, grad.in_features)).collect();
        for ((range, grad), x) in grads.iter().zip(&inputs) {
            let (dw, tail) = std::mem::take(&mut rest)[range.start - at..].split_at_mut(range.len());
            (rest, at) = (tail, range.end);
            for (i, dw) in dw.chunks_mut(weight_tile(dtype) * grad.in_features).enumerate() {
                tiles.push((dw, grad, x, grad.first + i * weight_tile(dtype)));
            }
        }
        tiles.into_par_iter().with_max_len(1).for_each(|(dw, g, x, first)| {
            linear::backward_weight(g.dy, g.out, first, x, dw);
        });
        Ok(())
    }

    fn embedding(&mut self, range: &Range<usize>, tokens: &[u32], d: &[f32]) -> Result<(), Infallible> {
        embedding::backward(tokens, d, d.len() / tokens.len().max(1), &mut self.grads.flat[range.clone()]);
        Ok(())
    }
}

/// Calls `part` with each run of the rows `first .. first + rows` that lies in one span (counted from `first`), and whether a gradient
/// is wanted of it. Without spans nothing is trained: there is one run, and what `part` returns is none's.
pub(super) fn by_span<R>(
    spans: Option<&[usize]>,
    first: usize,
    rows: usize,
    mut part: impl FnMut(Range<usize>, bool) -> R,
) -> Vec<(usize, R)> {
    let Some(spans) = spans else {
        part(0..rows, false);
        return Vec::new();
    };
    let mut at = first;
    let touched = spans.partition_point(|end| *end <= first)..spans.len();
    touched
        .take_while(|&span| span == 0 || spans[span - 1] < first + rows)
        .filter_map(|span| {
            let end = spans[span].min(first + rows);
            let run = at - first..end - first;
            at = end;
            (!run.is_empty()).then(|| (span, part(run, true)))
        })
        .collect()
}
