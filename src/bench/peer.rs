//! The peer's side: the scripts of benches/peers in a Python that has torch, transformers and TRL.

use super::Bench;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why the peer could not be measured.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum PeerError {
    #[error("there is no {}: run from the project's folder", .0.display())]
    NoScript(PathBuf),
    #[error("cannot start {}: {source}; name a Python that has torch, transformers and trl with --python", .python.display())]
    Start { python: PathBuf, source: std::io::Error },
    #[error("the peer script failed: {0}; it needs torch, transformers and trl (see benches/peers/requirements.txt)")]
    Failed(String),
    #[error("the peer script printed no line of `{0}`: {1}")]
    NoLine(&'static str, String),
}

const SMALL: &str = "benches/peers/peer_cpu.py";
const REAL: &str = "benches/peers/real_model.py";

/// The peer's lines on this work: (name, median seconds).
pub fn run(python: &Path, bench: Bench) -> Result<Vec<(String, f64)>, PeerError> {
    let (part, prefix) = match bench {
        Bench::TrainStep => ("train", "(i) train step"),
        Bench::Generate => ("generate", "(ii) generate greedy 128 new, batch 64"),
        Bench::GrpoStep => ("trl", "(iii) TRL GRPO step"),
        Bench::GradientCosine => ("cosine", "(iv) cosine 16x256"),
        Bench::Prefill => ("prefill", "(v) prefill 64x64"),
    };
    lines(python, SMALL, &[part.as_ref()], prefix)
}

/// The lines on a given model.
pub fn of_model(python: &Path, model: &Path, part: &'static str) -> Result<Vec<(String, f64)>, PeerError> {
    lines(python, REAL, &[model.as_os_str(), part.as_ref()], "")
}

/// What a script prints of times, in lines that begin with `prefix`.
fn lines(python: &Path, script: &str, args: &[&OsStr], prefix: &'static str) -> Result<Vec<(String, f64)>, PeerError> {
    let script = PathBuf::from(script);
    if !script.exists() {
        return Err(PeerError::NoScript(script));
    }
    let output = Command::new(python)
        .arg(&script)
        .args(args)
        .output()
        .map_err(|source| PeerError::Start { python: python.into(), source })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(PeerError::Failed(error.lines().last().unwrap_or("no message").into()));
    }
    let lines: Vec<_> = text.lines().filter(|l| l.starts_with(prefix)).filter_map(read).collect();
    if lines.is_empty() { Err(PeerError::NoLine(prefix, text)) } else { Ok(lines) }
}

/// `NAME   123.4 ms  ...`.
fn read(line: &str) -> Option<(String, f64)> {
    let (head, _) = line.split_once(" ms ")?;
    let (name, milliseconds) = head.trim_end().rsplit_once(' ')?;
    Some((name.trim_end().into(), milliseconds.parse::<f64>().ok()? / 1e3))
}
