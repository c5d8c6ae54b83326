//! Where a transformer's blocks are computed, and where its backward pass puts the gradients of weights.

pub(crate) mod cpu;
mod cpu_adapter;
mod cpu_decode;
pub(crate) mod cpu_sink;
pub(in crate::model) mod cpu_weights;
pub mod cuda;
pub mod cuda_adapter;
pub mod cuda_decode;
mod cuda_graphs;
pub(crate) mod cuda_sink;
pub(crate) mod cuda_step;
pub(crate) mod kv_cache;
pub(in crate::model) mod packed_weights;

use std::ops::Range;

/// Which activations the forward pass keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SavedActivations {
    /// Everything the backward pass reads.
    #[default]
    All,
    /// Everything of the first so many layers, of the others only their inputs.
    FirstLayers(usize),
    /// Only each layer's input; the backward pass computes the layer again (activation recomputation).
    LayerInputs,
    /// Nothing: no backward pass will follow.
    Nothing,
}

impl SavedActivations {
    /// Layers, of so many, whose activations are all kept: the first.
    pub(super) fn whole(self, layers: usize) -> usize {
        match self {
            SavedActivations::All => layers,
            SavedActivations::FirstLayers(n) => n.min(layers),
            SavedActivations::LayerInputs | SavedActivations::Nothing => 0,
        }
    }

    /// Places for the activations of layers: one for each that is kept whole, and the last for all others.
    pub(super) fn places(self, layers: usize) -> usize {
        layers.min(self.whole(layers) + 1)
    }
}

/// In what form a device hands over the gradients of weights.
pub trait Gradients {
    /// Why a backward pass on the device can fail.
    type Error;
    /// Part of a norm weight's or bias's gradient.
    type Vector<'a>;
    /// What a matrix's gradient is the product of.
    type Matrix<'a>;
    /// Token ids, and rows `[tokens, hidden]`.
    type Tokens: ?Sized;
    /// Rows `[tokens, hidden]`.
    type Rows: ?Sized;
}

/// Receives the weights' gradients from a backward pass, tensor by tensor. A `range` is a tensor's place in the flat buffer of
/// [`crate::model::Params`].
pub trait Sink<D: Gradients> {
    /// Ends of consecutive spans of packed rows, ascending, the last of them the number of rows: a norm weight's or bias's
    /// gradient is summed within a span, and never across.
    fn spans(&self) -> &[usize];

    /// What some rows of `span` add to a norm weight's or bias's gradient.
    ///
    /// # Errors
    /// If the device fails.
    fn vector(&mut self, range: &Range<usize>, span: usize, d: D::Vector<'_>) -> Result<(), D::Error>;

    /// Some of a layer's weight matrices, by ascending range.
    ///
    /// # Errors
    /// If the device fails.
    fn matrices(&mut self, grads: &[(Range<usize>, D::Matrix<'_>)]) -> Result<(), D::Error>;

    /// The gradient of the rows that `tokens` took from the embedding.
    ///
    /// # Errors
    /// If the device fails.
    fn embedding(&mut self, range: &Range<usize>, tokens: &D::Tokens, d: &D::Rows) -> Result<(), D::Error>;
}
