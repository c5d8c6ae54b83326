//! What training measures, one record a step: `metrics.jsonl` for programs, TensorBoard events for eyes.

use super::tensorboard::EventWriter;
use crate::files::{self, FileError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Step within the phase.
    pub step: u64,
    /// E.g. `sft`, `grpo`, `eval`.
    pub phase: String,
    /// Wall time since the run began.
    pub seconds: f64,
    /// Named values, in TRL's names where TRL has one. Not-a-number is written as null and not read again.
    #[serde(flatten, deserialize_with = "numbers")]
    pub values: BTreeMap<String, f64>,
}

impl Record {
    /// A record without values.
    pub fn new(phase: &str, step: u64, seconds: f64) -> Record {
        Record { step, phase: phase.into(), seconds, values: BTreeMap::new() }
    }

    /// Adds a value.
    pub fn with(mut self, name: &str, value: impl Into<f64>) -> Record {
        self.set(name, value);
        self
    }

    /// Adds a value.
    pub fn set(&mut self, name: &str, value: impl Into<f64>) {
        self.values.insert(name.into(), value.into());
    }

    /// Adds the values that there are.
    pub fn set_known<const N: usize>(&mut self, values: [(&str, Option<f64>); N]) {
        values.into_iter().for_each(|(name, value)| value.into_iter().for_each(|value| self.set(name, value)));
    }
}

fn numbers<'de, D: serde::Deserializer<'de>>(d: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let all = BTreeMap::<String, Option<f64>>::deserialize(d)?;
    Ok(all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
}

/// The run's `metrics.jsonl` and its image in `tensorboard/`.
pub struct Metrics {
    path: PathBuf,
    file: File,
    /// Length of the whole lines.
    bytes: u64,
    events: EventWriter,
}

/// Name of the file in a run folder.
pub const FILE: &str = "metrics.jsonl";

impl Metrics {
    /// Opens the metrics of a run folder, keeping the earlier records that `keep` accepts (a resumed run drops those after
    /// its checkpoint; a new run has none). The event file is written anew from what is kept.
    ///
    /// # Errors
    /// If a file of the run cannot be read or written.
    pub fn open(run: &Path, keep: impl Fn(&Record) -> bool) -> Result<Metrics, FileError> {
        let path = run.join(FILE);
        let kept: Vec<Record> = read(run)?.into_iter().filter(|r| keep(r)).collect();
        files::write_file(&path, |w| kept.iter().try_for_each(|r| w.write_all(line(r).as_bytes())))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| FileError::new("open", &path, e))?;
        let bytes = kept.iter().map(|r| line(r).len() as u64).sum();
        let folder = run.join("tensorboard");
        files::remove_folder(&folder)?;
        let mut events = EventWriter::create(&folder)?;
        let last = kept.last().map_or(0.0, |r| r.seconds);
        for record in &kept {
            let ago = Duration::try_from_secs_f64(last - record.seconds).unwrap_or_default();
            events.scalars(SystemTime::now() - ago, record.step, scalars(record))?;
        }
        Ok(Metrics { path, file, bytes, events })
    }

    /// Appends a record to both. The line is whole, or taken back (a crash: dropped by the next [`Metrics::open`]).
    ///
    /// # Errors
    /// If the record cannot be written.
    pub fn append(&mut self, record: &Record) -> Result<(), FileError> {
        let line = line(record);
        self.file.write_all(line.as_bytes()).map_err(|e| {
            let _ = self.file.set_len(self.bytes);
            FileError::new("append to", &self.path, e)
        })?;
        self.bytes += line.len() as u64;
        self.events.scalars(SystemTime::now(), record.step, scalars(record))
    }

    /// Makes what was appended survive a power cut.
    ///
    /// # Errors
    /// If the file cannot be flushed.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync_all().map_err(|e| FileError::new("sync", &self.path, e))
    }
}

fn line(record: &Record) -> String {
    let json = serde_json::to_string(record).expect("a record is plain numbers and text");
    json + "\n"
}

/// TensorBoard tags `phase/name`.
fn scalars(record: &Record) -> impl Iterator<Item = (String, f64)> {
    record.values.iter().map(|(name, value)| (format!("{}/{name}", record.phase), *value))
}

/// Seconds by phase and part, e.g. `grpo/rollout`: the sums of what records have as `seconds/PART`.
pub fn phase_seconds(records: &[Record]) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for record in records {
        // That is a share of others.
        let parts = record.values.iter().filter(|(name, _)| *name != "seconds/gcd_share");
        for (part, seconds) in parts.filter_map(|(name, seconds)| Some((name.strip_prefix("seconds/")?, seconds))) {
            *sums.entry(format!("{}/{part}", record.phase)).or_default() += seconds;
        }
    }
    sums
}

/// The records of a run folder, oldest first; none when there is no file. A broken last line (a crash) is left out, and
/// so is what follows a broken line.
///
/// # Errors
/// If the file is there and cannot be read.
pub fn read(run: &Path) -> Result<Vec<Record>, FileError> {
    let path = run.join(FILE);
    let text = match files::read(&path, files::MOST_KEPT) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
        Err(e) => return Err(FileError::new("read", path, e)),
    };
    Ok(text.lines().map_while(|l| serde_json::from_str(l).ok()).collect())
}
