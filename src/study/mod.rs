//! A study: variants × seeds from shared cold starts, with paired statistics.
//!
//! A study file (TOML) names variants of one base configuration, and seeds. Each seed has one cold start, which all
//! variants go on from: the same weights and moments, the same games in the same order, the same evaluation games.
//! Every cold start and every cell is an ordinary run folder, so that whatever is killed goes on where it stopped, and
//! `uncouple report`, `compare` and `eval` take each of them.

pub mod collect;
pub(crate) mod curves;
pub(crate) mod estimate;
pub mod figures;
pub(crate) mod gate;
pub(crate) mod launch;
pub(crate) mod log;
pub mod measures;
pub mod plan;
pub(crate) mod probed;
pub(crate) mod slurm;
pub(crate) mod statistics;
pub(crate) mod status;
pub mod tables;
pub(crate) mod task;
pub mod text;

use crate::config::ConfigError;
use crate::files::FileError;
use crate::train::TrainError;
use std::path::PathBuf;

/// Why a study cannot be run or reported.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum StudyError {
    #[error("cannot read the study file {}: {cause}", .file.display())]
    Read { file: PathBuf, cause: std::io::Error },
    #[error("{}{}: not a study: {reason}", .file.display(), line(.at))]
    Syntax { file: PathBuf, at: Option<usize>, reason: String },
    #[error("{}: `{key}`: {reason}", .file.display())]
    Invalid { file: PathBuf, key: String, reason: String },
    #[error(
        "the run {} was begun with another configuration ({changes}): take the change back, or give the study another name", .run.display()
    )]
    Changed { run: PathBuf, changes: String },
    #[error("{} is not finished: its cells begin from it, run it first (`uncouple study FILE` does)", .0.display())]
    NoColdStart(PathBuf),
    #[error("another process is at work in {}: wait for it to end", .0.display())]
    Locked(PathBuf),
    #[error("cannot start {what}: {cause}")]
    Start { what: String, cause: std::io::Error },
    #[error("sbatch refused {}: {reason}", .script.display())]
    Slurm { script: PathBuf, reason: String },
    #[error("{}: {reason}", .file.display())]
    Corrupt { file: PathBuf, reason: String },
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    File(#[from] FileError),
}

fn line(at: &Option<usize>) -> String {
    at.map_or(String::new(), |at| format!(":{at}"))
}
