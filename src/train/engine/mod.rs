//! A model in training, wherever its numbers live: what the rest of the trainer knows of devices.

mod cpu;
pub(crate) mod cuda;
pub mod cuda_grams;

pub use cpu::{CpuEngine, CpuScorer};
pub use cuda::{CudaEngine, CudaScorer};

use super::TrainError;
use super::moments::Moments;
use super::optimizer::StepReport;
use crate::config::{Lora, Optim};
use crate::coupling::{Grams, StateAction};
use crate::device::{Gpu, Result};
use crate::forest::Forest;
use crate::grpo::PolicyLoss;
use crate::model::{Architecture, Model, Params, Policy, SavedActivations};
use crate::ops::advantage::{self, Scale};
use crate::ops::grouped_logprob::TokenGrad;
use std::borrow::Cow;

/// Scores tokens. The frozen reference of the KL term needs no more.
pub trait Scorer {
    /// Runs the decoder over `forest`, for the calls that follow.
    ///
    /// # Errors
    /// If the device fails.
    fn forward(&mut self, forest: &Forest, keep: SavedActivations) -> Result<()>;

    /// Log-prob (at `temperature`) of each of `nodes` given its parent, and the entropy (nats) of that distribution.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// Without a forward pass over `forest`.
    fn logprobs(&self, forest: &Forest, nodes: &[u32], temperature: f32) -> Result<(Vec<f32>, Vec<f32>)>;
}

/// The policy in training: weights, the gradient accumulated since the last optimizer step, and the optimizer's moments.
///
/// A backward pass needs a forward pass over the same forest that kept something, and uses it up.
pub trait Engine: Scorer {
    /// The shape of the model.
    fn architecture(&self) -> &Architecture;

    /// What to sample from: the weights as they are now.
    fn policy(&self) -> &dyn Policy;

    /// Final hidden states of the last forward pass, `[tokens, hidden]`.
    ///
    /// # Errors
    /// If the device fails.
    fn hidden(&self) -> Result<Cow<'_, [f32]>>;

    /// Calls `loss(i, logprob, entropy)` for each of `nodes`, in a fixed order, and adds the gradient of what it says.
    ///
    /// # Errors
    /// If the device fails.
    fn backward(
        &mut self,
        forest: &Forest,
        nodes: &[u32],
        temperature: f32,
        loss: &mut dyn FnMut(usize, f32, f32) -> TokenGrad,
    ) -> Result<()>;

    /// Adds the gradient of a policy loss of the samples of `forest`, which gets its terms; `watch` is told each scored token and its
    /// log-prob. A device that computes the loss itself needs no answer from the host between the passes.
    ///
    /// # Errors
    /// If the device fails.
    fn backward_policy(
        &mut self,
        forest: &Forest,
        temperature: f32,
        loss: &mut PolicyLoss<'_>,
        watch: &mut dyn FnMut(u32, f32),
    ) -> Result<()> {
        let nodes = loss.nodes().to_vec();
        if loss.needs_logprobs() {
            loss.set_logprobs(&self.logprobs(forest, &nodes, temperature)?.0);
        }
        self.backward(forest, &nodes, temperature, &mut |i, logprob, entropy| {
            watch(nodes[i], logprob);
            loss.token(i, logprob, entropy)
        })
    }

    /// The advantages of `rewards`, see [`crate::ops::advantage::advantages`].
    ///
    /// # Errors
    /// If the device fails.
    fn advantages(&self, rewards: &[f64], groups: &[usize], scale: Scale, eps: f64) -> Result<Vec<f64>> {
        Ok(advantage::advantages(rewards, groups, scale, eps))
    }

    /// Adds the gradient of a loss whose gradient by the final hidden states is `d_hidden` `[tokens, hidden]`.
    ///
    /// # Errors
    /// If the device fails.
    fn backward_hidden(&mut self, forest: &Forest, d_hidden: &[f32]) -> Result<()>;

    /// A step of AdamW, which counts it in `steps`: clips, updates the weights and clears the gradient. A gradient that is not finite
    /// changes nothing.
    ///
    /// # Errors
    /// If the device fails.
    fn step(&mut self, optim: &Optim, lr: f32, steps: &mut u32) -> Result<StepReport>;

    /// The gradient accumulated since the last step.
    ///
    /// # Errors
    /// If the device fails.
    fn grads(&self) -> Result<Cow<'_, Params>>;

    /// The same; accumulation begins anew.
    ///
    /// # Errors
    /// If the device fails.
    fn take_grads(&mut self) -> Result<Params>;

    /// Sets the accumulated gradient aside, for [`Engine::combine`]; accumulation begins anew.
    ///
    /// # Errors
    /// If the device fails.
    fn set_grads_aside(&mut self) -> Result<()>;

    /// Adds the gradient set aside, that of positive advantages, to the accumulated one of negative advantages; their cosine, see
    /// [`crate::ops::pcgrad::combine`].
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// When none was set aside.
    fn combine(&mut self) -> Result<Option<f64>>;

    /// Forgets the moments.
    ///
    /// # Errors
    /// If the device fails.
    fn clear_moments(&mut self) -> Result<()>;

    /// Inner products of the samples' gradients, by the weights as they are now.
    ///
    /// # Errors
    /// If a sample is too long or holds an unknown token, or the device fails.
    fn grams(&self, samples: &[StateAction]) -> Result<Grams, TrainError>;

    /// The adapters that are trained, if not all weights are.
    fn lora(&self) -> Option<&Lora>;

    /// Calls `score` with the model as it is beside another adapter, `adapter`. Its own comes back.
    ///
    /// # Errors
    /// If `score` does, or the device fails.
    ///
    /// # Panics
    /// Without an adapter.
    fn score_beside(&mut self, adapter: &Params, score: &mut dyn FnMut(&mut dyn Scorer) -> Result<()>) -> Result<()>;

    /// What is trained, and its moments, as a checkpoint holds them.
    ///
    /// # Errors
    /// If the device fails.
    fn export(&self) -> Result<Export<'_>>;

    /// The whole model, as the host holds one.
    ///
    /// # Errors
    /// If the device fails.
    fn model(&self) -> Result<Cow<'_, Model>>;
}

/// What is trained, in f32, and AdamW's moments.
pub struct Export<'a> {
    /// All weights, or the adapter's.
    pub params: Cow<'a, Params>,
    /// First and second moments.
    pub moments: Cow<'a, Moments>,
}

const NONE_ASIDE: &str = "a gradient was set aside before";
const NO_ADAPTER: &str = "an adapter is trained";

/// A model that is never trained, where `gpu` says.
///
/// # Errors
/// If there is too little device memory.
pub fn frozen(model: Model, gpu: Option<&Gpu>) -> Result<Box<dyn Scorer>> {
    Ok(match gpu {
        Some(gpu) => Box::new(CudaScorer::new(gpu, &model, 0)?),
        None => Box::new(CpuScorer::new(model)),
    })
}
