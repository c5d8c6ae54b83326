//! The training loop and what it keeps: cold start, GRPO iterations, evaluation, checkpoints, resume.

mod assessment;
pub mod auxiliary;
pub(crate) mod batch;
mod card;
pub mod checkpoints;
mod cold_start;
pub(crate) mod coupling;
pub mod critic;
pub mod engine;
pub mod evaluate;
pub(crate) mod fork;
pub(crate) mod gate;
pub(crate) mod interrupt;
pub(crate) mod iteration;
pub(crate) mod learn;
pub mod learner;
mod manifest;
pub(crate) mod measure;
pub mod memory;
pub mod moments;
pub(crate) mod optimizer;
pub(crate) mod record;
pub(crate) mod report;
mod run;
pub mod run_folder;
mod start;
pub mod state;
pub mod suggest;
mod summary;
mod trainer;
mod user_files;
mod warnings;

pub use trainer::{RunOutcome, train, train_on};

use crate::agent::PromptError;
use crate::config::{Config, ConfigError, Override};
use crate::coupling::{CouplingError, ProbeError};
use crate::device;
use crate::env::alfworld::{self, Alfworld};
use crate::env::bridge::{Limits, WorkerSuite};
use crate::env::demonstrations::Demonstrated;
use crate::env::household::Household;
use crate::env::openenv::OpenEnv;
use crate::env::scienceworld::{self, Rules, ScienceWorld};
use crate::env::{EnvError, Suite};
use crate::files::FileError;
use crate::gcd::JudgeError;
use crate::model::checkpoint::CheckpointError;
use crate::model::tokenizer::TokenizerError;
use crate::report::page::PageError;
use crate::rollout::RolloutError;
use memory::Placement;
use run_folder::RunFolderError;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why training or evaluation ended without a result.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum TrainError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Run(#[from] RunFolderError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Prompt(#[from] PromptError),
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error(transparent)]
    Judge(#[from] JudgeError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("coupling: {0}")]
    Coupling(#[from] CouplingError),
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error("{}: not a training state of this version ({reason}); start a new run", .file.display())]
    State { file: PathBuf, reason: String },
    #[error(
        "the gradient was not finite {count} times in a row; the batches are kept in {}, and the checkpoints as they are: look \
         at the batches, or start another run with a lower sft.lr or optim.lr",
        .folder.display()
    )]
    NotFinite { count: u32, folder: PathBuf },
    #[error(
        "the model no longer computes finite numbers, so it is not saved; the checkpoints stay as they are: start another run \
         with a lower sft.lr or optim.lr, or, if it began so, with another model"
    )]
    BrokenWeights,
    #[error(
        "the model does not compute finite numbers (task {task}), although its weights are finite: they are too large; take an \
         earlier checkpoint, or another model"
    )]
    BrokenModel { task: String },
    #[error("no checkpoint of {} is whole ({reasons}): bring back what is missing or changed, or start again with --overwrite", .run.display())]
    Damaged { run: PathBuf, reasons: String },
    #[error("the frozen reference model {} is damaged: {reason}; bring its files back, or start again with --overwrite", .dir.display())]
    Reference { dir: PathBuf, reason: String },
    #[error("there is nothing for the cold start to learn from: {0}")]
    NoDemonstrations(String),
    #[error("not one episode of the iteration can be used: {0}")]
    NoEpisodes(String),
    #[error(transparent)]
    Page(#[from] PageError),
    #[error("{} is not the folder of a run (it has no config.toml): name one, e.g. runs/NAME", .0.display())]
    NoRun(PathBuf),
    #[error("interrupted; everything so far is saved. Go on with: uncouple train --resume --dir {} --name {}", parent(.0), name(.0))]
    Interrupted(PathBuf),
}

/// The configuration that a file (or `recipe:NAME`) and overrides give, over the defaults of a given model or of a GPU.
///
/// # Errors
/// If the configuration, or the `config.json` of its model, is refused.
pub fn configuration(file: Option<&Path>, overrides: &[Override], place: Placement) -> Result<Config, TrainError> {
    let config = Config::load(file, overrides)?;
    let defaults = match (config.model.path.is_empty(), place) {
        (true, Placement::Cpu) => return Ok(config),
        (true, Placement::Gpu) => Config::for_a_gpu(),
        (false, _) => memory::defaults_of_its_model(&config)?,
    };
    Ok(Config::load_over(&defaults, file, overrides)?)
}

/// The folder that holds a run's.
fn parent(run: &Path) -> std::path::Display<'_> {
    run.parent().unwrap_or(Path::new("")).display()
}

/// The run's name.
fn name(run: &Path) -> std::borrow::Cow<'_, str> {
    run.file_name().unwrap_or_default().to_string_lossy()
}

/// The suite that the configuration names; refused where its content is not what `env.hash` says.
///
/// # Errors
/// As [`suite_for`].
pub fn suite(config: &Config) -> Result<Box<dyn Suite>, TrainError> {
    suite_for(config, None)
}

/// As [`suite`], for episodes that others begin and may never end: each waits so long at most for a worker that others have.
///
/// # Errors
/// If the games cannot be opened, or have another hash than `env.hash`.
pub fn suite_for(config: &Config, wait: Option<Duration>) -> Result<Box<dyn Suite>, TrainError> {
    let (env, seed) = (&config.env, config.run.seed);
    let limits = Limits {
        workers: env.workers as usize,
        start: Duration::from_secs_f32(env.start_timeout),
        call: Duration::from_secs_f32(env.timeout),
        retries: env.retries,
        wait,
    };
    let suite: Box<dyn Suite> = match env.suite.as_str() {
        "household" => Box::new(Household::new(seed)),
        "alfworld" => {
            let index = alfworld::GameIndex::read(&alfworld::data_folder(&env.alfworld.data)?)?.complete()?;
            Box::new(Alfworld::new(index, env.alfworld.train_types, seed))
        }
        "worker" => Box::new(WorkerSuite::open(&env.worker.command, limits, seed)?),
        "openenv" => Box::new(OpenEnv::open(&env.openenv.url, &env.openenv.action, limits, seed)?),
        "scienceworld" => {
            let of = &env.scienceworld;
            let (jar, simplifications) = (scienceworld::jar(&of.data)?, of.simplifications.clone());
            let rules = Rules { jar, simplifications, admissible: config.prompt.admissible, reward: of.reward };
            Box::new(ScienceWorld::open(rules, limits, of.train_types, seed)?)
        }
        other => {
            let reason =
                "no such suite; there are `household` (embedded), `alfworld`, `scienceworld`, `worker` and `openenv`"
                    .into();
            return Err(ConfigError::Invalid { key: "env.suite", value: other.into(), reason }.into());
        }
    };
    evaluate::SPLITS.iter().try_for_each(|split| evaluate::games(config, &*suite, *split).map(drop))?;
    match suite.content_hash() {
        Some(found) if !env.hash.is_empty() && env.hash != found => Err(ConfigError::Invalid {
            key: "env.hash",
            value: env.hash.clone(),
            reason: format!("the games have changed since, their hash is now {found}: bring the old ones back"),
        }
        .into()),
        _ if !env.demonstrations.is_empty() => Ok(Box::new(Demonstrated::open(suite, Path::new(&env.demonstrations))?)),
        _ => Ok(suite),
    }
}
