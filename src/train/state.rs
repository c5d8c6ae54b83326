//! What a checkpoint holds besides the model: optimizer moments, counters, and the evaluation before GRPO.

use super::TrainError;
use super::critic::Critic;
use super::engine::{CpuEngine, Export};
use super::learner::Learner;
use super::moments::Moments;
use super::suggest::SuggestionUpdate;
use crate::config::Config;
use crate::files::{self, FileError};
use crate::gcd::theory::Measured;
use crate::model::checkpoint::{self, BesideWeights, SaveDtype};
use crate::model::tokenizer::Tokenizer;
use crate::model::{Model, Params, TokenIds};
use crate::report::results::Evaluation;
use serde::{Deserialize, Serialize};
use std::path::Path;

pub(super) const STATE: &str = "state.json";

/// Where training stands. All randomness is a function of the seed and these counters.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrainingState {
    /// Cold-start steps done.
    pub sft_steps: u32,
    /// GRPO iterations done.
    pub iterations: u32,
    /// Optimizer steps since the moments were last cleared.
    pub optimizer_steps: u32,
    /// The value head's optimizer steps.
    #[serde(default)]
    pub critic_steps: u32,
    /// Optimizer steps in all.
    pub train_steps: u64,
    /// Environment steps so far.
    pub env_steps: u64,
    /// Tokens sampled and trained on.
    pub tokens: u64,
    /// Wall time so far.
    pub seconds: f64,
    /// Training steps skipped in a row because their gradient was not finite.
    #[serde(alias = "bad_steps")]
    pub nonfinite_steps: u32,
    /// Evaluations after fewer iterations than this are done.
    pub next_eval: u32,
    /// Suggestions made so far.
    #[serde(default, alias = "renewals")]
    pub suggestion_updates: Vec<SuggestionUpdate>,
    /// Gradient similarity of good and bad actions, each time it was measured.
    #[serde(default)]
    pub similarity: Vec<f64>,
    /// Flawed actions of all iterations.
    #[serde(default)]
    pub flawed: Measured,
    /// The evaluation after the cold start, once it is done.
    pub cold_start: Option<Evaluation>,
}

impl TrainingState {
    /// The sentences in the prompt of iteration `index`, counted from 0.
    pub fn suggestions(&self, index: u32) -> Vec<String> {
        let made = self.suggestion_updates.iter().rfind(|r| r.iterations <= index);
        made.map_or(Vec::new(), |r| r.suggestions.iter().map(|s| s.text.clone()).collect())
    }

    /// The sentences that the policy was last trained under.
    pub fn last_suggestions(&self) -> Vec<String> {
        self.suggestions(self.iterations.saturating_sub(1))
    }

    /// The same at wall time 0: what two runs of one configuration have in common.
    pub fn timeless(&self) -> TrainingState {
        TrainingState { seconds: 0.0, ..self.clone() }
    }

    /// Number of the checkpoint taken here: grows with every step of either phase.
    pub fn step(&self) -> u64 {
        u64::from(self.sft_steps) + u64::from(self.iterations)
    }
}

/// Fills the folder of a checkpoint: a model directory that transformers loads as it is, and what resuming needs.
///
/// # Errors
/// If a file cannot be written.
pub fn save(
    dir: &Path,
    learner: &Learner,
    export: &Export<'_>,
    critic: Option<&Critic>,
    state: &TrainingState,
    place: &PolicyFolder<'_>,
) -> Result<(), TrainError> {
    place.fill(dir, learner, &export.params)?;
    export.moments.save(dir)?;
    if let Some(critic) = critic {
        critic.save(dir)?;
    }
    let text = serde_json::to_vec_pretty(state).map_err(|e| unreadable(&dir.join(STATE), e))?;
    let file = dir.join(STATE);
    Ok(std::fs::write(&file, text).map_err(|e| FileError::new("write", file, e))?)
}

/// What a folder of the policy holds beside what is trained.
pub struct PolicyFolder<'a> {
    /// The folder of the frozen weights, where an adapter is trained.
    pub base: &'a str,
    /// The tokens with a role.
    pub ids: &'a TokenIds,
    /// Its files.
    pub tokenizer: &'a Tokenizer,
}

impl PolicyFolder<'_> {
    /// Writes a model directory, or that of an adapter; `params` are all weights or the adapter's.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn fill(&self, dir: &Path, learner: &Learner, params: &Params) -> Result<(), TrainError> {
        let beside = BesideWeights { config: learner.architecture(), ids: self.ids, tokenizer: self.tokenizer.files() };
        let filled = match learner.lora() {
            Some(lora) => checkpoint::fill_adapter(dir, lora, params, self.base, &beside),
            None => checkpoint::fill(dir, params, &beside, SaveDtype::F32),
        };
        Ok(filled?)
    }
}

/// Reads a checkpoint folder back. An adapter's frozen weights are those that the configuration names.
///
/// # Errors
/// If a file is missing, damaged, or of another version.
pub fn load(dir: &Path, config: &Config) -> Result<(Learner, Option<Critic>, TrainingState), TrainError> {
    let state = read(dir)?;
    let model: Model = match config.lora.is_on() {
        true => checkpoint::load_adapter(dir, &checkpoint::base(Path::new(&config.model.path))?)?,
        false => checkpoint::load(dir)?,
    };
    let model = model.with_dtype(config.model.dtype);
    let moments = Moments::load(dir, config.optim.moments, &model.trained().layout)?;
    let critic = Critic::load(dir, model.config.hidden_size, state.critic_steps)?;
    let mut learner = Learner::on(Box::new(CpuEngine::new(model, moments)), config.model.recompute);
    learner.steps = state.optimizer_steps;
    Ok((learner, critic, state))
}

/// The suggestions of a checkpoint: what its policy was last trained under. None where `dir` is no checkpoint of a run.
///
/// # Errors
/// If the training state is damaged, or of another version.
pub fn suggestions(dir: &Path) -> Result<Vec<String>, TrainError> {
    if dir.join(STATE).exists() { Ok(read(dir)?.last_suggestions()) } else { Ok(Vec::new()) }
}

pub(super) fn read(dir: &Path) -> Result<TrainingState, TrainError> {
    let file = dir.join(STATE);
    let text = files::read(&file, files::MOST_KEPT).map_err(|e| FileError::new("read", &file, e))?;
    serde_json::from_slice(&text).map_err(|e| unreadable(&file, e))
}

fn unreadable(file: &Path, e: serde_json::Error) -> TrainError {
    TrainError::State { file: file.into(), reason: e.to_string() }
}
