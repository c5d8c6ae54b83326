//! Losses of the hidden states of labelled actions: the value head's, and the contrastive one.
//!
//! They run over a forest of their own, not beside the trajectories: the contrastive loss compares all pairs at once, which
//! micro-batches would part. So hidden states are read in one pass, and what each of them does to the loss flows back in
//! another (Gao et al. 2021): exact, in the memory of a micro-batch.

use super::learner::Learner;
use crate::agent::Episode;
use crate::config::{Config, DecoupleMethod, GcdMode};
use crate::device::Result;
use crate::forest::Forest;
use crate::gcd::{Accuracy, Label, Pair, contrast};
use std::ops::Range;

/// A labelled action in its state.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// The sequence to the end of the action.
    pub tokens: Vec<u32>,
    /// Where in it the action lies.
    pub action: Range<usize>,
    pub label: Label,
}

/// The labelled actions of `pairs`.
pub fn probes(episodes: &[Episode], pairs: &[Pair]) -> Vec<Probe> {
    let probe = |pair: &Pair| {
        let episode = &episodes[pair.episode];
        let turn = &episode.turns[pair.turn];
        let tokens = episode.acted(turn).to_vec();
        Probe { action: episode.state(turn).len()..tokens.len(), tokens, label: pair.label }
    };
    pairs.iter().map(probe).collect()
}

/// Tokens of a sequence whose mean hidden state a loss reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Span<'a> {
    pub tokens: &'a [u32],
    /// Not empty.
    pub span: Range<usize>,
}

impl Probe {
    /// The action's last token.
    fn end(&self) -> Span<'_> {
        Span { tokens: &self.tokens, span: self.action.end - 1..self.action.end }
    }

    fn whole(&self) -> Span<'_> {
        Span { tokens: &self.tokens, span: self.action.clone() }
    }
}

impl Span<'_> {
    /// Neighbours of about `tokens` tokens together, before sharing.
    pub(super) fn batches<'a, 'b>(spans: &'a [Span<'b>], tokens: usize) -> impl Iterator<Item = &'a [Span<'b>]> {
        let mut sum = 0;
        let mut starts: Vec<usize> = Vec::new();
        for (i, span) in spans.iter().enumerate() {
            sum += span.tokens.len();
            if i == 0 || sum > tokens {
                starts.push(i);
                sum = span.tokens.len();
            }
        }
        let ends = starts.iter().skip(1).copied().chain([spans.len()]).collect::<Vec<_>>();
        starts.into_iter().zip(ends).map(|(start, end)| &spans[start..end])
    }

    pub(super) fn forest(spans: &[Span<'_>]) -> Forest {
        Forest::new(&spans.iter().map(|s| s.tokens).collect::<Vec<_>>())
    }
}

/// What the losses of an epoch came to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Probed {
    /// The value head's loss, and its accuracy before it learns.
    pub critic: Option<(f64, Accuracy)>,
    /// The contrastive loss.
    pub contrast: Option<f64>,
    /// Tokens that were back-propagated through the policy, packed.
    pub packed_tokens: usize,
}

/// Adds the gradients of the configured losses of `probes`: to the value head, and to the policy unless it is isolated.
pub fn learn(config: &Config, learner: &mut Learner, probes: &[Probe]) -> Result<Probed> {
    let mut probed = Probed::default();
    if probes.is_empty() {
        return Ok(probed);
    }
    let micro_tokens = config.grpo.micro_tokens as usize;
    let labels: Vec<Label> = probes.iter().map(|p| p.label).collect();
    let ends: Vec<Span<'_>> = probes.iter().map(Probe::end).collect();
    let hidden = if learner.critic.is_some() { learner.mean_hidden(&ends, micro_tokens)? } else { Vec::new() };
    if let Some(critic) = &mut learner.critic {
        let classified = critic.classify(&hidden, &labels, config.gcd.lambda);
        critic.accumulate(&classified);
        if config.gcd.mode == GcdMode::ValueHead {
            probed.packed_tokens += learner.backward_spans(&ends, micro_tokens, &classified.d_hidden)?;
        }
        probed.critic = Some((classified.loss, classified.accuracy));
    }
    if config.decouple.method == DecoupleMethod::Contrastive {
        let actions: Vec<Span<'_>> = probes.iter().map(Probe::whole).collect();
        let embeddings = learner.mean_hidden(&actions, micro_tokens)?;
        let (loss, gradient) = contrast::contrast(&embeddings, &labels, &config.decouple);
        probed.packed_tokens += learner.backward_spans(&actions, micro_tokens, &gradient)?;
        probed.contrast = Some(loss);
    }
    Ok(probed)
}

/// How well the value head, where there is one, classifies the actions of `probes`; nothing is learnt.
pub fn accuracy(config: &Config, learner: &mut Learner, probes: &[Probe]) -> Result<Option<Accuracy>> {
    if learner.critic.is_none() {
        return Ok(None);
    }
    let ends: Vec<Span<'_>> = probes.iter().map(Probe::end).collect();
    let hidden = learner.mean_hidden(&ends, config.grpo.micro_tokens as usize)?;
    let labels: Vec<Label> = probes.iter().map(|p| p.label).collect();
    Ok(learner.critic.as_ref().map(|critic| critic.classify(&hidden, &labels, 1.0).accuracy))
}
