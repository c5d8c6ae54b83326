//! The probe set: the samples that a run's coupling is measured on, fixed so that its curve compares with itself and with others'.

use super::gram::StateAction;
use crate::files::{self, FileError};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Why a probe set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("there is no {}: a run has one when it has measured its coupling (coupling.every > 0, and a group that differed in reward)", .0.display())]
    Missing(PathBuf),
    #[error("{}: not a probe set ({reason})", .file.display())]
    Corrupt { file: PathBuf, reason: String },
    #[error(transparent)]
    File(#[from] FileError),
}

/// A state, the action taken in it, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeSample {
    pub tokens: Vec<u32>,
    /// Where the action begins.
    pub action: usize,
    pub advantage: f64,
    /// 1 good, −1 bad, 0 unknown.
    pub label: i8,
}

/// A run's `coupling/probe.json`, or samples of the user's own in the same form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// The iteration (from 0) that the samples were taken from.
    pub iteration: u32,
    pub samples: Vec<ProbeSample>,
}

const FILE: &str = "probe.json";

impl Probe {
    /// Half of `count` with positive and half with negative advantage, spread evenly over `candidates`; positive first. `None` when
    /// there are not two of each.
    pub fn choose(iteration: u32, candidates: &[ProbeSample], count: usize) -> Option<Probe> {
        let class = |keep: fn(f64) -> bool| -> Vec<&ProbeSample> {
            let all: Vec<_> = candidates.iter().filter(|c| keep(c.advantage)).collect();
            let n = (count / 2).min(all.len());
            (0..n).map(|i| all[i * all.len() / n]).collect()
        };
        let (positive, negative) = (class(|a| a > 0.0), class(|a| a < 0.0));
        let enough = positive.len() >= 2 && negative.len() >= 2;
        enough.then(|| Probe { iteration, samples: positive.into_iter().chain(negative).cloned().collect() })
    }

    /// A run's own.
    pub fn of(run: &Path) -> Result<Probe, ProbeError> {
        Probe::read(run.join(super::FOLDER).join(FILE))
    }

    pub fn read(file: PathBuf) -> Result<Probe, ProbeError> {
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(ProbeError::Missing(file)),
            Err(e) => return Err(FileError::new("read", file, e).into()),
        };
        serde_json::from_str(&text).map_err(|e| ProbeError::Corrupt { file, reason: e.to_string() })
    }

    pub fn write(&self, run: &Path) -> Result<(), FileError> {
        let folder = run.join(super::FOLDER);
        std::fs::create_dir_all(&folder).map_err(|e| FileError::new("create", &folder, e))?;
        let json = serde_json::json!(self).to_string();
        files::write_file(&folder.join(FILE), |w| w.write_all(json.as_bytes()))
    }

    pub fn samples(&self) -> Vec<StateAction> {
        self.samples.iter().map(|s| StateAction { tokens: s.tokens.clone(), action: s.action }).collect()
    }

    pub fn advantages(&self) -> Vec<f64> {
        self.samples.iter().map(|s| s.advantage).collect()
    }

    /// 1 good, −1 bad, 0 unknown.
    pub fn labels(&self) -> Vec<f64> {
        self.samples.iter().map(|s| f64::from(s.label)).collect()
    }
}
