//! Where a transformer's blocks are computed. Each block is fused as its device likes it: the CPU takes rows that fit its cache
//! through a whole block, a GPU launches a few kernels.
//!
//! With residual stream x, layer l is x ← x + Wₒ·attention(rope(W_qkv·norm(x) + b)), then x ← x + W_down·swiglu(W_gate_up·norm(x)).

pub mod cpu;
mod cpu_decode;
pub mod cpu_sink;
pub mod cuda;
pub mod cuda_decode;
pub mod cuda_sink;
pub(crate) mod cuda_step;

use std::ops::Range;

/// Which activations the forward pass keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// Everything the backward pass reads.
    #[default]
    All,
    /// Only each layer's input; the backward pass computes the layer again (activation recomputation).
    LayerInputs,
    /// Nothing: no backward pass will follow.
    Nothing,
}

/// A forward pass over some tokens. The blocks are called in the order of `transformer::forward`.
pub(super) trait Forward {
    type Error;

    fn layers(&self) -> usize;

    /// Begins the residual stream with the tokens' embeddings.
    fn embed(&mut self) -> Result<(), Self::Error>;

    /// Norm, projection to queries, keys and values (biases, QK-norm), rotation.
    fn qkv(&mut self, l: usize) -> Result<(), Self::Error>;

    /// Attention of the tokens to what each may see.
    fn attend(&mut self, l: usize) -> Result<(), Self::Error>;

    /// Attention's output projection and the MLP, each added to the residual stream.
    fn mlp(&mut self, l: usize) -> Result<(), Self::Error>;

    /// The final norm: what the head reads.
    fn norm(&mut self) -> Result<(), Self::Error>;
}

/// A backward pass: each block takes the gradient of its output to that of its input, and its weights' to a sink. The blocks are
/// called in the order of `transformer::backward`.
pub(super) trait Backward {
    type Error;
    type Forward: Forward<Error = Self::Error>;

    fn layers(&self) -> usize;

    /// The forward pass that computes a layer's activations again, unless they were kept.
    fn recompute(&mut self) -> Option<&mut Self::Forward>;

    fn norm_backward(&mut self) -> Result<(), Self::Error>;

    fn mlp_backward(&mut self, l: usize) -> Result<(), Self::Error>;

    fn attend_backward(&mut self, l: usize) -> Result<(), Self::Error>;

    fn qkv_backward(&mut self, l: usize) -> Result<(), Self::Error>;

    fn embed_backward(&mut self) -> Result<(), Self::Error>;
}

/// In what form a device hands over the gradients of weights.
pub trait Gradients {
    type Error;
    /// Part of a norm weight's or bias's gradient.
    type Vector<'a>;
    /// What a matrix's gradient is the product of.
    type Matrix<'a>;
    /// Token ids, and rows `[tokens, hidden]`.
    type Tokens: ?Sized;
    type Rows: ?Sized;
}

/// Receives the weights' gradients from a backward pass, tensor by tensor. A `range` is a tensor's place in the flat buffer of
/// [`crate::model::Params`].
pub trait Sink<D: Gradients> {
    /// Ends of consecutive spans of packed rows, ascending, the last of them the number of rows: a norm weight's or bias's
    /// gradient is summed within a span, and never across.
    fn spans(&self) -> &[usize];

    /// What some rows of `span` add to a norm weight's or bias's gradient.
    fn vector(&mut self, range: &Range<usize>, span: usize, d: D::Vector<'_>) -> Result<(), D::Error>;

    /// Some of a layer's weight matrices, by ascending range.
    fn matrices(&mut self, grads: &[(Range<usize>, D::Matrix<'_>)]) -> Result<(), D::Error>;

    /// The gradient of the rows that `tokens` took from the embedding.
    fn embedding(&mut self, range: &Range<usize>, tokens: &D::Tokens, d: &D::Rows) -> Result<(), D::Error>;
}
