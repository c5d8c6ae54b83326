//! The order of a decoder-only transformer's layers: forward, backward and recomputation, once for every device, and for training
//! and decoding alike. What a block computes is its backend's, see [`Forward`] and [`Backward`].

use super::backend::{Backward, Forward};

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
        if let Some(forward) = pass.recompute() {
            layer(forward, l)?;
        }
        pass.mlp_backward(l)?;
        pass.attend_backward(l)?;
        pass.qkv_backward(l)?;
    }
    pass.embed_backward()
}
