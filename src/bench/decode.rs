//! Speed of generation on a GPU: a prompt for each sequence, then a sampled token of each at a time.

use super::ceilings::Ceilings;
use super::gpu_shapes::ModelShape;
use crate::device::{Gpu, Result};
use crate::model::backend::cuda::CudaModel;
use crate::model::{Decoder, Policy, SampleRequest, SequenceId};
use crate::ops::case::Work;
use crate::ops::philox::{block, uniform};
use crate::ops::sampling::SamplingParams;
use serde::Serialize;

/// What is measured: `new` tokens after `prompt` ones for each of so many sequences at once.
#[derive(Debug, Clone)]
pub struct DecodeSettings {
    /// The model's sizes.
    pub shape: ModelShape,
    /// Numbers of sequences that decode at once.
    pub batches: Vec<usize>,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// New tokens of each sequence.
    pub new: usize,
}

impl DecodeSettings {
    /// Those of the peers.
    pub fn full() -> DecodeSettings {
        let shape = ModelShape::qwen2_5(2048).swap_remove(0);
        DecodeSettings { shape, batches: vec![64, 256], prompt: 1024, new: 64 }
    }

    /// What a simulated device gets through.
    pub fn small() -> DecodeSettings {
        DecodeSettings { shape: ModelShape::tiny(), batches: vec![1, 3], prompt: 5, new: 3 }
    }
}

/// One shape with one number of sequences.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecodeRow {
    /// The shape's name, and the number of sequences.
    pub name: String,
    /// Prompts and all tokens.
    pub seconds: f64,
    /// Reading the prompts and sampling the first token of each.
    pub prefill: f64,
    /// Of one step after that, in which each sequence gains a token.
    pub step: f64,
    /// New tokens a second, of all sequences together.
    pub tokens_per_second: f64,
    /// Share of the step that reading the weights and the cache once takes at the measured bandwidth.
    pub share: f64,
}

/// Decoding speed of one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecodeReport {
    /// The device as it describes itself.
    pub device: String,
    /// What the device can do at most.
    pub ceilings: Ceilings,
    /// One row for each number of sequences.
    pub rows: Vec<DecodeRow>,
}

/// Times decoding for each number of sequences of `settings`.
///
/// # Errors
/// If the device runs out of memory, or a launch fails.
pub fn run(gpu: &Gpu, ceilings: Ceilings, settings: &DecodeSettings) -> Result<DecodeReport> {
    let most = settings.batches.iter().copied().max().unwrap_or(0);
    let model = CudaModel::new(gpu, &settings.shape.model(), most)?;
    let rows = settings.batches.iter().map(|batch| row(gpu, &ceilings, settings, &model, *batch));
    Ok(DecodeReport { device: gpu.describe(), ceilings, rows: rows.collect::<Result<_>>()? })
}

fn row(gpu: &Gpu, ceilings: &Ceilings, s: &DecodeSettings, model: &CudaModel, batch: usize) -> Result<DecodeRow> {
    let mut decoder = model.decoder()?;
    // Once before it counts: graphs are captured, plans are made.
    generate(gpu, &mut *decoder, s, batch)?;
    let (prefill, rest) = generate(gpu, &mut *decoder, s, batch)?;
    let step = rest / (s.new - 1) as f64;
    let work = Work::Bytes(s.shape.decode_bytes(batch, s.prompt + s.new / 2));
    Ok(DecodeRow {
        name: format!("decode {} {batch}x{}+{}", s.shape.name, s.prompt, s.new),
        seconds: prefill + rest,
        prefill,
        step,
        tokens_per_second: batch as f64 / step,
        share: ceilings.floor(work) / step,
    })
}

/// Seconds up to each sequence's first token, and of the others.
fn generate(gpu: &Gpu, decoder: &mut dyn Decoder, s: &DecodeSettings, batch: usize) -> Result<(f64, f64)> {
    let vocab = s.shape.config.vocab_size as u32;
    let prompt = |i: usize| -> Vec<u32> { (0..s.prompt as u64).map(|t| block(2, i as u64, t)[0] % vocab).collect() };
    let prompts: Vec<Vec<u32>> = (0..batch).map(prompt).collect();
    let ids: Vec<SequenceId> = prompts.iter().map(|_| decoder.new_sequence()).collect();
    let (params, mut tokens) = (SamplingParams::default(), Vec::new());
    let request = |decoder: &mut dyn Decoder, at: usize| -> Result<Vec<[u32; 1]>> {
        let number = |i: usize| uniform(block(3, i as u64, at as u64)[0]);
        let request = |(i, id): (usize, &SequenceId)| SampleRequest { sequence: *id, seen: &[], uniform: number(i) };
        let sampled = decoder.sample(&ids.iter().enumerate().map(request).collect::<Vec<_>>(), &params)?;
        Ok(sampled.iter().map(|sampled| [sampled.token]).collect())
    };
    let prefill = gpu.timed(|| {
        let inputs: Vec<(SequenceId, &[u32])> =
            ids.iter().zip(&prompts).map(|(id, prompt)| (*id, &prompt[..])).collect();
        decoder.append(&inputs)?;
        tokens = request(decoder, 0)?;
        Ok(())
    })?;
    let rest = gpu.timed(|| {
        for at in 1..s.new {
            let inputs: Vec<(SequenceId, &[u32])> =
                ids.iter().zip(&tokens).map(|(id, token)| (*id, &token[..])).collect();
            decoder.append(&inputs)?;
            tokens = request(decoder, at)?;
        }
        Ok(())
    })?;
    ids.into_iter().for_each(|id| decoder.free(id));
    Ok((prefill, rest))
}
