//! Where the backward pass on a GPU puts the gradients of weights.

use super::cuda::part;
use crate::device::{Gpu, Result, Slice};
use crate::ops::embedding::{self, cuda::Tokens};
use crate::ops::linear::{self, cuda::WeightGrad};
use half::bf16;
use std::ops::Range;

/// As [`super::cpu_sink::Sink`], of gradients in device memory.
pub trait CudaSink {
    /// As [`super::cpu_sink::Sink::spans`].
    fn spans(&self) -> &[usize];

    /// Lets `add` add what the rows of `span` give to a norm weight's or bias's gradient.
    fn vector(
        &mut self,
        range: &Range<usize>,
        span: usize,
        add: &mut dyn FnMut(&Slice<f32>) -> Result<()>,
    ) -> Result<()>;

    /// A layer's weight matrix.
    fn matrix(&mut self, range: &Range<usize>, g: WeightGrad<'_>) -> Result<()>;

    /// The gradient `[rows, hidden]` of the rows that `tokens` took from the embedding.
    fn embedding(&mut self, range: &Range<usize>, tokens: &Tokens, d: &Slice<bf16>) -> Result<()>;
}

/// The ordinary gradient: everything is added up.
pub(super) struct Accumulate<'a> {
    pub gpu: &'a Gpu,
    /// Flat, as the weights.
    pub grads: &'a Slice<f32>,
    pub rows: [usize; 1],
}

impl CudaSink for Accumulate<'_> {
    fn spans(&self) -> &[usize] {
        &self.rows
    }

    fn vector(
        &mut self,
        range: &Range<usize>,
        _span: usize,
        add: &mut dyn FnMut(&Slice<f32>) -> Result<()>,
    ) -> Result<()> {
        add(&part(self.grads, range))
    }

    fn matrix(&mut self, range: &Range<usize>, g: WeightGrad<'_>) -> Result<()> {
        linear::cuda::backward_weight(self.gpu, g.dy, g.x, g.in_features, &*part(self.grads, range))
    }

    fn embedding(&mut self, range: &Range<usize>, tokens: &Tokens, d: &Slice<bf16>) -> Result<()> {
        let width = d.len() / tokens.ids.len().max(1);
        embedding::cuda::backward(self.gpu, tokens, d, width, &*part(self.grads, range))
    }
}

/// The rows of each span that has any.
pub(super) fn spans(sink: &dyn CudaSink) -> Vec<(usize, Range<usize>)> {
    let start = [0].iter().chain(sink.spans());
    let rows = start.zip(sink.spans()).map(|(start, end)| *start..*end);
    rows.enumerate().filter(|(_, rows)| !rows.is_empty()).collect()
}
