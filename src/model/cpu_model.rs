//! A model in memory, in f32: forward and backward over a [`Forest`], and its head.

use super::adapter::Adapter;
use super::backend::SavedActivations;
use super::backend::Sink;
use super::backend::cpu::{Activations, BackwardPass, Dims, ForwardPass};
use super::backend::cpu_sink::{Accumulate, Cpu};
use super::backend::cpu_weights::{AdapterWeights, PackedModel, WeightSource, Weights};
use super::backend::packed_weights::{PackedWeights, matrices};
use super::{Architecture, Params, transformer};
use crate::device::Dtype;
use crate::device::cpu::BLOCK;
use crate::forest::Forest;
use crate::ops::grouped_logprob::{self, Head, HeadGrads, Target, TokenGrad};
use crate::ops::{attention, linear, rope};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// A model in memory.
#[derive(Clone)]
pub struct Model {
    /// The shape.
    pub config: Architecture,
    /// The weights.
    pub params: Params,
    /// What stands beside them, where there is something: then it is trained, and the weights are frozen.
    pub adapter: Option<Adapter>,
    rope: Arc<rope::Tables>,
    dtype: Dtype,
    /// Of the weights, and of the adapter, as they are; made at the first use.
    packed: OnceLock<Arc<PackedWeights>>,
    packed_adapter: OnceLock<Arc<PackedWeights>>,
}

impl Model {
    /// A model of these weights, in f32.
    pub fn new(config: Architecture, params: Params) -> Model {
        let rope = Arc::new(config.rope_tables(config.max_position_embeddings));
        Model {
            config,
            params,
            adapter: None,
            rope,
            dtype: Dtype::F32,
            packed: OnceLock::new(),
            packed_adapter: OnceLock::new(),
        }
    }

    /// Computes in `dtype` from now on: weights, activations and keys are rounded to it where they are multiplied, and sums are in f32.
    /// The parameters stay in f32.
    pub fn with_dtype(mut self, dtype: Dtype) -> Model {
        self.dtype = dtype;
        self.changed();
        self
    }

    /// Freezes the weights; `adapter` is trained beside them.
    ///
    /// # Panics
    /// If the adapter is of a model of another shape.
    pub fn with_adapter(self, adapter: Adapter) -> Model {
        let (own, of) = (self.params.layout.layers.len(), adapter.layout.layers());
        assert_eq!(own, of, "layers of the model and of its adapter");
        Model { adapter: Some(adapter), ..self }
    }

    /// What training changes: the adapter's matrices, or without an adapter all weights.
    pub fn trained(&self) -> &Params {
        self.adapter.as_ref().map_or(&self.params, |adapter| &adapter.params)
    }

    /// The same, to be changed: [`Model::trained_changed`] must follow.
    pub fn trained_mut(&mut self) -> &mut Params {
        match &mut self.adapter {
            Some(adapter) => &mut adapter.params,
            None => &mut self.params,
        }
    }

    /// Must be called when what training changes has changed. What is packed of frozen weights stays.
    pub fn trained_changed(&mut self) {
        match &self.adapter {
            Some(_) => self.packed_adapter = OnceLock::new(),
            None => self.packed = OnceLock::new(),
        }
    }

    /// The same model without an adapter: what it adds is added to the weights.
    pub fn merged(mut self) -> Model {
        if let Some(adapter) = self.adapter.take() {
            adapter.merge_into(&mut self.params);
            self.changed();
        }
        self
    }

    /// What products are computed in.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Must be called when weights have changed, or the adapter.
    pub fn changed(&mut self) {
        (self.packed, self.packed_adapter) = (OnceLock::new(), OnceLock::new());
    }

    fn pack(&self) -> Arc<PackedWeights> {
        Arc::new(PackedWeights::new(&self.params, matrices(&self.params.layout), self.dtype))
    }

    fn pack_adapter(&self, of: &Adapter) -> &Arc<PackedWeights> {
        let pack = || Arc::new(PackedWeights::new(&of.params, of.layout.matrices(), self.dtype));
        self.packed_adapter.get_or_init(pack)
    }

    /// The weights packed, as they are now. In f32 an adapter is merged into the copy. In bf16 it stays beside the weights, of which
    /// training reads the same copy: what it adds is, for many steps, less than bf16 tells apart from the weights.
    pub(super) fn packed(&self) -> PackedModel {
        match (self.dtype, &self.adapter) {
            (Dtype::F32, None) => PackedModel { weights: self.pack(), adapter: None },
            (Dtype::F32, Some(adapter)) => {
                PackedModel { weights: Arc::new(PackedWeights::merged(&self.params, adapter)), adapter: None }
            }
            (Dtype::Bf16, adapter) => PackedModel {
                weights: self.packed.get_or_init(|| self.pack()).clone(),
                adapter: adapter.as_ref().map(|of| (of.layout.clone(), self.pack_adapter(of).clone())),
            },
        }
    }

    /// The RoPE tables of every position of the context.
    pub fn rope(&self) -> &rope::Tables {
        &self.rope
    }

    pub(super) fn dims(&self) -> Dims {
        let c = &self.config;
        Dims {
            hidden: c.hidden_size,
            ffn: c.intermediate_size,
            eps: c.rms_norm_eps,
            qk_norm: c.family.qk_norm,
            attention: attention::Shape {
                heads: c.num_attention_heads,
                kv_heads: c.num_key_value_heads,
                head_dim: c.head_dim,
            },
        }
    }

    pub(super) fn weight(&self, range: &Range<usize>) -> &[f32] {
        &self.params.flat[range.clone()]
    }

    /// Runs the decoder over the packed forest; `acts.hidden` holds the result.
    ///
    /// # Panics
    /// If a position lies beyond `max_position_embeddings` or a token beyond the vocabulary: callers check their input.
    pub fn forward(&self, forest: &Forest, keep: SavedActivations, acts: &mut Activations) {
        let Ok(()) = transformer::forward(&mut ForwardPass::new(self, forest, keep, acts));
    }

    /// Log-prob (at `temperature`) of each node in `nodes` given its parent, and the entropy (nats) of that distribution.
    pub fn logprobs(
        &self,
        forest: &Forest,
        acts: &Activations,
        nodes: &[u32],
        temperature: f32,
    ) -> (Vec<f32>, Vec<f32>) {
        grouped_logprob::forward(self.head(acts, temperature), &targets(forest, nodes))
    }

    /// One pass over the chunked head: for each `nodes[i]` calls `loss(i, logprob, entropy)` (serially, in a fixed order), adds
    /// the head's gradient to `grads`, unless the weights are frozen, and overwrites `d_hidden` `[nodes, hidden]` with the hidden states' gradient.
    #[allow(clippy::too_many_arguments)]
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
        d_hidden.clear();
        d_hidden.resize(acts.hidden.len(), 0.0);
        let weight = match self.adapter {
            Some(_) => &mut [],
            None => &mut grads.flat[self.params.layout.head.clone()],
        };
        let grads = HeadGrads { weight, hidden: d_hidden };
        grouped_logprob::forward_backward(self.head(acts, temperature), &targets(forest, nodes), grads, loss);
    }

    fn head<'a>(&'a self, acts: &'a Activations, temperature: f32) -> Head<'a> {
        Head {
            weight: self.weight(&self.params.layout.head),
            hidden: &acts.hidden,
            width: self.config.hidden_size,
            temperature,
            dtype: self.dtype,
        }
    }

    /// Back-propagates `d_hidden` (used as scratch) through the decoder and adds the gradient of all that is trained to `grads`.
    ///
    /// # Panics
    /// If the forward pass kept nothing.
    pub fn backward(&self, forest: &Forest, acts: &mut Activations, d_hidden: &mut [f32], grads: &mut Params) {
        self.backward_into(forest, acts, d_hidden, &mut Accumulate { dtype: self.dtype, grads, rows: [forest.len()] });
    }

    /// As [`Model::backward`], handing the parameters' gradients to `sink`. The head's is none of them.
    pub fn backward_into(
        &self,
        forest: &Forest,
        acts: &mut Activations,
        d_hidden: &mut [f32],
        sink: &mut dyn Sink<Cpu>,
    ) {
        let Ok(()) = transformer::backward(&mut BackwardPass::new(self, forest, acts, d_hidden, sink));
    }

    pub(super) fn weights(&self) -> Weights<'_> {
        let source = match self.dtype {
            Dtype::F32 => WeightSource::Stored(&self.params.flat),
            Dtype::Bf16 => WeightSource::Packed(self.packed.get_or_init(|| self.pack())),
        };
        let adapter = self.adapter.as_ref().map(|of| AdapterWeights {
            layout: &of.layout,
            source: match self.dtype {
                Dtype::F32 => WeightSource::Stored(&of.params.flat),
                Dtype::Bf16 => WeightSource::Packed(self.pack_adapter(of)),
            },
        });
        Weights { source, adapter, spread: false }
    }

    /// Logits `[rows, vocab]` of hidden states `[rows, hidden]`.
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let (h, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let mut logits = vec![0.0; hidden.len() / h * vocab];
        let weight = self.weights().matrix(&self.params.layout.head, h);
        let parts = hidden.par_chunks(BLOCK * h).zip(logits.par_chunks_mut(BLOCK * vocab));
        parts.for_each(|(x, y)| linear::forward(x, weight, None, y));
        logits
    }
}

fn targets(forest: &Forest, nodes: &[u32]) -> Vec<Target> {
    let target = |&n: &u32| Target { row: forest.parent[n as usize], token: forest.tokens[n as usize] };
    nodes.iter().map(target).collect()
}
