//! How far a study is.

use super::plan::{Study, StudyTask};
use super::{StudyError, log, measures, task};
use crate::report::metrics;
use crate::report::results::fitted;
use serde::Serialize;
use std::collections::BTreeMap;

/// How far a task is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    pub name: String,
    pub state: TaskState,
    /// Steps done of those planned: of the cold start, or of GRPO.
    pub done: u64,
    pub planned: u64,
    /// Success on each split, at the end.
    pub success: BTreeMap<String, f64>,
    pub seconds: Option<f64>,
    /// Why it failed the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    Waiting,
    /// A process holds its folder.
    Running,
    /// Begun, but no process holds it here (one on another machine may).
    Stopped,
    Failed,
    Finished,
}

impl TaskState {
    fn name(self) -> &'static str {
        match self {
            TaskState::Waiting => "waiting",
            TaskState::Running => "running",
            TaskState::Stopped => "stopped",
            TaskState::Failed => "failed",
            TaskState::Finished => "finished",
        }
    }
}

/// The status of every task.
pub fn all(study: &Study) -> Result<Vec<Status>, StudyError> {
    study.tasks().iter().map(|task| of(study, task)).collect()
}

pub fn of(study: &Study, task: &StudyTask) -> Result<Status, StudyError> {
    let (run, config) = (study.run_folder(task), study.config(task)?);
    let (phase, planned) = match task.variant {
        None => ("sft", config.sft.steps),
        Some(_) => ("grpo", config.run.iterations),
    };
    let records = metrics::read(&run)?;
    let done = records.iter().filter(|r| r.phase == phase).map(|r| r.step).max().unwrap_or(0);
    let finished = task::finished(study, task)?;
    let error = log::last_error(study, task).filter(|_| finished.is_none());
    let state = match (&finished, task::is_held(study, task)) {
        (_, true) => TaskState::Running,
        (Some(_), _) if task::is_done(study, task)? => TaskState::Finished,
        _ if error.is_some() => TaskState::Failed,
        _ if run.exists() => TaskState::Stopped,
        _ => TaskState::Waiting,
    };
    let success = finished.as_ref().map(|run| {
        let eval = &run.summary.eval;
        let of = if eval.last.is_empty() { &eval.cold_start } else { &eval.last };
        of.iter().map(|(split, s)| (split.clone(), s.success)).collect()
    });
    let name = study.name_of(task);
    let seconds = finished.as_ref().map(|run| match task.variant {
        None => run.summary.seconds,
        Some(_) => measures::seconds(&run.summary, &run.records),
    });
    Ok(Status { name, state, done, planned: planned.into(), success: success.unwrap_or_default(), seconds, error })
}

impl Status {
    /// Its success, in a few words.
    pub fn in_short(&self) -> String {
        self.success.iter().map(|(split, x)| format!("{split} {:.0} %", 100.0 * x)).collect::<Vec<_>>().join(" ")
    }
}

/// For a terminal or a log.
pub fn table(all: &[Status]) -> String {
    let row = |s: &Status| {
        let seconds = s.seconds.map_or("–".into(), |seconds| format!("{seconds:.0}"));
        [s.name.clone(), s.state.name().into(), format!("{}/{}", s.done, s.planned), s.in_short(), seconds]
    };
    let mut text = fitted(&["run", "state", "steps", "success", "s"], all.iter().map(row), &[2, 4]);
    let failed = all.iter().filter_map(|s| Some((&s.name, s.error.as_ref()?)));
    failed.for_each(|(name, error)| text += &format!("\n{name}: {error}"));
    text
}
