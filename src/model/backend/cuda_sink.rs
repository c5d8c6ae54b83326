//! Where the backward pass on a GPU puts the gradients of weights.

use super::{Gradients, Sink};
use crate::device::{Error, Gpu, Result, Slice, SubSlice};
use crate::ops::embedding::{self, cuda::Tokens};
use crate::ops::linear::{self, cuda::WeightGrad};
use half::bf16;
use std::ops::Range;

/// Gradients in device memory.
pub struct Cuda;

/// Adds part of a vector's gradient to where the sink wants it.
pub type Add<'a> = &'a mut (dyn FnMut(&Slice<f32>) -> Result<()> + 'a);

impl Gradients for Cuda {
    type Error = Error;
    type Vector<'a> = Add<'a>;
    type Matrix<'a> = WeightGrad<'a>;
    type Tokens = Tokens;
    type Rows = Slice<bf16>;
}

/// The ordinary gradient: everything is added up.
pub(super) struct Accumulate<'a> {
    pub gpu: &'a Gpu,
    /// Flat, as the weights.
    pub grads: &'a Slice<f32>,
    pub rows: [usize; 1],
}

impl Sink<Cuda> for Accumulate<'_> {
    fn spans(&self) -> &[usize] {
        &self.rows
    }

    fn vector(&mut self, range: &Range<usize>, _span: usize, add: Add<'_>) -> Result<()> {
        add(&part(self.grads, range))
    }

    fn matrices(&mut self, grads: &[(Range<usize>, WeightGrad<'_>)]) -> Result<()> {
        let add = |(range, g): &(Range<usize>, WeightGrad<'_>)| {
            linear::cuda::backward_weight(self.gpu, *g, &*part(self.grads, range))
        };
        grads.iter().try_for_each(add)
    }

    fn embedding(&mut self, range: &Range<usize>, tokens: &Tokens, d: &Slice<bf16>) -> Result<()> {
        let width = d.len() / tokens.ids.len().max(1);
        embedding::cuda::backward(self.gpu, tokens, d, width, &*part(self.grads, range))
    }
}

/// The rows of each span that has any.
pub(super) fn spans(sink: &dyn Sink<Cuda>) -> Vec<(usize, Range<usize>)> {
    let start = [0].iter().chain(sink.spans());
    let rows = start.zip(sink.spans()).map(|(start, end)| *start..*end);
    rows.enumerate().filter(|(_, rows)| !rows.is_empty()).collect()
}

/// A tensor's place in a flat buffer of the model's layout.
///
/// # Panics
/// If the buffer is shorter than the layout.
pub fn part<'a, T: bytemuck::Pod>(flat: &'a Slice<T>, range: &Range<usize>) -> SubSlice<'a, T> {
    flat.part(range.clone()).expect("a flat buffer holds the whole layout")
}
