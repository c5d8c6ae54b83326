//! A policy that writes what it is told.

use std::collections::HashMap;
use uncouple::device::Result;
use uncouple::model::{Architecture, Decoder, Model, Policy, SampleRequest, SequenceId};
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
        Ok(Box::new(Writer { ids: self.model.decoder()?, tokens: &self.tokens, written: HashMap::new() }))
    }
}

struct Writer<'a> {
    ids: Box<dyn Decoder + 'a>,
    tokens: &'a [u32],
    /// How much of it stands in each sequence.
    written: HashMap<SequenceId, usize>,
}

impl Decoder for Writer<'_> {
    fn new_sequence(&mut self) -> SequenceId {
        let id = self.ids.new_sequence();
        self.written.insert(id, 0);
        id
    }

    fn fork(&mut self, of: SequenceId) -> Result<SequenceId> {
        let id = self.ids.fork(of)?;
        self.written.insert(id, self.written[&of]);
        Ok(id)
    }

    /// What goes on from an earlier point is another prompt: the script begins anew.
    fn fork_at(&mut self, of: SequenceId, len: usize) -> Result<SequenceId> {
        let id = self.ids.fork_at(of, len)?;
        self.written.insert(id, 0);
        Ok(id)
    }

    fn free(&mut self, id: SequenceId) {
        self.ids.free(id);
    }

    fn append(&mut self, inputs: &[(SequenceId, &[u32])]) -> Result<()> {
        self.ids.append(inputs)
    }

    fn sample(&mut self, requests: &[SampleRequest<'_>], _: &SamplingParams) -> Result<Vec<Sampled>> {
        let mut next = |request: &SampleRequest<'_>| {
            let at = self.written.entry(request.sequence).or_default();
            *at += 1;
            Sampled { token: self.tokens[*at - 1], logprob: LOGPROB }
        };
        Ok(requests.iter().map(&mut next).collect())
    }
}
