//! A decoder that remembers what it has read: prompts share their prefixes with sequences that were left in it, and with each other.

use crate::device::{Error, Result};
use crate::model::{Architecture, Decoder, Policy, SampleRequest, SequenceId};
use crate::ops::sampling::{Sampled, SamplingParams};
use std::collections::{HashMap, VecDeque};

/// Sequences in use, and finished ones that later prompts may fork, for the weights as they are.
///
/// Finished sequences are dropped, the oldest first, when all together grow beyond the budget or the device runs out of pages.
pub struct PrefixCache<'a> {
    config: &'a Architecture,
    decoder: Box<dyn Decoder + 'a>,
    /// The tokens of each sequence.
    tokens: HashMap<SequenceId, Vec<u32>>,
    /// Finished sequences, the oldest first.
    kept: VecDeque<SequenceId>,
    /// Most tokens of all sequences, as if no two shared any, while some are kept.
    budget: usize,
    computed: usize,
}

impl<'a> PrefixCache<'a> {
    /// Empty. With a budget of 0 nothing is kept.
    ///
    /// # Errors
    /// If there is too little device memory.
    pub fn new(policy: &'a dyn Policy, budget: usize) -> Result<PrefixCache<'a>> {
        let (config, decoder) = (policy.config(), policy.decoder()?);
        Ok(PrefixCache { config, decoder, tokens: HashMap::new(), kept: VecDeque::new(), budget, computed: 0 })
    }

    /// The shape of the model.
    pub fn config(&self) -> &Architecture {
        self.config
    }

    /// Tokens that went through the model so far.
    pub fn computed_tokens(&self) -> usize {
        self.computed
    }

    /// An empty sequence.
    pub fn new_sequence(&mut self) -> SequenceId {
        let id = self.decoder.new_sequence();
        self.tokens.insert(id, Vec::new());
        id
    }

    /// A new sequence that holds what `of` holds.
    ///
    /// # Errors
    /// If there are too few pages.
    pub fn fork(&mut self, of: SequenceId) -> Result<SequenceId> {
        let id = self.decoder.fork(of)?;
        self.tokens.insert(id, self.tokens.get(&of).cloned().unwrap_or_default());
        Ok(id)
    }

    /// Gives a sequence back; it must not be used again.
    pub fn free(&mut self, id: SequenceId) {
        self.tokens.remove(&id);
        self.decoder.free(id);
    }

    /// The sequence is finished: it stays as long as there is room.
    pub fn keep(&mut self, id: SequenceId) {
        self.kept.push_back(id);
        self.shrink();
    }

    /// Gives kept sequences back, those that are still there.
    pub fn forget(&mut self, ids: &[SequenceId]) {
        for id in ids {
            if let Some(at) = self.kept.iter().position(|kept| kept == id) {
                self.kept.remove(at);
                self.free(*id);
            }
        }
    }

    /// Appends tokens to sequences (each at most once, none empty).
    ///
    /// # Errors
    /// If there are too few pages, though nothing is kept any more, or the device fails.
    pub fn append(&mut self, inputs: &[(SequenceId, &[u32])]) -> Result<()> {
        loop {
            match self.decoder.append(inputs) {
                Err(Error::OutOfPages { .. }) if self.drop_oldest() => {}
                other => break other?,
            }
        }
        for (id, tokens) in inputs {
            self.computed += tokens.len();
            self.tokens.entry(*id).or_default().extend_from_slice(tokens);
        }
        self.shrink();
        Ok(())
    }

    /// The next token of each request's sequence; appending it is the caller's.
    ///
    /// # Errors
    /// If the device fails.
    pub fn sample(&mut self, requests: &[SampleRequest<'_>], params: &SamplingParams) -> Result<Vec<Sampled>> {
        self.decoder.sample(requests, params)
    }

    /// A sequence for each prompt. What a prompt has in common with a kept sequence, or with another prompt, is not read again.
    ///
    /// # Errors
    /// If there are too few pages, or the device fails.
    pub fn read(&mut self, prompts: &[&[u32]]) -> Result<Vec<SequenceId>> {
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(prompts[i].len()));
        // Where each prompt forks, and in which round: a prompt is forked in a round after it was read.
        let mut plans: Vec<(usize, ForkSource, usize)> = Vec::with_capacity(prompts.len());
        for &i in &order {
            let kept = self.kept.iter().map(|id| (common(&self.tokens[id], prompts[i]), ForkSource::Kept(*id), 0));
            let read = plans.iter().zip(&order).map(|((_, _, round), &other)| {
                (common(prompts[other], prompts[i]), ForkSource::Prompt(other), round + 1)
            });
            // The first of the longest: what is there already goes before what must be waited for.
            let (shared, source, round) = kept
                .chain(read)
                .fold((0, ForkSource::Nothing, 0), |best, next| if next.0 > best.0 { next } else { best });
            plans.push((shared, source, round));
        }
        let mut ids: Vec<Option<SequenceId>> = vec![None; prompts.len()];
        let rounds = plans.iter().map(|(_, _, round)| round + 1).max().unwrap_or(0);
        for round in 0..rounds {
            let mut inputs = Vec::new();
            for ((shared, source, _), &i) in plans.iter().zip(&order).filter(|((_, _, r), _)| *r == round) {
                let source = match source {
                    ForkSource::Nothing => None,
                    // It may have been dropped since.
                    ForkSource::Kept(id) => self.kept.contains(id).then_some(*id),
                    ForkSource::Prompt(other) => ids[*other],
                };
                let (id, shared) = match source {
                    Some(of) => (self.fork_at(of, *shared)?, *shared),
                    None => (self.new_sequence(), 0),
                };
                ids[i] = Some(id);
                inputs.push((id, &prompts[i][shared..]));
            }
            self.append(&inputs)?;
        }
        Ok(ids.into_iter().flatten().collect())
    }

    /// A new sequence that holds what `prompt` begins with like the sequence `of`, and how many tokens that is; the rest is for the
    /// caller to append.
    ///
    /// # Errors
    /// If there are too few pages.
    pub fn branch(&mut self, of: SequenceId, prompt: &[u32]) -> Result<(SequenceId, usize)> {
        let shared = self.tokens.get(&of).map_or(0, |tokens| common(tokens, prompt));
        Ok((self.fork_at(of, shared)?, shared))
    }

    /// A new sequence that holds the first `len` tokens of `of`. Something must be appended before anything is sampled from it.
    fn fork_at(&mut self, of: SequenceId, len: usize) -> Result<SequenceId> {
        let id = self.decoder.fork_at(of, len)?;
        let tokens = self.tokens.get(&of).map_or_else(Vec::new, |tokens| tokens[..len].to_vec());
        self.tokens.insert(id, tokens);
        Ok(id)
    }

    /// Drops kept sequences while there are too many tokens.
    fn shrink(&mut self) {
        while self.tokens.values().map(Vec::len).sum::<usize>() > self.budget && self.drop_oldest() {}
    }

    /// Whether there was one to drop.
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.kept.pop_front();
        oldest.into_iter().for_each(|id| self.free(id));
        oldest.is_some()
    }
}

/// What a prompt forks.
#[derive(Clone, Copy)]
enum ForkSource {
    Nothing,
    Kept(SequenceId),
    Prompt(usize),
}

/// Tokens that a prompt can take over from a sequence. Its last one it reads itself: the next token is sampled from what the model
/// makes of that.
fn common(sequence: &[u32], prompt: &[u32]) -> usize {
    let same = sequence.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    same.min(prompt.len().saturating_sub(1))
}
