//! The training loop and what it keeps: cold start, GRPO iterations, evaluation, checkpoints, resume.

mod cold_start;
pub mod evaluate;
pub mod interrupt;
mod iteration;
pub mod learner;
pub mod memory;
mod record;
pub mod run_folder;
mod session;
mod state;

pub use session::{Outcome, train};

use crate::agent::PromptError;
use crate::config::{Config, ConfigError};
use crate::env::household::Household;
use crate::env::{EnvError, Suite};
use crate::model::checkpoint::CheckpointError;
use crate::model::tokenizer::TokenizerError;
use crate::report::files::FileError;
use crate::rollout::RolloutError;
use run_folder::RunFolderError;
use std::path::PathBuf;

/// Why training or evaluation ended without a result.
#[derive(Debug, thiserror::Error)]
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
    Rollout(#[from] RolloutError),
    #[error("{}: not a training state of this version ({reason}); start a new run", .file.display())]
    State { file: PathBuf, reason: String },
    #[error(
        "the gradient was not finite {count} times in a row; the batches are kept in {}: lower optim.lr, or look at them",
        .folder.display()
    )]
    NotFinite { count: u32, folder: PathBuf },
    #[error("every one of the {0} episodes of an iteration was failed by its environment; the log above says why")]
    NoEpisodes(usize),
    #[error("cannot render report.html: {0}")]
    Report(#[from] minijinja::Error),
    #[error("interrupted: everything so far is saved in {}; go on with --resume --name {}", .0.display(), .0.file_name().unwrap_or_default().to_string_lossy())]
    Interrupted(PathBuf),
}

/// The suite that the configuration names.
pub fn suite(config: &Config) -> Result<Box<dyn Suite>, TrainError> {
    match config.env.suite.as_str() {
        "household" => Ok(Box::new(Household::new(config.run.seed))),
        other => Err(ConfigError::Invalid {
            key: "env.suite",
            value: other.into(),
            reason: "no such suite; the embedded one is `household`".into(),
        }
        .into()),
    }
}
