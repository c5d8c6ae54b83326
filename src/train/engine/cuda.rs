//! The engine on a GPU: the model in bf16; master weights, moments and gradients in f32.
//!
//! The policy loss is computed on the device, and what it came to is read when all is done. Other losses stay on the host: log-probs
//! come to them, and their gradient by them goes back, a few numbers for each scored token. So every loss there is trains on either
//! device.

use super::{Engine, Export, NO_ADAPTER, NONE_ASIDE, Scorer, cuda_grams};
use crate::config::{Grpo, Lora, Optim};
use crate::coupling::{Grams, StateAction};
use crate::device::{Gpu, Packed, Result, Slice, SubSlice, Tensor, expect};
use crate::forest::Forest;
use crate::grpo::{PolicyLoss, UseFound};
use crate::model::backend::cuda::{CudaActivations, CudaForest, CudaModel};
use crate::model::backend::cuda_sink::part;
use crate::model::params::Layout;
use crate::model::{Adapter, Architecture, Model, Params, Policy, SavedActivations};
use crate::ops::adamw::AdamW;
use crate::ops::adamw::{
    self,
    cuda::{Decays, OptimizerState, Rounding},
};
use crate::ops::adamw_8bit::{
    self,
    cuda::{Kept, Tensor8},
};
use crate::ops::advantage::{self, Scale};
use crate::ops::grouped_logprob::cuda::{self as head, Gradients, Head, Targets, Uses};
use crate::ops::grouped_logprob::{Target, TokenGrad};
use crate::ops::pcgrad;
use crate::train::TrainError;
use crate::train::moments::{Codes, Moments, scales};
use crate::train::optimizer::{StepReport, adamw_step, weight_rounding};
use half::bf16;
use std::borrow::Cow;
use std::sync::Arc;

/// A model on a GPU and its last forward pass.
pub struct CudaScorer {
    /// The model on the device.
    pub model: CudaModel,
    gpu: Gpu,
    pass: Option<(CudaForest, CudaActivations)>,
}

impl CudaScorer {
    /// Brings `model` to the device, to sample at most `max_live` sequences at once.
    ///
    /// # Errors
    /// If there is too little device memory.
    pub fn new(gpu: &Gpu, model: &Model, max_live: usize) -> Result<CudaScorer> {
        Ok(CudaScorer { model: CudaModel::new(gpu, model, max_live)?, gpu: gpu.clone(), pass: None })
    }

    /// Puts another adapter in the place of the model's, which comes back.
    fn exchange_adapter(&mut self, weights: Tensor<bf16>) -> Tensor<bf16> {
        let adapter = self.model.adapter.as_mut().expect(NO_ADAPTER);
        std::mem::replace(&mut adapter.weights, weights)
    }

    fn acts(&self) -> &CudaActivations {
        &self.pass.as_ref().expect(NO_PASS).1
    }

    fn head<'a>(&self, weight: &'a SubSlice<'_, bf16>, acts: &'a CudaActivations, temperature: f32) -> Head<'a> {
        Head { weight, hidden: &acts.hidden, width: self.model.config.hidden_size, temperature }
    }

    fn targets(&self, forest: &Forest, nodes: &[u32]) -> Result<Targets> {
        let target = |&n: &u32| Target { row: forest.parent[n as usize], token: forest.tokens[n as usize] };
        Targets::new(&self.gpu, &nodes.iter().map(target).collect::<Vec<_>>(), forest.len())
    }

    fn head_weight(&self) -> SubSlice<'_, bf16> {
        part(&self.model.weights, &self.model.layout.head)
    }
}

impl Scorer for CudaScorer {
    fn forward(&mut self, forest: &Forest, keep: SavedActivations) -> Result<()> {
        // What the last pass kept is given back first.
        self.pass = None;
        let packed = self.model.forest(forest)?;
        let keep = match keep {
            SavedActivations::LayerInputs => SavedActivations::FirstLayers(self.model.layers_that_fit(forest.len())),
            other => other,
        };
        let acts = self.model.forward(&packed, keep)?;
        self.pass = Some((packed, acts));
        Ok(())
    }

    fn logprobs(&self, forest: &Forest, nodes: &[u32], temperature: f32) -> Result<(Vec<f32>, Vec<f32>)> {
        let (targets, weight) = (self.targets(forest, nodes)?, self.head_weight());
        head::forward(&self.gpu, self.head(&weight, self.acts(), temperature), &targets)?.read(&self.gpu, &targets)
    }
}

/// AdamW's moments in device memory, as [`Moments`].
enum OnDevice {
    F32([Tensor<f32>; 2]),
    Dynamic8 {
        codes: [Tensor<u8>; 2],
        absmax: [Tensor<f32>; 2],
        /// [`adamw_8bit::maps`].
        maps: Tensor<f32>,
    },
}

impl OnDevice {
    fn new(gpu: &Gpu, moments: &Moments) -> Result<OnDevice> {
        Ok(match moments {
            Moments::F32([m, v]) => OnDevice::F32([gpu.tensor(&m.flat)?, gpu.tensor(&v.flat)?]),
            Moments::Dynamic8([m, v]) => OnDevice::Dynamic8 {
                codes: [gpu.tensor(&m.codes)?, gpu.tensor(&v.codes)?],
                absmax: [gpu.tensor(&m.absmax)?, gpu.tensor(&v.absmax)?],
                maps: gpu.tensor(adamw_8bit::maps().as_flattened())?,
            },
        })
    }

    fn read(&self, gpu: &Gpu, layout: &Arc<Layout>) -> Result<Moments> {
        Ok(match self {
            OnDevice::F32([m, v]) => {
                let read = |of: &Tensor<f32>| -> Result<Params> {
                    Ok(Params { layout: layout.clone(), flat: gpu.read(&**of)? })
                };
                Moments::F32([read(m)?, read(v)?])
            }
            OnDevice::Dynamic8 { codes, absmax, .. } => {
                let read = |i: usize| -> Result<Codes> {
                    Ok(Codes { layout: layout.clone(), codes: gpu.read(&*codes[i])?, absmax: gpu.read(&*absmax[i])? })
                };
                Moments::Dynamic8([read(0)?, read(1)?])
            }
        })
    }

    fn clear(&self, gpu: &Gpu) -> Result<()> {
        match self {
            OnDevice::F32(both) => both.iter().try_for_each(|m| gpu.zero(&**m)),
            OnDevice::Dynamic8 { absmax, .. } => absmax.iter().try_for_each(|m| gpu.zero(&**m)),
        }
    }
}

/// A model in training on a GPU.
pub struct CudaEngine {
    scorer: CudaScorer,
    gpu: Gpu,
    /// In f32; none where weights are kept in bf16 alone.
    master: Option<Tensor<f32>>,
    moments: OnDevice,
    grads: Tensor<f32>,
    /// See [`Engine::set_grads_aside`].
    aside: Option<Tensor<f32>>,
    /// The gradient's norm, and the factor that clips it.
    norm: Tensor<f32>,
    decays: Decays,
}

impl CudaEngine {
    /// Brings `model` and the optimizer's moments to the device, to sample at most `max_live` sequences at once. Master weights come
    /// along unless `optim` rounds stochastically: then what the model reads is all there is.
    ///
    /// # Errors
    /// If a tensor's length is no multiple of 8, or there is too little device memory.
    pub fn new(gpu: &Gpu, model: &Model, moments: &Moments, optim: &Optim, max_live: usize) -> Result<CudaEngine> {
        let trained = model.trained();
        let layout = &trained.layout;
        for entry in &layout.entries {
            let wide = entry.range.len();
            expect("adamw", wide.is_multiple_of(8), || {
                format!("{} has {wide} elements, no multiple of 8", entry.name)
            })?;
        }
        Ok(CudaEngine {
            scorer: CudaScorer::new(gpu, model, max_live)?,
            master: if optim.stochastic_rounding { None } else { Some(gpu.tensor(&trained.flat)?) },
            moments: OnDevice::new(gpu, moments)?,
            grads: gpu.zeros(layout.len)?,
            aside: None,
            norm: gpu.uninit(2)?,
            decays: Decays::new(gpu, layout.entries.iter().map(|entry| (entry.range.len(), entry.decay)))?,
            gpu: gpu.clone(),
        })
    }

    /// The head's part of [`Engine::backward`]: the gradient of the final hidden states.
    ///
    /// # Errors
    /// If the device fails.
    pub fn head_backward(
        &mut self,
        forest: &Forest,
        nodes: &[u32],
        temperature: f32,
        loss: &mut dyn FnMut(usize, f32, f32) -> TokenGrad,
    ) -> Result<Tensor<bf16>> {
        let (gpu, scorer) = (&self.gpu, &self.scorer);
        let (targets, weight, acts) = (scorer.targets(forest, nodes)?, scorer.head_weight(), scorer.acts());
        let head = scorer.head(&weight, acts, temperature);
        let scores = head::forward(gpu, head, &targets)?;
        let (logprob, entropy) = scores.read(gpu, &targets)?;
        let by_node: Vec<TokenGrad> = (0..nodes.len()).map(|i| loss(i, logprob[i], entropy[i])).collect();
        let ordered = |of: fn(&TokenGrad) -> f32| targets.order.iter().map(|&i| of(&by_node[i])).collect::<Vec<f32>>();
        let gradients = gpu.tensors(&[&ordered(|g| g.logprob)[..], &ordered(|g| g.entropy)[..]])?;
        let d_hidden = gpu.zeros::<bf16>(acts.hidden.len())?;
        let d_weight = self.d_head();
        let (d_logprob, d_entropy) = (&gradients[0], &gradients[1]);
        let sums = Gradients { d_logprob, d_entropy, d_weight: d_weight.as_deref(), d_hidden: &d_hidden };
        head::backward(gpu, head, &targets, &scores, sums)?;
        Ok(d_hidden)
    }

    /// The decoder's part of [`Engine::backward`].
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// Without a forward pass before.
    pub fn decoder_backward(&mut self, d_hidden: &Slice<bf16>) -> Result<()> {
        let (packed, mut acts) = self.scorer.pass.take().expect(NO_PASS);
        self.scorer.model.backward(&packed, &mut acts, d_hidden, &self.grads)
    }

    fn step_8bit(
        &self,
        update: &AdamW,
        scale: &Slice<f32>,
        codes: &[Tensor<u8>; 2],
        absmax: &[Tensor<f32>; 2],
        maps: &Tensor<f32>,
    ) -> Result<()> {
        let (layout, copy) = self.scorer.model.trained();
        for (entry, scales) in layout.entries.iter().zip(scales(layout)) {
            let at = &entry.range;
            let master = self.master.as_ref().map(|master| part(master, at));
            let kept = match &master {
                Some(master) => Kept::Master(master),
                None => Kept::Copy(weight_rounding(update.step, at.start)),
            };
            let (copy, g) = (part(copy, at), part(&self.grads, at));
            let [m_codes, v_codes] = codes.each_ref().map(|of| part(of, at));
            let [m_max, v_max] = absmax.each_ref().map(|of| part(of, &scales));
            let moments = [(&m_codes, &m_max), (&v_codes, &v_max)]
                .map(|(codes, absmax)| adamw_8bit::cuda::Quantized { codes, absmax });
            let of = Tensor8 { copy: &copy, kept, g: &g, maps, scale };
            adamw_8bit::cuda::step(&self.gpu, update, entry.decay, of, moments)?;
        }
        Ok(())
    }

    /// What is trained, in f32: the master weights, or, where there are none, what the model reads.
    fn trained(&self) -> Result<Params> {
        let flat = match &self.master {
            Some(master) => self.gpu.read(&**master)?,
            None => self.gpu.read(&**self.scorer.model.trained().1)?.into_iter().map(f32::from).collect(),
        };
        Ok(self.params(flat))
    }

    /// The head's part of the gradient, unless it is frozen.
    fn d_head(&self) -> Option<SubSlice<'_, f32>> {
        let model = &self.scorer.model;
        model.adapter.is_none().then(|| part(&self.grads, &model.layout.head))
    }

    fn params(&self, flat: Vec<f32>) -> Params {
        Params { layout: self.scorer.model.trained().0.clone(), flat }
    }
}

impl Scorer for CudaEngine {
    fn forward(&mut self, forest: &Forest, keep: SavedActivations) -> Result<()> {
        self.scorer.forward(forest, keep)
    }

    fn logprobs(&self, forest: &Forest, nodes: &[u32], temperature: f32) -> Result<(Vec<f32>, Vec<f32>)> {
        self.scorer.logprobs(forest, nodes, temperature)
    }
}

impl Engine for CudaEngine {
    fn architecture(&self) -> &Architecture {
        &self.scorer.model.config
    }

    fn policy(&self) -> &dyn Policy {
        &self.scorer.model
    }

    fn hidden(&self) -> Result<Cow<'_, [f32]>> {
        let hidden = self.gpu.read(&*self.scorer.acts().hidden)?;
        Ok(Cow::Owned(hidden.into_iter().map(f32::from).collect()))
    }

    fn backward(
        &mut self,
        forest: &Forest,
        nodes: &[u32],
        temperature: f32,
        loss: &mut dyn FnMut(usize, f32, f32) -> TokenGrad,
    ) -> Result<()> {
        let d_hidden = self.head_backward(forest, nodes, temperature, loss)?;
        self.decoder_backward(&d_hidden)
    }

    /// One pass of the head's forward kernel, whatever the ratio. With ratios of whole sequences the log-probs come to the host once, in
    /// between.
    fn backward_policy(
        &mut self,
        forest: &Forest,
        temperature: f32,
        loss: &mut PolicyLoss<'_>,
        watch: &mut dyn FnMut(u32, f32),
    ) -> Result<()> {
        let nodes = loss.nodes().to_vec();
        let (gpu, scorer) = (&self.gpu, &self.scorer);
        let (targets, weight, acts) = (scorer.targets(forest, &nodes)?, scorer.head_weight(), scorer.acts());
        let head = scorer.head(&weight, acts, temperature);
        let scores = head::forward(gpu, head, &targets)?;
        if loss.needs_logprobs() {
            loss.set_logprobs(&scores.read(gpu, &targets)?.0);
        }
        let uses = uses(gpu, loss, &targets)?;
        let found = head::policy_loss(gpu, &scores, &targets, &uses, kernel_options(loss.config()))?;
        let d_hidden = gpu.zeros::<bf16>(acts.hidden.len())?;
        let d_weight = self.d_head();
        let (d_logprob, d_entropy) = (&found.d_logprob, &found.d_entropy);
        let sums = Gradients { d_logprob, d_entropy, d_weight: d_weight.as_deref(), d_hidden: &d_hidden };
        head::backward(gpu, head, &targets, &scores, sums)?;
        self.decoder_backward(&d_hidden)?;

        let gpu = &self.gpu;
        let (logprob, entropy) = scores.read(gpu, &targets)?;
        let lists = gpu.read(&*found.found)?;
        let (count, mut at) = (lists.len() / 3, 0);
        for &i in &targets.order {
            let used = loss.uses(i).count();
            let of = at..at + used;
            watch(nodes[i], logprob[i]);
            loss.add(
                i,
                entropy[i],
                of.map(|u| UseFound { term: lists[u], kl: lists[count + u], clipped: lists[2 * count + u] }),
            );
            at += used;
        }
        Ok(())
    }

    fn advantages(&self, rewards: &[f64], groups: &[usize], scale: Scale, eps: f64) -> Result<Vec<f64>> {
        let rewards: Vec<f32> = rewards.iter().map(|r| *r as f32).collect();
        let starts = groups.iter().scan(0, |at, size| {
            *at += *size as u32;
            Some(*at)
        });
        let starts: Vec<u32> = [0].into_iter().chain(starts).collect();
        let out = self.gpu.uninit(rewards.len())?;
        let (rewards, starts) = (self.gpu.tensor(&rewards)?, self.gpu.tensor(&starts)?);
        advantage::cuda::advantages(&self.gpu, &rewards, &starts, scale, eps as f32, &out)?;
        Ok(self.gpu.read(&*out)?.into_iter().map(f64::from).collect())
    }

    fn backward_hidden(&mut self, _forest: &Forest, d_hidden: &[f32]) -> Result<()> {
        let narrow: Vec<bf16> = d_hidden.iter().map(|d| bf16::from_f32(*d)).collect();
        let d_hidden = self.gpu.tensor(&narrow)?;
        self.decoder_backward(&d_hidden)
    }

    fn step(&mut self, optim: &Optim, lr: f32, steps: &mut u32) -> Result<StepReport> {
        let gpu = &self.gpu;
        adamw::cuda::grad_norm(gpu, &self.grads, optim.clip, &self.norm)?;
        let grad_norm = f64::from(gpu.read(&*self.norm)?[0]);
        let skipped = !grad_norm.is_finite();
        if !skipped {
            *steps += 1;
            // The factor that clips is on the device.
            let update = adamw_step(optim, lr, 1.0, *steps);
            let scale = part(&self.norm, &(1..2));
            match &self.moments {
                OnDevice::F32([m, v]) => {
                    let p = self.master.as_ref().expect(MASTER);
                    let state = OptimizerState { p, m, v, copy: self.scorer.model.trained().1 };
                    adamw::cuda::step(gpu, &update, &self.decays, &state, &self.grads, &scale, Rounding::Nearest)?;
                }
                OnDevice::Dynamic8 { codes, absmax, maps } => self.step_8bit(&update, &scale, codes, absmax, maps)?,
            }
        }
        // The memory is free for what comes next, a rollout perhaps.
        self.scorer.pass = None;
        self.gpu.zero(&*self.grads)?;
        Ok(StepReport { grad_norm, skipped })
    }

    fn grads(&self) -> Result<Cow<'_, Params>> {
        Ok(Cow::Owned(self.params(self.gpu.read(&*self.grads)?)))
    }

    fn take_grads(&mut self) -> Result<Params> {
        let grads = self.params(self.gpu.read(&*self.grads)?);
        self.gpu.zero(&*self.grads)?;
        Ok(grads)
    }

    fn set_grads_aside(&mut self) -> Result<()> {
        let zeros = self.gpu.zeros(self.grads.len())?;
        self.aside = Some(std::mem::replace(&mut self.grads, zeros));
        Ok(())
    }

    fn combine(&mut self) -> Result<Option<f64>> {
        let positive = self.aside.take().expect(NONE_ASIDE);
        pcgrad::cuda::combine(&self.gpu, &positive, &self.grads)
    }

    fn clear_moments(&mut self) -> Result<()> {
        self.moments.clear(&self.gpu)
    }

    fn grams(&self, samples: &[StateAction]) -> Result<Grams, TrainError> {
        cuda_grams::grams(&self.gpu, &self.scorer.model, samples, SavedActivations::LayerInputs)
    }

    fn lora(&self) -> Option<&Lora> {
        self.scorer.model.adapter.as_ref().map(|adapter| &adapter.layout.lora)
    }

    fn score_beside(&mut self, adapter: &Params, score: &mut dyn FnMut(&mut dyn Scorer) -> Result<()>) -> Result<()> {
        let rounded: Vec<bf16> = adapter.flat.iter().map(|w| bf16::from_f32(*w)).collect();
        let other = self.gpu.tensor(&rounded)?;
        let own = self.scorer.exchange_adapter(other);
        let scored = score(&mut self.scorer);
        self.scorer.exchange_adapter(own);
        scored
    }

    fn export(&self) -> Result<Export<'_>> {
        let moments = self.moments.read(&self.gpu, self.scorer.model.trained().0)?;
        Ok(Export { params: Cow::Owned(self.trained()?), moments: Cow::Owned(moments) })
    }

    fn model(&self) -> Result<Cow<'_, Model>> {
        let (on, trained) = (&self.scorer.model, self.trained()?);
        let Some(adapter) = &on.adapter else { return Ok(Cow::Owned(Model::new(on.config.clone(), trained))) };
        // Frozen weights have no copy in f32.
        let flat = self.gpu.read(&*on.weights)?.into_iter().map(f32::from).collect();
        let base = Model::new(on.config.clone(), Params { layout: on.layout.clone(), flat });
        Ok(Cow::Owned(base.with_adapter(Adapter::new(&on.config, &adapter.layout.lora, trained))))
    }
}

/// What the loss kernel reads, in the order of the targets; one upload.
fn uses(gpu: &Gpu, loss: &PolicyLoss<'_>, targets: &Targets) -> Result<Uses> {
    let (mut start, mut lists) = (vec![0u32], [const { Vec::new() }; 6]);
    for &i in &targets.order {
        for u in loss.uses(i) {
            let values = [u.advantage, u.old, u.reference, u.weight, u.ratio, u.through];
            lists.iter_mut().zip(values).for_each(|(list, value)| list.push(value));
        }
        start.push(lists[0].len() as u32);
    }
    let mut packed = Packed::default();
    let start = packed.add(&start);
    let lists = lists.map(|list: Vec<f32>| packed.add(&list));
    let mut on = packed.upload(gpu)?;
    let start = on.take(start);
    let [advantage, old, reference, weight, ratio, through] = lists.map(|list| on.take(list));
    let sequence = loss.needs_logprobs().then_some([ratio, through]);
    Ok(Uses { start, advantage, old, reference, weight, sequence })
}

/// The options of the loss, as the kernel takes them.
fn kernel_options(config: &Grpo) -> head::Policy {
    head::Policy {
        epsilon_low: config.epsilon_low,
        epsilon_high: config.epsilon_high,
        dual_clip: config.dual_clip,
        beta: config.beta,
        entropy_coef: config.entropy_coef,
        kl_ratio: config.kl_ratio.into(),
    }
}

const MASTER: &str = "moments in f32 have master weights";
const NO_PASS: &str = "a forward pass comes first";
