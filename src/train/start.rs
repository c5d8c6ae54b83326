//! What training begins with, or goes on with: the model, its tokenizer, and the state of a checkpoint.

use super::cold_start::{self, Trajectory};
use super::critic::Critic;
use super::learn::Reference;
use super::learner::Learner;
use super::run_folder::RunFolder;
use super::state::{self, TrainingState};
use super::{TrainError, engine, manifest, memory};
use crate::agent::{COMPACT_TEMPLATE, Prompter};
use crate::config::{Config, ConfigError, Format, GcdMode, Lora};
use crate::device::Gpu;
use crate::files::FileError;
use crate::gcd::judgment;
use crate::model::checkpoint::{self, CheckpointError};
use crate::model::tokenizer::{END_OF_TEXT, TURN_END, Tokenizer};
use crate::model::{Adapter, Model, Params, TokenIds};
use std::path::Path;

/// The run's copy of the model as it was when GRPO began, for the KL term.
pub(super) const REFERENCE: &str = "reference";

/// A model to train, and where its training stands.
pub(super) struct Start {
    pub learner: Learner,
    /// The value head of a checkpoint that has one.
    pub critic: Option<Critic>,
    pub state: TrainingState,
    pub tokenizer: Tokenizer,
    pub ids: TokenIds,
}

impl Start {
    fn new(config: &Config, model: Model, tokenizer: Tokenizer, ids: TokenIds) -> Start {
        let model = model.with_dtype(config.model.dtype);
        let learner = Learner::with_moments(model, config.model.recompute, config.optim.moments);
        Start { learner, critic: None, state: TrainingState::default(), tokenizer, ids }
    }

    /// The user's model directory, if the configuration names one.
    pub fn base(config: &Config) -> Result<Option<Start>, TrainError> {
        let dir = Path::new(&config.model.path);
        if config.model.path.is_empty() {
            return Ok(None);
        }
        let (model, tokenizer) = checkpoint::load_with_tokenizer(dir)?;
        let model = adapted(config, model)?;
        check_prompts(config, &Prompter::new(tokenizer.clone(), &config.prompt)?)?;
        let ids = checkpoint::token_ids(dir)?;
        Ok(Some(Start::new(config, model, tokenizer, ids)))
    }

    /// The embedded model: random weights, and a tokenizer made for the demonstrations.
    pub fn embedded(config: &Config, trajectories: &[Trajectory]) -> Result<Start, TrainError> {
        let shape = memory::model_shape(config)?;
        let tokenizer = Tokenizer::train(&cold_start::texts(config, trajectories), shape.vocab_size)?;
        let model = Model::new(shape.clone(), Params::random(&shape, config.run.seed));
        let eos = tokenizer.id(TURN_END).into_iter().collect();
        let ids = TokenIds { bos: None, eos, pad: tokenizer.id(END_OF_TEXT) };
        Ok(Start::new(config, model, tokenizer, ids))
    }

    /// A run's checkpoint.
    pub fn checkpoint(config: &Config, dir: &Path) -> Result<Start, TrainError> {
        let (learner, critic, state) = state::load(dir, config)?;
        let ids = TokenIds::read(dir).map_err(CheckpointError::from)?;
        let tokenizer = Tokenizer::load(dir)?;
        tokenizer.check_fits(learner.architecture())?;
        Ok(Start { learner, critic, state, tokenizer, ids })
    }
}

/// The tokenizer whose chat template writes talk as prompts do, for who generates with a checkpoint.
pub(super) fn with_training_template(tokenizer: Tokenizer, format: Format) -> Result<Tokenizer, TrainError> {
    match format {
        Format::Compact => Ok(tokenizer.with_template(COMPACT_TEMPLATE)?),
        // The prompts are made by the model's own.
        Format::Chat | Format::Think => Ok(tokenizer),
    }
}

/// Refuses a chat template under which the policy could not be asked to judge its turns, where it will be.
pub(super) fn check_prompts(config: &Config, prompter: &Prompter) -> Result<(), TrainError> {
    if config.gcd.mode == GcdMode::Generate {
        judgment::ask(prompter, config.prompt.format)?;
    }
    Ok(())
}

/// The model with the adapter that is to be trained: the one that it came with, or a fresh one. Refuses one that the configuration does
/// not speak of.
fn adapted(config: &Config, model: Model) -> Result<Model, TrainError> {
    let (wanted, path) = (&config.lora, &config.model.path);
    let refuse = |reason: String| {
        let value = wanted.rank.to_string();
        Err(ConfigError::Invalid { key: "lora.rank", value, reason }.into())
    };
    let same = |has: &Lora| (has.rank, has.alpha) == (wanted.rank, wanted.alpha) && has.adapts_as(wanted);
    match model.adapter.as_ref().map(Adapter::lora) {
        None if wanted.is_on() => {
            let adapter = Adapter::random(&model.config, wanted, config.run.seed);
            Ok(model.with_adapter(adapter))
        }
        Some(has) if !same(has) => refuse(format!(
            "but {path} holds an adapter of rank {}, alpha {} and targets {:?}: set lora.rank, lora.alpha and lora.targets so, to train it \
             on, or merge it into its model first (uncouple merge)",
            has.rank, has.alpha, has.targets
        )),
        _ => Ok(model),
    }
}

/// The folder of the weights that are frozen, as an adapter's files name it; empty where all weights are trained.
pub(super) fn frozen_weights(config: &Config) -> Result<String, TrainError> {
    if !config.lora.is_on() {
        return Ok(String::new());
    }
    let base = checkpoint::base(Path::new(&config.model.path))?;
    let base = std::path::absolute(&base).map_err(|e| FileError::new("find", base, e))?;
    Ok(base.display().to_string())
}

/// What the KL term holds the policy to, as it was when GRPO began.
pub(super) fn reference(
    setting: (&Config, Option<&Gpu>),
    folder: &RunFolder,
    state: &TrainingState,
    learner: &Learner,
) -> Result<Reference, TrainError> {
    let (dir, (config, gpu)) = (folder.path().join(REFERENCE), setting);
    if let Err(reason) = manifest::check(&dir, state.sft_steps.into(), |_| true) {
        return Err(TrainError::Reference { dir, reason: reason.to_string() });
    }
    Ok(match learner.lora() {
        Some(_) => Reference::Adapter(checkpoint::adapter(&dir, learner.architecture())?.params),
        None => Reference::Model(engine::frozen(checkpoint::load(&dir)?.with_dtype(config.model.dtype), gpu)?),
    })
}
