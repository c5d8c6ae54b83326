//! One task of a study in this process: a cold start, or a cell that goes on from it. Killed anywhere, it goes on where
//! it was.

use super::plan::{Study, StudyTask};
use super::{StudyError, gate};
use crate::config::Config;
use crate::device::{Gpu, cuda::Cuda};
use crate::files::FileError;
use crate::train::memory::Placement;
use crate::train::report::Loaded;
use crate::train::run_folder::{Existing, RunFolder};
use crate::train::{self, TrainError, fork};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Folder of the files that processes lock while they work on a task.
const LOCKS: &str = "locks";

fn lock_of(study: &Study, task: &StudyTask) -> PathBuf {
    study.folder.join(LOCKS).join(study.name_of(task))
}

/// Locks a task, until the file is dropped.
fn lock(study: &Study, task: &StudyTask) -> Result<File, StudyError> {
    let (folder, file) = (study.folder.join(LOCKS), lock_of(study, task));
    fs::create_dir_all(&folder).map_err(|e| FileError::new("create", folder, e))?;
    let lock = File::create(&file).map_err(|e| FileError::new("create", file, e))?;
    if lock.try_lock().is_err() {
        return Err(StudyError::Locked(study.run_folder(task)));
    }
    Ok(lock)
}

/// Whether a process works on the task.
pub fn is_held(study: &Study, task: &StudyTask) -> bool {
    File::open(lock_of(study, task)).is_ok_and(|lock| lock.try_lock_shared().is_err())
}

/// Runs a task to its end, from wherever it stands.
pub fn run(study: &Study, task: &StudyTask) -> Result<(), StudyError> {
    let _lock = lock(study, task)?;
    let gpu = || -> Result<Option<Gpu>, TrainError> {
        match study.place() {
            Placement::Cpu => Ok(None),
            Placement::Gpu => Ok(Some(Gpu::new(Cuda::open(None)?))),
        }
    };
    let mut config = study.config(task)?;
    let suite = train::suite(&config)?;
    config.env.hash = suite.content_hash().unwrap_or_default();
    // It takes all memory of the GPU: last of all, and once.
    let mut opened = None;
    if !is_trained(study, task)? {
        let existing = prepare(study, task, &config)?;
        opened = gpu()?;
        train::train_on(opened.as_ref(), config.clone(), &*suite, existing)?;
    }
    if study.is_gated(task) && !gate::is_measured(study, task) {
        let device = if opened.is_some() { opened } else { gpu()? };
        gate::measure(study, task, &config, &*suite, device.as_ref())?;
    }
    Ok(())
}

/// Makes the task's run folder what training can begin in, or go on in.
fn prepare(study: &Study, task: &StudyTask, config: &Config) -> Result<Existing, StudyError> {
    let run = study.run_folder(task);
    if saved(study, task).exists() {
        unchanged(&run, config)?;
        return Ok(Existing::Resume);
    }
    if task.variant.is_none() {
        return Ok(Existing::Refuse);
    }
    let cold_start = StudyTask { variant: None, ..task.clone() };
    let from = study.run_folder(&cold_start);
    if !is_trained(study, &cold_start)? {
        return Err(StudyError::NoColdStart(from));
    }
    fork::fork(&from, config)?;
    Ok(Existing::Resume)
}

/// Refuses to go on with what another configuration began.
fn unchanged(run: &Path, config: &Config) -> Result<(), StudyError> {
    let changes = config.changed_since(&Config::load(Some(&run.join("config.toml")), &[])?);
    match changes.is_empty() {
        true => Ok(()),
        false => Err(StudyError::Changed { run: run.into(), changes: changes.join(", ") }),
    }
}

fn saved(study: &Study, task: &StudyTask) -> PathBuf {
    RunFolder::saved_config(&study.folder.display().to_string(), &study.name_of(task))
}

/// Whether a task has nothing left to do.
pub fn is_done(study: &Study, task: &StudyTask) -> Result<bool, StudyError> {
    Ok(is_trained(study, task)? && (!study.is_gated(task) || gate::is_measured(study, task)))
}

/// Whether the task's run came to the end that the study wants.
pub fn is_trained(study: &Study, task: &StudyTask) -> Result<bool, StudyError> {
    Ok(finished(study, task)?.is_some())
}

/// The task's run, if it came to the end that the study wants.
pub fn finished(study: &Study, task: &StudyTask) -> Result<Option<Loaded>, StudyError> {
    if !study.run_folder(task).join("summary.json").exists() {
        return Ok(None);
    }
    let (run, wanted) = (Loaded::open(&study.run_folder(task))?, study.config(task)?.run);
    let as_long = run.config.run.iterations == wanted.iterations && run.config.run.env_steps == wanted.env_steps;
    Ok(Some(run).filter(|run| run.finished && as_long))
}
