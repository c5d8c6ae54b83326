//! The order of a decoder-only transformer's layers: forward, backward and recomputation, once for every device, and for training
//! and decoding alike. What a block computes is its backend's: each fuses it as its device likes it. The CPU takes rows that fit its
//! cache through a whole block, a GPU launches a few kernels.
//!
//! With residual stream x, layer l is x ← x + Wₒ·attention(rope(W_qkv·norm(x) + b)), then x ← x + W_down·swiglu(W_gate_up·norm(x)).

/// A forward pass over some tokens. The blocks are called in the order of [`forward`].
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
/// called in the order of [`backward`].
pub(super) trait Backward {
    type Error;
    type Forward: Forward<Error = Self::Error>;

    fn layers(&self) -> usize;

    /// The forward pass that computes the activations of layer `l` again, unless they were kept.
    fn recompute(&mut self, l: usize) -> Option<&mut Self::Forward>;

    fn norm_backward(&mut self) -> Result<(), Self::Error>;

    fn mlp_backward(&mut self, l: usize) -> Result<(), Self::Error>;

    fn attend_backward(&mut self, l: usize) -> Result<(), Self::Error>;

    fn qkv_backward(&mut self, l: usize) -> Result<(), Self::Error>;

    fn embed_backward(&mut self) -> Result<(), Self::Error>;
}

/// Runs every layer over the tokens of `pass`.
pub(super) fn forward<F: Forward>(pass: &mut F) -> Result<(), F::Error> {
    pass.embed()?;
    for l in 0..pass.layers() {
        layer(pass, l)?;
    }
    pass.norm()
}

fn layer<F: Forward>(pass: &mut F, l: usize) -> Result<(), F::Error> {
    pass.qkv(l)?;
    pass.attend(l)?;
    pass.mlp(l)
}

/// Back-propagates the gradient of the final hidden states to every weight below the head.
pub(super) fn backward<B: Backward>(pass: &mut B) -> Result<(), B::Error> {
    pass.norm_backward()?;
    for l in (0..pass.layers()).rev() {
        if let Some(forward) = pass.recompute(l) {
            layer(forward, l)?;
        }
        pass.mlp_backward(l)?;
        pass.attend_backward(l)?;
        pass.qkv_backward(l)?;
    }
    pass.embed_backward()
}
