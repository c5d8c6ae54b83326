//! A model with its gradient and optimiser state: the training step.

use super::TrainError;
use super::critic::Critic;
use super::cuda::CudaTrainer;
use super::probe::Span;
use crate::config::{Grpo, Optim};
use crate::coupling::{CouplingError, Grams, StateAction};
use crate::device::{Gpu, Result};
use crate::forest::Forest;
use crate::grpo::{LossReport, Normaliser, PolicyLoss, Sample, pcgrad};
use crate::model::{Activations, Keep, Model, Params, Policy};
use crate::ops::adamw::{self, AdamW};
use crate::ops::grouped_logprob::TokenGrad;

/// The policy in training. Gradients add up over micro-batches until [`Learner::step`].
pub struct Learner {
    /// With a GPU, a copy that [`Learner::read_back`] brings up to date.
    pub model: Model,
    /// First and second moments of AdamW.
    pub moments: [Params; 2],
    /// Optimiser steps taken.
    pub steps: u32,
    /// The value head, where one judges; its optimiser steps are its own.
    pub critic: Option<Critic>,
    grads: Params,
    acts: Activations,
    d_hidden: Vec<f32>,
    keep: Keep,
    gpu: Option<CudaTrainer>,
}

/// What an optimiser step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// The gradient was not finite: nothing was changed.
    pub skipped: bool,
}

impl Learner {
    pub fn new(model: Model, recompute: bool) -> Learner {
        let zeros = || Params::zeros(model.params.layout.clone());
        Learner {
            moments: [zeros(), zeros()],
            grads: zeros(),
            steps: 0,
            critic: None,
            acts: Activations::default(),
            d_hidden: Vec::new(),
            keep: if recompute { Keep::LayerInputs } else { Keep::All },
            gpu: None,
            model,
        }
    }

    /// Trains and samples on `gpu` from now on, at most `max_live` sequences at once.
    pub fn to_gpu(&mut self, gpu: &Gpu, max_live: usize) -> Result<()> {
        self.gpu = Some(CudaTrainer::new(gpu, &self.model, &self.moments, max_live)?);
        Ok(())
    }

    /// What to sample from: the weights as they are now, where they are trained.
    pub fn sampler(&self) -> &dyn Policy {
        match &self.gpu {
            Some(gpu) => &gpu.model,
            None => &self.model,
        }
    }

    /// Brings `model` and `moments` up to date, where they are copies.
    pub fn read_back(&mut self) -> Result<()> {
        match &self.gpu {
            Some(gpu) => gpu.read(&mut self.model.params, &mut self.moments),
            None => Ok(()),
        }
    }

    /// Another objective begins: forgets the moments and the steps taken.
    pub fn restart(&mut self) -> Result<()> {
        self.steps = 0;
        self.moments.iter_mut().for_each(|m| m.flat.fill(0.0));
        self.gpu.as_mut().map_or(Ok(()), CudaTrainer::clear_moments)
    }

    /// The gradient accumulated since the last step.
    pub fn grads(&self) -> &Params {
        &self.grads
    }

    /// The gradient accumulated since the last step; accumulation begins anew.
    pub fn take_grads(&mut self) -> Result<Params> {
        let mut zeros = Params::zeros(self.grads.layout.clone());
        match &mut self.gpu {
            Some(gpu) => gpu.take_grads(&mut zeros)?,
            None => std::mem::swap(&mut self.grads, &mut zeros),
        }
        Ok(zeros)
    }

    /// Adds the gradient of positive advantages to the accumulated one of negative advantages, see [`pcgrad::combine`].
    pub fn combine(&mut self, positive: &Params) -> Result<Option<f64>> {
        let Some(gpu) = &mut self.gpu else { return Ok(pcgrad::combine(&positive.flat, &mut self.grads.flat)) };
        let mut negative = positive.clone();
        gpu.take_grads(&mut negative)?;
        let cosine = pcgrad::combine(&positive.flat, &mut negative.flat);
        gpu.put_grads(&negative)?;
        Ok(cosine)
    }

    /// Adds the gradient of the policy loss of one micro-batch; also returns the packed tokens. `watch` is told each scored
    /// token's log-prob when it was sampled, and now.
    pub fn policy(
        &mut self,
        config: &Grpo,
        samples: &[Sample],
        norm: Normaliser,
        temperature: f32,
        watch: &mut dyn FnMut(f32, f32),
    ) -> Result<(LossReport, usize)> {
        let tokens: Vec<&[u32]> = samples.iter().map(|s| &s.tokens[..]).collect();
        let forest = Forest::new(&tokens);
        let mut sampled = vec![f32::NAN; forest.len()];
        // A judgment's prompt holds tokens that its trajectory sampled: each sample speaks of its own only.
        for (path, sample) in forest.paths.iter().zip(samples) {
            let Some(old) = &sample.old_logprobs else { continue };
            sample.loss_positions().for_each(|t| sampled[path[t] as usize] = old[t]);
        }
        let mut loss = PolicyLoss::new(config, &forest, samples, norm);
        self.forward(&forest)?;
        let nodes = loss.nodes().to_vec();
        if loss.needs_logprobs() {
            loss.set_logprobs(&self.scores(&forest, &nodes, temperature)?.0);
        }
        self.backward(&forest, &nodes, temperature, &mut |i, logprob, entropy| {
            watch(sampled[nodes[i] as usize], logprob);
            loss.token(i, logprob, entropy)
        })?;
        Ok((loss.finish(), forest.len()))
    }

    /// Log-prob and entropy of each of `nodes`.
    pub fn logprobs(&mut self, forest: &Forest, nodes: &[u32], temperature: f32) -> Result<(Vec<f32>, Vec<f32>)> {
        self.forward(forest)?;
        self.scores(forest, nodes, temperature)
    }

    /// Of the last forward pass.
    fn scores(&self, forest: &Forest, nodes: &[u32], temperature: f32) -> Result<(Vec<f32>, Vec<f32>)> {
        match &self.gpu {
            Some(gpu) => gpu.logprobs(forest, nodes, temperature),
            None => Ok(self.model.logprobs(forest, &self.acts, nodes, temperature)),
        }
    }

    /// Adds the gradient of the mean cross-entropy over the masked tokens of all sequences; returns the mean.
    pub fn cross_entropy(&mut self, sequences: &[(&[u32], &[bool])]) -> Result<f64> {
        let tokens: Vec<&[u32]> = sequences.iter().map(|(tokens, _)| *tokens).collect();
        let forest = Forest::new(&tokens);
        let mut count = vec![0.0f32; forest.len()];
        for (path, (_, mask)) in forest.paths.iter().zip(sequences) {
            path.iter().zip(*mask).skip(1).filter(|(_, m)| **m).for_each(|(&n, _)| count[n as usize] += 1.0);
        }
        let total: f32 = count.iter().sum();
        let nodes: Vec<u32> = (0..forest.len() as u32).filter(|&n| count[n as usize] > 0.0).collect();
        let mut sum = 0.0;
        self.forward(&forest)?;
        self.backward(&forest, &nodes, 1.0, &mut |i, logprob, _| {
            let weight = count[nodes[i] as usize] / total;
            sum -= f64::from(weight) * f64::from(logprob);
            TokenGrad { logprob: -weight, entropy: 0.0 }
        })?;
        Ok(sum)
    }

    /// Adds the gradient of a loss whose gradient by each span's mean hidden state is `d_mean` `[spans, hidden]`; returns the
    /// packed tokens. Spans are taken about `micro_tokens` tokens at a time.
    pub fn backward_spans(&mut self, spans: &[Span<'_>], micro_tokens: usize, d_mean: &[f32]) -> usize {
        let Learner { model, grads, acts, d_hidden, keep, .. } = self;
        let width = model.config.hidden_size;
        let (mut packed, mut d_mean) = (0, d_mean.chunks_exact(width));
        for spans in Span::batches(spans, micro_tokens) {
            let forest = Span::forest(spans);
            model.forward(&forest, *keep, acts);
            d_hidden.clear();
            d_hidden.resize(acts.hidden.len(), 0.0);
            for ((span, path), d) in spans.iter().zip(&forest.paths).zip(&mut d_mean) {
                for &node in &path[span.span.clone()] {
                    let row = &mut d_hidden[node as usize * width..][..width];
                    row.iter_mut().zip(d).for_each(|(sum, d)| *sum += d / span.span.len() as f32);
                }
            }
            model.backward(&forest, acts, d_hidden, grads);
            packed += forest.len();
        }
        packed
    }

    fn backward(
        &mut self,
        forest: &Forest,
        nodes: &[u32],
        temperature: f32,
        loss: &mut dyn FnMut(usize, f32, f32) -> TokenGrad,
    ) -> Result<()> {
        let Learner { model, grads, acts, d_hidden, gpu, .. } = self;
        if let Some(gpu) = gpu {
            return gpu.backward(forest, nodes, temperature, loss);
        }
        model.head_backward(forest, acts, nodes, temperature, loss, d_hidden, grads);
        model.backward(forest, acts, d_hidden, grads);
        Ok(())
    }

    fn forward(&mut self, forest: &Forest) -> Result<()> {
        match &mut self.gpu {
            Some(gpu) => gpu.forward(forest, self.keep),
            None => {
                self.model.forward(forest, self.keep, &mut self.acts);
                Ok(())
            }
        }
    }

    /// Inner products of the samples' gradients, by the weights as they are now.
    pub fn grams(&self, samples: &[StateAction]) -> Result<Grams, TrainError> {
        match &self.gpu {
            Some(gpu) => gpu.grams(samples),
            None => Ok(Grams::new(&self.model, samples, Keep::LayerInputs).map_err(CouplingError::from)?),
        }
    }

    /// Clips, updates the parameters and clears the gradient. A gradient that is not finite changes nothing.
    pub fn step(&mut self, optim: &Optim, lr: f32) -> Result<StepReport> {
        let Learner { model, moments, steps, grads, gpu, .. } = self;
        match gpu {
            Some(gpu) => gpu.step(optim, lr, steps),
            None => Ok(update(optim, lr, steps, &mut model.params, grads, moments)),
        }
    }
}

/// A step of AdamW, which counts it in `steps`: clips, updates the parameters and clears the gradient. A gradient that is not
/// finite changes nothing.
pub(super) fn update(
    optim: &Optim,
    lr: f32,
    steps: &mut u32,
    params: &mut Params,
    grads: &mut Params,
    [m, v]: &mut [Params; 2],
) -> StepReport {
    let grad_norm = adamw::grad_norm(&grads.flat);
    let skipped = !grad_norm.is_finite();
    if !skipped {
        *steps += 1;
        let update = AdamW {
            lr,
            beta1: optim.beta1,
            beta2: optim.beta2,
            eps: optim.eps,
            weight_decay: optim.weight_decay,
            grad_scale: adamw::clip_scale(grad_norm, optim.clip),
            step: *steps,
        };
        for entry in &params.layout.clone().entries {
            let at = entry.range.clone();
            let (g, m, v) = (&grads.flat[at.clone()], &mut m.flat[at.clone()], &mut v.flat[at.clone()]);
            adamw::step(&update, entry.decay, &mut params.flat[at], g, m, v);
        }
    }
    grads.flat.fill(0.0);
    StepReport { grad_norm, skipped }
}
