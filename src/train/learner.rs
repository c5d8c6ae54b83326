//! The training step: losses over micro-batches, and the optimizer step that ends them.

use super::TrainError;
use super::engine::{self, Engine, Export, Scorer};
use super::moments::Moments;
use super::optimizer::StepReport;
use crate::config::{Grpo, Lora, MomentDtype, Optim};
use crate::coupling::{Grams, StateAction};
use crate::device::{Gpu, Result};
use crate::forest::Forest;
use crate::grpo::{LossNormalizer, LossReport, PolicyLoss, Sample};
use crate::model::{Architecture, Model, Params, Policy, SavedActivations};
use crate::ops::advantage::Scale;
use crate::ops::grouped_logprob::TokenGrad;
use std::borrow::Cow;
use std::ops::Range;

/// The policy in training. Gradients add up over micro-batches until [`Learner::step`].
pub struct Learner {
    engine: Box<dyn Engine>,
    /// Optimizer steps taken.
    pub steps: u32,
    keep: SavedActivations,
}

impl Learner {
    /// On the CPU, with moments in f32 that are 0.
    pub fn new(model: Model, recompute: bool) -> Learner {
        Learner::with_moments(model, recompute, MomentDtype::F32)
    }

    /// The same with moments of another kind.
    pub fn with_moments(model: Model, recompute: bool, dtype: MomentDtype) -> Learner {
        let moments = Moments::zeros(dtype, &model.trained().layout);
        Learner::on(Box::new(engine::CpuEngine::new(model, moments)), recompute)
    }

    /// On an engine that is there; with `recompute`, activations are computed again in the backward pass.
    pub fn on(engine: Box<dyn Engine>, recompute: bool) -> Learner {
        Learner {
            engine,
            steps: 0,
            keep: if recompute { SavedActivations::LayerInputs } else { SavedActivations::All },
        }
    }

    /// Trains, with `optim`'s steps, and samples on `gpu` from now on, at most `max_live` sequences at once.
    ///
    /// # Errors
    /// If there is too little device memory.
    pub fn to_gpu(&mut self, gpu: &Gpu, optim: &Optim, max_live: usize) -> Result<()> {
        let (model, Export { moments, .. }) = (self.engine.model()?, self.engine.export()?);
        let engine = engine::CudaEngine::new(gpu, &model, &moments, optim, max_live)?;
        self.engine = Box::new(engine);
        Ok(())
    }

    /// The shape of the model.
    pub fn architecture(&self) -> &Architecture {
        self.engine.architecture()
    }

    /// What to sample from: the weights as they are now, where they are trained.
    pub fn sampler(&self) -> &dyn Policy {
        self.engine.policy()
    }

    /// What is trained, and its moments, as a checkpoint holds them.
    ///
    /// # Errors
    /// If the device fails.
    pub fn export(&self) -> Result<Export<'_>> {
        self.engine.export()
    }

    /// The whole model, as the host holds one.
    ///
    /// # Errors
    /// If the device fails.
    pub fn model(&self) -> Result<Cow<'_, Model>> {
        self.engine.model()
    }

    /// The adapters that are trained, if not all weights are.
    pub fn lora(&self) -> Option<&Lora> {
        self.engine.lora()
    }

    /// Calls `score` with the model as it is beside another adapter. Its own comes back.
    ///
    /// # Errors
    /// If `score` does, or the device fails.
    ///
    /// # Panics
    /// Without an adapter.
    pub fn score_beside(
        &mut self,
        adapter: &Params,
        score: &mut dyn FnMut(&mut dyn Scorer) -> Result<()>,
    ) -> Result<()> {
        self.engine.score_beside(adapter, score)
    }

    /// Another objective begins: forgets the moments and the steps taken.
    ///
    /// # Errors
    /// If the device fails.
    pub fn reset_optimizer(&mut self) -> Result<()> {
        self.steps = 0;
        self.engine.clear_moments()
    }

    /// The gradient accumulated since the last step.
    ///
    /// # Errors
    /// If the device fails.
    pub fn grads(&self) -> Result<Cow<'_, Params>> {
        self.engine.grads()
    }

    /// The gradient accumulated since the last step; accumulation begins anew.
    ///
    /// # Errors
    /// If the device fails.
    pub fn take_grads(&mut self) -> Result<Params> {
        self.engine.take_grads()
    }

    /// Sets the accumulated gradient aside, for [`Learner::combine`]; accumulation begins anew.
    ///
    /// # Errors
    /// If the device fails.
    pub fn set_grads_aside(&mut self) -> Result<()> {
        self.engine.set_grads_aside()
    }

    /// Adds the gradient set aside, that of positive advantages, to the accumulated one of negative advantages; their cosine, see
    /// [`crate::ops::pcgrad::combine`].
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// When none was set aside.
    pub fn combine(&mut self) -> Result<Option<f64>> {
        self.engine.combine()
    }

    /// Adds the gradient of the policy loss of one micro-batch; also returns the packed tokens. `watch` is told each scored
    /// token's log-prob when it was sampled, and now.
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward_policy(
        &mut self,
        config: &Grpo,
        samples: &[Sample],
        norm: LossNormalizer,
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
        self.engine.forward(&forest, self.keep)?;
        let watch = &mut |node: u32, logprob| watch(sampled[node as usize], logprob);
        self.engine.backward_policy(&forest, temperature, &mut loss, watch)?;
        Ok((loss.finish(), forest.len()))
    }

    /// The advantages of `rewards`, see [`crate::ops::advantage::advantages`].
    ///
    /// # Errors
    /// If the device fails.
    pub fn advantages(&self, rewards: &[f64], groups: &[usize], scale: Scale, eps: f64) -> Result<Vec<f64>> {
        self.engine.advantages(rewards, groups, scale, eps)
    }

    /// Log-prob and entropy of each of `nodes`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn logprobs(&mut self, forest: &Forest, nodes: &[u32], temperature: f32) -> Result<(Vec<f32>, Vec<f32>)> {
        self.engine.forward(forest, self.keep)?;
        self.engine.logprobs(forest, nodes, temperature)
    }

    /// Adds the gradient of the mean cross-entropy over the masked tokens of all sequences; returns the mean.
    ///
    /// # Errors
    /// If the device fails.
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
        self.engine.forward(&forest, self.keep)?;
        self.engine.backward(&forest, &nodes, 1.0, &mut |i, logprob, _| {
            let weight = count[nodes[i] as usize] / total;
            sum -= f64::from(weight) * f64::from(logprob);
            TokenGrad { logprob: -weight, entropy: 0.0 }
        })?;
        Ok(sum)
    }

    /// The mean hidden state of each span, `[spans, hidden]`, about `micro_tokens` tokens at a time.
    ///
    /// # Errors
    /// If the device fails.
    pub fn mean_hidden(&mut self, spans: &[Span<'_>], micro_tokens: usize) -> Result<Vec<f32>> {
        let width = self.architecture().hidden_size;
        let mut means = Vec::with_capacity(spans.len() * width);
        for spans in Span::batches(spans, micro_tokens) {
            let forest = Span::forest(spans);
            self.engine.forward(&forest, SavedActivations::Nothing)?;
            let hidden = self.engine.hidden()?;
            for (span, path) in spans.iter().zip(&forest.paths) {
                let mut mean = vec![0.0; width];
                for &node in &path[span.span.clone()] {
                    let row = &hidden[node as usize * width..][..width];
                    mean.iter_mut().zip(row).for_each(|(sum, h)| *sum += h / span.span.len() as f32);
                }
                means.extend(mean);
            }
        }
        Ok(means)
    }

    /// Adds the gradient of a loss whose gradient by each span's mean hidden state is `d_mean` `[spans, hidden]`; returns the
    /// packed tokens. Spans are taken about `micro_tokens` tokens at a time.
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward_spans(&mut self, spans: &[Span<'_>], micro_tokens: usize, d_mean: &[f32]) -> Result<usize> {
        let width = self.architecture().hidden_size;
        let (mut packed, mut d_mean) = (0, d_mean.chunks_exact(width));
        for spans in Span::batches(spans, micro_tokens) {
            let forest = Span::forest(spans);
            self.engine.forward(&forest, self.keep)?;
            let mut d_hidden = vec![0.0; forest.len() * width];
            for ((span, path), d) in spans.iter().zip(&forest.paths).zip(&mut d_mean) {
                for &node in &path[span.span.clone()] {
                    let row = &mut d_hidden[node as usize * width..][..width];
                    row.iter_mut().zip(d).for_each(|(sum, d)| *sum += d / span.span.len() as f32);
                }
            }
            self.engine.backward_hidden(&forest, &d_hidden)?;
            packed += forest.len();
        }
        Ok(packed)
    }

    /// Inner products of the samples' gradients, by the weights as they are now.
    ///
    /// # Errors
    /// If a sample is too long or holds an unknown token, or the device fails.
    pub fn grams(&self, samples: &[StateAction]) -> Result<Grams, TrainError> {
        self.engine.grams(samples)
    }

    /// Clips, updates the parameters and clears the gradient. A gradient that is not finite changes nothing.
    ///
    /// # Errors
    /// If the device fails.
    pub fn step(&mut self, optim: &Optim, lr: f32) -> Result<StepReport> {
        self.engine.step(optim, lr, &mut self.steps)
    }
}

/// Tokens of a sequence whose mean hidden state a loss reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Span<'a> {
    /// The whole sequence.
    pub tokens: &'a [u32],
    /// Not empty.
    pub span: Range<usize>,
}

impl Span<'_> {
    /// Neighbours of about `tokens` tokens together, before sharing.
    fn batches<'a, 'b>(spans: &'a [Span<'b>], tokens: usize) -> impl Iterator<Item = &'a [Span<'b>]> {
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

    fn forest(spans: &[Span<'_>]) -> Forest {
        Forest::new(&spans.iter().map(|s| s.tokens).collect::<Vec<_>>())
    }
}
