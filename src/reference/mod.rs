//! Reference numbers: replaying a golden set (shared formats of its README) with this crate's own code, and judging the
//! result. Authors of other backends read both: the same files, the same names, one line per quantity.
//!
//! [`replay`] reads only what is an input, so a set without outputs replays all the same; [`check`] compares a replay with
//! the stored outputs, each quantity against the set's own noise floor.

mod adamw;
mod check;
mod compare;
mod forward;
mod generate;
mod grpo;
mod inputs;
mod persample;
mod sketch;
mod tensors;
mod tokenizer;

pub use check::{CheckReport, check};
pub use compare::QuantityRow;

use crate::config::Optim;
use crate::device::Gpu;
use crate::files;
use crate::model::checkpoint::{self, CheckpointError};
use crate::model::tokenizer::TokenizerError;
use crate::model::{Model, Params};
use crate::train::learner::Learner;
use inputs::Inputs;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use tensors::Tensors;

/// Why a set could not be replayed or checked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum ReferenceError {
    #[error("the set's per-sample gradients: {0}")]
    Sample(#[from] crate::coupling::SampleError),
    #[error("cannot read {file}: {source}")]
    Read { file: PathBuf, source: std::io::Error },
    #[error("cannot write {file}: {source}")]
    Write { file: PathBuf, source: std::io::Error },
    #[error("{file} is damaged or not of a golden set: {reason}")]
    Corrupt { file: PathBuf, reason: String },
    #[error("the inputs do not fit together: {what}")]
    Inputs { what: String },
    #[error("{file} has no input tensor `{tensor}`")]
    NoInput { file: PathBuf, tensor: String },
    #[error("{0} holds no models; expected a folder models/ with one folder per model")]
    NoModels(PathBuf),
    #[error(transparent)]
    Device(#[from] crate::device::Error),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// What one model's replay computed: the content of `golden/NAME/`.
pub(crate) struct Outputs {
    /// `golden.json`
    pub json: Value,
    /// `golden.safetensors`
    pub tensors: Tensors,
    /// Further files by stem: whole gradients and parameters.
    pub whole: Vec<(&'static str, Tensors)>,
    /// l2 norm of the distance that the parameters have moved after each AdamW step; scales the check, is not written.
    pub update_l2: Vec<f64>,
}

/// Whole tensors that a set may hold, by file stem.
const CE_GRADS: &str = "ce_grads";
const ADAMW_PARAMS: &str = "adamw_params";
const GRPO_GRADS: &str = "grpo_dapo_kl_grads";

/// The GRPO case whose whole gradient is in [`GRPO_GRADS`].
const GRPO_GRADS_CASE: &str = "dapo_kl";

/// Replays model `name` of the set at `set` and writes `out/name/` and `out/tokenizer_golden.json`. On a GPU what training computes:
/// log-probs, losses, gradients and steps.
///
/// # Errors
/// If an input is missing or damaged, the GPU fails, or the outputs cannot be written.
pub fn replay(set: &Path, name: &str, out: &Path, gpu: Option<&Gpu>) -> Result<(), ReferenceError> {
    let outputs = compute(set, name, gpu)?;
    let dir = out.join(name);
    std::fs::create_dir_all(&dir).map_err(|source| ReferenceError::Write { file: dir.clone(), source })?;
    write_json(&dir.join("golden.json"), &outputs.json)?;
    outputs.tensors.write(&dir.join("golden.safetensors"))?;
    for (stem, tensors) in &outputs.whole {
        tensors.write(&dir.join(format!("{stem}.safetensors")))?;
    }
    write_json(&out.join(tokenizer::FILE), &tokenizer::compute(set)?)
}

/// Computes everything that `golden/NAME/` holds from the set's inputs; with a GPU what [`replay`] says.
pub(crate) fn compute(set: &Path, name: &str, gpu: Option<&Gpu>) -> Result<Outputs, ReferenceError> {
    crate::device::cpu::use_exact_products();
    let model_dir = set.join("models").join(name);
    let model = checkpoint::load(&model_dir)?;
    let stored = !model_dir.join("recipe.json").exists();
    let golden = set.join("golden").join(name);
    let file = golden.join("golden.json");
    let raw: Value = read_json(&file)?;
    let inputs: Inputs = serde_json::from_value(raw.clone())
        .map_err(|e| ReferenceError::Corrupt { file: file.clone(), reason: e.to_string() })?;
    inputs.check(&model.config)?;
    let given = Tensors::read(&golden.join("golden.safetensors"))?;

    // Which whole tensors to write: those the set has; all of them for a stored model of a set without outputs.
    let has = |stem: &str| golden.join(format!("{stem}.safetensors")).exists();
    let any = [CE_GRADS, ADAMW_PARAMS, GRPO_GRADS].into_iter().any(has);
    let wanted = |stem: &str| if any { has(stem) } else { stored };

    let mut tensors = Tensors::default();
    let mut learner = Learner::new(model.clone(), false);
    if let Some(gpu) = gpu {
        learner.to_gpu(gpu, &Optim::default(), 1)?;
    }
    let mut forward = forward::compute(&mut learner, &inputs.forward, &raw["forward"], &mut tensors)?;
    let grpo = grpo::compute(&mut learner, &inputs.grpo, &raw["grpo"], &given, &golden, &mut tensors)?;
    let adamw = adamw::compute(&mut learner, &inputs.adamw, &raw["adamw"], &mut tensors)?;
    let names: Vec<&str> = sketch::by_name(&model.params).iter().map(|e| e.name.as_str()).collect();
    let mut json = serde_json::json!({ "model": name, "parameters": names, "adamw": adamw.json, "grpo": grpo.json });
    if gpu.is_none() {
        forward::states(&model, &inputs.forward, stored, &mut tensors);
        let padding = forward::padding(&model, &inputs.forward, &forward.grads);
        forward.json.insert("padding_idx_effect".into(), padding);
        json["persample"] = persample::compute(&model, &inputs.persample, &raw["persample"], &mut tensors)?;
        json["generate"] = generate::compute(&model, &inputs, &raw["generate"], &mut tensors);
    }
    json["forward"] = forward.json.into();

    let mut whole = Vec::new();
    for (stem, params) in [(CE_GRADS, &forward.grads), (ADAMW_PARAMS, &adamw.params), (GRPO_GRADS, &grpo.grads)] {
        if wanted(stem) {
            whole.push((stem, named(params)));
        }
    }
    Ok(Outputs { json, tensors, whole, update_l2: adamw.update_l2 })
}

/// Names of the models of a set, sorted.
pub(crate) fn models(set: &Path) -> Result<Vec<String>, ReferenceError> {
    let dir = set.join("models");
    let read = |source| ReferenceError::Read { file: dir.clone(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(read)? {
        let entry = entry.map_err(read)?;
        if entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    if names.is_empty() { Err(ReferenceError::NoModels(set.into())) } else { Ok(names) }
}

/// Every tensor of `params` under its name.
fn named(params: &Params) -> Tensors {
    let mut tensors = Tensors::default();
    for e in &params.layout.entries {
        tensors.insert_f32(&e.name, &e.shape, params.flat[e.range.clone()].to_vec());
    }
    tensors
}

/// The listed fields of an object, as they are: inputs that a replay repeats.
fn echo(section: &Value, fields: &[&str]) -> Map<String, Value> {
    fields.iter().filter_map(|f| Some((f.to_string(), section.get(*f)?.clone()))).collect()
}

fn zeros_like(model: &Model) -> Params {
    Params::zeros(model.params.layout.clone())
}

fn read_json(file: &Path) -> Result<Value, ReferenceError> {
    let text = files::read_text(file, files::MOST_KEPT)
        .map_err(|source| ReferenceError::Read { file: file.into(), source })?;
    serde_json::from_str(&text).map_err(|e| ReferenceError::Corrupt { file: file.into(), reason: e.to_string() })
}

fn write_json(file: &Path, value: &Value) -> Result<(), ReferenceError> {
    std::fs::write(file, format!("{value:#}\n")).map_err(|source| ReferenceError::Write { file: file.into(), source })
}
