//! The forward and backward pass over a [`Forest`].
//!
//! Per layer, with residual stream x: x ← x + Wₒ·attention(rope(W_qkv·norm(x) + b)) (or, with QK-norm, of the normed queries and
//! keys), then x ← x + W_down·swiglu(W_gate_up·norm(x)).
//! Everything but attention and the weight gradients works on blocks of [`BLOCK`] rows that stay in cache from the norm to the
//! residual; blocks run in parallel.

use super::params::LayerLayout;
use super::sink::{Accumulate, Sink, by_span};
use super::{Architecture, Params};
use crate::device::cpu::BLOCK;
use crate::forest::Forest;
use crate::ops::attention::{self, Visibility};
use crate::ops::grouped_logprob::{self, Head, HeadGrads, Target, TokenGrad};
use crate::ops::linear::WeightGrad;
use crate::ops::{embedding, linear, qk_norm, rmsnorm, rope, swiglu};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// A model in memory.
#[derive(Clone)]
pub struct Model {
    pub config: Architecture,
    pub params: Params,
    rope: Arc<rope::Tables>,
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

/// What [`Model::forward`] keeps for [`Model::backward`]; its buffers are reused from step to step.
#[derive(Default)]
pub struct Activations {
    /// Final-normed hidden states, `[nodes, hidden]`: what the head reads.
    pub hidden: Vec<f32>,
    keep: Keep,
    visibility: Visibility,
    /// The residual stream entering each layer, and leaving the last, `[nodes, hidden]` each.
    inputs: Vec<Vec<f32>>,
    /// One per layer with [`Keep::All`], else a single one that every layer overwrites.
    layers: Vec<LayerActs>,
    rstd: Vec<f32>,
    grads: LayerGrads,
}

impl Activations {
    /// The residual stream entering each layer, and leaving the last (with [`Keep::All`] or [`Keep::LayerInputs`]).
    pub fn residual_stream(&self) -> &[Vec<f32>] {
        &self.inputs
    }
}

/// One layer's activations; every field is `[nodes, ...]`.
#[derive(Default)]
struct LayerActs {
    norm1: Vec<f32>,
    rstd1: Vec<f32>,
    /// Queries and keys before their norm, where there is one.
    raw: Vec<f32>,
    qkv: Vec<f32>,
    attn: Vec<f32>,
    softmax: Vec<f32>,
    mid: Vec<f32>,
    norm2: Vec<f32>,
    rstd2: Vec<f32>,
    gate_up: Vec<f32>,
    act: Vec<f32>,
}

/// Gradients that live while one layer is back-propagated.
#[derive(Default)]
struct LayerGrads {
    mid: Vec<f32>,
    input: Vec<f32>,
    attn: Vec<f32>,
    qkv: Vec<f32>,
}

/// Where the forward pass reads its matrices: the parameters, or a buffer of the same layout that holds them in panels.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub flat: &'a [f32],
    pub panels: bool,
    /// Each product on all cores.
    pub spread: bool,
}

impl<'a> Weights<'a> {
    pub fn matrix(&self, range: &std::ops::Range<usize>, in_features: usize) -> linear::Weight<'a> {
        let data = &self.flat[range.clone()];
        if self.panels {
            linear::Weight::panels(data, in_features).spread(self.spread)
        } else {
            linear::Weight::new(data, in_features)
        }
    }
}

/// The sizes that recur in every function.
#[derive(Clone, Copy)]
pub(super) struct Dims {
    pub hidden: usize,
    pub ffn: usize,
    eps: f32,
    pub attention: attention::Shape,
    qk_norm: bool,
}

impl Dims {
    /// Width of a row's normed queries and keys.
    fn normed(&self) -> usize {
        if self.qk_norm { (self.attention.heads + self.attention.kv_heads) * self.attention.head_dim } else { 0 }
    }
}

impl Model {
    pub fn new(config: Architecture, params: Params) -> Model {
        let rope = Arc::new(config.rope_tables(config.max_position_embeddings));
        Model { config, params, rope }
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

    fn weight(&self, range: &std::ops::Range<usize>) -> &[f32] {
        &self.params.flat[range.clone()]
    }

    /// Runs the decoder over the packed forest; `acts.hidden` holds the result.
    ///
    /// # Panics
    /// If a position lies beyond `max_position_embeddings` or a token beyond the vocabulary: callers check their input.
    pub fn forward(&self, forest: &Forest, keep: Keep, acts: &mut Activations) {
        let (d, layout, layers) = (self.dims(), &self.params.layout, self.config.num_hidden_layers);
        acts.keep = keep;
        acts.visibility = Visibility::new(&forest.reach);
        acts.inputs.resize_with(if keep == Keep::Nothing { 2 } else { layers + 1 }, Vec::new);
        acts.layers.resize_with(if keep == Keep::All { layers } else { 1 }, LayerActs::default);
        acts.inputs.iter_mut().for_each(|x| x.resize(forest.len() * d.hidden, 0.0));
        embedding::forward(&forest.tokens, self.weight(&layout.embed), d.hidden, &mut acts.inputs[0]);
        for l in 0..layers {
            if keep == Keep::Nothing {
                let (x, y) = acts.inputs.split_at_mut(1);
                self.layer_forward(l, forest, &acts.visibility, &x[0], &mut acts.layers[0], &mut y[0]);
                acts.inputs.swap(0, 1);
            } else {
                let (x, y) = acts.inputs.split_at_mut(l + 1);
                let at = if keep == Keep::All { l } else { 0 };
                self.layer_forward(l, forest, &acts.visibility, &x[l], &mut acts.layers[at], &mut y[0]);
            }
        }
        acts.hidden.resize(forest.len() * d.hidden, 0.0);
        acts.rstd.resize(forest.len(), 0.0);
        let x = &acts.inputs[if keep == Keep::Nothing { 0 } else { layers }];
        let (w, block) = (self.weight(&layout.norm), BLOCK * d.hidden);
        let rows = x.par_chunks(block).zip(acts.hidden.par_chunks_mut(block)).zip(acts.rstd.par_chunks_mut(BLOCK));
        rows.for_each(|((x, y), rstd)| rmsnorm::forward(x, w, d.eps, y, rstd));
    }

    /// One layer: `x` to `y`, keeping its activations in `a`.
    fn layer_forward(
        &self,
        l: usize,
        forest: &Forest,
        visibility: &Visibility,
        x: &[f32],
        a: &mut LayerActs,
        y: &mut [f32],
    ) {
        let (d, layer, weights) = (self.dims(), &self.params.layout.layers[l], self.weights());
        a.resize(forest.len(), &d);
        let mut raw: Vec<Option<&mut [f32]>> = a.raw.chunks_mut(BLOCK * d.normed().max(1)).map(Some).collect();
        raw.resize_with(forest.len().div_ceil(BLOCK), || None);
        let parts = x
            .par_chunks(BLOCK * d.hidden)
            .zip(forest.position.par_chunks(BLOCK))
            .zip(a.norm1.par_chunks_mut(BLOCK * d.hidden))
            .zip(a.rstd1.par_chunks_mut(BLOCK))
            .zip(a.qkv.par_chunks_mut(BLOCK * d.attention.qkv_dim()))
            .zip(raw);
        parts.for_each(|(((((x, position), norm), rstd), qkv), raw)| {
            self.qkv_forward(weights, layer, x, position, norm, rstd, qkv, raw)
        });
        attention::forward(&a.qkv, d.attention, visibility, &mut a.attn, &mut a.softmax);
        let parts = x
            .par_chunks(BLOCK * d.hidden)
            .zip(a.attn.par_chunks(BLOCK * d.attention.q_dim()))
            .zip(a.mid.par_chunks_mut(BLOCK * d.hidden))
            .zip(a.norm2.par_chunks_mut(BLOCK * d.hidden))
            .zip(a.rstd2.par_chunks_mut(BLOCK))
            .zip(a.gate_up.par_chunks_mut(BLOCK * 2 * d.ffn))
            .zip(a.act.par_chunks_mut(BLOCK * d.ffn))
            .zip(y.par_chunks_mut(BLOCK * d.hidden));
        parts.for_each(|(((((((x, attn), mid), norm), rstd), gate_up), act), y)| {
            mid.copy_from_slice(x);
            linear::forward_add(attn, weights.matrix(&layer.o, d.attention.q_dim()), mid);
            y.copy_from_slice(mid);
            self.mlp_forward(weights, layer, mid, norm, rstd, gate_up, act, y);
        });
    }

    /// Norm, QKV projection, norm of queries and keys (`raw` gets what they were) and rotation of a block of rows.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn qkv_forward(
        &self,
        weights: Weights<'_>,
        layer: &LayerLayout,
        x: &[f32],
        position: &[u32],
        norm: &mut [f32],
        rstd: &mut [f32],
        qkv: &mut [f32],
        raw: Option<&mut [f32]>,
    ) {
        let d = self.dims();
        rmsnorm::forward(x, self.weight(&layer.input_norm), d.eps, norm, rstd);
        let bias = layer.qkv_bias.as_ref().map(|range| self.weight(range));
        linear::forward(norm, weights.matrix(&layer.qkv, d.hidden), bias, qkv);
        if let Some(range) = &layer.qk_norm {
            qk_norm::forward(qkv, d.attention, self.weight(range), d.eps, raw);
        }
        let rotated = d.attention.heads + d.attention.kv_heads;
        rope::rotate(qkv, d.attention.qkv_dim(), rotated, position, &self.rope, false);
    }

    /// `y += mlp(norm(x))` on a block of rows.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn mlp_forward(
        &self,
        weights: Weights<'_>,
        layer: &LayerLayout,
        x: &[f32],
        norm: &mut [f32],
        rstd: &mut [f32],
        gate_up: &mut [f32],
        act: &mut [f32],
        y: &mut [f32],
    ) {
        let d = self.dims();
        rmsnorm::forward(x, self.weight(&layer.post_norm), d.eps, norm, rstd);
        linear::forward(norm, weights.matrix(&layer.gate_up, d.hidden), None, gate_up);
        swiglu::forward(gate_up, d.ffn, act);
        linear::forward_add(act, weights.matrix(&layer.down, d.ffn), y);
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
    /// the head's gradient to `grads` and overwrites `d_hidden` `[nodes, hidden]` with the hidden states' gradient.
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
        let weight = &mut grads.flat[self.params.layout.head.clone()];
        let grads = HeadGrads { weight, hidden: d_hidden };
        grouped_logprob::forward_backward(self.head(acts, temperature), &targets(forest, nodes), grads, loss);
    }

    fn head<'a>(&'a self, acts: &'a Activations, temperature: f32) -> Head<'a> {
        Head {
            weight: self.weight(&self.params.layout.head),
            hidden: &acts.hidden,
            width: self.config.hidden_size,
            temperature,
        }
    }

    /// Back-propagates `d_hidden` (used as scratch) through the decoder and adds every parameter's gradient to `grads`.
    ///
    /// # Panics
    /// If the forward pass kept nothing.
    pub fn backward(&self, forest: &Forest, acts: &mut Activations, d_hidden: &mut [f32], grads: &mut Params) {
        self.backward_into(forest, acts, d_hidden, &mut Accumulate { grads, rows: [forest.len()] });
    }

    /// As [`Model::backward`], handing the parameters' gradients to `sink`. The head's is none of them.
    pub fn backward_into(&self, forest: &Forest, acts: &mut Activations, d_hidden: &mut [f32], sink: &mut dyn Sink) {
        assert!(acts.keep != Keep::Nothing, "backward after a forward pass that kept nothing");
        let (d, layout) = (self.dims(), self.params.layout.clone());
        let Activations { inputs, layers, visibility, grads: g, rstd, keep, .. } = acts;
        g.resize(forest.len(), &d);
        let last = &inputs[self.config.num_hidden_layers];
        g.input.fill(0.0);
        let parts = norm_backward(sink.spans(), d_hidden, last, self.weight(&layout.norm), rstd, &mut g.input);
        hand_over(sink, &layout.norm, parts);
        for l in (0..self.config.num_hidden_layers).rev() {
            let (x, rest) = inputs.split_at_mut(l + 1);
            if *keep == Keep::LayerInputs {
                self.layer_forward(l, forest, visibility, &x[l], &mut layers[0], &mut rest[0]);
            }
            let a = &mut layers[if *keep == Keep::All { l } else { 0 }];
            self.layer_backward(&layout.layers[l], forest, visibility, &x[l], a, g, d_hidden, sink);
        }
        sink.embedding(&layout.embed, &forest.tokens, &g.input);
    }

    /// One layer: on entry `g.input` is the gradient of its output, on exit of its input `x`. `dy` is scratch.
    #[allow(clippy::too_many_arguments)]
    fn layer_backward(
        &self,
        layer: &LayerLayout,
        forest: &Forest,
        visibility: &Visibility,
        x: &[f32],
        a: &mut LayerActs,
        g: &mut LayerGrads,
        dy: &mut [f32],
        sink: &mut dyn Sink,
    ) {
        let d = self.dims();
        let (hidden, q_dim, qkv_dim) = (d.hidden, d.attention.q_dim(), d.attention.qkv_dim());
        dy.copy_from_slice(&g.input);

        // MLP, then the output projection of attention.
        let w_norm = self.weight(&layer.post_norm);
        let parts = dy
            .par_chunks(BLOCK * hidden)
            .zip(a.mid.par_chunks(BLOCK * hidden))
            .zip(a.rstd2.par_chunks(BLOCK))
            .zip(a.gate_up.par_chunks_mut(BLOCK * 2 * d.ffn))
            .zip(g.mid.par_chunks_mut(BLOCK * hidden))
            .zip(g.attn.par_chunks_mut(BLOCK * q_dim));
        let spans = sink.spans();
        let dw: Vec<Parts> = parts
            .enumerate()
            .map_init(Vec::new, |scratch, (block, (((((dy, mid), rstd), gate_up), d_mid), d_attn))| {
                let rows = dy.len() / hidden;
                scratch.resize(rows * d.ffn.max(hidden), 0.0);
                linear::backward_input(dy, self.weight(&layer.down), d.ffn, &mut scratch[..rows * d.ffn]);
                swiglu::backward(&scratch[..rows * d.ffn], d.ffn, gate_up);
                let d_norm = &mut scratch[..rows * hidden];
                linear::backward_input(gate_up, self.weight(&layer.gate_up), hidden, d_norm);
                d_mid.copy_from_slice(dy);
                let dw = norm_rows(spans, block, d_norm, mid, w_norm, rstd, d_mid);
                linear::backward_input(d_mid, self.weight(&layer.o), q_dim, d_attn);
                dw
            })
            .collect();
        hand_over(sink, &layer.post_norm, dw);

        attention::backward(&g.attn, &a.qkv, &a.attn, &a.softmax, d.attention, visibility, &mut g.qkv);

        let w_norm = self.weight(&layer.input_norm);
        let parts = g
            .qkv
            .par_chunks_mut(BLOCK * qkv_dim)
            .zip(forest.position.par_chunks(BLOCK))
            .zip(x.par_chunks(BLOCK * hidden))
            .zip(a.rstd1.par_chunks(BLOCK))
            .zip(g.mid.par_chunks(BLOCK * hidden))
            .zip(g.input.par_chunks_mut(BLOCK * hidden));
        let spans = sink.spans();
        let dw: Vec<[Parts; 3]> = parts
            .enumerate()
            .map_init(Vec::new, |d_norm, (block, (((((d_qkv, position), x), rstd), d_mid), d_input))| {
                let rotated = d.attention.heads + d.attention.kv_heads;
                rope::rotate(d_qkv, qkv_dim, rotated, position, &self.rope, true);
                let span = |of: &mut dyn FnMut(Range<usize>) -> Vec<f32>| by_span(spans, block * BLOCK, rstd.len(), of);
                let d_qk_norm = layer.qk_norm.as_ref().map_or_else(Parts::new, |range| {
                    span(&mut |r| self.qk_norm_backward(range, d_qkv, &a.raw, block * BLOCK, r))
                });
                let d_bias = layer.qkv_bias.as_ref().map_or_else(Parts::new, |range| {
                    span(&mut |r| {
                        let mut d_bias = vec![0.0; range.len()];
                        linear::backward_bias(&d_qkv[r.start * qkv_dim..r.end * qkv_dim], &mut d_bias);
                        d_bias
                    })
                });
                d_norm.resize(d_input.len(), 0.0);
                linear::backward_input(d_qkv, self.weight(&layer.qkv), hidden, d_norm);
                d_input.copy_from_slice(d_mid);
                [norm_rows(spans, block, d_norm, x, w_norm, rstd, d_input), d_bias, d_qk_norm]
            })
            .collect();
        let ranges = [Some(&layer.input_norm), layer.qkv_bias.as_ref(), layer.qk_norm.as_ref()];
        for (i, range) in ranges.into_iter().enumerate() {
            let Some(range) = range else { continue };
            dw.iter().flat_map(|parts| &parts[i]).for_each(|(span, d)| sink.vector(range, *span, d));
        }

        let product = |dy, out, x, in_features| WeightGrad { dy, out, x, in_features };
        let mut products = [
            (layer.qkv.clone(), product(&g.qkv, qkv_dim, &a.norm1, hidden)),
            (layer.o.clone(), product(&g.mid, hidden, &a.attn, q_dim)),
            (layer.gate_up.clone(), product(&a.gate_up, 2 * d.ffn, &a.norm2, hidden)),
            (layer.down.clone(), product(dy, hidden, &a.act, d.ffn)),
        ];
        products.sort_by_key(|p| p.0.start);
        sink.matrices(&products);
    }

    /// Takes the rows `rows` of a block, which begins with row `first`, back through the norm of queries and keys; its dw.
    fn qk_norm_backward(
        &self,
        range: &Range<usize>,
        d_qkv: &mut [f32],
        raw: &[f32],
        first: usize,
        rows: Range<usize>,
    ) -> Vec<f32> {
        let (d, mut dw) = (self.dims(), vec![0.0; range.len()]);
        let (wide, raw_wide) = (d.attention.qkv_dim(), d.normed());
        let raw = &raw[(first + rows.start) * raw_wide..(first + rows.end) * raw_wide];
        let d_qkv = &mut d_qkv[rows.start * wide..rows.end * wide];
        qk_norm::backward(d_qkv, d.attention, raw, self.weight(range), d.eps, &mut dw);
        dw
    }

    fn weights(&self) -> Weights<'_> {
        Weights { flat: &self.params.flat, panels: false, spread: false }
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

/// What a block of rows adds to a norm weight's or bias's gradient, span by span.
type Parts = Vec<(usize, Vec<f32>)>;

fn hand_over(sink: &mut dyn Sink, range: &Range<usize>, blocks: Vec<Parts>) {
    blocks.iter().flatten().for_each(|(span, d)| sink.vector(range, *span, d));
}

/// RMSNorm's backward pass over a block of rows; dw of each span by itself.
fn norm_rows(spans: &[usize], block: usize, dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32], dx: &mut [f32]) -> Parts {
    by_span(spans, block * BLOCK, rstd.len(), |rows| {
        let mut dw = vec![0.0; w.len()];
        let at = rows.start * w.len()..rows.end * w.len();
        rmsnorm::backward(&dy[at.clone()], &x[at.clone()], w, &rstd[rows], &mut dx[at], &mut dw);
        dw
    })
}

/// The same over all rows in parallel.
fn norm_backward(spans: &[usize], dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32], dx: &mut [f32]) -> Vec<Parts> {
    let block = BLOCK * w.len();
    let parts = dy.par_chunks(block).zip(x.par_chunks(block)).zip(rstd.par_chunks(BLOCK)).zip(dx.par_chunks_mut(block));
    parts.enumerate().map(|(i, (((dy, x), rstd), dx))| norm_rows(spans, i, dy, x, w, rstd, dx)).collect()
}

impl LayerActs {
    fn resize(&mut self, tokens: usize, d: &Dims) {
        let LayerActs { norm1, rstd1, raw, qkv, attn, softmax, mid, norm2, rstd2, gate_up, act } = self;
        let sizes = [
            (norm1, d.hidden),
            (rstd1, 1),
            (raw, d.normed()),
            (qkv, d.attention.qkv_dim()),
            (attn, d.attention.q_dim()),
            (softmax, 2 * d.attention.heads),
            (mid, d.hidden),
            (norm2, d.hidden),
            (rstd2, 1),
            (gate_up, 2 * d.ffn),
            (act, d.ffn),
        ];
        sizes.into_iter().for_each(|(buffer, width)| buffer.resize(tokens * width, 0.0));
    }
}

impl LayerGrads {
    fn resize(&mut self, tokens: usize, d: &Dims) {
        let LayerGrads { mid, input, attn, qkv } = self;
        let sizes = [(mid, d.hidden), (input, d.hidden), (attn, d.attention.q_dim()), (qkv, d.attention.qkv_dim())];
        sizes.into_iter().for_each(|(buffer, width)| buffer.resize(tokens * width, 0.0));
    }
}
