//! The blocks in f32 on the CPU. Everything but attention and the weight gradients works on blocks of [`BLOCK`] rows that stay in
//! cache from the norm to the residual; blocks run in parallel.

use super::SavedActivations;
use super::Sink;
use super::cpu_adapter::{self, LowRankBlock, LowRankGrads};
use super::cpu_sink::{Cpu, by_span};
use super::cpu_weights::Weights;
use crate::device::cpu::BLOCK;
use crate::forest::Forest;
use crate::model::Model;
use crate::model::adapter::Site;
use crate::model::transformer::{Backward, Forward};
use crate::ops::attention::{self, Visibility};
use crate::ops::linear::{RightFactor, WeightGrad};
use crate::ops::{embedding, linear, qk_norm, rmsnorm, rope, swiglu};
use rayon::prelude::*;
use std::convert::Infallible;
use std::ops::Range;

/// What [`Model::forward`] keeps for [`Model::backward`]; its buffers are reused from step to step.
#[derive(Default)]
pub struct Activations {
    /// Final-normed hidden states, `[nodes, hidden]`: what the head reads.
    pub hidden: Vec<f32>,
    pub(super) keep: SavedActivations,
    visibility: Visibility,
    /// The residual stream entering each layer, and leaving the last, `[nodes, hidden]` each.
    inputs: Vec<Vec<f32>>,
    /// One for each layer that is kept whole, and one that all others overwrite.
    layers: Vec<LayerActs>,
    rstd: Vec<f32>,
    grads: LayerGrads,
}

impl Activations {
    /// The residual stream entering each layer, and leaving the last (with [`SavedActivations::Nothing`] two that take turns).
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
    low_rank: LowRankGrads,
}

/// The sizes that recur in every function.
#[derive(Clone, Copy)]
pub(in crate::model) struct Dims {
    pub hidden: usize,
    pub ffn: usize,
    pub eps: f32,
    pub attention: attention::Shape,
    pub qk_norm: bool,
}

impl Dims {
    fn in_features(&self, site: Site) -> usize {
        match site {
            Site::Qkv | Site::GateUp => self.hidden,
            Site::O => self.attention.q_dim(),
            Site::Down => self.ffn,
        }
    }

    /// Width of a row's normed queries and keys.
    fn normed(&self) -> usize {
        if self.qk_norm { (self.attention.heads + self.attention.kv_heads) * self.attention.head_dim } else { 0 }
    }
}

/// Over a packed forest.
pub(in crate::model) struct ForwardPass<'a> {
    model: &'a Model,
    forest: &'a Forest,
    acts: &'a mut Activations,
}

impl<'a> ForwardPass<'a> {
    pub fn new(
        model: &'a Model,
        forest: &'a Forest,
        keep: SavedActivations,
        acts: &'a mut Activations,
    ) -> ForwardPass<'a> {
        let (d, layers) = (model.dims(), model.config.num_hidden_layers);
        acts.keep = keep;
        acts.visibility = Visibility::new(&forest.reach);
        acts.inputs.resize_with(if keep == SavedActivations::Nothing { 2 } else { layers + 1 }, Vec::new);
        acts.layers.resize_with(keep.places(layers), LayerActs::default);
        acts.inputs.iter_mut().for_each(|x| x.resize(forest.len() * d.hidden, 0.0));
        acts.hidden.resize(forest.len() * d.hidden, 0.0);
        acts.rstd.resize(forest.len(), 0.0);
        ForwardPass { model, forest, acts }
    }
}

impl Activations {
    /// Where the residual stream that enters layer `l` is.
    fn input(&self, l: usize) -> usize {
        if self.keep == SavedActivations::Nothing { l % 2 } else { l }
    }

    /// Where the activations of layer `l` are.
    fn layer(&self, l: usize) -> usize {
        l.min(self.layers.len() - 1)
    }
}

impl Forward for ForwardPass<'_> {
    type Error = Infallible;

    fn layers(&self) -> usize {
        self.model.config.num_hidden_layers
    }

    fn embed(&mut self) -> Result<(), Infallible> {
        let (model, acts) = (self.model, &mut self.acts);
        let table = model.weight(&model.params.layout.embed);
        embedding::forward(&self.forest.tokens, table, model.config.hidden_size, &mut acts.inputs[0]);
        Ok(())
    }

    fn qkv(&mut self, l: usize) -> Result<(), Infallible> {
        let ForwardPass { model, forest, acts } = self;
        let (d, weights) = (model.dims(), model.weights());
        let (input, at) = (acts.input(l), acts.layer(l));
        let (x, a) = (&acts.inputs[input], &mut acts.layers[at]);
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
            model.qkv_forward(weights, l, x, position, norm, rstd, qkv, raw)
        });
        Ok(())
    }

    fn attend(&mut self, l: usize) -> Result<(), Infallible> {
        let at = self.acts.layer(l);
        let Activations { layers, visibility, .. } = &mut *self.acts;
        let a = &mut layers[at];
        let (dtype, shape) = (self.model.dtype(), self.model.dims().attention);
        attention::forward(dtype, &a.qkv, shape, visibility, &mut a.attn, &mut a.softmax);
        Ok(())
    }

    fn mlp(&mut self, l: usize) -> Result<(), Infallible> {
        let ForwardPass { model, acts, .. } = self;
        let (d, layer, weights) = (model.dims(), &model.params.layout.layers[l], model.weights());
        let (from, to, at) = (acts.input(l), acts.input(l + 1), acts.layer(l));
        let a = &mut acts.layers[at];
        // The output is written whole; the input is read.
        let mut y = std::mem::take(&mut acts.inputs[to]);
        let parts = acts.inputs[from]
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
            weights.adapt(l, Site::O, attn, mid);
            y.copy_from_slice(mid);
            model.mlp_forward(weights, l, mid, norm, rstd, gate_up, act, y);
        });
        acts.inputs[to] = y;
        Ok(())
    }

    fn norm(&mut self) -> Result<(), Infallible> {
        let (model, input) = (self.model, self.acts.input(self.layers()));
        let Activations { inputs, hidden, rstd, .. } = &mut *self.acts;
        let (w, d) = (model.weight(&model.params.layout.norm), model.dims());
        let block = BLOCK * d.hidden;
        let rows = inputs[input].par_chunks(block).zip(hidden.par_chunks_mut(block)).zip(rstd.par_chunks_mut(BLOCK));
        rows.for_each(|((x, y), rstd)| rmsnorm::forward(x, w, d.eps, y, rstd));
        Ok(())
    }
}

impl Model {
    /// Norm, QKV projection, norm of queries and keys (`raw` gets what they were) and rotation of a block of rows.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn qkv_forward(
        &self,
        weights: Weights<'_>,
        l: usize,
        x: &[f32],
        position: &[u32],
        norm: &mut [f32],
        rstd: &mut [f32],
        qkv: &mut [f32],
        raw: Option<&mut [f32]>,
    ) {
        let (d, layer) = (self.dims(), &self.params.layout.layers[l]);
        rmsnorm::forward(x, self.weight(&layer.input_norm), d.eps, norm, rstd);
        let bias = layer.qkv_bias.as_ref().map(|range| self.weight(range));
        linear::forward(norm, weights.matrix(&layer.qkv, d.hidden), bias, qkv);
        weights.adapt(l, Site::Qkv, norm, qkv);
        if let Some(range) = &layer.qk_norm {
            qk_norm::forward(qkv, d.attention, self.weight(range), d.eps, raw);
        }
        let rotated = d.attention.heads + d.attention.kv_heads;
        rope::rotate(qkv, d.attention.qkv_dim(), rotated, position, self.rope(), false);
    }

    /// `y += mlp(norm(x))` on a block of rows.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn mlp_forward(
        &self,
        weights: Weights<'_>,
        l: usize,
        x: &[f32],
        norm: &mut [f32],
        rstd: &mut [f32],
        gate_up: &mut [f32],
        act: &mut [f32],
        y: &mut [f32],
    ) {
        let (d, layer) = (self.dims(), &self.params.layout.layers[l]);
        rmsnorm::forward(x, self.weight(&layer.post_norm), d.eps, norm, rstd);
        linear::forward(norm, weights.matrix(&layer.gate_up, d.hidden), None, gate_up);
        weights.adapt(l, Site::GateUp, norm, gate_up);
        swiglu::forward(gate_up, d.ffn, act);
        linear::forward_add(act, weights.matrix(&layer.down, d.ffn), y);
        weights.adapt(l, Site::Down, act, y);
    }
}

/// Over what a [`ForwardPass`] kept.
pub(in crate::model) struct BackwardPass<'a> {
    forward: ForwardPass<'a>,
    /// The gradient of the final hidden states; then scratch, of a layer's output.
    d_hidden: &'a mut [f32],
    sink: &'a mut dyn Sink<Cpu>,
}

impl<'a> BackwardPass<'a> {
    /// # Panics
    /// If the forward pass kept nothing.
    pub fn new(
        model: &'a Model,
        forest: &'a Forest,
        acts: &'a mut Activations,
        d_hidden: &'a mut [f32],
        sink: &'a mut dyn Sink<Cpu>,
    ) -> BackwardPass<'a> {
        assert!(acts.keep != SavedActivations::Nothing, "backward after a forward pass that kept nothing");
        acts.grads.resize(forest.len(), &model.dims());
        acts.grads.low_rank.resize(forest.len(), model.adapter.as_ref());
        BackwardPass { forward: ForwardPass { model, forest, acts }, d_hidden, sink }
    }
}

/// `acts.grads.input` is the gradient of a layer's output on entry, of its input on exit.
impl<'a> Backward for BackwardPass<'a> {
    type Error = Infallible;
    type Forward = ForwardPass<'a>;

    fn layers(&self) -> usize {
        self.forward.layers()
    }

    fn recompute(&mut self, l: usize) -> Option<&mut ForwardPass<'a>> {
        (l >= self.forward.acts.keep.whole(self.layers())).then_some(&mut self.forward)
    }

    fn norm_backward(&mut self) -> Result<(), Infallible> {
        let BackwardPass { forward: ForwardPass { model, acts, .. }, d_hidden, sink } = self;
        let Activations { inputs, rstd, grads: g, .. } = &mut **acts;
        let range = &model.params.layout.norm;
        g.input.fill(0.0);
        let last = &inputs[model.config.num_hidden_layers];
        let spans = model.spans(&**sink);
        let parts = norm_backward(spans, d_hidden, last, model.weight(range), rstd, &mut g.input);
        hand_over(*sink, range, parts);
        Ok(())
    }

    fn mlp_backward(&mut self, l: usize) -> Result<(), Infallible> {
        let BackwardPass { forward: ForwardPass { model, acts, .. }, d_hidden: dy, sink } = self;
        let at = acts.layer(l);
        let Activations { layers, grads: g, .. } = &mut **acts;
        let (d, layer, a) = (model.dims(), &model.params.layout.layers[l], &mut layers[at]);
        let (hidden, q_dim, tokens) = (d.hidden, d.attention.q_dim(), a.rstd2.len());
        dy.copy_from_slice(&g.input);
        let w_norm = model.weight(&layer.post_norm);
        let [w_down, w_gate_up, w_o] = [Site::Down, Site::GateUp, Site::O].map(|site| model.right_factor(l, site));
        let parts = dy
            .par_chunks(BLOCK * hidden)
            .zip(a.mid.par_chunks(BLOCK * hidden))
            .zip(a.rstd2.par_chunks(BLOCK))
            .zip(a.gate_up.par_chunks_mut(BLOCK * 2 * d.ffn))
            .zip(g.mid.par_chunks_mut(BLOCK * hidden))
            .zip(g.attn.par_chunks_mut(BLOCK * q_dim))
            .zip(a.act.par_chunks(BLOCK * d.ffn))
            .zip(a.norm2.par_chunks(BLOCK * hidden))
            .zip(a.attn.par_chunks(BLOCK * q_dim))
            .zip(g.low_rank.blocks(tokens));
        let spans = model.spans(&**sink);
        let dw: Vec<Parts> = parts
            .enumerate()
            .map_init(Vec::new, |scratch, (block, (rows, mut low_rank))| {
                let ((((((((dy, mid), rstd), gate_up), d_mid), d_attn), act), norm), attn) = rows;
                let rows = dy.len() / hidden;
                scratch.resize(rows * d.ffn.max(hidden), 0.0);
                model.back((l, Site::Down, &w_down), (act, dy), &mut scratch[..rows * d.ffn], &mut low_rank);
                swiglu::backward(&scratch[..rows * d.ffn], d.ffn, gate_up);
                let d_norm = &mut scratch[..rows * hidden];
                model.back((l, Site::GateUp, &w_gate_up), (norm, gate_up), d_norm, &mut low_rank);
                d_mid.copy_from_slice(dy);
                let dw = norm_rows(spans, block, d_norm, mid, w_norm, rstd, d_mid);
                model.back((l, Site::O, &w_o), (attn, d_mid), d_attn, &mut low_rank);
                dw
            })
            .collect();
        hand_over(*sink, &layer.post_norm, dw);
        Ok(())
    }

    fn attend_backward(&mut self, l: usize) -> Result<(), Infallible> {
        let at = self.forward.acts.layer(l);
        let Activations { layers, visibility, grads: g, .. } = &mut *self.forward.acts;
        let (a, shape) = (&layers[at], self.forward.model.dims().attention);
        let dtype = self.forward.model.dtype();
        attention::backward(dtype, &g.attn, &a.qkv, &a.attn, &a.softmax, shape, visibility, &mut g.qkv);
        Ok(())
    }

    fn qkv_backward(&mut self, l: usize) -> Result<(), Infallible> {
        let BackwardPass { forward: ForwardPass { model, forest, acts }, d_hidden: dy, sink } = self;
        let (at, input) = (acts.layer(l), acts.input(l));
        let Activations { inputs, layers, grads: g, .. } = &mut **acts;
        let (d, layer, a) = (model.dims(), &model.params.layout.layers[l], &layers[at]);
        let (hidden, q_dim, qkv_dim) = (d.hidden, d.attention.q_dim(), d.attention.qkv_dim());
        let (w_norm, tokens) = (model.weight(&layer.input_norm), a.rstd1.len());
        let w_qkv = model.right_factor(l, Site::Qkv);
        let parts = g
            .qkv
            .par_chunks_mut(BLOCK * qkv_dim)
            .zip(forest.position.par_chunks(BLOCK))
            .zip(inputs[input].par_chunks(BLOCK * hidden))
            .zip(a.rstd1.par_chunks(BLOCK))
            .zip(g.mid.par_chunks(BLOCK * hidden))
            .zip(g.input.par_chunks_mut(BLOCK * hidden))
            .zip(a.norm1.par_chunks(BLOCK * hidden))
            .zip(g.low_rank.blocks(tokens));
        let spans = model.spans(&**sink);
        let dw: Vec<[Parts; 3]> = parts
            .enumerate()
            .map_init(Vec::new, |d_norm, (block, (rows, mut low_rank))| {
                let ((((((d_qkv, position), x), rstd), d_mid), d_input), norm) = rows;
                let rotated = d.attention.heads + d.attention.kv_heads;
                rope::rotate(d_qkv, qkv_dim, rotated, position, model.rope(), true);
                let d_qk_norm = layer.qk_norm.as_ref().map_or_else(Parts::new, |range| {
                    by_span(spans, block * BLOCK, rstd.len(), |r, trained| {
                        model.qk_norm_backward(range, d_qkv, &a.raw, (block * BLOCK, r), trained)
                    })
                });
                let d_bias = layer.qkv_bias.as_ref().filter(|_| spans.is_some()).map_or_else(Parts::new, |range| {
                    by_span(spans, block * BLOCK, rstd.len(), |r, _| {
                        let mut d_bias = vec![0.0; range.len()];
                        linear::backward_bias(&d_qkv[r.start * qkv_dim..r.end * qkv_dim], &mut d_bias);
                        d_bias
                    })
                });
                d_norm.resize(d_input.len(), 0.0);
                model.back((l, Site::Qkv, &w_qkv), (norm, d_qkv), d_norm, &mut low_rank);
                d_input.copy_from_slice(d_mid);
                [norm_rows(spans, block, d_norm, x, w_norm, rstd, d_input), d_bias, d_qk_norm]
            })
            .collect();
        let ranges = [Some(&layer.input_norm), layer.qkv_bias.as_ref(), layer.qk_norm.as_ref()];
        for (i, range) in ranges.into_iter().enumerate() {
            let Some(range) = range else { continue };
            for (span, d) in dw.iter().flat_map(|parts| &parts[i]) {
                sink.vector(range, *span, d)?;
            }
        }

        // All matrices of the layer together, so that no core waits between them.
        let product = |dy, out, x, in_features| WeightGrad { dy, out, first: 0, x, in_features };
        let whole = [
            (Site::Qkv, product(&g.qkv, qkv_dim, &a.norm1, hidden)),
            (Site::O, product(&g.mid, hidden, &a.attn, q_dim)),
            (Site::GateUp, product(&a.gate_up, 2 * d.ffn, &a.norm2, hidden)),
            (Site::Down, product(dy, hidden, &a.act, d.ffn)),
        ];
        let mut products: Vec<(Range<usize>, WeightGrad<'_>)> = match &model.adapter {
            Some(adapter) => whole.iter().flat_map(|(site, of)| g.low_rank.products(adapter, (l, *site), of)).collect(),
            None => whole.map(|(site, of)| (site.weights(layer).clone(), of)).to_vec(),
        };
        products.sort_by_key(|p| p.0.start);
        sink.matrices(&products)?;
        Ok(())
    }

    fn embed_backward(&mut self) -> Result<(), Infallible> {
        let ForwardPass { model, forest, acts } = &self.forward;
        match model.adapter {
            Some(_) => Ok(()),
            None => self.sink.embedding(&model.params.layout.embed, &forest.tokens, &acts.grads.input),
        }
    }
}

impl Model {
    /// Ends of the spans within which the gradients of norm weights and biases are summed; `None` where they are frozen.
    fn spans<'s>(&self, sink: &'s dyn Sink<Cpu>) -> Option<&'s [usize]> {
        self.adapter.is_none().then(|| sink.spans())
    }

    /// The weights of a product of layer `l`, as its backward pass reads them.
    fn right_factor(&self, l: usize, site: Site) -> RightFactor<'_> {
        let weights = self.weight(site.weights(&self.params.layout.layers[l]));
        RightFactor::new(self.dtype(), weights, self.dims().in_features(site))
    }

    /// Takes the gradient `dy` of a product, and its weights, back to that of its input `x`, which overwrites `dx`, on a block of rows.
    fn back(
        &self,
        (l, site, w): (usize, Site, &RightFactor<'_>),
        (x, dy): (&[f32], &[f32]),
        dx: &mut [f32],
        low_rank: &mut LowRankBlock<'_>,
    ) {
        linear::backward_input(dy, w, dx);
        if let Some(adapter) = &self.adapter {
            cpu_adapter::backward(adapter, (l, site, self.dtype()), (x, dy), dx, low_rank);
        }
    }

    /// Takes the rows `rows` of a block, which begins with row `first`, back through the norm of queries and keys; its dw, where it is
    /// `trained`.
    fn qk_norm_backward(
        &self,
        range: &Range<usize>,
        d_qkv: &mut [f32],
        raw: &[f32],
        (first, rows): (usize, Range<usize>),
        trained: bool,
    ) -> Vec<f32> {
        let (d, mut dw) = (self.dims(), vec![0.0; if trained { range.len() } else { 0 }]);
        let (wide, raw_wide) = (d.attention.qkv_dim(), d.normed());
        let raw = &raw[(first + rows.start) * raw_wide..(first + rows.end) * raw_wide];
        let d_qkv = &mut d_qkv[rows.start * wide..rows.end * wide];
        qk_norm::backward(d_qkv, d.attention, raw, self.weight(range), d.eps, trained.then_some(&mut dw));
        dw
    }
}

/// What a block of rows adds to a norm weight's or bias's gradient, span by span.
type Parts = Vec<(usize, Vec<f32>)>;

fn hand_over(sink: &mut dyn Sink<Cpu>, range: &Range<usize>, blocks: Vec<Parts>) -> Result<(), Infallible> {
    blocks.iter().flatten().try_for_each(|(span, d)| sink.vector(range, *span, d))
}

/// RMSNorm's backward pass over a block of rows; dw of each span by itself, unless it is frozen.
fn norm_rows(
    spans: Option<&[usize]>,
    block: usize,
    dy: &[f32],
    x: &[f32],
    w: &[f32],
    rstd: &[f32],
    dx: &mut [f32],
) -> Parts {
    by_span(spans, block * BLOCK, rstd.len(), |rows, trained| {
        let mut dw = vec![0.0; if trained { w.len() } else { 0 }];
        let at = rows.start * w.len()..rows.end * w.len();
        let (dy, x, dx) = (&dy[at.clone()], &x[at.clone()], &mut dx[at]);
        rmsnorm::backward(dy, x, w, &rstd[rows], dx, trained.then_some(&mut dw));
        dw
    })
}

/// The same over all rows in parallel.
fn norm_backward(
    spans: Option<&[usize]>,
    dy: &[f32],
    x: &[f32],
    w: &[f32],
    rstd: &[f32],
    dx: &mut [f32],
) -> Vec<Parts> {
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
        let LayerGrads { mid, input, attn, qkv, .. } = self;
        let sizes = [(mid, d.hidden), (input, d.hidden), (attn, d.attention.q_dim()), (qkv, d.attention.qkv_dim())];
        sizes.into_iter().for_each(|(buffer, width)| buffer.resize(tokens * width, 0.0));
    }
}
