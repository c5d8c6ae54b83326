//! Auxiliary losses in training: hidden states of labelled actions in, their gradients out.
//!
//! They run over a forest of their own, not beside the trajectories: the contrastive loss compares all pairs at once, which
//! micro-batches would part. So hidden states are read in one pass, and what each of them does to the loss flows back in
//! another (Gao et al. 2021): exact, in the memory of a micro-batch.

use super::critic::{self, Critic, CriticLoss};
use super::learner::{Learner, Span};
use crate::agent::Episode;
use crate::config::{Config, GcdMode};
use crate::device::Result;
use crate::gcd::{Accuracy, AuxiliaryLoss, Label, Pair, auxiliary_losses};
use std::ops::Range;

/// A labelled action in its state.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledAction {
    /// The sequence to the end of the action.
    pub tokens: Vec<u32>,
    /// Where in it the action lies.
    pub action: Range<usize>,
    /// The label.
    pub label: Label,
}

impl LabelledAction {
    /// The actions of `pairs`.
    pub fn of(episodes: &[Episode], pairs: &[Pair]) -> Vec<LabelledAction> {
        let action = |pair: &Pair| {
            let episode = &episodes[pair.episode];
            let turn = &episode.turns[pair.turn];
            let tokens = episode.acted(turn).to_vec();
            LabelledAction { action: episode.state(turn).len()..tokens.len(), tokens, label: pair.label }
        };
        pairs.iter().map(action).collect()
    }
}

/// What the losses of an epoch came to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AuxiliaryReport {
    /// Each loss under its metric's name.
    pub losses: Vec<(&'static str, f64)>,
    /// The value head's, before it learns.
    pub accuracy: Option<Accuracy>,
    /// Tokens that were back-propagated through the policy, packed.
    pub unique_tokens: usize,
}

/// Whether the configuration has auxiliary losses.
pub fn is_configured(config: &Config) -> bool {
    config.gcd.mode.has_critic() || !auxiliary_losses(config).is_empty()
}

/// The configured losses: the value head's, whose weights the run owns and saves, and those that have none.
fn configured<'a>(config: &'a Config, critic: Option<&'a mut Critic>) -> Vec<Box<dyn AuxiliaryLoss + 'a>> {
    let of_critic = |critic| {
        let (lambda, isolated) = (config.gcd.lambda, config.gcd.mode == GcdMode::Isolated);
        Box::new(CriticLoss { critic, lambda, isolated }) as Box<dyn AuxiliaryLoss + 'a>
    };
    critic.map(of_critic).into_iter().chain(auxiliary_losses(config)).collect()
}

/// Adds the gradients of the configured losses of `actions`: to the value head, and to the policy unless it is isolated.
///
/// # Errors
/// If the device fails.
pub fn learn(
    config: &Config,
    learner: &mut Learner,
    critic: Option<&mut Critic>,
    actions: &[LabelledAction],
) -> Result<AuxiliaryReport> {
    let mut learned = AuxiliaryReport::default();
    if actions.is_empty() {
        return Ok(learned);
    }
    let micro_tokens = config.grpo.micro_tokens as usize;
    let labels: Vec<Label> = actions.iter().map(|a| a.label).collect();
    for mut loss in configured(config, critic) {
        let spans = spans(actions, |action| loss.embedded(action));
        let evaluated = loss.evaluate(&learner.mean_hidden(&spans, micro_tokens)?, &labels);
        if let Some(gradient) = evaluated.d_embeddings {
            learned.unique_tokens += learner.backward_spans(&spans, micro_tokens, &gradient)?;
        }
        learned.losses.push((loss.metric(), evaluated.loss));
        learned.accuracy = learned.accuracy.or(evaluated.accuracy);
    }
    Ok(learned)
}

/// How well the value head classifies `actions`; nothing is learnt.
///
/// # Errors
/// If the device fails.
pub fn accuracy(
    config: &Config,
    learner: &mut Learner,
    critic: &Critic,
    actions: &[LabelledAction],
) -> Result<Accuracy> {
    let hidden = learner.mean_hidden(&spans(actions, critic::last), config.grpo.micro_tokens as usize)?;
    let labels: Vec<Label> = actions.iter().map(|a| a.label).collect();
    Ok(critic.classify(&hidden, &labels, 1.0).accuracy)
}

fn spans(actions: &[LabelledAction], of: impl Fn(&Range<usize>) -> Range<usize>) -> Vec<Span<'_>> {
    actions.iter().map(|a| Span { tokens: &a.tokens, span: of(&a.action) }).collect()
}
