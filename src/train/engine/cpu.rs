//! The engine on the CPU, in f32.

use super::{Engine, Export, NO_ADAPTER, NONE_ASIDE, Scorer};
use crate::config::{Lora, Optim};
use crate::coupling::{CouplingError, Grams, StateAction};
use crate::device::Result;
use crate::forest::Forest;
use crate::model::{Activations, Adapter, Architecture, Model, Params, Policy, SavedActivations};
use crate::ops::grouped_logprob::TokenGrad;
use crate::ops::pcgrad;
use crate::train::TrainError;
use crate::train::moments::Moments;
use crate::train::optimizer::{StepReport, step_8bit, step_f32, update};
use std::borrow::Cow;

/// A model and its last forward pass.
pub struct CpuScorer {
    model: Model,
    acts: Activations,
}

impl CpuScorer {
    /// A scorer with this model.
    pub fn new(model: Model) -> CpuScorer {
        CpuScorer { model, acts: Activations::default() }
    }
}

impl Scorer for CpuScorer {
    fn forward(&mut self, forest: &Forest, keep: SavedActivations) -> Result<()> {
        self.model.forward(forest, keep, &mut self.acts);
        Ok(())
    }

    fn logprobs(&self, forest: &Forest, nodes: &[u32], temperature: f32) -> Result<(Vec<f32>, Vec<f32>)> {
        Ok(self.model.logprobs(forest, &self.acts, nodes, temperature))
    }
}

/// A model in training.
pub struct CpuEngine {
    scorer: CpuScorer,
    moments: Moments,
    grads: Params,
    /// See [`Engine::set_grads_aside`].
    aside: Option<Params>,
    d_hidden: Vec<f32>,
}

impl CpuEngine {
    /// An engine with this model and AdamW's two moments of what is trained.
    pub fn new(model: Model, moments: Moments) -> CpuEngine {
        let grads = Params::zeros(model.trained().layout.clone());
        CpuEngine { scorer: CpuScorer::new(model), moments, grads, aside: None, d_hidden: Vec::new() }
    }
}

impl Scorer for CpuEngine {
    fn forward(&mut self, forest: &Forest, keep: SavedActivations) -> Result<()> {
        self.scorer.forward(forest, keep)
    }

    fn logprobs(&self, forest: &Forest, nodes: &[u32], temperature: f32) -> Result<(Vec<f32>, Vec<f32>)> {
        self.scorer.logprobs(forest, nodes, temperature)
    }
}

impl Engine for CpuEngine {
    fn architecture(&self) -> &Architecture {
        &self.scorer.model.config
    }

    fn policy(&self) -> &dyn Policy {
        &self.scorer.model
    }

    fn hidden(&self) -> Result<Cow<'_, [f32]>> {
        Ok(Cow::Borrowed(&self.scorer.acts.hidden))
    }

    fn backward(
        &mut self,
        forest: &Forest,
        nodes: &[u32],
        temperature: f32,
        loss: &mut dyn FnMut(usize, f32, f32) -> TokenGrad,
    ) -> Result<()> {
        let CpuEngine { scorer: CpuScorer { model, acts }, grads, d_hidden, .. } = self;
        model.head_backward(forest, acts, nodes, temperature, loss, d_hidden, grads);
        model.backward(forest, acts, d_hidden, grads);
        Ok(())
    }

    fn backward_hidden(&mut self, forest: &Forest, d: &[f32]) -> Result<()> {
        let CpuEngine { scorer: CpuScorer { model, acts }, grads, d_hidden, .. } = self;
        d_hidden.clear();
        d_hidden.extend_from_slice(d);
        model.backward(forest, acts, d_hidden, grads);
        Ok(())
    }

    fn step(&mut self, optim: &Optim, lr: f32, steps: &mut u32) -> Result<StepReport> {
        let CpuEngine { scorer: CpuScorer { model, .. }, moments, grads, .. } = self;
        let report = update(optim, lr, steps, grads, |o, grads| match moments {
            Moments::F32(both) => step_f32(o, model.trained_mut(), grads, both),
            Moments::Dynamic8(both) => step_8bit(o, model.trained_mut(), grads, both, optim.stochastic_rounding),
        });
        model.trained_changed();
        Ok(report)
    }

    fn grads(&self) -> Result<Cow<'_, Params>> {
        Ok(Cow::Borrowed(&self.grads))
    }

    fn take_grads(&mut self) -> Result<Params> {
        let zeros = Params::zeros(self.grads.layout.clone());
        Ok(std::mem::replace(&mut self.grads, zeros))
    }

    fn set_grads_aside(&mut self) -> Result<()> {
        self.aside = Some(self.take_grads()?);
        Ok(())
    }

    fn combine(&mut self) -> Result<Option<f64>> {
        let positive = self.aside.take().expect(NONE_ASIDE);
        Ok(pcgrad::combine(&positive.flat, &mut self.grads.flat))
    }

    fn clear_moments(&mut self) -> Result<()> {
        self.moments.clear();
        Ok(())
    }

    fn grams(&self, samples: &[StateAction]) -> Result<Grams, TrainError> {
        Ok(Grams::new(&self.scorer.model, samples, SavedActivations::LayerInputs).map_err(CouplingError::from)?)
    }

    fn lora(&self) -> Option<&Lora> {
        self.scorer.model.adapter.as_ref().map(Adapter::lora)
    }

    fn score_beside(&mut self, adapter: &Params, score: &mut dyn FnMut(&mut dyn Scorer) -> Result<()>) -> Result<()> {
        assert!(self.scorer.model.adapter.is_some(), "{NO_ADAPTER}");
        let own = std::mem::replace(self.scorer.model.trained_mut(), adapter.clone());
        self.scorer.model.trained_changed();
        let scored = score(&mut self.scorer);
        *self.scorer.model.trained_mut() = own;
        self.scorer.model.trained_changed();
        scored
    }

    fn export(&self) -> Result<Export<'_>> {
        Ok(Export { params: Cow::Borrowed(self.scorer.model.trained()), moments: Cow::Borrowed(&self.moments) })
    }

    fn model(&self) -> Result<Cow<'_, Model>> {
        Ok(Cow::Borrowed(&self.scorer.model))
    }
}
