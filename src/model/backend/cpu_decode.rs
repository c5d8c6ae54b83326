//! The forward pass against a KV cache, on the CPU: prefill and decoding are the same call.
//!
//! A batch of short inputs is shared out: each thread takes some of them through the whole model, and none waits in between. Long
//! inputs, and large models, go through the model together: all threads work on each layer in turn. A row's numbers are the same
//! either way.

use super::cpu::Dims;
use super::cpu_weights::Weights;
use super::kv_cache::{Growing, KvCache};
use crate::device::Dtype;
use crate::device::cpu::BLOCK;
use crate::model::adapter::Site;
use crate::model::pages::{PAGE, SequenceId};
use crate::model::transformer::Forward;
use crate::model::{Model, transformer};
use crate::ops::decode_attention::{Element, Input};
use crate::ops::{decode_attention, embedding, linear, rmsnorm};
use half::bf16;
use rayon::prelude::*;
use std::convert::Infallible;

/// Fewest rows worth a thread of their own.
const MIN_ROWS: usize = 16;
/// Fewest parameters of a layer, and of a layer times rows, for which all threads work on it together: it fills the caches, or
/// takes much longer than threads take to meet.
const LARGE_LAYER: usize = 1 << 20;
const LARGE_WORK: usize = 1 << 27;
/// Most rows for each thread up to which a large matrix is shared out by columns: it is then read once, not once a thread.
const FEW_ROWS: usize = 48;
/// Most rows that go through a layer's projections at once.
const PROJECTED: usize = BLOCK / 2;

/// Some of the inputs, which go through the model together.
struct Share<'a, 'c> {
    inputs: &'a [(SequenceId, &'a [u32])],
    sequences: &'a mut [Growing<'c>],
    /// Whether all threads work on it.
    together: bool,
}

impl Model {
    /// Appends tokens to sequences of the cache and returns the final-normed hidden state of each input's last token,
    /// `[inputs, hidden]`. A sequence may occur only once in a call, and an input is never empty.
    pub fn append(&self, cache: &mut KvCache, inputs: &[(SequenceId, &[u32])]) -> Vec<f32> {
        let hidden = self.config.hidden_size;
        let mut out = vec![0.0; inputs.len() * hidden];
        let rows: usize = inputs.iter().map(|(_, tokens)| tokens.len()).sum();
        let layer = self.params.layout.layers.first().map_or(0, |l| l.down.end - l.input_norm.start);
        let together = layer >= LARGE_LAYER || layer * rows >= LARGE_WORK;
        let share = if together { rows } else { rows.div_ceil(rayon::current_num_threads()).clamp(MIN_ROWS, BLOCK) };
        let ids: Vec<(SequenceId, usize)> = inputs.iter().map(|(id, tokens)| (*id, tokens.len())).collect();
        cache.grow(&ids, |weights, mut sequences| {
            let mut tasks = Vec::new();
            let (mut inputs_left, mut out_left) = (inputs, &mut out[..]);
            while !inputs_left.is_empty() {
                let (mut n, mut rows) = (0, 0);
                while n < inputs_left.len() && (n == 0 || rows + inputs_left[n].1.len() <= share) {
                    rows += inputs_left[n].1.len();
                    n += 1;
                }
                let (inputs, inputs_rest) = inputs_left.split_at(n);
                let (own, sequences_rest) = std::mem::take(&mut sequences).split_at_mut(n);
                let (o, out_rest) = std::mem::take(&mut out_left).split_at_mut(n * hidden);
                (inputs_left, sequences, out_left) = (inputs_rest, sequences_rest, out_rest);
                tasks.push((Share { inputs, sequences: own, together }, o));
            }
            tasks.into_par_iter().with_max_len(1).for_each(|(share, out)| {
                let Ok(()) = transformer::forward(&mut DecodePass::new(self, weights, share, out));
            });
        });
        out
    }

    /// Logits `[rows, vocab]` of hidden states `[rows, hidden]`, for sampling; with `spread` on all threads, else on the calling one.
    pub fn next_logits(&self, cache: &KvCache, hidden: &[f32], spread: bool) -> Vec<f32> {
        let (h, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let mut logits = vec![0.0; hidden.len() / h * vocab];
        let weights = Weights { spread, ..cache.weights() };
        linear::forward(hidden, weights.matrix(&self.params.layout.head, h), None, &mut logits);
        logits
    }

    /// Whether all threads multiply so few rows by a matrix of so many parameters together.
    pub(in crate::model) fn shares_columns(&self, params: usize, rows: usize) -> bool {
        params >= LARGE_LAYER && rows <= FEW_ROWS * rayon::current_num_threads()
    }
}

/// Over tokens whose keys and values are appended to a cache.
struct DecodePass<'a, 'c> {
    model: &'a Model,
    weights: Weights<'a>,
    share: Share<'a, 'c>,
    tokens: Vec<u32>,
    position: Vec<u32>,
    /// Rows that go through a layer's projections at once.
    block: usize,
    x: Vec<f32>,
    qkv: Vec<f32>,
    attn: Vec<f32>,
    /// Gets the final-normed hidden state of each input's last token.
    out: &'a mut [f32],
}

impl<'a, 'c> DecodePass<'a, 'c> {
    fn new(model: &'a Model, weights: Weights<'a>, share: Share<'a, 'c>, out: &'a mut [f32]) -> DecodePass<'a, 'c> {
        let d = model.dims();
        let tokens: Vec<u32> = share.inputs.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
        let mut position = Vec::with_capacity(tokens.len());
        for ((_, tokens), sequence) in share.inputs.iter().zip(share.sequences.iter()) {
            position.extend((sequence.past..sequence.past + tokens.len()).map(|p| p as u32));
        }
        let (rows, threads) = (tokens.len(), rayon::current_num_threads());
        let few = share.together && rows <= FEW_ROWS * threads;
        DecodePass {
            weights: Weights { spread: few, ..weights },
            block: if few || !share.together { rows } else { rows.div_ceil(threads).min(PROJECTED) },
            x: vec![0.0; rows * d.hidden],
            qkv: vec![0.0; rows * d.attention.qkv_dim()],
            attn: vec![0.0; rows * d.attention.q_dim()],
            model,
            share,
            tokens,
            position,
            out,
        }
    }

    /// Attention over a cache of such numbers, to which the new keys and values are added.
    fn attend_over<E: Element>(&mut self, l: usize) {
        let (shape, share) = (self.model.dims().attention, &mut self.share);
        let (q_dim, qkv_dim) = (shape.q_dim(), shape.qkv_dim());
        let (mut rows, mut inputs) = (&self.qkv[..], Vec::with_capacity(share.inputs.len()));
        for ((_, tokens), sequence) in share.inputs.iter().zip(share.sequences.iter_mut()) {
            let (own, rest) = rows.split_at(tokens.len() * qkv_dim);
            rows = rest;
            for (row, at) in own.chunks_exact(qkv_dim).zip(sequence.past..) {
                let (keys, values) = row[q_dim..].split_at((qkv_dim - q_dim) / 2);
                sequence.write::<E>(l, at, keys, values);
            }
            inputs.push(Input { qkv: own, past: sequence.past, cache: sequence.layer::<E>(l) });
        }
        decode_attention::forward::<PAGE, _>(self.model.dtype(), &inputs, shape, share.together, &mut self.attn);
    }
}

impl Forward for DecodePass<'_, '_> {
    type Error = Infallible;

    fn layers(&self) -> usize {
        self.model.config.num_hidden_layers
    }

    fn embed(&mut self) -> Result<(), Infallible> {
        let table = self.model.weight(&self.model.params.layout.embed);
        embedding::forward(&self.tokens, table, self.model.config.hidden_size, &mut self.x);
        Ok(())
    }

    fn qkv(&mut self, l: usize) -> Result<(), Infallible> {
        let (model, block, weights, d) = (self.model, self.block, self.weights, self.model.dims());
        let rows = self.x.par_chunks(block * d.hidden).zip(self.position.par_chunks(block));
        let parts = rows.zip(self.qkv.par_chunks_mut(block * d.attention.qkv_dim()));
        parts.for_each_init(Scratch::default, |s, ((x, position), qkv)| {
            s.resize(position.len(), &d);
            model.qkv_forward(weights, l, x, position, &mut s.norm, &mut s.rstd, qkv, None);
        });
        Ok(())
    }

    fn attend(&mut self, l: usize) -> Result<(), Infallible> {
        match self.model.dtype() {
            Dtype::F32 => self.attend_over::<f32>(l),
            Dtype::Bf16 => self.attend_over::<bf16>(l),
        }
        Ok(())
    }

    fn mlp(&mut self, l: usize) -> Result<(), Infallible> {
        let (model, block, weights, d) = (self.model, self.block, self.weights, self.model.dims());
        let (layer, q_dim) = (&model.params.layout.layers[l], d.attention.q_dim());
        let parts = self.x.par_chunks_mut(block * d.hidden).zip(self.attn.par_chunks(block * q_dim));
        parts.for_each_init(Scratch::default, |s, (x, attn)| {
            s.resize(x.len() / d.hidden, &d);
            linear::forward_add(attn, weights.matrix(&layer.o, q_dim), x);
            weights.adapt(l, Site::O, attn, x);
            s.mid.copy_from_slice(x);
            model.mlp_forward(weights, l, &s.mid, &mut s.norm, &mut s.rstd, &mut s.gate_up, &mut s.act, x);
        });
        Ok(())
    }

    /// Of each input's last token.
    fn norm(&mut self) -> Result<(), Infallible> {
        let (model, hidden) = (self.model, self.model.config.hidden_size);
        let (mut at, mut last, mut rstd) = (0, Vec::with_capacity(self.out.len()), vec![0.0; self.share.inputs.len()]);
        for (_, tokens) in self.share.inputs {
            at += tokens.len();
            last.extend_from_slice(&self.x[(at - 1) * hidden..at * hidden]);
        }
        let w = model.weight(&model.params.layout.norm);
        rmsnorm::forward(&last, w, model.config.rms_norm_eps, self.out, &mut rstd);
        Ok(())
    }
}

/// Buffers of a block of rows.
#[derive(Default)]
struct Scratch {
    norm: Vec<f32>,
    rstd: Vec<f32>,
    mid: Vec<f32>,
    gate_up: Vec<f32>,
    act: Vec<f32>,
}

impl Scratch {
    fn resize(&mut self, rows: usize, d: &Dims) {
        let Scratch { norm, rstd, mid, gate_up, act } = self;
        let sizes = [(norm, d.hidden), (rstd, 1), (mid, d.hidden), (gate_up, 2 * d.ffn), (act, d.ffn)];
        sizes.into_iter().for_each(|(buffer, width)| buffer.resize(rows * width, 0.0));
    }
}
