//! The forward pass against a KV cache: prefill and decoding are the same call.
//!
//! A batch of short feeds is shared out: each thread takes some of them through the whole model, and none waits in between. Long
//! feeds, and large models, go through the model together: all threads work on each layer in turn. A row's numbers are the same
//! either way.

use super::Model;
use super::kv_cache::{KvCache, LayerPages, PAGE, PageShape, Sequence, Slot};
use super::qwen2::{Dims, Weights};
use crate::device::cpu::BLOCK;
use crate::ops::decode_attention::Feed;
use crate::ops::{decode_attention, embedding, linear, rmsnorm};
use rayon::prelude::*;

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

/// Some of the feeds, which go through the model together.
struct Share<'a> {
    shape: PageShape,
    feeds: &'a [(Slot, &'a [u32])],
    sequences: &'a mut [Sequence],
    /// Whether all threads work on it.
    together: bool,
}

impl Model {
    /// Appends tokens to slots of the cache and returns the final-normed hidden state of each feed's last token,
    /// `[feeds, hidden]`. A slot may occur only once in a call, and a feed is never empty.
    pub fn extend(&self, cache: &mut KvCache, feeds: &[(Slot, &[u32])]) -> Vec<f32> {
        let hidden = self.config.hidden_size;
        let mut out = vec![0.0; feeds.len() * hidden];
        let mut sequences: Vec<Sequence> = feeds.iter().map(|(slot, _)| cache.take(*slot)).collect();
        let rows: usize = feeds.iter().map(|(_, tokens)| tokens.len()).sum();
        let layer = self.params.layout.layers.first().map_or(0, |l| l.down.end - l.input_norm.start);
        let together = layer >= LARGE_LAYER || layer * rows >= LARGE_WORK;
        let share = if together { rows } else { rows.div_ceil(rayon::current_num_threads()).clamp(MIN_ROWS, BLOCK) };
        let mut tasks = Vec::new();
        let (mut feeds_left, mut sequences_left, mut out_left) = (feeds, &mut sequences[..], &mut out[..]);
        while !feeds_left.is_empty() {
            let (mut n, mut rows) = (0, 0);
            while n < feeds_left.len() && (n == 0 || rows + feeds_left[n].1.len() <= share) {
                rows += feeds_left[n].1.len();
                n += 1;
            }
            let (feeds, feeds_rest) = feeds_left.split_at(n);
            let (sequences, sequences_rest) = std::mem::take(&mut sequences_left).split_at_mut(n);
            let (o, out_rest) = std::mem::take(&mut out_left).split_at_mut(n * hidden);
            (feeds_left, sequences_left, out_left) = (feeds_rest, sequences_rest, out_rest);
            tasks.push((Share { shape: cache.shape(), feeds, sequences, together }, o));
        }
        let weights = cache.weights();
        tasks.into_par_iter().with_max_len(1).for_each(|(share, out)| self.extend_share(weights, share, out));
        for ((slot, _), sequence) in feeds.iter().zip(sequences) {
            cache.put(*slot, sequence);
        }
        out
    }

    /// The parameters with every matrix that decoding reads in panels.
    pub(super) fn panels(&self) -> Vec<f32> {
        let (c, layout) = (&self.config, &self.params.layout);
        let (hidden, q_dim) = (c.hidden_size, c.num_attention_heads * c.head_dim);
        let mut flat = self.params.flat.clone();
        let mut convert = |range: &std::ops::Range<usize>, in_features: usize| {
            linear::to_panels(&self.params.flat[range.clone()], in_features, &mut flat[range.clone()]);
        };
        for layer in &layout.layers {
            convert(&layer.qkv, hidden);
            convert(&layer.o, q_dim);
            convert(&layer.gate_up, hidden);
            convert(&layer.down, c.intermediate_size);
        }
        convert(&layout.head, hidden);
        flat
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
    pub(super) fn shares_columns(&self, params: usize, rows: usize) -> bool {
        params >= LARGE_LAYER && rows <= FEW_ROWS * rayon::current_num_threads()
    }

    fn extend_share(&self, weights: Weights<'_>, mut share: Share<'_>, out: &mut [f32]) {
        let (c, layout) = (&self.config, &self.params.layout);
        let hidden = c.hidden_size;
        let tokens: Vec<u32> = share.feeds.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
        let mut position = Vec::with_capacity(tokens.len());
        for ((_, tokens), sequence) in share.feeds.iter().zip(share.sequences.iter_mut()) {
            position.extend((sequence.len..sequence.len + tokens.len()).map(|p| p as u32));
            sequence.reserve(tokens.len(), share.shape);
        }
        let mut x = vec![0.0; tokens.len() * hidden];
        embedding::forward(&tokens, &self.params.flat[layout.embed.clone()], hidden, &mut x);
        let attention = self.dims().attention;
        let mut qkv = vec![0.0; tokens.len() * attention.qkv_dim()];
        let mut attn = vec![0.0; tokens.len() * attention.q_dim()];
        for l in 0..layout.layers.len() {
            self.extend_layer(weights, l, &position, &mut share, &mut x, &mut qkv, &mut attn);
        }
        let (mut at, mut last, mut rstd) = (0, Vec::with_capacity(out.len()), vec![0.0; share.feeds.len()]);
        for ((_, tokens), sequence) in share.feeds.iter().zip(share.sequences) {
            sequence.len += tokens.len();
            at += tokens.len();
            last.extend_from_slice(&x[(at - 1) * hidden..at * hidden]);
        }
        rmsnorm::forward(&last, &self.params.flat[layout.norm.clone()], c.rms_norm_eps, out, &mut rstd);
    }

    #[allow(clippy::too_many_arguments)]
    fn extend_layer(
        &self,
        weights: Weights<'_>,
        l: usize,
        position: &[u32],
        share: &mut Share<'_>,
        x: &mut [f32],
        qkv: &mut [f32],
        attn: &mut [f32],
    ) {
        let (d, layer) = (self.dims(), &self.params.layout.layers[l]);
        let (hidden, qkv_dim, q_dim) = (d.hidden, d.attention.qkv_dim(), d.attention.q_dim());
        let (rows, threads) = (position.len(), rayon::current_num_threads());
        let few = share.together && rows <= FEW_ROWS * threads;
        let block = if few || !share.together { rows } else { rows.div_ceil(threads).min(PROJECTED) };
        let weights = Weights { spread: few, ..weights };

        let parts =
            x.par_chunks(block * hidden).zip(position.par_chunks(block)).zip(qkv.par_chunks_mut(block * qkv_dim));
        parts.for_each_init(Scratch::default, |s, ((x, position), qkv)| {
            s.resize(position.len(), &d);
            self.qkv_forward(weights, layer, x, position, &mut s.norm, &mut s.rstd, qkv, None);
        });
        let (mut rows, mut feeds) = (&qkv[..], Vec::with_capacity(share.feeds.len()));
        for ((_, tokens), sequence) in share.feeds.iter().zip(share.sequences.iter_mut()) {
            let (own, rest) = rows.split_at(tokens.len() * qkv_dim);
            rows = rest;
            for (row, at) in own.chunks_exact(qkv_dim).zip(sequence.len..) {
                let (keys, values) = row[q_dim..].split_at((qkv_dim - q_dim) / 2);
                sequence.write(share.shape, l, at, keys, values);
            }
            let cache = LayerPages { sequence, shape: share.shape, layer: l };
            feeds.push(Feed { qkv: own, past: cache.sequence.len, cache });
        }
        decode_attention::forward::<PAGE, _>(&feeds, d.attention, share.together, attn);
        let parts = x.par_chunks_mut(block * hidden).zip(attn.par_chunks(block * q_dim));
        parts.for_each_init(Scratch::default, |s, (x, attn)| {
            s.resize(x.len() / hidden, &d);
            linear::forward_add(attn, weights.matrix(&layer.o, q_dim), x);
            s.mid.copy_from_slice(x);
            self.mlp_forward(weights, layer, &s.mid, &mut s.norm, &mut s.rstd, &mut s.gate_up, &mut s.act, x);
        });
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
