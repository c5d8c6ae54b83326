//! `manifest.json`: size and SHA-256 of every file of a checkpoint, so that one that is cut short, edited or of another step is
//! noticed. It is written last, within the folder that appears as a whole.
//!
//! Of the training state its wall time does not count: what two runs computed is the same if their manifests are.

use super::card;
use super::state::STATE;
use crate::files::{self, FileError};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

const FILE: &str = "manifest.json";

#[derive(Serialize, Deserialize)]
struct Manifest {
    /// The checkpoint's number.
    step: u64,
    files: BTreeMap<String, FileEntry>,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct FileEntry {
    bytes: u64,
    /// In hex, as `sha256sum` prints it (but for the training state).
    sha256: String,
}

/// Why a folder is not what its manifest says.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("{FILE} is not readable ({0})")]
    Manifest(serde_json::Error),
    #[error("{FILE} is that of step {0}")]
    Step(u64),
    #[error("{0} is missing")]
    Missing(String),
    #[error("{file} has {found} bytes, but {FILE} says {expected}")]
    Size { file: String, found: u64, expected: u64 },
    #[error("{0} was edited, or belongs to another step: its SHA-256 is not the one in {FILE}")]
    Content(String),
    #[error(transparent)]
    File(#[from] FileError),
}

/// Adds the manifest of all files that lie in `dir`, but for the model card, which tells results that come later.
pub fn write(dir: &Path, step: u64) -> Result<(), FileError> {
    let failed = |e| FileError::new("read", dir, e);
    let paths = fs::read_dir(dir).and_then(|entries| entries.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>());
    let described = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, describe(path).map_err(|e| FileError::new("read", path, e))?))
    };
    let counts = |path: &&PathBuf| !path.ends_with(card::FILE);
    let files = paths.map_err(failed)?.par_iter().filter(counts).map(described).collect::<Result<_, FileError>>()?;
    let (file, json) = (dir.join(FILE), format!("{:#}\n", serde_json::json!(Manifest { step, files })));
    fs::write(&file, json).map_err(|e| FileError::new("write", file, e))
}

/// Compares the folder of step `step` with its manifest: the sizes of all files, and the content of those that `read` names.
/// `false` where there is no manifest, as in checkpoints of earlier versions. Other files may lie beside them.
pub fn check(dir: &Path, step: u64, read: fn(&str) -> bool) -> Result<bool, Damage> {
    let file = dir.join(FILE);
    let text = match files::read(&file, files::MOST_KEPT) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        text => text.map_err(|e| FileError::new("read", file, e))?,
    };
    let manifest: Manifest = serde_json::from_slice(&text).map_err(Damage::Manifest)?;
    if manifest.step != step {
        return Err(Damage::Step(manifest.step));
    }
    // Sizes cost nothing, so that most damage is found at once.
    for (name, FileEntry { bytes, .. }) in &manifest.files {
        let found = match fs::metadata(dir.join(name)) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(Damage::Missing(name.clone())),
            found => found.map_err(|e| FileError::new("read", dir.join(name), e))?.len(),
        };
        if found != *bytes && name != STATE {
            return Err(Damage::Size { file: name.clone(), found, expected: *bytes });
        }
    }
    let wanted: Vec<_> = manifest.files.iter().filter(|(name, _)| read(name)).collect();
    let same = |(name, entry): &(&String, &FileEntry)| match describe(&dir.join(name)) {
        Ok(found) if found == **entry => Ok(()),
        Ok(_) => Err(Damage::Content(name.to_string())),
        Err(e) => Err(FileError::new("read", dir.join(name), e).into()),
    };
    wanted.par_iter().map(same).collect::<Vec<_>>().into_iter().collect::<Result<(), _>>()?;
    Ok(true)
}

fn describe(path: &Path) -> io::Result<FileEntry> {
    let mut hash = Sha256::new();
    let bytes = match path.ends_with(STATE) {
        true => io::copy(&mut &timeless(&files::read(path, files::MOST_KEPT)?)[..], &mut hash)?,
        false => io::copy(&mut BufReader::with_capacity(1 << 20, files::open(path)?), &mut hash)?,
    };
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(FileEntry { bytes, sha256 })
}

/// A training state without its wall time; as it is, where it is none.
fn timeless(state: &[u8]) -> Vec<u8> {
    match serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(state) {
        Ok(mut state) => {
            state.shift_remove("seconds");
            serde_json::json!(state).to_string().into_bytes()
        }
        Err(_) => state.to_vec(),
    }
}
