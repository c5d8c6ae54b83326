//! What the finished runs of a study left, as its tables need it.

use super::plan::{Study, StudyTask};
use super::probed::Probed;
use super::{StudyError, task};
use crate::report::metrics::Record;
use crate::report::results::Summary;
use crate::report::trajectories::{EvaluatedEpisode, TrajectoryReader};
use crate::train::report::Loaded;
use std::collections::{BTreeMap, BTreeSet};

/// The phases of evaluations.
pub const EVAL: &str = "eval";
/// The phase of evaluations without suggestions in the prompt.
pub const WITHOUT_SUGGESTIONS: &str = "eval-no-suggestions";

/// A finished cell.
pub struct Cell {
    /// The cell's place in the study.
    pub task: StudyTask,
    /// What its run came to.
    pub summary: Summary,
    /// Its metrics, oldest first.
    pub records: Vec<Record>,
    /// The episodes of its evaluations.
    pub episodes: Vec<EvaluatedEpisode>,
    /// The probe set's coupling at the end.
    pub probed: Option<Probed>,
}

/// All finished cells, and the names of the others.
pub struct Collected {
    /// The finished cells.
    pub cells: Vec<Cell>,
    /// Names of the cells that are not finished.
    pub missing: Vec<String>,
    /// Number of cells of the study.
    pub planned: usize,
    /// Seconds of the cold starts that are finished.
    pub cold_start_seconds: Vec<f64>,
}

/// Reads what there is.
///
/// # Errors
/// If the files of a finished cell cannot be read.
pub fn collect(study: &Study) -> Result<Collected, StudyError> {
    let tasks = study.tasks();
    let (mut cells, mut missing, mut cold_start_seconds) = (Vec::new(), Vec::new(), Vec::new());
    for task in &tasks {
        match (task::finished(study, task)?, task.variant) {
            (Some(run), Some(_)) => cells.push(cell(study, task, run)?),
            (Some(run), None) => cold_start_seconds.push(run.summary.seconds),
            (None, Some(_)) => missing.push(study.name_of(task)),
            (None, None) => {}
        }
    }
    let planned = tasks.iter().filter(|task| task.variant.is_some()).count();
    Ok(Collected { cells, missing, planned, cold_start_seconds })
}

fn cell(study: &Study, task: &StudyTask, run: Loaded) -> Result<Cell, StudyError> {
    let episodes = run.trajectories.as_ref().map(TrajectoryReader::evaluated).transpose()?.unwrap_or_default();
    let probed = Probed::read(&study.run_folder(task), "final")?;
    Ok(Cell { task: task.clone(), summary: run.summary, records: run.records, episodes, probed })
}

impl Cell {
    /// The episodes of a phase's last evaluation, by split and game.
    pub fn last(&self, phase: &str) -> BTreeMap<&str, BTreeMap<&str, &EvaluatedEpisode>> {
        self.at(phase, self.iterations(phase).last().copied())
    }

    /// The same after so many iterations.
    pub fn at(&self, phase: &str, iteration: Option<u64>) -> BTreeMap<&str, BTreeMap<&str, &EvaluatedEpisode>> {
        let mut splits: BTreeMap<&str, BTreeMap<&str, &EvaluatedEpisode>> = BTreeMap::new();
        for e in self.episodes.iter().filter(|e| e.phase == phase && Some(e.iteration) == iteration) {
            splits.entry(&e.split).or_default().insert(&e.task, e);
        }
        splits
    }

    /// After how many iterations a phase evaluated.
    pub fn iterations(&self, phase: &str) -> BTreeSet<u64> {
        self.episodes.iter().filter(|e| e.phase == phase).map(|e| e.iteration).collect()
    }

    /// The last value of a metric in a phase.
    pub fn metric(&self, phase: &str, name: &str) -> Option<f64> {
        self.records.iter().rev().filter(|r| r.phase == phase).find_map(|r| r.values.get(name).copied())
    }
}

/// The finished cells of a variant from one start, by seed.
pub struct CellGroup<'a> {
    /// The start's name.
    pub start: &'a str,
    /// The variant's name.
    pub variant: &'a str,
    /// The cells, by ascending seed.
    pub cells: Vec<&'a Cell>,
    /// Those of the variant it is compared with.
    pub against: Option<(&'a str, Vec<&'a Cell>)>,
}

/// The cells by start and variant; none that has no cell.
pub fn groups<'a>(study: &'a Study, cells: &'a [Cell]) -> Vec<CellGroup<'a>> {
    let of = |start: usize, variant: usize| -> Vec<&Cell> {
        cells.iter().filter(|cell| (cell.task.start, cell.task.variant) == (start, Some(variant))).collect()
    };
    let mut groups = Vec::new();
    for (at, start) in study.starts.iter().enumerate() {
        for (v, variant) in study.variants.iter().enumerate() {
            let against = study.against(v).map(|other| (&study.variants[other].name[..], of(at, other)));
            groups.push(CellGroup { start: &start.name, variant: &variant.name, cells: of(at, v), against });
        }
    }
    groups.retain(|group| !group.cells.is_empty());
    groups
}

impl<'a> CellGroup<'a> {
    /// The group's cells beside those of the other variant with the same seed.
    pub fn pairs(&self) -> Vec<(&'a Cell, &'a Cell)> {
        let others = self.against.iter().flat_map(|(_, cells)| cells);
        let beside =
            |cell: &&'a Cell| others.clone().find(|other| other.task.seed == cell.task.seed).map(|o| (*cell, *o));
        self.cells.iter().filter_map(beside).collect()
    }
}
