//! A model as rollouts see it, wherever its numbers live.

use super::{KvCache, Model, Qwen2Config, Slot};
use crate::device::Result;
use crate::ops::sampling::{self, Sampled, SamplingParams};
use rayon::prelude::*;

/// A model that tokens can be sampled from.
pub trait Policy: Sync {
    fn config(&self) -> &Qwen2Config;
    /// An empty cache, for the weights as they are now.
    fn decoder(&self) -> Result<Box<dyn Decoder + '_>>;
}

/// What one token is drawn by.
pub struct Draw<'a> {
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
    fn fork(&mut self, of: Slot) -> Slot;
    /// Gives a slot back; it must not be used again.
    fn free(&mut self, slot: Slot);
    /// Appends tokens to slots (each at most once, none empty); the final hidden state of each feed's last token, `[feeds, hidden]`.
    fn extend(&mut self, feeds: &[(Slot, &[u32])]) -> Result<Vec<f32>>;
    /// A token for each row of `hidden` `[draws, hidden]`.
    fn draw(&mut self, hidden: &[f32], draws: &[Draw<'_>], params: &SamplingParams) -> Result<Vec<Sampled>>;
}

impl Policy for Model {
    fn config(&self) -> &Qwen2Config {
        &self.config
    }

    fn decoder(&self) -> Result<Box<dyn Decoder + '_>> {
        Ok(Box::new(CpuDecoder { model: self, cache: KvCache::new(self) }))
    }
}

struct CpuDecoder<'a> {
    model: &'a Model,
    cache: KvCache,
}

impl Decoder for CpuDecoder<'_> {
    fn alloc(&mut self) -> Slot {
        self.cache.alloc()
    }

    fn fork(&mut self, of: Slot) -> Slot {
        self.cache.fork(of)
    }

    fn free(&mut self, slot: Slot) {
        self.cache.free(slot);
    }

    fn extend(&mut self, feeds: &[(Slot, &[u32])]) -> Result<Vec<f32>> {
        Ok(self.model.extend(&mut self.cache, feeds))
    }

    fn draw(&mut self, hidden: &[f32], draws: &[Draw<'_>], params: &SamplingParams) -> Result<Vec<Sampled>> {
        let mut logits = self.model.next_logits(&self.cache, hidden);
        let rows = logits.par_chunks_mut(self.model.config.vocab_size);
        Ok(rows.zip(draws).map(|(row, draw)| sampling::sample(row, draw.seen, params, draw.uniform)).collect())
    }
}
