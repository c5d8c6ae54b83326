//! The forward pass against a KV cache: prefill and decoding are the same call.

use super::kv_cache::{KvCache, PAGE, PageShape, Sequence, Slot};
use super::qwen2::Weights;
use super::{Model, params::LayerLayout};
use crate::device::cpu::BLOCK;
use crate::ops::{attention, embedding, linear, rmsnorm};
use rayon::prelude::*;

/// Fewest rows worth a thread of their own.
const MIN_ROWS: usize = 16;

impl Model {
    /// Appends tokens to slots of the cache and returns the final-normed hidden state of each feed's last token,
    /// `[feeds, hidden]`. A slot may occur only once in a call, and a feed is never empty.
    ///
    /// Feeds are independent, so each thread takes a share of them through the whole model and no thread waits in between.
    pub fn extend(&self, cache: &mut KvCache, feeds: &[(Slot, &[u32])]) -> Vec<f32> {
        let hidden = self.config.hidden_size;
        let mut out = vec![0.0; feeds.len() * hidden];
        let mut sequences: Vec<Sequence> = feeds.iter().map(|(slot, _)| cache.take(*slot)).collect();
        let rows: usize = feeds.iter().map(|(_, tokens)| tokens.len()).sum();
        let share = (rows.div_ceil(rayon::current_num_threads())).clamp(MIN_ROWS, BLOCK);
        let mut tasks = Vec::new();
        let (mut feeds_left, mut sequences_left, mut out_left) = (feeds, &mut sequences[..], &mut out[..]);
        while !feeds_left.is_empty() {
            let (mut n, mut rows) = (0, 0);
            while n < feeds_left.len() && (n == 0 || rows + feeds_left[n].1.len() <= share) {
                rows += feeds_left[n].1.len();
                n += 1;
            }
            let (f, feeds_rest) = feeds_left.split_at(n);
            let (s, sequences_rest) = std::mem::take(&mut sequences_left).split_at_mut(n);
            let (o, out_rest) = std::mem::take(&mut out_left).split_at_mut(n * hidden);
            (feeds_left, sequences_left, out_left) = (feeds_rest, sequences_rest, out_rest);
            tasks.push((f, s, o));
        }
        let (shape, weights) = (cache.shape(), cache.weights());
        tasks.into_par_iter().with_max_len(1).for_each(|(feeds, sequences, out)| {
            self.extend_share(weights, shape, feeds, sequences, out);
        });
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

    /// Logits `[rows, vocab]` of a few hidden states `[rows, hidden]`, for sampling, on the calling thread.
    pub fn next_logits(&self, cache: &KvCache, hidden: &[f32]) -> Vec<f32> {
        let (h, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let mut logits = vec![0.0; hidden.len() / h * vocab];
        linear::forward(hidden, cache.weights().matrix(&self.params.layout.head, h), None, &mut logits);
        logits
    }

    fn extend_share(
        &self,
        weights: Weights<'_>,
        shape: PageShape,
        feeds: &[(Slot, &[u32])],
        sequences: &mut [Sequence],
        out: &mut [f32],
    ) {
        let (c, layout) = (&self.config, &self.params.layout);
        let hidden = c.hidden_size;
        let tokens: Vec<u32> = feeds.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
        let mut position = Vec::with_capacity(tokens.len());
        for ((_, tokens), sequence) in feeds.iter().zip(sequences.iter_mut()) {
            position.extend((sequence.len..sequence.len + tokens.len()).map(|p| p as u32));
            sequence.reserve(tokens.len(), shape);
        }
        let mut x = vec![0.0; tokens.len() * hidden];
        embedding::forward(&tokens, &self.params.flat[layout.embed.clone()], hidden, &mut x);
        let mut scratch = Scratch::new(self, tokens.len());
        for (l, layer) in layout.layers.iter().enumerate() {
            self.extend_layer(weights, l, layer, shape, &position, sequences, feeds, &mut x, &mut scratch);
        }
        let (mut at, mut last, mut rstd) = (0, Vec::with_capacity(out.len()), vec![0.0; feeds.len()]);
        for ((_, tokens), sequence) in feeds.iter().zip(sequences) {
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
        layer: &LayerLayout,
        shape: PageShape,
        position: &[u32],
        sequences: &mut [Sequence],
        feeds: &[(Slot, &[u32])],
        x: &mut [f32],
        s: &mut Scratch,
    ) {
        let c = &self.config;
        let (d, q_dim, kv_dim) = (c.head_dim, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let (qkv_dim, group) = (q_dim + 2 * kv_dim, c.num_attention_heads / c.num_key_value_heads);
        self.qkv_forward(weights, layer, x, position, &mut s.norm, &mut s.rstd, &mut s.qkv);
        let (mut rows, mut outs, mut positions) =
            (s.qkv.chunks_exact(qkv_dim), s.attn.chunks_exact_mut(q_dim), position.iter());
        for ((_, tokens), sequence) in feeds.iter().zip(sequences) {
            let own: Vec<&[f32]> = rows.by_ref().take(tokens.len()).collect();
            for (i, row) in own.iter().enumerate() {
                let (keys, values) = row[q_dim..].split_at(kv_dim);
                sequence.write(shape, l, sequence.len + i, keys, values);
            }
            for ((row, out), &p) in own.iter().zip(outs.by_ref()).zip(positions.by_ref()) {
                for kv in 0..c.num_key_value_heads {
                    let heads = kv * group * d..(kv + 1) * group * d;
                    let pages = sequence.pages(shape, l, kv);
                    let q = &row[heads.clone()];
                    attention::decode::<PAGE>(q, d, p as usize + 1, pages, &mut s.scores, &mut out[heads]);
                }
            }
        }
        linear::forward_add(&s.attn, weights.matrix(&layer.o, q_dim), x);
        s.mid.copy_from_slice(x);
        self.mlp_forward(weights, layer, &s.mid, &mut s.norm, &mut s.rstd, &mut s.gate_up, &mut s.act, x);
    }
}

/// Buffers of one share of the rows, reused by every layer.
struct Scratch {
    norm: Vec<f32>,
    rstd: Vec<f32>,
    qkv: Vec<f32>,
    attn: Vec<f32>,
    mid: Vec<f32>,
    gate_up: Vec<f32>,
    act: Vec<f32>,
    scores: Vec<f32>,
}

impl Scratch {
    fn new(model: &Model, rows: usize) -> Scratch {
        let c = &model.config;
        let (q_dim, kv_dim) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let zeros = |width: usize| vec![0.0; rows * width];
        Scratch {
            norm: zeros(c.hidden_size),
            rstd: zeros(1),
            qkv: zeros(q_dim + 2 * kv_dim),
            attn: zeros(q_dim),
            mid: zeros(c.hidden_size),
            gate_up: zeros(2 * c.intermediate_size),
            act: zeros(c.intermediate_size),
            scores: Vec::new(),
        }
    }
}
