//! A model as rollouts see it, wherever its numbers live.

use super::{Architecture, KvCache, Model, SequenceId};
use crate::device::Result;
use crate::device::cpu::BLOCK;
use crate::ops::sampling::{self, Sampled, SamplingParams};
use rayon::prelude::*;
use std::ops::Range;

/// A model that tokens can be sampled from.
pub trait Policy: Sync {
    /// The model's shape.
    fn config(&self) -> &Architecture;
    /// An empty cache, for the weights as they are now.
    ///
    /// # Errors
    /// If there is too little device memory.
    fn decoder(&self) -> Result<Box<dyn Decoder + '_>>;
}

/// How one token is sampled.
pub struct SampleRequest<'a> {
    /// The sequence that it continues; holds at least one token.
    pub sequence: SequenceId,
    /// The sequence so far, for the repetition penalty.
    pub seen: &'a [u32],
    /// In (0, 1).
    pub uniform: f32,
}

/// A policy with the keys and values of many sequences, which may share their prefixes.
pub trait Decoder {
    /// An empty sequence.
    fn new_sequence(&mut self) -> SequenceId;
    /// A new sequence that shares everything `of` holds.
    ///
    /// # Errors
    /// If there are too few free pages.
    fn fork(&mut self, of: SequenceId) -> Result<SequenceId>;
    /// A new sequence that shares the first `len` tokens of `of`. Something must be appended before anything is sampled from it.
    ///
    /// # Errors
    /// If there are too few free pages.
    fn fork_at(&mut self, of: SequenceId, len: usize) -> Result<SequenceId>;
    /// Gives a sequence back; it must not be used again.
    fn free(&mut self, id: SequenceId);
    /// Appends tokens to sequences (each at most once, none empty). When there are too few pages, nothing is changed.
    ///
    /// # Errors
    /// If there are too few free pages, or the device fails.
    fn append(&mut self, inputs: &[(SequenceId, &[u32])]) -> Result<()>;
    /// The next token of each request's sequence; appending it is the caller's.
    ///
    /// # Errors
    /// If the device fails.
    fn sample(&mut self, requests: &[SampleRequest<'_>], params: &SamplingParams) -> Result<Vec<Sampled>>;
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
    /// The final hidden state of each sequence's last token, `[sequences, hidden]`.
    states: Vec<f32>,
}

impl CpuDecoder<'_> {
    /// Where a sequence's state is.
    fn state(&self, id: SequenceId) -> Range<usize> {
        let (at, width) = (id.0 as usize, self.model.config.hidden_size);
        at * width..(at + 1) * width
    }
}

impl Decoder for CpuDecoder<'_> {
    fn new_sequence(&mut self) -> SequenceId {
        self.cache.new_sequence()
    }

    fn fork(&mut self, of: SequenceId) -> Result<SequenceId> {
        let id = self.cache.fork(of);
        let (from, to) = (self.state(of), self.state(id));
        self.states.resize(self.states.len().max(from.end).max(to.end), 0.0);
        self.states.copy_within(from, to.start);
        Ok(id)
    }

    fn fork_at(&mut self, of: SequenceId, len: usize) -> Result<SequenceId> {
        Ok(self.cache.fork_at(of, len))
    }

    fn free(&mut self, id: SequenceId) {
        self.cache.free(id);
    }

    fn append(&mut self, inputs: &[(SequenceId, &[u32])]) -> Result<()> {
        let rows = self.model.append(&mut self.cache, inputs);
        for ((id, _), row) in inputs.iter().zip(rows.chunks_exact(self.model.config.hidden_size)) {
            let at = self.state(*id);
            self.states.resize(self.states.len().max(at.end), 0.0);
            self.states[at].copy_from_slice(row);
        }
        Ok(())
    }

    fn sample(&mut self, requests: &[SampleRequest<'_>], params: &SamplingParams) -> Result<Vec<Sampled>> {
        let vocab = self.model.config.vocab_size;
        let hidden = |requests: &[SampleRequest<'_>]| -> Vec<f32> {
            requests.iter().flat_map(|request| &self.states[self.state(request.sequence)]).copied().collect()
        };
        let sample = |(row, request): (&mut [f32], &SampleRequest<'_>)| {
            sampling::sample(row, request.seen, params, request.uniform)
        };
        if self.model.shares_columns(self.model.params.layout.head.len(), requests.len()) {
            let mut logits = self.model.next_logits(&self.cache, &hidden(requests), true);
            return Ok(logits.par_chunks_exact_mut(vocab).zip(requests).map(sample).collect());
        }
        // Each thread samples from the logits that it made, while they are in its cache.
        let share = requests.len().div_ceil(rayon::current_num_threads()).clamp(1, BLOCK);
        let sampled = requests.par_chunks(share).flat_map_iter(|requests| {
            let mut logits = self.model.next_logits(&self.cache, &hidden(requests), false);
            logits.chunks_exact_mut(vocab).zip(requests).map(sample).collect::<Vec<_>>()
        });
        Ok(sampled.collect())
    }
}
