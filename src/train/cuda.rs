//! The learner's numbers on a GPU: master weights, moments and gradients in f32, the model in bf16.
//!
//! The loss itself stays on the host: log-probs come to it, and its gradient by them goes back, a few numbers for each scored
//! token. So every loss there is trains on either device.

use super::learner::StepReport;
use super::{TrainError, cuda_coupling};
use crate::config::Optim;
use crate::coupling::{Grams, StateAction};
use crate::device::{Gpu, Part, Result, Slice, Tensor, expect};
use crate::forest::Forest;
use crate::model::backend::cuda::{CudaActivations, CudaForest, CudaModel, part};
use crate::model::{Keep, Model, Params};
use crate::ops::adamw::{self, AdamW, cuda::Rounding, cuda::State};
use crate::ops::grouped_logprob::cuda::{self as head, Head, Targets};
use crate::ops::grouped_logprob::{Target, TokenGrad};
use half::bf16;
use std::ops::Range;

/// A model in training on a GPU.
pub struct CudaTrainer {
    pub model: CudaModel,
    gpu: Gpu,
    master: Tensor<f32>,
    moments: [Tensor<f32>; 2],
    grads: Tensor<f32>,
    /// The gradient's norm, and the factor that clips it.
    norm: Tensor<f32>,
    /// Neighbouring tensors that decay alike, as one.
    spans: Vec<(Range<usize>, bool)>,
    /// Of the last forward pass.
    pass: Option<(CudaForest, CudaActivations)>,
}

impl CudaTrainer {
    /// Brings `model` and the optimiser's moments to the device, to sample at most `max_live` sequences at once.
    pub fn new(gpu: &Gpu, model: &Model, moments: &[Params; 2], max_live: usize) -> Result<CudaTrainer> {
        let layout = &model.params.layout;
        let mut spans: Vec<(Range<usize>, bool)> = Vec::new();
        for entry in &layout.entries {
            let wide = entry.range.len();
            expect("adamw", wide.is_multiple_of(8), || {
                format!("{} has {wide} elements, no multiple of 8", entry.name)
            })?;
            match spans.last_mut() {
                Some((last, decay)) if *decay == entry.decay && last.end == entry.range.start => {
                    last.end = entry.range.end;
                }
                _ => spans.push((entry.range.clone(), entry.decay)),
            }
        }
        let [m, v] = moments;
        Ok(CudaTrainer {
            model: CudaModel::new(gpu, model, max_live)?,
            master: gpu.tensor(&model.params.flat)?,
            moments: [gpu.tensor(&m.flat)?, gpu.tensor(&v.flat)?],
            grads: gpu.zeros(layout.len)?,
            norm: gpu.uninit(2)?,
            spans,
            pass: None,
            gpu: gpu.clone(),
        })
    }

    /// Runs the decoder over `forest` and keeps what the backward pass reads.
    pub fn forward(&mut self, forest: &Forest, keep: Keep) -> Result<()> {
        // What the last pass kept is given back first.
        self.pass = None;
        let packed = self.model.forest(forest)?;
        let acts = self.model.forward(&packed, keep)?;
        self.pass = Some((packed, acts));
        Ok(())
    }

    /// Log-prob and entropy (at `temperature`) of each node of the last forward pass's forest in `nodes`.
    ///
    /// # Panics
    /// Without a forward pass.
    pub fn logprobs(&self, forest: &Forest, nodes: &[u32], temperature: f32) -> Result<(Vec<f32>, Vec<f32>)> {
        let (_, acts) = self.pass.as_ref().expect(NO_PASS);
        let (targets, weight) = (self.targets(forest, nodes)?, self.head_weight());
        let head = Head { weight: &weight, hidden: &acts.hidden, width: self.model.config.hidden_size, temperature };
        let scores = head::forward(&self.gpu, head, &targets)?;
        scores.read(&self.gpu, &targets)
    }

    /// Calls `loss(i, logprob, entropy)` for each of `nodes`, in a fixed order, and adds the gradient of what it says.
    ///
    /// # Panics
    /// Without a forward pass.
    pub fn backward(
        &mut self,
        forest: &Forest,
        nodes: &[u32],
        temperature: f32,
        loss: &mut dyn FnMut(usize, f32, f32) -> TokenGrad,
    ) -> Result<()> {
        let d_hidden = self.head_backward(forest, nodes, temperature, loss)?;
        self.decoder_backward(&d_hidden)
    }

    /// The head's part of [`CudaTrainer::backward`]: the gradient of the final hidden states.
    pub fn head_backward(
        &mut self,
        forest: &Forest,
        nodes: &[u32],
        temperature: f32,
        loss: &mut dyn FnMut(usize, f32, f32) -> TokenGrad,
    ) -> Result<Tensor<bf16>> {
        let (_, acts) = self.pass.as_ref().expect(NO_PASS);
        let gpu = &self.gpu;
        let (targets, weight) = (self.targets(forest, nodes)?, self.head_weight());
        let head = Head { weight: &weight, hidden: &acts.hidden, width: self.model.config.hidden_size, temperature };
        let scores = head::forward(gpu, head, &targets)?;
        let (logprob, entropy) = scores.read(gpu, &targets)?;
        let by_node: Vec<TokenGrad> = (0..nodes.len()).map(|i| loss(i, logprob[i], entropy[i])).collect();
        let ordered = |of: fn(&TokenGrad) -> f32| targets.order.iter().map(|&i| of(&by_node[i])).collect::<Vec<f32>>();
        let (d_logprob, d_entropy) = (gpu.tensor(&ordered(|g| g.logprob))?, gpu.tensor(&ordered(|g| g.entropy))?);
        let d_hidden = gpu.zeros::<bf16>(acts.hidden.len())?;
        let d_weight = part(&self.grads, &self.model.layout.head);
        head::backward(gpu, head, &targets, &scores, (&d_logprob, &d_entropy), &d_weight, &d_hidden)?;
        Ok(d_hidden)
    }

    /// The decoder's part of [`CudaTrainer::backward`], which uses the forward pass up.
    pub fn decoder_backward(&mut self, d_hidden: &Slice<bf16>) -> Result<()> {
        let (packed, mut acts) = self.pass.take().expect(NO_PASS);
        self.model.backward(&packed, &mut acts, d_hidden, &self.grads)
    }

    /// As [`Grams::new`], recomputing activations.
    pub fn grams(&self, samples: &[StateAction]) -> Result<Grams, TrainError> {
        cuda_coupling::grams(&self.gpu, &self.model, samples, Keep::LayerInputs)
    }

    fn targets(&self, forest: &Forest, nodes: &[u32]) -> Result<Targets> {
        let target = |&n: &u32| Target { row: forest.parent[n as usize], token: forest.tokens[n as usize] };
        Targets::new(&self.gpu, &nodes.iter().map(target).collect::<Vec<_>>(), forest.len())
    }

    fn head_weight(&self) -> Part<'_, bf16> {
        part(&self.model.weights, &self.model.layout.head)
    }

    /// As [`super::learner::Learner::step`].
    pub fn step(&mut self, optim: &Optim, lr: f32, steps: &mut u32) -> Result<StepReport> {
        let gpu = &self.gpu;
        adamw::cuda::grad_norm(gpu, &self.grads, optim.clip, &self.norm)?;
        let grad_norm = f64::from(gpu.read(&*self.norm)?[0]);
        let skipped = !grad_norm.is_finite();
        if !skipped {
            *steps += 1;
            let update = AdamW {
                lr,
                beta1: optim.beta1,
                beta2: optim.beta2,
                eps: optim.eps,
                weight_decay: optim.weight_decay,
                // The factor is on the device.
                grad_scale: 1.0,
                step: *steps,
            };
            let scale = part(&self.norm, &(1..2));
            for (at, decay) in &self.spans {
                let [p, m, v, g] =
                    [&self.master, &self.moments[0], &self.moments[1], &self.grads].map(|of| part(of, at));
                let copy = part(&self.model.weights, at);
                let state = State { p: &p, m: &m, v: &v, copy: &copy };
                adamw::cuda::step(gpu, &update, *decay, &state, &g, &scale, Rounding::Nearest)?;
            }
        }
        gpu.zero(&*self.grads)?;
        Ok(StepReport { grad_norm, skipped })
    }

    /// The gradient accumulated since the last step; accumulation begins anew.
    pub fn take_grads(&mut self, into: &mut Params) -> Result<()> {
        into.flat = self.gpu.read(&*self.grads)?;
        self.gpu.zero(&*self.grads)
    }

    /// Replaces the accumulated gradient.
    pub fn put_grads(&mut self, grads: &Params) -> Result<()> {
        self.gpu.write(&*self.grads, &grads.flat)
    }

    /// Forgets the moments.
    pub fn clear_moments(&mut self) -> Result<()> {
        self.moments.iter().try_for_each(|m| self.gpu.zero(&**m))
    }

    /// Brings the master weights and the moments back.
    pub fn read(&self, params: &mut Params, moments: &mut [Params; 2]) -> Result<()> {
        params.flat = self.gpu.read(&*self.master)?;
        for (host, device) in moments.iter_mut().zip(&self.moments) {
            host.flat = self.gpu.read(&**device)?;
        }
        Ok(())
    }
}

const NO_PASS: &str = "a forward pass comes first";
