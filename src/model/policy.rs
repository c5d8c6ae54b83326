//! A model as rollouts see it, wherever its numbers live.

use super::{Architecture, KvCache, Model, Slot};
use crate::device::Result;
use crate::device::cpu::BLOCK;
use crate::ops::sampling::{self, Sampled, SamplingParams};
use rayon::prelude::*;
use std::ops::Range;

/// A model that tokens can be sampled from.
pub trait Policy: Sync {
    fn config(&self) -> &Architecture;
    /// An empty cache, for the weights as they are now.
    fn decoder(&self) -> Result<Box<dyn Decoder + '_>>;
}

/// What one token is drawn by.
pub struct Draw<'a> {
    /// The sequence that it continues; holds at least one token.
    pub slot: Slot,
    /// The sequence so far, for the repetition penalty.
    pub seen: &'a [u32],
    /// In (0, 1).
    pub uniform: f32,
}

/// A policy with the keys and values of many sequences, which may share their prefixes.
pub trait Decoder {
    /// An empty slot.
    fn alloc(&mut self) -> Slot;
    /// A new slot that shares everything `of` holds.
    fn fork(&mut self, of: Slot) -> Result<Slot>;
    /// A new slot that shares the first `len` tokens of `of`. Something must be appended before anything is drawn from it.
    fn fork_at(&mut self, of: Slot, len: usize) -> Result<Slot>;
    /// Gives a slot back; it must not be used again.
    fn free(&mut self, slot: Slot);
    /// Appends tokens to slots (each at most once, none empty). When there are too few pages, nothing is changed.
    fn extend(&mut self, feeds: &[(Slot, &[u32])]) -> Result<()>;
    /// The next token of each draw's slot; appending it is the caller's.
    fn draw(&mut self, draws: &[Draw<'_>], params: &SamplingParams) -> Result<Vec<Sampled>>;
}

impl Policy for Model {
    fn config(&self) -> &Architecture {
        &self.config
    }

    fn decoder(&self) -> Result<Box<dyn Decoder + '_>> {
        Ok(Box::new(CpuDecoder { model: self, cache: KvCache::new(self), states: Vec::new() }))
    }
}

struct CpuDecoder<'a> {
    model: &'a Model,
    cache: KvCache,
    /// The final hidden state of each slot's last token, `[slots, hidden]`.
    states: Vec<f32>,
}

impl CpuDecoder<'_> {
    /// Where a slot's state is.
    fn state(&self, slot: Slot) -> Range<usize> {
        let (at, width) = (slot.0 as usize, self.model.config.hidden_size);
        at * width..(at + 1) * width
    }
}

impl Decoder for CpuDecoder<'_> {
    fn alloc(&mut self) -> Slot {
        self.cache.alloc()
    }

    fn fork(&mut self, of: Slot) -> Result<Slot> {
        let slot = self.cache.fork(of);
        let (from, to) = (self.state(of), self.state(slot));
        self.states.resize(self.states.len().max(from.end).max(to.end), 0.0);
        self.states.copy_within(from, to.start);
        Ok(slot)
    }

    fn fork_at(&mut self, of: Slot, len: usize) -> Result<Slot> {
        Ok(self.cache.fork_at(of, len))
    }

    fn free(&mut self, slot: Slot) {
        self.cache.free(slot);
    }

    fn extend(&mut self, feeds: &[(Slot, &[u32])]) -> Result<()> {
        let rows = self.model.extend(&mut self.cache, feeds);
        for ((slot, _), row) in feeds.iter().zip(rows.chunks_exact(self.model.config.hidden_size)) {
            let at = self.state(*slot);
            self.states.resize(self.states.len().max(at.end), 0.0);
            self.states[at].copy_from_slice(row);
        }
        Ok(())
    }

    fn draw(&mut self, draws: &[Draw<'_>], params: &SamplingParams) -> Result<Vec<Sampled>> {
        let vocab = self.model.config.vocab_size;
        let hidden = |draws: &[Draw<'_>]| -> Vec<f32> {
            draws.iter().flat_map(|draw| &self.states[self.state(draw.slot)]).copied().collect()
        };
        let sample = |(row, draw): (&mut [f32], &Draw<'_>)| sampling::sample(row, draw.seen, params, draw.uniform);
        if self.model.shares_columns(self.model.params.layout.head.len(), draws.len()) {
            let mut logits = self.model.next_logits(&self.cache, &hidden(draws), true);
            return Ok(logits.par_chunks_exact_mut(vocab).zip(draws).map(sample).collect());
        }
        // Each thread samples from the logits that it made, while they are in its cache.
        let share = draws.len().div_ceil(rayon::current_num_threads()).clamp(1, BLOCK);
        let sampled = draws.par_chunks(share).flat_map_iter(|draws| {
            let mut logits = self.model.next_logits(&self.cache, &hidden(draws), false);
            logits.chunks_exact_mut(vocab).zip(draws).map(sample).collect::<Vec<_>>()
        });
        Ok(sampled.collect())
    }
}
