//! The checkpoints of a run, `checkpoints/step-N`: which there are, and which one is the last whole one.

use super::TrainError;
use super::manifest::{self, Damage};
use crate::files::FileError;
use crate::report::progress::say;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub(super) const FOLDER: &str = "checkpoints";

/// The finished checkpoints of a run, oldest first.
pub(super) fn list(run: &Path) -> Result<Vec<(u64, PathBuf)>, FileError> {
    numbered(run, |name| name.strip_prefix("step-"))
}

/// The folders of `checkpoints/` whose name has a number, as `number` finds it, in order.
fn numbered(run: &Path, number: impl Fn(&str) -> Option<&str>) -> Result<Vec<(u64, PathBuf)>, FileError> {
    let parent = run.join(FOLDER);
    let entries = match fs::read_dir(&parent) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(FileError::new("read", parent, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| FileError::new("read", &parent, e))?.path();
        let name = path.file_name().and_then(|n| n.to_str());
        if let Some(step) = name.and_then(&number).and_then(|n| n.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Gives a checkpoint its name back that was on its way out when the one that should take its place did not yet stand. Others on
/// their way out are older than one that stands.
pub(super) fn promote(run: &Path) -> Result<(), FileError> {
    let last = list(run)?.pop().map(|(step, _)| step);
    let removed = numbered(run, |name| name.strip_prefix(".step-")?.strip_suffix(".removed"))?;
    let Some((step, path)) = removed.into_iter().next_back().filter(|(step, _)| Some(*step) > last) else {
        return Ok(());
    };
    let stands = path.with_file_name(format!("step-{step}"));
    fs::rename(&path, &stands).map_err(|e| FileError::new("move", path, e))
}

/// The last whole checkpoint, if there is one, and those after it, with what is wrong with them.
pub(super) struct Last<T> {
    pub found: Option<(u64, T)>,
    pub damaged: Vec<(PathBuf, String)>,
}

/// Loads the last checkpoint of a run that is whole, and names on stderr later ones that are not. Of its files the content of
/// those counts that `read` names. One without a manifest counts as damaged when it does not load.
pub(super) fn last<T>(
    run: &Path,
    read: fn(&str) -> bool,
    load: impl Fn(&Path) -> Result<T, TrainError>,
) -> Result<Last<T>, TrainError> {
    let mut damaged = Vec::new();
    for (step, path) in list(run)?.into_iter().rev() {
        let loaded = match manifest::check(&path, step, read) {
            Ok(true) => Ok(load(&path)?),
            Ok(false) => load(&path).map_err(|e| e.to_string()),
            Err(Damage::File(e)) => return Err(e.into()),
            Err(e) => Err(e.to_string()),
        };
        match loaded {
            Ok(loaded) => {
                let told =
                    |(path, reason): &(PathBuf, String)| say(&format!("{} is damaged: {reason}", path.display()));
                damaged.iter().for_each(told);
                return Ok(Last { found: Some((step, loaded)), damaged });
            }
            Err(reason) => damaged.push((path, reason)),
        }
    }
    if damaged.is_empty() {
        return Ok(Last { found: None, damaged });
    }
    let named = |(path, reason): &(PathBuf, String)| format!("{}: {reason}", path.display());
    Err(TrainError::Damaged { run: run.into(), reasons: damaged.iter().map(named).collect::<Vec<_>>().join("; ") })
}

/// Number and path of the last checkpoint whose model is whole.
///
/// # Errors
/// If the folder of checkpoints cannot be listed, or there are checkpoints and none is whole.
pub fn last_model(run: &Path) -> Result<Option<(u64, PathBuf)>, TrainError> {
    let model = |name: &str| !name.starts_with("adamw_") && !name.starts_with("critic");
    Ok(last(run, model, |path| Ok(path.to_path_buf()))?.found)
}
