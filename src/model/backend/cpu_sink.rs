//! Where the backward pass puts the gradients of weights.

use crate::model::Params;
use crate::ops::linear::{self, WeightGrad};
use crate::ops::{embedding, residual};
use rayon::prelude::*;
use std::ops::Range;

/// Receives the weights' gradients, tensor by tensor. A `range` is a tensor's place in the flat buffer of [`Params`].
pub trait Sink {
    /// Ends of consecutive spans of packed rows, ascending, the last of them the number of rows: a norm weight's or bias's
    /// gradient is summed within a span, and never across.
    fn spans(&self) -> &[usize];

    /// Part of a norm weight's or bias's gradient: what some rows of `span` add to it.
    fn vector(&mut self, range: &Range<usize>, span: usize, d: &[f32]);

    /// Every weight matrix of a layer, by ascending range.
    fn matrices(&mut self, grads: &[(Range<usize>, WeightGrad<'_>)]);

    /// The gradient `[rows, hidden]` of the rows that `tokens` took from the embedding.
    fn embedding(&mut self, range: &Range<usize>, tokens: &[u32], d: &[f32]);
}

/// The ordinary gradient: everything is added up.
pub(in crate::model) struct Accumulate<'a> {
    pub grads: &'a mut Params,
    pub rows: [usize; 1],
}

/// Rows of one tile of a weight gradient.
const WEIGHT_TILE: usize = 256;

impl Sink for Accumulate<'_> {
    fn spans(&self) -> &[usize] {
        &self.rows
    }

    fn vector(&mut self, range: &Range<usize>, _span: usize, d: &[f32]) {
        residual::forward(&mut self.grads.flat[range.clone()], d);
    }

    /// One list of tiles for all of them, so that no core waits for another.
    fn matrices(&mut self, grads: &[(Range<usize>, WeightGrad<'_>)]) {
        let (mut tiles, mut rest, mut at) = (Vec::new(), &mut self.grads.flat[..], 0);
        for (range, grad) in grads {
            let (dw, tail) = std::mem::take(&mut rest)[range.start - at..].split_at_mut(range.len());
            (rest, at) = (tail, range.end);
            for (i, dw) in dw.chunks_mut(WEIGHT_TILE * grad.in_features).enumerate() {
                tiles.push((dw, grad, i * WEIGHT_TILE));
            }
        }
        tiles.into_par_iter().with_max_len(1).for_each(|(dw, g, first)| {
            linear::backward_weight(g.dy, g.out, first, g.x, g.in_features, dw);
        });
    }

    fn embedding(&mut self, range: &Range<usize>, tokens: &[u32], d: &[f32]) {
        embedding::backward(tokens, d, d.len() / tokens.len().max(1), &mut self.grads.flat[range.clone()]);
    }
}

/// Calls `part` with each run of the rows `first .. first + rows` that lies in one span (counted from `first`).
pub(super) fn by_span<R>(
    spans: &[usize],
    first: usize,
    rows: usize,
    mut part: impl FnMut(Range<usize>) -> R,
) -> Vec<(usize, R)> {
    let mut at = first;
    let touched = spans.partition_point(|end| *end <= first)..spans.len();
    touched
        .take_while(|&span| span == 0 || spans[span - 1] < first + rows)
        .filter_map(|span| {
            let end = spans[span].min(first + rows);
            let run = at - first..end - first;
            at = end;
            (!run.is_empty()).then(|| (span, part(run)))
        })
        .collect()
}
