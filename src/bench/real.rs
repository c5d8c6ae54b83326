//! A model directory on the CPU, in f32 or bf16, beside transformers on the same tokens (benches/peers/real_model.py).

use super::peer::{self, PeerError};
use super::{Bench, Peer, decode};
use crate::coupling::{Grams, StateAction};
use crate::device::{self, Dtype};
use crate::model::checkpoint::{self, CheckpointError};
use crate::model::{Model, SavedActivations};
use crate::ops::sampling::SamplingParams;
use crate::train::learner::Learner;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// Timed calls of a work, after one that is not.
const CALLS: usize = 3;

/// Sequences of so many tokens.
type BatchShape = (usize, usize);

const TRAINED: [BatchShape; 2] = [(4, 256), (1, 2048)];
const PREFILLED: [BatchShape; 2] = [(8, 128), (2, 4096)];
/// Prompts of 64 tokens.
const GENERATED: [usize; 2] = [1, 8];
const PROMPT: usize = 64;
const NEW: usize = 64;
const MEASURED: BatchShape = (16, 256);

/// A work, and the peers' time on it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkRow {
    pub work: String,
    /// Median wall time of one call.
    pub seconds: f64,
    pub tokens_per_second: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
}

/// All works of a benchmark.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RealReport {
    pub dtype: Dtype,
    /// What multiplies bf16 on this machine.
    pub unit: &'static str,
    pub rows: Vec<WorkRow>,
}

#[derive(Debug, thiserror::Error)]
pub enum RealError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error("the model's context of {context} tokens is shorter than every work of this benchmark")]
    Context { context: usize },
    #[error("bench {0} is of the small model only: leave --model out")]
    NotOfAModel(&'static str),
}

/// Measures the works of `what` that fit the model's context; with `python`, its peers too.
pub fn run(what: Bench, dir: &Path, dtype: Dtype, python: Option<&Path>) -> Result<RealReport, RealError> {
    let model = checkpoint::load(dir)?.with_dtype(dtype);
    let context = model.config.max_position_embeddings;
    let part = what.name();
    let mut rows = match what {
        Bench::TrainStep => train(model, context)?,
        Bench::Prefill => prefill(&model, context)?,
        Bench::Generate => generate(&model)?,
        Bench::GradientCosine => vec![cosines(&model)],
        Bench::GrpoStep => return Err(RealError::NotOfAModel(part)),
    };
    if rows.is_empty() {
        return Err(RealError::Context { context });
    }
    if let Some(python) = python {
        let lines = peer::of_model(python, dir, part)?;
        for row in &mut rows {
            let own = lines.iter().filter_map(|(name, s)| Some((name.strip_prefix(&row.work)?.trim_start(), *s)));
            row.peers = own.map(|(name, s)| Peer { name: name.into(), seconds: s, ratio: s / row.seconds }).collect();
        }
    }
    Ok(RealReport { dtype, unit: device::cpu::bf16::Unit::best().name(), rows })
}

fn row(work: String, tokens: usize, call: &mut dyn FnMut() -> device::Result<()>) -> device::Result<WorkRow> {
    call()?;
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let began = Instant::now();
        call()?;
        times.push(began.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let seconds = times[CALLS / 2];
    Ok(WorkRow { work, seconds, tokens_per_second: tokens as f64 / seconds, peers: Vec::new() })
}

/// The tokens that the peers see, too: (7919 i + 104729 s) mod 1000, of sequence s. Words of any vocabulary.
fn tokens((sequences, length): BatchShape) -> Vec<Vec<u32>> {
    let sequence = |s: usize| (0..length).map(|i| ((7919 * i + 104_729 * s) % 1000) as u32).collect();
    (0..sequences).map(sequence).collect()
}

fn fitting(batches: [BatchShape; 2], context: usize) -> impl Iterator<Item = BatchShape> {
    batches.into_iter().filter(move |(_, length)| *length <= context)
}

fn train(model: Model, context: usize) -> device::Result<Vec<WorkRow>> {
    let mut learner = Learner::new(model, false);
    let optim = crate::config::Optim::default();
    fitting(TRAINED, context)
        .map(|batch| {
            let (sequences, mask) = (tokens(batch), vec![true; batch.1]);
            let batch_of: Vec<_> = sequences.iter().map(|s| (&s[..], &mask[..])).collect();
            row(format!("train {}x{}", batch.0, batch.1), batch.0 * batch.1, &mut || {
                learner.cross_entropy(&batch_of)?;
                learner.step(&optim, 1e-6)?;
                Ok(())
            })
        })
        .collect()
}

fn prefill(model: &Model, context: usize) -> device::Result<Vec<WorkRow>> {
    use crate::model::Policy;
    fitting(PREFILLED, context)
        .map(|batch| {
            let sequences = tokens(batch);
            row(format!("prefill {}x{}", batch.0, batch.1), batch.0 * batch.1, &mut || {
                let mut decoder = model.decoder()?;
                let inputs: Vec<_> = sequences.iter().map(|s| (decoder.new_sequence(), &s[..])).collect();
                decoder.append(&inputs)
            })
        })
        .collect()
}

fn generate(model: &Model) -> device::Result<Vec<WorkRow>> {
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    GENERATED
        .into_iter()
        .map(|batch| {
            let prompts = tokens((batch, PROMPT));
            row(format!("generate {batch} x {NEW}"), batch * NEW, &mut || {
                decode(model, &prompts, 1, NEW, &greedy).map(drop)
            })
        })
        .collect()
}

/// Of the gradients of the second half of each sequence.
fn cosines(model: &Model) -> WorkRow {
    let samples: Vec<StateAction> =
        tokens(MEASURED).into_iter().map(|tokens| StateAction { action: tokens.len() / 2, tokens }).collect();
    let (n, length) = MEASURED;
    let measured = row(format!("cosine {n}x{length}"), n * length, &mut || {
        Grams::new(model, &samples, SavedActivations::LayerInputs).expect("the samples are short");
        Ok(())
    });
    measured.expect(super::ON_CPU)
}
