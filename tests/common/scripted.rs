//! A policy that writes what it is told.

use std::collections::HashMap;
use uncouple::device::Result;
use uncouple::model::{Architecture, Decoder, Draw, Model, Policy, Slot};
use uncouple::ops::sampling::{Sampled, SamplingParams};

/// Writes these tokens in every sequence, whatever it reads; `model` lends it its places in the cache.
pub struct Scripted {
    pub model: Model,
    pub tokens: Vec<u32>,
}

/// Of every token.
pub const LOGPROB: f32 = -0.1;

impl Policy for Scripted {
    fn config(&self) -> &Architecture {
        &self.model.config
    }

    fn decoder(&self) -> Result<Box<dyn Decoder + '_>> {
        Ok(Box::new(Writer { slots: self.model.decoder()?, tokens: &self.tokens, written: HashMap::new() }))
    }
}

struct Writer<'a> {
    slots: Box<dyn Decoder + 'a>,
    tokens: &'a [u32],
    /// How much of it stands in each slot.
    written: HashMap<Slot, usize>,
}

impl Decoder for Writer<'_> {
    fn alloc(&mut self) -> Slot {
        let slot = self.slots.alloc();
        self.written.insert(slot, 0);
        slot
    }

    fn fork(&mut self, of: Slot) -> Result<Slot> {
        let slot = self.slots.fork(of)?;
        self.written.insert(slot, self.written[&of]);
        Ok(slot)
    }

    /// What goes on from an earlier point is another prompt: the script begins anew.
    fn fork_at(&mut self, of: Slot, len: usize) -> Result<Slot> {
        let slot = self.slots.fork_at(of, len)?;
        self.written.insert(slot, 0);
        Ok(slot)
    }

    fn free(&mut self, slot: Slot) {
        self.slots.free(slot);
    }

    fn extend(&mut self, feeds: &[(Slot, &[u32])]) -> Result<()> {
        self.slots.extend(feeds)
    }

    fn draw(&mut self, draws: &[Draw<'_>], _: &SamplingParams) -> Result<Vec<Sampled>> {
        let mut next = |draw: &Draw<'_>| {
            let at = self.written.entry(draw.slot).or_default();
            *at += 1;
            Sampled { token: self.tokens[*at - 1], logprob: LOGPROB }
        };
        Ok(draws.iter().map(&mut next).collect())
    }
}
