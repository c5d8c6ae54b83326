//! The forward and backward pass on a GPU: weights and activations in bf16, sums in f32, gradients of weights in f32.
//!
//! The same formulas in the same order as [`super::qwen2`]. A residual connection is added by the norm that follows it, and the
//! gradient of the residual stream lives in one buffer that every layer adds to.

use super::cuda_sink::{Accumulate, CudaSink, spans};
use super::params::{LayerLayout, Layout};
use super::{Architecture, Keep, Model};
use crate::device::{Gpu, Part, Result, Slice, Tensor};
use crate::forest::Forest;
use crate::ops::attention;
use crate::ops::attention::cuda::{Backward, Visibility};
use crate::ops::embedding::{self, cuda::Tokens};
use crate::ops::linear::{self, cuda::WeightGrad};
use crate::ops::{qk_norm, rmsnorm, rope, swiglu};
use half::bf16;
use std::ops::Range;
use std::sync::Arc;

/// A model in device memory.
pub struct CudaModel {
    pub config: Architecture,
    pub layout: Arc<Layout>,
    /// Flat, as [`super::Params`]: the copy that the optimiser rounds from its master weights.
    pub weights: Tensor<bf16>,
    /// Sequences that a decoder of this model has room for, each as long as the context allows (`rollout.max_live`).
    pub(super) max_live: usize,
    pub(super) gpu: Gpu,
    pub(super) rope: rope::cuda::Tables,
}

/// What rotates the `qkv` of a layer and fills its `attn`; the layer's number comes first.
pub(super) type Attend<'a> = &'a dyn Fn(usize, &LayerActs) -> Result<()>;

/// A forest on the device.
pub struct CudaForest {
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
    keep: Keep,
    /// The residual stream entering each layer, and leaving the last, `[tokens, hidden]` each; with [`Keep::Nothing`] just one,
    /// which every layer overwrites.
    inputs: Vec<Tensor<bf16>>,
    /// One for each layer with [`Keep::All`], else a single one.
    layers: Vec<LayerActs>,
    rstd: Tensor<f32>,
    /// What a layer adds to the residual stream, `[tokens, hidden]`.
    delta: Tensor<bf16>,
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
}

impl CudaModel {
    /// A copy of `model` on the device, rounded to bf16; its decoders hold at most `max_live` sequences.
    pub fn new(gpu: &Gpu, model: &Model, max_live: usize) -> Result<CudaModel> {
        let weights: Vec<bf16> = model.params.flat.iter().map(|w| bf16::from_f32(*w)).collect();
        Ok(CudaModel {
            config: model.config.clone(),
            layout: model.params.layout.clone(),
            weights: gpu.tensor(&weights)?,
            max_live,
            rope: rope::cuda::Tables::new(gpu, model.rope())?,
            gpu: gpu.clone(),
        })
    }

    /// Copies a forest to the device; refuses a token beyond the vocabulary.
    pub fn forest(&self, forest: &Forest) -> Result<CudaForest> {
        let gpu = &self.gpu;
        Ok(CudaForest {
            len: forest.len(),
            tokens: Tokens::new(gpu, &forest.tokens, self.config.vocab_size)?,
            position: gpu.tensor(&forest.position)?,
            visibility: Visibility::new(gpu, &forest.reach)?,
            ones: gpu.tensor(&vec![bf16::ONE; forest.len()])?,
        })
    }

    pub(super) fn shape(&self) -> attention::Shape {
        let c = &self.config;
        attention::Shape { heads: c.num_attention_heads, kv_heads: c.num_key_value_heads, head_dim: c.head_dim }
    }

    pub(super) fn weight(&self, range: &Range<usize>) -> Part<'_, bf16> {
        part(&self.weights, range)
    }

    /// Runs the decoder over the packed forest.
    pub fn forward(&self, forest: &CudaForest, keep: Keep) -> Result<CudaActivations> {
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
    pub(super) fn activations(&self, n: usize, keep: Keep) -> Result<CudaActivations> {
        let (gpu, layers) = (&self.gpu, self.config.num_hidden_layers);
        let wide = || gpu.uninit::<bf16>(n * self.config.hidden_size);
        Ok(CudaActivations {
            hidden: wide()?,
            keep,
            inputs: (0..if keep == Keep::Nothing { 1 } else { layers + 1 }).map(|_| wide()).collect::<Result<_>>()?,
            layers: (0..if keep == Keep::All { layers } else { 1 })
                .map(|_| self.layer_acts(n, keep))
                .collect::<Result<_>>()?,
            rstd: gpu.uninit(n)?,
            delta: wide()?,
        })
    }

    /// Runs the decoder over tokens of the vocabulary, whatever they attend to.
    pub(super) fn run(&self, tokens: &Slice<u32>, acts: &CudaActivations, attend: Attend<'_>) -> Result<()> {
        let (gpu, c, layout) = (&self.gpu, &self.config, &self.layout);
        let layers = c.num_hidden_layers;
        embedding::cuda::gather(gpu, tokens, &self.weight(&layout.embed), c.hidden_size, &acts.inputs[0])?;
        for (l, layer) in layout.layers.iter().enumerate() {
            let a = acts.layer(l);
            let w = self.weight(&layer.input_norm);
            if l == 0 {
                rmsnorm::cuda::forward(gpu, acts.input(0), &w, c.rms_norm_eps, &a.norm1, &a.rstd1)?;
            } else {
                let mid = &acts.layer(l - 1).mid;
                let (x, eps) = (acts.input(l), c.rms_norm_eps);
                rmsnorm::cuda::forward_add(gpu, mid, &acts.delta, &w, eps, x, &a.norm1, &a.rstd1)?;
            }
            self.layer_forward(l, acts.input(l), a, &acts.delta, attend)?;
        }
        let (w, mid, last) = (self.weight(&layout.norm), &acts.layer(layers - 1).mid, acts.input(layers));
        rmsnorm::cuda::forward_add(gpu, mid, &acts.delta, &w, c.rms_norm_eps, last, &acts.hidden, &acts.rstd)
    }

    /// Layer `l` from its normed input on: `x` is its input, `delta` what it adds to `a.mid`.
    fn layer_forward(
        &self,
        l: usize,
        x: &Slice<bf16>,
        a: &LayerActs,
        delta: &Slice<bf16>,
        attend: Attend<'_>,
    ) -> Result<()> {
        let (gpu, c, shape, layer) = (&self.gpu, &self.config, self.shape(), &self.layout.layers[l]);
        let (hidden, bias) = (c.hidden_size, layer.qkv_bias.as_ref().map(|range| self.weight(range)));
        linear::cuda::forward(gpu, &a.norm1, &self.weight(&layer.qkv), bias.as_deref(), hidden, &a.qkv)?;
        if let Some(range) = &layer.qk_norm {
            qk_norm::cuda::forward(gpu, &a.qkv, shape, &self.weight(range), c.rms_norm_eps, a.raw.as_deref())?;
        }
        attend(l, a)?;
        linear::cuda::forward(gpu, &a.attn, &self.weight(&layer.o), None, shape.q_dim(), delta)?;
        let w = self.weight(&layer.post_norm);
        rmsnorm::cuda::forward_add(gpu, x, delta, &w, c.rms_norm_eps, &a.mid, &a.norm2, &a.rstd2)?;
        linear::cuda::forward(gpu, &a.norm2, &self.weight(&layer.gate_up), None, hidden, &a.gate_up)?;
        swiglu::cuda::forward(gpu, &a.gate_up, c.intermediate_size, &a.act)?;
        linear::cuda::forward(gpu, &a.act, &self.weight(&layer.down), None, c.intermediate_size, delta)
    }

    /// Back-propagates `d_hidden` `[tokens, hidden]` through the decoder and adds every parameter's gradient to `grads`, flat as
    /// the weights.
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
    /// # Panics
    /// If the forward pass kept nothing.
    pub fn backward_into(
        &self,
        forest: &CudaForest,
        acts: &mut CudaActivations,
        d_hidden: &Slice<bf16>,
        sink: &mut dyn CudaSink,
    ) -> Result<()> {
        assert!(acts.keep != Keep::Nothing, "backward after a forward pass that kept nothing");
        let (gpu, c, layout, n) = (&self.gpu, &self.config, &self.layout, forest.len);
        let layers = c.num_hidden_layers;
        let shape = self.shape();
        let g = LayerGrads {
            act: gpu.uninit(n * c.intermediate_size)?,
            norm: gpu.uninit(n * c.hidden_size)?,
            attn: gpu.uninit(n * shape.q_dim())?,
            qkv: gpu.uninit(n * shape.qkv_dim())?,
        };
        // Of the residual stream, from the last layer's output down to the embedding.
        let stream = gpu.zeros::<bf16>(n * c.hidden_size)?;
        self.norm_backward(&layout.norm, d_hidden, acts.input(layers), &acts.rstd, &stream, sink)?;
        for (l, layer) in layout.layers.iter().enumerate().rev() {
            let (x, a) = (acts.input(l), acts.layer(l));
            if acts.keep == Keep::LayerInputs {
                let w = self.weight(&layer.input_norm);
                rmsnorm::cuda::forward(gpu, x, &w, c.rms_norm_eps, &a.norm1, &a.rstd1)?;
                self.layer_forward(l, x, a, &acts.delta, &self.attend(forest))?;
            }
            self.layer_backward(layer, forest, x, a, &g, &stream, sink)?;
        }
        sink.embedding(&layout.embed, &forest.tokens, &stream)
    }

    /// One layer: on entry `stream` is the gradient of its output, on exit of its input `x`. Overwrites `a.gate_up`.
    #[allow(clippy::too_many_arguments)]
    fn layer_backward(
        &self,
        layer: &LayerLayout,
        forest: &CudaForest,
        x: &Slice<bf16>,
        a: &LayerActs,
        g: &LayerGrads,
        stream: &Slice<bf16>,
        sink: &mut dyn CudaSink,
    ) -> Result<()> {
        let (gpu, shape) = (&self.gpu, self.shape());
        let (hidden, ffn, q_dim) = (self.config.hidden_size, self.config.intermediate_size, shape.q_dim());
        linear::cuda::backward_input(gpu, stream, &self.weight(&layer.down), ffn, &g.act)?;
        sink.matrix(&layer.down, WeightGrad { dy: stream, out: hidden, x: &a.act, in_features: ffn })?;
        swiglu::cuda::backward(gpu, &g.act, ffn, &a.gate_up)?;
        linear::cuda::backward_input(gpu, &a.gate_up, &self.weight(&layer.gate_up), hidden, &g.norm)?;
        let products = WeightGrad { dy: &a.gate_up, out: 2 * ffn, x: &a.norm2, in_features: hidden };
        sink.matrix(&layer.gate_up, products)?;
        self.norm_backward(&layer.post_norm, &g.norm, &a.mid, &a.rstd2, stream, sink)?;

        linear::cuda::backward_input(gpu, stream, &self.weight(&layer.o), q_dim, &g.attn)?;
        sink.matrix(&layer.o, WeightGrad { dy: stream, out: hidden, x: &a.attn, in_features: q_dim })?;
        let pass = Backward { d_out: &g.attn, qkv: &a.qkv, out: &a.attn, softmax: &a.softmax, d_qkv: &g.qkv };
        attention::cuda::backward(gpu, pass, shape, &forest.visibility)?;
        self.rotate(&g.qkv, forest, true)?;
        let qkv_dim = shape.qkv_dim();
        if let (Some(range), Some(raw)) = (&layer.qk_norm, &a.raw) {
            let (w, raw_dim) = (self.weight(range), (shape.heads + shape.kv_heads) * shape.head_dim);
            for (span, rows) in spans(sink) {
                let (d, raw) = (part(&g.qkv, &wide(&rows, qkv_dim)), part(raw, &wide(&rows, raw_dim)));
                let eps = self.config.rms_norm_eps;
                sink.vector(range, span, &mut |dw| qk_norm::cuda::backward(gpu, &d, shape, &raw, &w, eps, dw))?;
            }
        }
        for (span, rows) in spans(sink) {
            let Some(range) = &layer.qkv_bias else { break };
            let (d, ones) = (part(&g.qkv, &wide(&rows, qkv_dim)), part(&forest.ones, &(0..rows.len())));
            sink.vector(range, span, &mut |db| linear::cuda::backward_bias(gpu, &d, &ones, db))?;
        }
        linear::cuda::backward_input(gpu, &g.qkv, &self.weight(&layer.qkv), hidden, &g.norm)?;
        sink.matrix(&layer.qkv, WeightGrad { dy: &g.qkv, out: qkv_dim, x: &a.norm1, in_features: hidden })?;
        self.norm_backward(&layer.input_norm, &g.norm, x, &a.rstd1, stream, sink)
    }

    /// Adds to `stream`; the norm's weight is at `range`.
    fn norm_backward(
        &self,
        range: &Range<usize>,
        dy: &Slice<bf16>,
        x: &Slice<bf16>,
        rstd: &Slice<f32>,
        stream: &Slice<bf16>,
        sink: &mut dyn CudaSink,
    ) -> Result<()> {
        let w = self.weight(range);
        for (span, rows) in spans(sink) {
            let [dy, x, stream] = [dy, x, stream].map(|of| part(of, &wide(&rows, w.len())));
            let rstd = part(rstd, &rows);
            sink.vector(range, span, &mut |dw| rmsnorm::cuda::backward(&self.gpu, &dy, &x, &w, &rstd, &stream, dw))?;
        }
        Ok(())
    }

    fn layer_acts(&self, n: usize, keep: Keep) -> Result<LayerActs> {
        let (gpu, c, shape) = (&self.gpu, &self.config, self.shape());
        let wide = |width: usize| gpu.uninit::<bf16>(n * width);
        Ok(LayerActs {
            norm1: wide(c.hidden_size)?,
            rstd1: gpu.uninit(n)?,
            raw: match c.family.qk_norm && keep != Keep::Nothing {
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

impl CudaActivations {
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

/// A tensor's place in a flat buffer of the model's layout.
///
/// # Panics
/// If the buffer is shorter than the layout.
pub fn part<'a, T: bytemuck::Pod>(flat: &'a Slice<T>, range: &Range<usize>) -> Part<'a, T> {
    flat.part(range.clone()).expect("a flat buffer holds the whole layout")
}
