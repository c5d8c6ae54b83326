//! A run that goes on where another ended, so that several methods begin from one cold start: the same weights, the
//! same moments, the same evaluation before GRPO.

use super::report::Loaded;
use super::run_folder::RunFolder;
use super::{TrainError, checkpoints};
use crate::config::Config;
use crate::files::{self, FileError};
use crate::report::{metrics, provenance};
use std::fs;
use std::path::{Path, PathBuf};

/// Makes the folder of the run that `config` names, with what the finished run in `from` left: its last checkpoint, its
/// metrics and trajectories, and where it came from. Resuming it begins GRPO under `config`. Weights and moments are
/// linked where the file system can, as no file of a checkpoint is ever changed.
///
/// # Errors
/// When the folder exists already, or `from` has no checkpoint.
pub fn fork(from: &Path, config: &Config) -> Result<PathBuf, TrainError> {
    let path = Path::new(&config.run.dir).join(&config.run.name);
    if path.exists() {
        return Err(super::run_folder::RunFolderError::Exists(path).into());
    }
    let nothing = || TrainError::NoRun(from.into());
    let (step, checkpoint) = RunFolder::finished_checkpoints(from)?.pop().ok_or_else(nothing)?;
    let trajectories = Loaded::open(from)?.trajectories;
    files::write_folder::<TrainError>(&path, |dir| {
        let target = dir.join(checkpoints::FOLDER).join(format!("step-{step}"));
        fs::create_dir_all(&target).map_err(|e| FileError::new("create", &target, e))?;
        let failed = |e| FileError::new("read", &checkpoint, e);
        for entry in fs::read_dir(&checkpoint).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            share(&entry.path(), &target.join(entry.file_name()))?;
        }
        for file in [metrics::FILE, provenance::FILE] {
            share(&from.join(file), &dir.join(file))?;
        }
        trajectories.iter().try_for_each(|reader| reader.copy_to_run(dir))?;
        let (file, text) = (dir.join("config.toml"), config.to_toml());
        Ok(fs::write(&file, text).map_err(|e| FileError::new("write", file, e))?)
    })?;
    Ok(path)
}

/// Tensors are linked, as they are large; all else is copied, as some of it is written again.
fn share(from: &Path, to: &Path) -> Result<(), FileError> {
    let tensors = from.extension().is_some_and(|extension| extension == "safetensors");
    if tensors && fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).map(drop).map_err(|e| FileError::new("copy", from, e))
}
