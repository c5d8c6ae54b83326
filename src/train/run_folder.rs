//! The folder of one run: created once, locked while a process trains in it, and whole at every moment.

use super::TrainError;
use super::checkpoints::{self, FOLDER as CHECKPOINTS, Last};
use super::manifest;
use crate::config::{Config, Run};
use crate::files::{self, FileError};
use crate::report::progress::say;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Why a run folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum RunFolderError {
    #[error("the run {} exists already: continue it with --resume, replace it with --overwrite, or choose another --name", .0.display())]
    Exists(PathBuf),
    #[error("--resume: there is no run {}: leave --resume out to start it, or check --name and --set run.dir", .0.display())]
    Missing(PathBuf),
    #[error("--resume and --overwrite need the name of the run: add --name NAME")]
    Nameless,
    #[error("{} is not the folder of a run (it has no config.toml): --overwrite will not delete it", .0.display())]
    NotARun(PathBuf),
    #[error("another process is training in {}: wait for it to end, or choose another --name", .0.display())]
    Locked(PathBuf),
    #[error(transparent)]
    File(#[from] FileError),
}

/// What to do when the run exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// An error.
    #[default]
    Refuse,
    /// Continue the run.
    Resume,
    /// Delete the run and start again.
    Overwrite,
}

/// An open run folder. No other process can open it until this one drops it or dies.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    resumed: bool,
    _lock: File,
}

const LOCK: &str = ".lock";
const CONFIG: &str = "config.toml";

impl RunFolder {
    /// Opens `config.run.dir/config.run.name` and writes the resolved configuration into it.
    ///
    /// An empty name becomes suite and UTC date-time, e.g. `household-20261120-2301`; `config` then holds it.
    ///
    /// # Errors
    /// If the run exists, does not exist or is in use, as `existing` asks, or its folder cannot be written.
    ///
    /// # Panics
    /// Never: some name is free.
    pub fn open(config: &mut Config, existing: Existing) -> Result<RunFolder, RunFolderError> {
        let dir = PathBuf::from(&config.run.dir);
        fs::create_dir_all(&dir).map_err(|e| FileError::new("create", &dir, e))?;
        let folder = match (config.run.name.is_empty(), existing) {
            (true, Existing::Refuse) => {
                let base = automatic_name(&config.env.suite, SystemTime::now());
                let names = (1..).map(|n| if n == 1 { base.clone() } else { format!("{base}-{n}") });
                let mut names = names.map(|name| (Self::create(&dir.join(&name)), name));
                // Someone else may have started a run in the same minute.
                let taken = |made: &_| matches!(made, Err(RunFolderError::Exists(_) | RunFolderError::Locked(_)));
                let free = names.find(|(made, _)| !taken(made));
                let (made, name) = free.expect("the names do not end");
                config.run.name = name;
                made?
            }
            (true, _) => return Err(RunFolderError::Nameless),
            (false, existing) => {
                let path = dir.join(&config.run.name);
                match existing {
                    Existing::Refuse => Self::create(&path)?,
                    Existing::Resume if !path.join(CONFIG).exists() => return Err(RunFolderError::Missing(path)),
                    Existing::Resume => Self::lock(path, true)?,
                    Existing::Overwrite if !path.exists() || is_new(&path) => Self::create(&path)?,
                    Existing::Overwrite if !path.join(CONFIG).exists() => return Err(RunFolderError::NotARun(path)),
                    Existing::Overwrite => Self::lock(path, false)?.emptied()?,
                }
            }
        };
        folder.write(CONFIG, config.to_toml().as_bytes())?;
        Ok(folder)
    }

    /// A folder that a process made but was killed before it began the run in it is as good as none.
    fn create(path: &Path) -> Result<RunFolder, RunFolderError> {
        match fs::create_dir(path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists && is_new(path) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(RunFolderError::Exists(path.into())),
            made => made.map_err(|e| FileError::new("create", path, e))?,
        }
        let folder = Self::lock(path.into(), false)?;
        // Another process may have come first, and be gone already.
        if is_new(path) { Ok(folder) } else { Err(RunFolderError::Exists(path.into())) }
    }

    fn lock(path: PathBuf, resumed: bool) -> Result<RunFolder, RunFolderError> {
        let file = path.join(LOCK);
        let lock = File::create(&file).map_err(|e| FileError::new("create", &file, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RunFolderError::Locked(path)),
            Err(TryLockError::Error(e)) => return Err(FileError::new("lock", file, e).into()),
        }
        let folder = RunFolder { path, resumed, _lock: lock };
        checkpoints::promote(&folder.path)?;
        folder.sweep()?;
        Ok(folder)
    }

    /// Deletes what a killed process left half-written or half-deleted, in the folder and in those within it.
    fn sweep(&self) -> Result<(), FileError> {
        files::sweep(&self.path)?;
        let failed = |e| FileError::new("read", &self.path, e);
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                files::sweep(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Deletes everything but the lock and the configuration, so that an interrupted deletion can be repeated; the checkpoints
    /// first and at once, so that none is ever resumed without what belongs to it.
    fn emptied(self) -> Result<RunFolder, RunFolderError> {
        files::remove_folder(&self.path.join(CHECKPOINTS))?;
        let failed = |path: &Path, e| FileError::new("remove", path, e);
        let entries = fs::read_dir(&self.path).map_err(|e| failed(&self.path, e))?;
        for entry in entries {
            let path = entry.map_err(|e| failed(&self.path, e))?.path();
            match path.file_name().and_then(|n| n.to_str()) {
                Some(LOCK | CONFIG) => Ok(()),
                _ if path.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            }
            .map_err(|e| failed(&path, e))?;
        }
        Ok(self)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run's name.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether an earlier process began this run.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// The configuration an earlier process began the run with: read it before [`RunFolder::open`] replaces it.
    pub fn saved_config(dir: &str, name: &str) -> PathBuf {
        Path::new(dir).join(name).join(CONFIG)
    }

    /// Replaces a file of the folder, atomically.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, file: &str, bytes: &[u8]) -> Result<(), FileError> {
        files::write_file(&self.path.join(file), |w| w.write_all(bytes))
    }

    /// Removes a file of the folder. Absent is fine.
    ///
    /// # Errors
    /// If the file is there and cannot be removed.
    pub fn remove(&self, file: &str) -> Result<(), FileError> {
        let path = self.path.join(file);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(FileError::new("remove", path, e)),
            _ => Ok(()),
        }
    }

    /// Replaces a folder of the folder, atomically: `fill` gets the path to fill.
    ///
    /// # Errors
    /// If `fill` fails, or the folder cannot be written.
    pub fn write_dir<E: From<FileError>>(
        &self,
        name: &str,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let path = self.path.join(name);
        files::write_folder(&path, fill)?;
        Ok(path)
    }

    /// Writes `checkpoints/step-N` with its manifest; then only the `keep` latest checkpoints stay.
    ///
    /// # Errors
    /// If `fill` fails, or the checkpoint cannot be written.
    pub fn write_checkpoint<E: From<FileError>>(
        &self,
        step: u64,
        keep: u32,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let parent = self.path.join(CHECKPOINTS);
        fs::create_dir_all(&parent).map_err(|e| FileError::new("create", &parent, e))?;
        let path = self.write_dir(&format!("{CHECKPOINTS}/step-{step}"), |dir| {
            fill(dir).and_then(|()| Ok(manifest::write(dir, step)?))
        })?;
        self.keep_checkpoints(keep)?;
        Ok(path)
    }

    /// Deletes all but the `keep` latest checkpoints.
    ///
    /// # Errors
    /// If a checkpoint cannot be removed.
    pub fn keep_checkpoints(&self, keep: u32) -> Result<(), FileError> {
        let all = self.checkpoints()?;
        all.iter().rev().skip(keep.max(1) as usize).try_for_each(|(_, old)| files::remove_folder(old))
    }

    /// The finished checkpoints, oldest first.
    ///
    /// # Errors
    /// If the folder of checkpoints cannot be listed.
    pub fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>, FileError> {
        Self::finished_checkpoints(&self.path)
    }

    /// The finished checkpoints of any run, oldest first, without opening it for training.
    ///
    /// # Errors
    /// If the folder of checkpoints cannot be listed.
    pub fn finished_checkpoints(run: &Path) -> Result<Vec<(u64, PathBuf)>, FileError> {
        checkpoints::list(run)
    }

    /// Loads what the run goes on from: its last whole checkpoint. Later ones that are damaged are moved out of the way, to
    /// `damaged-step-N`. `None` when there is no checkpoint.
    ///
    /// # Errors
    /// If there are checkpoints and none is whole.
    pub fn load_checkpoint<T>(&self, load: impl Fn(&Path) -> Result<T, TrainError>) -> Result<Option<T>, TrainError> {
        let Last { found, damaged } = checkpoints::last(&self.path, |_| true, load)?;
        for (path, _) in damaged {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let aside = path.with_file_name(format!("damaged-{name}"));
            files::remove_folder(&aside)?;
            fs::rename(&path, &aside).map_err(|e| FileError::new("move", &path, e))?;
            say(&format!("kept as {}", aside.display()));
        }
        match &found {
            Some((step, _)) => say(&format!("{}: going on from step-{step}", self.path.display())),
            None if self.resumed => {
                say(&format!("{}: there is no checkpoint yet, it begins anew", self.path.display()))
            }
            None => {}
        }
        Ok(found.map(|(_, loaded)| loaded))
    }
}

/// Whether no run has begun in the folder `path`: it holds nothing, or only what a process makes before its configuration.
fn is_new(path: &Path) -> bool {
    let begun = |entry: io::Result<fs::DirEntry>| match entry {
        Ok(entry) => entry.file_name() != LOCK && !files::is_leftover(&entry.file_name().to_string_lossy()),
        Err(_) => true,
    };
    fs::read_dir(path).is_ok_and(|mut entries| !entries.any(begun))
}

/// The run that a user means by `run`: that folder, or else the run of this name in `runs`.
pub fn named(run: &Path) -> PathBuf {
    let home = Path::new(&Run::default().dir).join(run);
    let is_run = |folder: &Path| folder.join("config.toml").is_file();
    if !is_run(run) && run.components().count() == 1 && is_run(&home) { home } else { run.into() }
}

/// `SUITE-YYYYMMDD-HHMM`, in UTC.
pub fn automatic_name(suite: &str, now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{suite}-{year}{month:02}{day:02}-{hour:02}{minute:02}")
}

/// Days since 1970-01-01 as (year, month, day) of the Gregorian calendar.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let leap = |y: u64| y.is_multiple_of(4) && !y.is_multiple_of(100) || y.is_multiple_of(400);
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn automatic_names_are_dates() {
        let at = |seconds| automatic_name("household", UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "household-19700101-0000");
        assert_eq!(at(951_782_399), "household-20000228-2359");
        assert_eq!(at(951_782_400), "household-20000229-0000");
        assert_eq!(at(1_795_215_660), "household-20261120-2301");
        assert_eq!(at(4_102_444_799), "household-20991231-2359");
    }
}
