//! The value head in training: its weights and its optimizer state.

use super::TrainError;
use super::optimizer::{StepReport, step_f32, update};
use crate::config::Optim;
use crate::gcd::critic::{Classified, classify};
use crate::gcd::{AuxiliaryLoss, Label, LossValue};
use crate::model::Params;
use crate::model::checkpoint::{self, SaveDtype};
use crate::model::params::Layout;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Its files in a checkpoint, beside the model's: weights and AdamW's moments.
const FILES: [&str; 3] = ["critic.safetensors", "critic_m.safetensors", "critic_v.safetensors"];

/// The value head's loss: `lambda` times the cross-entropy of the hidden state in which an action ends.
pub struct CriticLoss<'a> {
    /// The value head, which the loss trains.
    pub critic: &'a mut Critic,
    /// The weight of its loss.
    pub lambda: f32,
    /// The policy does not learn from it.
    pub isolated: bool,
}

impl AuxiliaryLoss for CriticLoss<'_> {
    fn metric(&self) -> &'static str {
        "gcd/critic_loss"
    }

    fn embedded(&self, action: &Range<usize>) -> Range<usize> {
        last(action)
    }

    fn evaluate(&mut self, embeddings: &[f32], labels: &[Label]) -> LossValue {
        let classified = self.critic.classify(embeddings, labels, self.lambda);
        self.critic.accumulate(&classified);
        let Classified { loss, accuracy, d_hidden, .. } = classified;
        LossValue { loss, accuracy: Some(accuracy), d_embeddings: (!self.isolated).then_some(d_hidden) }
    }
}

/// An action's last token: the head classifies the hidden state there.
pub(super) fn last(action: &Range<usize>) -> Range<usize> {
    action.end - 1..action.end
}

/// A linear classifier of hidden states. Its gradient is clipped by its own norm, so that it never shortens the policy's step.
pub struct Critic {
    /// `critic.weight` `[hidden]`, then `critic.bias` `[1]`.
    params: Params,
    moments: [Params; 2],
    grads: Params,
    /// Optimizer steps taken.
    pub steps: u32,
}

impl Critic {
    /// A head that finds everything as good as bad.
    pub fn new(hidden_size: usize) -> Critic {
        let tensors: [(_, &[usize], _); 2] = [("critic.weight", &[hidden_size], true), ("critic.bias", &[1], false)];
        let layout = Arc::new(Layout::of(&tensors));
        let zeros = || Params::zeros(layout.clone());
        Critic { params: zeros(), moments: [zeros(), zeros()], grads: zeros(), steps: 0 }
    }

    /// The head's weight and bias.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// What the head says of the hidden states `[pairs, hidden]`; see [`classify`].
    ///
    /// # Panics
    /// Never: a head has a bias.
    pub fn classify(&self, hidden: &[f32], labels: &[Label], scale: f32) -> Classified {
        let (bias, weight) = self.params.flat.split_last().expect("a head has a bias");
        classify(weight, *bias, hidden, labels, scale)
    }

    /// Adds the gradient of the head's weights.
    pub fn accumulate(&mut self, classified: &Classified) {
        let gradient = classified.d_weight.iter().chain([&classified.d_bias]);
        self.grads.flat.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
    }

    /// The step of the policy's optimizer, on the head's own gradient.
    pub fn step(&mut self, optim: &Optim, lr: f32) -> StepReport {
        let Critic { params, moments, grads, steps } = self;
        update(optim, lr, steps, grads, |o, grads| step_f32(o, params, grads, moments))
    }

    fn files(&mut self) -> [&mut Params; 3] {
        let [m, v] = &mut self.moments;
        [&mut self.params, m, v]
    }

    /// Writes the files of a checkpoint into `dir`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), TrainError> {
        let [m, v] = &self.moments;
        for (name, params) in FILES.iter().zip([&self.params, m, v]) {
            checkpoint::save_params(&dir.join(name), params, SaveDtype::F32)?;
        }
        Ok(())
    }

    /// Reads them back; `None` when the checkpoint has no value head.
    ///
    /// # Errors
    /// If a file is damaged, or of another size.
    pub fn load(dir: &Path, hidden_size: usize, steps: u32) -> Result<Option<Critic>, TrainError> {
        if !dir.join(FILES[0]).exists() {
            return Ok(None);
        }
        let mut critic = Critic { steps, ..Critic::new(hidden_size) };
        for (name, params) in FILES.iter().zip(critic.files()) {
            *params = checkpoint::load_params(&dir.join(name), &params.layout)?;
        }
        Ok(Some(critic))
    }
}
