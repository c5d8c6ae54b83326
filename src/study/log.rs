//! What the processes of a study's tasks said: one file a task.

use super::plan::{Study, StudyTask};
use crate::files;
use std::path::PathBuf;

/// Begins the line that a process begins with.
pub const BEGIN: &str = "=== ";

/// Where logs are kept.
pub fn folder(study: &Study) -> PathBuf {
    study.folder.join("logs")
}

pub fn file(study: &Study, task: &StudyTask) -> PathBuf {
    folder(study).join(format!("{}.log", study.name_of(task)))
}

/// Why the last process of a task failed, as it told.
pub fn last_error(study: &Study, task: &StudyTask) -> Option<String> {
    let bytes = files::read(&file(study, task), files::MOST_KEPT).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut last = text.lines().rev().take_while(|line| !line.starts_with(BEGIN));
    last.find_map(|line| line.strip_prefix("error: ")).map(String::from)
}
