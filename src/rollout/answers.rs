//! Several answers to each of many prompts: one turn each, no environment.

use super::{Actor, PrefixCache, RolloutError, RolloutSettings};
use crate::agent::Prompter;
use crate::model::{SampleRequest, SequenceId};
use crate::ops::philox;
use crate::ops::sampling::Sampled;

/// One sampled turn.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// The sampled tokens; the one that ends the turn included.
    pub tokens: Vec<u32>,
    /// The log-prob of each when sampled.
    pub logprobs: Vec<f32>,
    /// The turn was ended within `settings.max_turn_tokens`.
    pub ended: bool,
}

/// An answer being written.
struct Writer {
    sequence: SequenceId,
    /// The prompt, then what is written.
    context: Vec<u32>,
    index: usize,
    answer: Answer,
}

/// See [`Actor::answers_on`].
pub(super) fn answers(
    actor: &Actor<'_>,
    cache: &mut PrefixCache<'_>,
    prompts: &[Vec<u32>],
    count: usize,
) -> Result<Vec<Vec<Answer>>, RolloutError> {
    let (settings, prompter) = (&actor.settings, actor.prompter);
    let mut done: Vec<Vec<Answer>> = vec![vec![Answer::default(); count]; prompts.len()];
    let (mut first, mut read) = (0, Vec::new());
    for prompts in prompts.chunks((settings.max_live / count).max(1)) {
        let roots = cache.read(&prompts.iter().map(|prompt| &prompt[..]).collect::<Vec<_>>())?;
        let mut writers = Vec::with_capacity(prompts.len() * count);
        for (i, prompt) in prompts.iter().enumerate() {
            for k in 0..count {
                let (id, index) = (cache.fork(roots[i])?, (first + i) * count + k);
                writers.push(Writer { sequence: id, context: prompt.clone(), index, answer: Answer::default() });
            }
            cache.keep(roots[i]);
        }
        read.extend(roots);
        while !writers.is_empty() {
            if (actor.interrupted)() {
                return Err(RolloutError::Interrupted);
            }
            let requests: Vec<SampleRequest> = writers.iter().map(|w| w.request(settings)).collect();
            let sampled = cache.sample(&requests, &settings.sampling)?;
            writers.iter_mut().zip(sampled).for_each(|(w, sampled)| w.write(prompter, sampled));
            let (over, on): (Vec<Writer>, Vec<Writer>) =
                writers.into_iter().partition(|w| w.answer.ended || w.answer.tokens.len() >= settings.max_turn_tokens);
            for w in over {
                cache.free(w.sequence);
                done[w.index / count][w.index % count] = w.answer;
            }
            writers = on;
            let inputs: Vec<(SequenceId, &[u32])> =
                writers.iter().map(|w| (w.sequence, &w.context[w.context.len() - 1..])).collect();
            if !inputs.is_empty() {
                cache.append(&inputs)?;
            }
        }
        first += prompts.len();
    }
    cache.forget(&read);
    Ok(done)
}

impl Writer {
    /// How the next token is sampled.
    fn request(&self, settings: &RolloutSettings) -> SampleRequest<'_> {
        let stream = settings.stream.part(self.index as u64);
        let block = philox::block(settings.seed, stream, self.answer.tokens.len() as u64);
        SampleRequest { sequence: self.sequence, seen: &self.context, uniform: philox::uniform(block[0]) }
    }

    fn write(&mut self, prompter: &Prompter, sampled: Sampled) {
        self.context.push(sampled.token);
        self.answer.tokens.push(sampled.token);
        self.answer.logprobs.push(sampled.logprob);
        self.answer.ended = prompter.ends_turn(sampled.token);
    }
}
