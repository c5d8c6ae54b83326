//! Speed of a whole training step on a GPU: cross-entropy forward and backward, clipping and AdamW.

use super::ceilings::{Ceilings, middle};
use super::gpu_shapes::ModelShape;
use crate::config::Optim;
use crate::device::{Error, Gpu, Result};
use crate::forest::Forest;
use crate::model::SavedActivations;
use crate::ops::grouped_logprob::TokenGrad;
use crate::ops::philox::block;
use crate::train::engine::{CudaEngine, Engine, Scorer};
use crate::train::moments::Moments;
use serde::Serialize;

/// Timed steps; the median of each phase counts.
const STEPS: usize = 7;
const WARM_UP: usize = 2;

/// What is measured: each shape on `batch` sequences of `length` tokens, packed.
#[derive(Debug, Clone)]
pub struct StepSettings {
    /// The models' sizes.
    pub shapes: Vec<ModelShape>,
    /// Sequences in a batch.
    pub batch: usize,
    /// Tokens of a sequence.
    pub length: usize,
}

impl StepSettings {
    /// Those of the peers.
    pub fn full() -> StepSettings {
        StepSettings { shapes: ModelShape::qwen2_5(1024), batch: 16, length: 1024 }
    }

    /// What a simulated device gets through.
    pub fn small() -> StepSettings {
        StepSettings { shapes: vec![ModelShape::tiny()], batch: 2, length: 4 }
    }
}

/// One shape, with or without recomputation of activations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepRow {
    /// The shape's name.
    pub name: String,
    /// Whether activations are recomputed in the backward pass.
    pub recompute: bool,
    /// Sum of the phases.
    pub seconds: f64,
    /// Seconds of the forward pass.
    pub forward: f64,
    /// The head: log-probs, loss and their gradient.
    pub head: f64,
    /// Seconds of the backward pass.
    pub backward: f64,
    /// Seconds of the optimizer step.
    pub optimizer: f64,
    /// Tokens a second of all three.
    pub tokens_per_second: f64,
    /// Share of the measured rate of products that the step's arithmetic (recomputation not counted) amounts to.
    pub mfu: f64,
}

/// The speed of training steps on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainStepReport {
    /// The device as it describes itself.
    pub device: String,
    /// What the device can do at most.
    pub ceilings: Ceilings,
    /// One row for each shape, with and without recomputation.
    pub rows: Vec<StepRow>,
    /// What did not fit the device's memory, and why.
    pub left_out: Vec<String>,
}

/// Every shape with and without recomputation, as far as memory goes.
///
/// # Errors
/// If a launch fails. A shape that does not fit into memory is left out and named.
pub fn run(gpu: &Gpu, ceilings: Ceilings, settings: &StepSettings) -> Result<TrainStepReport> {
    let (mut rows, mut left_out) = (Vec::new(), Vec::new());
    for shape in &settings.shapes {
        for keep in [SavedActivations::All, SavedActivations::LayerInputs] {
            match row(gpu, &ceilings, settings, shape, keep) {
                Ok(row) => rows.push(row),
                Err(error @ Error::OutOfMemory { .. }) => {
                    left_out.push(format!("{} with {keep:?} kept: {error}", shape.name));
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(TrainStepReport { device: gpu.describe(), ceilings, rows, left_out })
}

fn row(
    gpu: &Gpu,
    ceilings: &Ceilings,
    settings: &StepSettings,
    shape: &ModelShape,
    keep: SavedActivations,
) -> Result<StepRow> {
    let StepSettings { batch, length, .. } = *settings;
    let optim = Optim::default();
    let mut trainer = {
        let model = shape.model();
        CudaEngine::new(gpu, &model, &Moments::zeros(optim.moments, &model.params.layout), &optim, 1)?
    };
    let vocab = shape.config.vocab_size as u32;
    let sequence = |s: u64| -> Vec<u32> { (0..length as u64).map(|t| block(1, s, t)[0] % vocab).collect() };
    let forest = Forest::unshared(&(0..batch as u64).map(sequence).collect::<Vec<_>>());
    let nodes: Vec<u32> = forest.paths.iter().flat_map(|path| path[1..].iter().copied()).collect();
    let (share, mut steps) = (1.0 / nodes.len() as f32, 0);
    let mut phases: [Vec<f64>; 4] = Default::default();
    let (warm_up, timed) = if gpu.is_simulated() { (0, 1) } else { (WARM_UP, STEPS) };
    for step in 0..warm_up + timed {
        let forward = gpu.timed(|| trainer.forward(&forest, keep))?;
        let mut d_hidden = None;
        let head = gpu.timed(|| {
            let mut loss = |_, _, _| TokenGrad { logprob: -share, entropy: 0.0 };
            d_hidden = Some(trainer.head_backward(&forest, &nodes, 1.0, &mut loss)?);
            Ok(())
        })?;
        let backward = gpu.timed(|| d_hidden.take().map_or(Ok(()), |d| trainer.decoder_backward(&d)))?;
        let optimizer = gpu.timed(|| trainer.step(&optim, 1e-5, &mut steps).map(drop))?;
        if step >= warm_up {
            let times = [forward, head, backward, optimizer];
            phases.iter_mut().zip(times).for_each(|(phase, time)| phase.push(time));
        }
    }
    let [forward, head, backward, optimizer] = phases.map(middle);
    let seconds = forward + head + backward + optimizer;
    Ok(StepRow {
        name: format!("step {} {batch}x{length}", shape.name),
        recompute: keep == SavedActivations::LayerInputs,
        seconds,
        forward,
        head,
        backward,
        optimizer,
        tokens_per_second: (batch * length) as f64 / seconds,
        mfu: shape.step_flops(batch, length) / seconds / (1e12 * ceilings.matmul_tflops),
    })
}
