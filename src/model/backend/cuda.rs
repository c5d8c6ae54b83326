//! The blocks on a GPU: weights and activations in bf16, sums in f32, gradients of weights in f32.
//!
//! A residual connection is added by the norm that follows it, and the
//! gradient of the residual stream lives in one buffer that every layer adds to.

use super::SavedActivations;
use super::Sink;
use super::cuda_adapter::CudaAdapter;
use super::cuda_graphs::Graphs;
use super::cuda_sink::{Accumulate, Cuda, part, spans};
use crate::device::{Error, Gpu, Packed, Result, Slice, SubSlice, Tensor};
use crate::forest::Forest;
use crate::model::adapter::Site;
use crate::model::params::Layout;
use crate::model::transformer::{Backward, Forward};
use crate::model::{Architecture, Model, transformer};
use crate::ops::attention;
use crate::ops::attention::cuda::{Backward as Backwards, Visibility};
use crate::ops::embedding::{self, cuda::Tokens};
use crate::ops::grouped_logprob::cuda as head;
use crate::ops::linear::{self, cuda::WeightGrad};
use crate::ops::{qk_norm, rmsnorm, rope, swiglu};
use half::bf16;
use std::ops::Range;
use std::sync::Arc;

/// A model in device memory.
pub struct CudaModel {
    /// The model's shape.
    pub config: Architecture,
    /// Where each tensor lies in the flat buffer.
    pub layout: Arc<Layout>,
    /// Flat, as [`crate::model::Params`]: the copy that the optimizer rounds from its master weights.
    pub weights: Tensor<bf16>,
    /// What stands beside them, where there is something: then it is trained, and the weights are frozen.
    pub adapter: Option<CudaAdapter>,
    /// Sequences that a decoder of this model has room for, each as long as the context allows (`rollout.max_live`).
    pub(super) max_live: usize,
    pub(super) gpu: Gpu,
    pub(super) rope: rope::cuda::Tables,
    /// Of its decoders.
    pub(super) graphs: Graphs,
}

/// What rotates the `qkv` of a layer and fills its `attn`; the layer's number comes first.
pub(super) type Attend<'a> = &'a dyn Fn(usize, &LayerActs) -> Result<()>;

/// A forest on the device.
pub struct CudaForest {
    /// Number of packed tokens.
    pub len: usize,
    tokens: Tokens,
    position: Tensor<u32>,
    visibility: Visibility,
    /// One for each token: sums over tokens are products.
    ones: Tensor<bf16>,
}

/// What [`CudaModel::forward`] keeps for [`CudaModel::backward`].
pub struct CudaActivations {
    /// Final-normed hidden states, `[tokens, hidden]`: what the head reads.
    pub hidden: Tensor<bf16>,
    keep: SavedActivations,
    /// The residual stream entering each layer, and leaving the last, `[tokens, hidden]` each; with [`SavedActivations::Nothing`] just one,
    /// which every layer overwrites.
    inputs: Vec<Tensor<bf16>>,
    /// One for each layer that is kept whole, and one that all others overwrite.
    layers: Vec<LayerActs>,
    rstd: Tensor<f32>,
    /// What a layer adds to the residual stream, `[tokens, hidden]`.
    delta: Tensor<bf16>,
    /// Scratch of adapters, `[tokens, rank]`.
    low_rank: Option<Tensor<bf16>>,
}

/// One layer's activations; every field is `[tokens, ...]`.
pub(super) struct LayerActs {
    norm1: Tensor<bf16>,
    rstd1: Tensor<f32>,
    /// Queries and keys before their norm, where there is one and a backward pass reads them.
    raw: Option<Tensor<bf16>>,
    pub qkv: Tensor<bf16>,
    pub attn: Tensor<bf16>,
    softmax: Tensor<f32>,
    mid: Tensor<bf16>,
    norm2: Tensor<bf16>,
    rstd2: Tensor<f32>,
    gate_up: Tensor<bf16>,
    act: Tensor<bf16>,
}

/// Gradients that live while one layer is back-propagated, `[tokens, ...]`.
struct LayerGrads {
    act: Tensor<bf16>,
    norm: Tensor<bf16>,
    attn: Tensor<bf16>,
    qkv: Tensor<bf16>,
    /// Of adapters, `[tokens, rank]`, beside the scratch of the forward pass.
    low_rank: Option<Tensor<bf16>>,
}

impl CudaModel {
    /// A copy of `model` on the device, rounded to bf16; its decoders hold at most `max_live` sequences.
    ///
    /// # Errors
    /// If there is too little device memory.
    pub fn new(gpu: &Gpu, model: &Model, max_live: usize) -> Result<CudaModel> {
        let weights: Vec<bf16> = model.params.flat.iter().map(|w| bf16::from_f32(*w)).collect();
        Ok(CudaModel {
            config: model.config.clone(),
            layout: model.params.layout.clone(),
            weights: gpu.tensor(&weights)?,
            adapter: model.adapter.as_ref().map(|adapter| CudaAdapter::new(gpu, adapter)).transpose()?,
            max_live,
            rope: rope::cuda::Tables::new(gpu, model.rope())?,
            gpu: gpu.clone(),
            graphs: Graphs::default(),
        })
    }

    /// Copies a forest to the device; refuses a token beyond the vocabulary.
    ///
    /// # Errors
    /// If a token is beyond the vocabulary, or there is too little device memory.
    pub fn forest(&self, forest: &Forest) -> Result<CudaForest> {
        let mut packed = Packed::default();
        let tokens = Tokens::pack(&mut packed, &forest.tokens, self.config.vocab_size)?;
        let position = packed.add(&forest.position);
        let visibility = Visibility::pack(&mut packed, &forest.reach);
        let ones = packed.add(&vec![bf16::ONE; forest.len()]);
        let mut on = packed.upload(&self.gpu)?;
        Ok(CudaForest {
            len: forest.len(),
            tokens: tokens(&mut on),
            position: on.take(position),
            visibility: visibility(&mut on),
            ones: on.take(ones),
        })
    }

    /// What training changes: the adapter's matrices, or without an adapter all weights.
    pub fn trained(&self) -> (&Arc<Layout>, &Tensor<bf16>) {
        let adapter = self.adapter.as_ref().map(|adapter| (&adapter.layout.tensors, &adapter.weights));
        adapter.unwrap_or((&self.layout, &self.weights))
    }

    fn low_rank(&self, tokens: usize) -> Result<Option<Tensor<bf16>>> {
        self.adapter.as_ref().map(|adapter| self.gpu.uninit(adapter.low_rank(tokens))).transpose()
    }

    /// CUDA graphs that its decoders have captured.
    pub fn graphs(&self) -> usize {
        self.graphs.len()
    }

    pub(super) fn shape(&self) -> attention::Shape {
        let c = &self.config;
        attention::Shape { heads: c.num_attention_heads, kv_heads: c.num_key_value_heads, head_dim: c.head_dim }
    }

    fn in_features(&self, site: Site) -> usize {
        match site {
            Site::Qkv | Site::GateUp => self.config.hidden_size,
            Site::O => self.shape().q_dim(),
            Site::Down => self.config.intermediate_size,
        }
    }

    pub(super) fn weight(&self, range: &Range<usize>) -> SubSlice<'_, bf16> {
        part(&self.weights, range)
    }

    /// Runs the decoder over the packed forest.
    ///
    /// # Errors
    /// If there is too little device memory, or a launch fails.
    pub fn forward(&self, forest: &CudaForest, keep: SavedActivations) -> Result<CudaActivations> {
        let acts = self.activations(forest.len, keep)?;
        self.run(&forest.tokens.ids, &acts, &self.attend(forest))?;
        Ok(acts)
    }

    fn attend<'a>(&'a self, forest: &'a CudaForest) -> impl Fn(usize, &LayerActs) -> Result<()> + 'a {
        |_, a| {
            self.rotate(&a.qkv, forest, false)?;
            attention::cuda::forward(&self.gpu, &a.qkv, self.shape(), &forest.visibility, &a.attn, &a.softmax)
        }
    }

    /// Queries and keys of `qkv`, or their gradients back.
    fn rotate(&self, qkv: &Slice<bf16>, forest: &CudaForest, inverse: bool) -> Result<()> {
        let shape = self.shape();
        let rotated = shape.heads + shape.kv_heads;
        rope::cuda::rotate(&self.gpu, qkv, shape.qkv_dim(), rotated, &forest.position, &self.rope, inverse)
    }

    /// Room for a forward pass of `n` tokens.
    pub(super) fn activations(&self, n: usize, keep: SavedActivations) -> Result<CudaActivations> {
        let (gpu, layers) = (&self.gpu, self.config.num_hidden_layers);
        let wide = || gpu.uninit::<bf16>(n * self.config.hidden_size);
        Ok(CudaActivations {
            hidden: wide()?,
            keep,
            inputs: (0..if keep == SavedActivations::Nothing { 1 } else { layers + 1 })
                .map(|_| wide())
                .collect::<Result<_>>()?,
            layers: (0..keep.places(layers)).map(|_| self.layer_acts(n, keep)).collect::<Result<_>>()?,
            rstd: gpu.uninit(n)?,
            delta: wide()?,
            low_rank: self.low_rank(n)?,
        })
    }

    /// Runs the decoder over tokens of the vocabulary, whatever they attend to.
    pub(super) fn run(&self, tokens: &Slice<u32>, acts: &CudaActivations, attend: Attend<'_>) -> Result<()> {
        transformer::forward(&mut ForwardPass { model: self, tokens, acts, attend, again: false })
    }

    /// Back-propagates `d_hidden` `[tokens, hidden]` through the decoder and adds the gradient of all that is trained to `grads`, flat
    /// as [`CudaModel::trained`].
    ///
    /// # Errors
    /// If there is too little device memory, or a launch fails.
    ///
    /// # Panics
    /// If the forward pass kept nothing.
    pub fn backward(
        &self,
        forest: &CudaForest,
        acts: &mut CudaActivations,
        d_hidden: &Slice<bf16>,
        grads: &Slice<f32>,
    ) -> Result<()> {
        self.backward_into(forest, acts, d_hidden, &mut Accumulate { gpu: &self.gpu, grads, rows: [forest.len] })
    }

    /// As [`CudaModel::backward`], handing the parameters' gradients to `sink`. The head's is none of them.
    ///
    /// # Errors
    /// If there is too little device memory, a launch fails, or the sink does.
    ///
    /// # Panics
    /// If the forward pass kept nothing.
    pub fn backward_into(
        &self,
        forest: &CudaForest,
        acts: &mut CudaActivations,
        d_hidden: &Slice<bf16>,
        sink: &mut dyn Sink<Cuda>,
    ) -> Result<()> {
        assert!(acts.keep != SavedActivations::Nothing, "backward after a forward pass that kept nothing");
        let (gpu, c, shape, n) = (&self.gpu, &self.config, self.shape(), forest.len);
        let grads = LayerGrads {
            act: gpu.uninit(n * c.intermediate_size)?,
            norm: gpu.uninit(n * c.hidden_size)?,
            attn: gpu.uninit(n * shape.q_dim())?,
            qkv: gpu.uninit(n * shape.qkv_dim())?,
            low_rank: self.low_rank(n)?,
        };
        let stream = gpu.zeros::<bf16>(n * c.hidden_size)?;
        let attend = self.attend(forest);
        let forward = ForwardPass { model: self, tokens: &forest.tokens.ids, acts, attend: &attend, again: true };
        transformer::backward(&mut BackwardPass { forward, forest, d_hidden, grads, stream, sink })
    }

    /// Adds to `stream`; the norm's weight is at `range`.
    fn norm_backward(
        &self,
        range: &Range<usize>,
        dy: &Slice<bf16>,
        x: &Slice<bf16>,
        rstd: &Slice<f32>,
        stream: &Slice<bf16>,
        sink: &mut dyn Sink<Cuda>,
    ) -> Result<()> {
        let w = self.weight(range);
        if self.adapter.is_some() {
            return rmsnorm::cuda::backward(&self.gpu, dy, x, &w, rstd, stream, None::<&Slice<f32>>);
        }
        for (span, rows) in spans(sink) {
            let [dy, x, stream] = [dy, x, stream].map(|of| part(of, &wide(&rows, w.len())));
            let rstd = part(rstd, &rows);
            sink.vector(range, span, &mut |dw| {
                rmsnorm::cuda::backward(&self.gpu, &dy, &x, &w, &rstd, &stream, Some(dw))
            })?;
        }
        Ok(())
    }

    /// Layers that a forward and backward pass over `n` tokens can keep whole in the memory that is free: recomputing the others is all
    /// that it need recompute.
    pub fn layers_that_fit(&self, n: usize) -> usize {
        let (c, shape) = (&self.config, self.shape());
        let (h, f, q, qkv) = (c.hidden_size, c.intermediate_size, shape.q_dim(), shape.qkv_dim());
        let raw = if c.family.qk_norm { (shape.heads + shape.kv_heads) * shape.head_dim } else { 0 };
        // As `LayerActs`, with the statistics of both norms and of attention in f32.
        let layer = n * (2 * (3 * h + raw + qkv + q + 3 * f) + 4 * (2 + 2 * shape.heads));
        // Inputs, what enters the head and comes back, gradients of one layer and of the stream; one layer; a chunk of logits.
        let rows = n * 2 * (h * (c.num_hidden_layers + 8) + f + h + q + qkv);
        let free = self.gpu.free_bytes() / 10 * 9;
        free.saturating_sub(rows + layer + head::CHUNK) / layer.max(1)
    }

    fn layer_acts(&self, n: usize, keep: SavedActivations) -> Result<LayerActs> {
        let (gpu, c, shape) = (&self.gpu, &self.config, self.shape());
        let wide = |width: usize| gpu.uninit::<bf16>(n * width);
        Ok(LayerActs {
            norm1: wide(c.hidden_size)?,
            rstd1: gpu.uninit(n)?,
            raw: match c.family.qk_norm && keep != SavedActivations::Nothing {
                true => Some(wide((shape.heads + shape.kv_heads) * shape.head_dim)?),
                false => None,
            },
            qkv: wide(shape.qkv_dim())?,
            attn: wide(shape.q_dim())?,
            softmax: gpu.uninit(2 * n * shape.heads)?,
            mid: wide(c.hidden_size)?,
            norm2: wide(c.hidden_size)?,
            rstd2: gpu.uninit(n)?,
            gate_up: wide(2 * c.intermediate_size)?,
            act: wide(c.intermediate_size)?,
        })
    }
}

/// Over tokens, wherever their keys and values are.
struct ForwardPass<'a> {
    model: &'a CudaModel,
    tokens: &'a Slice<u32>,
    acts: &'a CudaActivations,
    attend: Attend<'a>,
    /// Layers are computed again: their inputs are there.
    again: bool,
}

impl ForwardPass<'_> {
    /// `sum` = what layer `l` reads and adds to, normed by the weight at `range`: the residual connection is added here.
    fn norm_of(&self, l: usize, range: &Range<usize>, y: &Slice<bf16>, rstd: &Slice<f32>) -> Result<()> {
        let (gpu, w, eps) = (&self.model.gpu, self.model.weight(range), self.model.config.rms_norm_eps);
        let x = self.acts.input(l);
        if l == 0 || self.again {
            return rmsnorm::cuda::forward(gpu, x, &w, eps, y, rstd);
        }
        rmsnorm::cuda::forward_add(gpu, &self.acts.layer(l - 1).mid, &self.acts.delta, &w, eps, x, y, rstd)
    }

    /// `y = x Wᵀ` of layer `l`, and what its adapters add.
    fn product(
        &self,
        l: usize,
        site: Site,
        x: &Slice<bf16>,
        bias: Option<&Slice<bf16>>,
        y: &Slice<bf16>,
    ) -> Result<()> {
        let (model, w) = (self.model, site.weights(&self.model.layout.layers[l]));
        linear::cuda::forward(&model.gpu, x, &model.weight(w), bias, model.in_features(site), y)?;
        match (&model.adapter, &self.acts.low_rank) {
            (Some(adapter), Some(scratch)) => adapter.forward(&model.gpu, (l, site), x, y, scratch),
            _ => Ok(()),
        }
    }
}

impl Forward for ForwardPass<'_> {
    type Error = Error;

    fn layers(&self) -> usize {
        self.model.config.num_hidden_layers
    }

    fn embed(&mut self) -> Result<()> {
        let model = self.model;
        let table = model.weight(&model.layout.embed);
        embedding::cuda::gather(&model.gpu, self.tokens, &table, model.config.hidden_size, self.acts.input(0))
    }

    fn qkv(&mut self, l: usize) -> Result<()> {
        let (model, a, layer) = (self.model, self.acts.layer(l), &self.model.layout.layers[l]);
        let (gpu, c) = (&model.gpu, &model.config);
        self.norm_of(l, &layer.input_norm, &a.norm1, &a.rstd1)?;
        let bias = layer.qkv_bias.as_ref().map(|range| model.weight(range));
        self.product(l, Site::Qkv, &a.norm1, bias.as_deref(), &a.qkv)?;
        if let Some(range) = &layer.qk_norm {
            let (w, raw) = (model.weight(range), a.raw.as_deref());
            qk_norm::cuda::forward(gpu, &a.qkv, model.shape(), &w, c.rms_norm_eps, raw)?;
        }
        Ok(())
    }

    /// Rotates, too: where keys go to a cache, they are rotated on their way.
    fn attend(&mut self, l: usize) -> Result<()> {
        (self.attend)(l, self.acts.layer(l))
    }

    /// What the MLP adds is left in `delta`, for the next norm to add.
    fn mlp(&mut self, l: usize) -> Result<()> {
        let (model, a, layer, delta) = (self.model, self.acts.layer(l), &self.model.layout.layers[l], &self.acts.delta);
        let (gpu, c) = (&model.gpu, &model.config);
        self.product(l, Site::O, &a.attn, None, delta)?;
        let w = model.weight(&layer.post_norm);
        rmsnorm::cuda::forward_add(gpu, self.acts.input(l), delta, &w, c.rms_norm_eps, &a.mid, &a.norm2, &a.rstd2)?;
        self.product(l, Site::GateUp, &a.norm2, None, &a.gate_up)?;
        swiglu::cuda::forward(gpu, &a.gate_up, c.intermediate_size, &a.act)?;
        self.product(l, Site::Down, &a.act, None, delta)
    }

    fn norm(&mut self) -> Result<()> {
        self.norm_of(self.layers(), &self.model.layout.norm, &self.acts.hidden, &self.acts.rstd)
    }
}

/// Over what a [`ForwardPass`] kept. A layer's `gate_up` is overwritten.
struct BackwardPass<'a> {
    forward: ForwardPass<'a>,
    forest: &'a CudaForest,
    d_hidden: &'a Slice<bf16>,
    grads: LayerGrads,
    /// The gradient of the residual stream, from the last layer's output down to the embedding.
    stream: Tensor<bf16>,
    sink: &'a mut dyn Sink<Cuda>,
}

impl<'a> Backward for BackwardPass<'a> {
    type Error = Error;
    type Forward = ForwardPass<'a>;

    fn layers(&self) -> usize {
        self.forward.layers()
    }

    fn recompute(&mut self, l: usize) -> Option<&mut ForwardPass<'a>> {
        (l >= self.forward.acts.keep.whole(self.layers())).then_some(&mut self.forward)
    }

    fn norm_backward(&mut self) -> Result<()> {
        let ForwardPass { model, acts, .. } = self.forward;
        let last = acts.input(model.config.num_hidden_layers);
        model.norm_backward(&model.layout.norm, self.d_hidden, last, &acts.rstd, &self.stream, self.sink)
    }

    fn mlp_backward(&mut self, l: usize) -> Result<()> {
        let BackwardPass { forward: ForwardPass { model, acts, .. }, grads: g, stream, sink, .. } = self;
        let (gpu, a, layer, c) = (&model.gpu, acts.layer(l), &model.layout.layers[l], &model.config);
        let ffn = c.intermediate_size;
        let back = Products { model, acts, grads: g };
        back.backward(l, Site::Down, (&a.act, stream), &g.act, *sink)?;
        swiglu::cuda::backward(gpu, &g.act, ffn, &a.gate_up)?;
        back.backward(l, Site::GateUp, (&a.norm2, &a.gate_up), &g.norm, *sink)?;
        model.norm_backward(&layer.post_norm, &g.norm, &a.mid, &a.rstd2, stream, *sink)?;
        back.backward(l, Site::O, (&a.attn, stream), &g.attn, *sink)
    }

    fn attend_backward(&mut self, l: usize) -> Result<()> {
        let (model, a, g) = (self.forward.model, self.forward.acts.layer(l), &self.grads);
        let pass = Backwards { d_out: &g.attn, qkv: &a.qkv, out: &a.attn, softmax: &a.softmax, d_qkv: &g.qkv };
        attention::cuda::backward(&model.gpu, pass, model.shape(), &self.forest.visibility)?;
        model.rotate(&g.qkv, self.forest, true)
    }

    fn qkv_backward(&mut self, l: usize) -> Result<()> {
        let BackwardPass { forward: ForwardPass { model, acts, .. }, grads: g, stream, sink, forest, .. } = self;
        let (gpu, a, layer, shape) = (&model.gpu, acts.layer(l), &model.layout.layers[l], model.shape());
        let (qkv_dim, eps, frozen) = (shape.qkv_dim(), model.config.rms_norm_eps, model.adapter.is_some());
        if let (Some(range), Some(raw)) = (&layer.qk_norm, &a.raw) {
            if frozen {
                let w = model.weight(range);
                qk_norm::cuda::backward(gpu, &g.qkv, shape, raw, &w, eps, None::<&Slice<f32>>)?;
            }
            let (w, raw_dim) = (model.weight(range), (shape.heads + shape.kv_heads) * shape.head_dim);
            for (span, rows) in spans(*sink).into_iter().filter(|_| !frozen) {
                let (d, raw) = (part(&g.qkv, &wide(&rows, qkv_dim)), part(raw, &wide(&rows, raw_dim)));
                sink.vector(range, span, &mut |dw| qk_norm::cuda::backward(gpu, &d, shape, &raw, &w, eps, Some(dw)))?;
            }
        }
        if let Some(range) = layer.qkv_bias.as_ref().filter(|_| !frozen) {
            for (span, rows) in spans(*sink) {
                let (d, ones) = (part(&g.qkv, &wide(&rows, qkv_dim)), part(&forest.ones, &(0..rows.len())));
                sink.vector(range, span, &mut |db| linear::cuda::backward_bias(gpu, &d, &ones, db))?;
            }
        }
        let back = Products { model, acts, grads: g };
        back.backward(l, Site::Qkv, (&a.norm1, &g.qkv), &g.norm, *sink)?;
        model.norm_backward(&layer.input_norm, &g.norm, acts.input(l), &a.rstd1, stream, *sink)
    }

    fn embed_backward(&mut self) -> Result<()> {
        if self.forward.model.adapter.is_some() {
            return Ok(());
        }
        self.sink.embedding(&self.forward.model.layout.embed, &self.forest.tokens, &self.stream)
    }
}

/// What the backward passes of products need.
struct Products<'a> {
    model: &'a CudaModel,
    acts: &'a CudaActivations,
    grads: &'a LayerGrads,
}

impl Products<'_> {
    /// Takes the gradient `dy` of a product of layer `l` back to that of its input `x`, which overwrites `dx`; its weights' goes to
    /// `sink`, or, where they are frozen, their adapters'.
    fn backward(
        &self,
        l: usize,
        site: Site,
        (x, dy): (&Slice<bf16>, &Slice<bf16>),
        dx: &Slice<bf16>,
        sink: &mut dyn Sink<Cuda>,
    ) -> Result<()> {
        let Products { model, acts, grads } = self;
        let (range, in_features) = (site.weights(&model.layout.layers[l]), model.in_features(site));
        linear::cuda::backward_input(&model.gpu, dy, &model.weight(range), in_features, dx)?;
        let whole = WeightGrad { dy, out: range.len() / in_features, first: 0, x, in_features };
        match (&model.adapter, &acts.low_rank, &grads.low_rank) {
            (Some(adapter), Some(u), Some(v)) => adapter.backward(&model.gpu, (l, site), whole, dx, ([u, v], sink)),
            _ => sink.matrices(&[(range.clone(), whole)]),
        }
    }
}

impl CudaActivations {
    /// Of all memory that a forward pass reads or writes here.
    pub(super) fn addresses(&self) -> Vec<u64> {
        let mut all = vec![self.hidden.address(), self.rstd.address(), self.delta.address()];
        all.extend(self.inputs.iter().chain(&self.low_rank).map(|of| of.address()));
        for a in &self.layers {
            all.extend([&a.norm1, &a.qkv, &a.attn, &a.mid, &a.norm2, &a.gate_up, &a.act].map(|x| x.address()));
            all.extend([&a.rstd1, &a.softmax, &a.rstd2].map(|x| x.address()));
            all.extend(a.raw.iter().map(|raw| raw.address()));
        }
        all
    }

    fn input(&self, l: usize) -> &Tensor<bf16> {
        &self.inputs[l.min(self.inputs.len() - 1)]
    }

    fn layer(&self, l: usize) -> &LayerActs {
        &self.layers[l.min(self.layers.len() - 1)]
    }
}

/// The elements of some rows.
fn wide(rows: &Range<usize>, width: usize) -> Range<usize> {
    rows.start * width..rows.end * width
}
