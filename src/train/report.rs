//! The report of a run folder, whatever state the run is in.

use super::run_folder::RunFolder;
use super::state::{self, TrainingState};
use super::{TrainError, checkpoints, evaluate, user_files};
use crate::config::Config;
use crate::coupling;
use crate::env::Suite;
use crate::files::{self, FileError};
use crate::model::tokenizer::Tokenizer;
use crate::report::metrics::{self, Record};
use crate::report::page::{self, Heat};
use crate::report::progress::say;
use crate::report::provenance::{self, GameHashes, ProcessRecord, Provenance};
use crate::report::results::{self, EvalSummary, Summary};
use crate::report::trajectories::TrajectoryReader;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Name of the page in the run folder.
pub const PAGE: &str = "report.html";
const SUMMARY: &str = "summary.json";
const CONFIG: &str = "config.toml";

/// Notes where the run comes from: earlier processes of the folder, and this one.
pub fn begin(
    folder: &RunFolder,
    config: &Config,
    suite: &dyn Suite,
    device: Option<String>,
) -> Result<Provenance, TrainError> {
    let earlier = read_json(&folder.path().join(provenance::FILE)).unwrap_or_else(|why| {
        say(&format!("what is known of earlier processes of this run is lost: {why}"));
        None
    });
    let mut all: Provenance = earlier.unwrap_or_default();
    let panel = |split| -> Result<_, TrainError> {
        Ok((format!("{split}"), evaluate::panel_hash(suite, &evaluate::panel(config, suite, &[split])?)))
    };
    all.games = GameHashes {
        suite: suite.name().into(),
        content: suite.content_hash(),
        panels: evaluate::SPLITS.into_iter().map(panel).collect::<Result<_, _>>()?,
    };
    all.sessions.push(ProcessRecord::this(device, user_files::of(config)?));
    note(folder, &mut all)?;
    Ok(all)
}

/// Notes that the run stands now.
pub fn note(folder: &RunFolder, of: &mut Provenance) -> Result<(), FileError> {
    of.sessions.last_mut().into_iter().for_each(|process| process.seen = provenance::now());
    folder.write(provenance::FILE, format!("{:#}\n", serde_json::json!(of)).as_bytes())
}

/// A run as its folder tells of it.
pub struct Loaded {
    pub path: PathBuf,
    pub config: Config,
    pub summary: Summary,
    /// Whether the run came to its end; if not, the summary is that of its last checkpoint.
    pub finished: bool,
    pub records: Vec<Record>,
    pub trajectories: Option<TrajectoryReader>,
    /// Why trajectories cannot be read.
    pub notice: Option<String>,
}

impl Loaded {
    /// Reads what there is of the run in `path`.
    pub fn open(path: &Path) -> Result<Loaded, TrainError> {
        let file = path.join(CONFIG);
        if !file.exists() {
            return Err(TrainError::NoRun(path.into()));
        }
        let config = Config::load(Some(&file), &[])?;
        let records = metrics::read(path)?;
        let last = RunFolder::finished_checkpoints(path)?.pop();
        let state = last.map_or_else(|| Ok(TrainingState::default()), |(_, dir)| state::read(&dir))?;
        // A run that was made longer has the summary of its earlier end until the new one.
        let finished: Option<Summary> =
            read_json(&path.join(SUMMARY))?.filter(|summary: &Summary| summary.train_steps >= state.train_steps);
        let (trajectories, notice) = match TrajectoryReader::open(path) {
            Ok(found) => (found, None),
            Err(e) => (None, Some(format!("Trajectories are left out: {e}"))),
        };
        let (summary, finished) = match finished {
            Some(summary) => (summary, true),
            None => (so_far(path, &state, &records), false),
        };
        Ok(Loaded { path: path.into(), config, summary, finished, records, trajectories, notice })
    }

    /// The run's name.
    pub fn name(&self) -> String {
        let full = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        full.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The page.
    pub fn page(&self) -> Result<String, TrainError> {
        let tokenizer = self.tokenizer();
        let decode = |tokens: &[u32]| {
            let text = tokenizer.as_ref().and_then(|tokenizer| tokenizer.decode(tokens, false).ok());
            text.unwrap_or_else(|| format!("{} tokens", tokens.len()))
        };
        let heat = files::read(&self.path.join(coupling::FOLDER).join("final.json"), files::MOST_KEPT).ok();
        Ok(page::render(&page::PageRun {
            name: &self.name(),
            config: &self.config.to_toml(),
            summary: &self.summary,
            finished: self.finished,
            seed: self.config.run.seed,
            iterations: self.config.run.iterations,
            records: &self.records,
            heat: heat.filter(|_| self.finished).and_then(|json| Heat::of_json(&json)),
            trajectories: self.trajectories.as_ref(),
            notice: self.notice.clone(),
            threshold: self.config.suggestions.threshold.into(),
            decode: &decode,
        })?)
    }

    /// That of the last checkpoint, if there is one.
    fn tokenizer(&self) -> Option<Tokenizer> {
        let (_, dir) = checkpoints::last_model(&self.path).ok()??;
        Tokenizer::load(&dir).ok()
    }
}

/// Writes the page of the run in `path` to `report.html` there.
pub fn write(path: &Path) -> Result<PathBuf, TrainError> {
    let (page, file) = (Loaded::open(path)?.page()?, path.join(PAGE));
    files::write_file(&file, |w| w.write_all(page.as_bytes()))?;
    Ok(file)
}

/// The summary of a run that is under way: what its last checkpoint knows.
fn so_far(path: &Path, state: &TrainingState, records: &[Record]) -> Summary {
    let cold_start = state.cold_start.as_ref().map(results::summarise).unwrap_or_default();
    Summary {
        seconds: records.iter().map(|record| record.seconds).fold(state.seconds, f64::max),
        phase_seconds: metrics::phase_seconds(records),
        train_steps: state.train_steps,
        env_steps: state.env_steps,
        tokens: state.tokens,
        eval: EvalSummary { cold_start, ..EvalSummary::default() },
        flawed: state.flawed.points(),
        flawed_fit: state.flawed.fit(),
        provenance: read_json(&path.join(provenance::FILE)).unwrap_or_default(),
        ..Summary::default()
    }
}

/// A file of the folder as JSON; `None` where there is none.
fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<Option<T>, FileError> {
    match files::read(file, files::MOST_KEPT) {
        Ok(bytes) => {
            let json = serde_json::from_slice(&bytes);
            json.map(Some).map_err(|e| FileError::new("read", file, std::io::Error::other(e)))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::new("read", file, e)),
    }
}
