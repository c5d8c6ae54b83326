//! The Qwen2 forward and backward pass over a [`Forest`].

use super::{KvCache, Params, Qwen2Config, Slot};
use crate::forest::Forest;
use crate::ops::grouped_logprob::TokenGrad;

/// A Qwen2 model in memory.
#[derive(Clone)]
pub struct Model {
    pub config: Qwen2Config,
    pub params: Params,
}

/// What [`Model::forward`] keeps for [`Model::backward`]; reused from step to step.
#[derive(Default)]
pub struct Activations {
    /// Final-normed hidden states, `[nodes, hidden]`: what the head reads.
    pub hidden: Vec<f32>,
}

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

impl Model {
    /// Runs the decoder over the packed forest; `acts.hidden` holds the result.
    pub fn forward(&self, forest: &Forest, keep: Keep, acts: &mut Activations) {
        let _ = (forest, keep, acts);
        unimplemented!()
    }

    /// Log-prob (at `temperature`) of each node in `nodes` given its parent, and the entropy (nats) of that distribution.
    pub fn logprobs(
        &self,
        forest: &Forest,
        acts: &Activations,
        nodes: &[u32],
        temperature: f32,
    ) -> (Vec<f32>, Vec<f32>) {
        let _ = (forest, acts, nodes, temperature);
        unimplemented!()
    }

    /// One pass over the chunked head: for each `nodes[i]` calls `loss(i, logprob, entropy)` (serially, in order) and adds the
    /// head's gradient to `grads` and the hidden states' gradient to `d_hidden` `[nodes, hidden]`.
    pub fn head_backward(
        &self,
        forest: &Forest,
        acts: &Activations,
        nodes: &[u32],
        temperature: f32,
        loss: &mut dyn FnMut(usize, f32, f32) -> TokenGrad,
        d_hidden: &mut Vec<f32>,
        grads: &mut Params,
    ) {
        let _ = (forest, acts, nodes, temperature, loss, d_hidden, grads);
        unimplemented!()
    }

    /// Back-propagates `d_hidden` through the decoder and adds every parameter's gradient to `grads`.
    pub fn backward(&self, forest: &Forest, acts: &mut Activations, d_hidden: &mut Vec<f32>, grads: &mut Params) {
        let _ = (forest, acts, d_hidden, grads);
        unimplemented!()
    }

    /// Appends tokens to slots of the cache (prefill and decoding are the same call) and returns the final-normed hidden
    /// state of each feed's last token, `[feeds, hidden]`. A slot may occur only once.
    pub fn extend(&self, cache: &mut KvCache, feeds: &[(Slot, &[u32])]) -> Vec<f32> {
        let _ = (cache, feeds);
        unimplemented!()
    }

    /// Logits `[rows, vocab]` of hidden states `[rows, hidden]`, for sampling.
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let _ = hidden;
        unimplemented!()
    }
}
