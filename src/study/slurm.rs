//! Runs a study on a cluster: two job arrays, one task a run. The second waits for the first; both write to the study's
//! folder, which all machines share.

use super::plan::{Study, StudyTask};
use super::{StudyError, launch, log, task};
use crate::files::{self, FileError};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FOLDER: &str = "slurm";

/// A job array that was handed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    pub id: String,
    pub script: PathBuf,
    pub tasks: usize,
}

/// Writes and submits the arrays of all that is not done. `sbatch` is the program that takes scripts.
pub fn submit(study: &Study, program: &Path, sbatch: &Path) -> Result<Vec<Submitted>, StudyError> {
    let (folder, logs) = (study.folder.join(FOLDER), log::folder(study));
    for made in [&folder, &logs] {
        fs::create_dir_all(made).map_err(|e| FileError::new("create", made, e))?;
    }
    launch::keep_file(study)?;
    let tasks = study.tasks();
    let mut submitted: Vec<Submitted> = Vec::new();
    for (name, cells) in [("cold-starts", false), ("cells", true)] {
        let mut open = Vec::new();
        for (index, task) in tasks.iter().enumerate().filter(|(_, task)| task.variant.is_some() == cells) {
            if !task::is_done(study, task)? {
                open.push((index, task));
            }
        }
        if open.is_empty() {
            continue;
        }
        let script = folder.join(format!("{name}.sbatch"));
        let text = script_of(study, program, name, &open)?;
        files::write_file(&script, |w| w.write_all(text.as_bytes()))?;
        let after = submitted.last().map(|before| before.id.clone());
        let id = hand_in(sbatch, &script, after.as_deref())?;
        submitted.push(Submitted { id, script, tasks: open.len() });
    }
    Ok(submitted)
}

/// The script of an array. A task that runs out of time is told two minutes before: it saves, and the same command goes
/// on with it.
fn script_of(study: &Study, program: &Path, name: &str, tasks: &[(usize, &StudyTask)]) -> Result<String, StudyError> {
    let here = std::env::current_dir().map_err(|e| FileError::new("find", ".", e))?;
    let indices: Vec<String> = tasks.iter().map(|(index, _)| index.to_string()).collect();
    let logs = absolute(&here, &log::folder(study));
    let mut out = String::from("#!/bin/bash\n");
    out += &format!("#SBATCH --job-name={}-{name}\n", study.name);
    out += &format!("#SBATCH --array={}\n", indices.join(","));
    out += &format!("#SBATCH --output={}/slurm-%A-%a.log\n", logs.display());
    out += "#SBATCH --signal=B:TERM@120\n";
    study.slurm.options.iter().for_each(|option| out += &format!("#SBATCH {option}\n"));
    out += &format!("\ncd {}\n", quoted(&here.display().to_string()));
    study.slurm.setup.iter().for_each(|line| out += &format!("{line}\n"));
    out += "case \"$SLURM_ARRAY_TASK_ID\" in\n";
    for (index, task) in tasks {
        out += &format!("{index}) name={} ;;\n", quoted(&study.name_of(task)));
    }
    out += "esac\n";
    let mut arguments = launch::arguments(study, "NAME");
    // The name is the task's.
    arguments.retain(|argument| argument != "NAME");
    let words: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
    out += &format!("exec {} {} \"$name\"\n", quoted(&program.display().to_string()), words.join(" "));
    Ok(out)
}

fn absolute(here: &Path, path: &Path) -> PathBuf {
    here.join(path)
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Submits a script; the job's number. The cells wait for all cold starts, and one whose own failed says so.
fn hand_in(sbatch: &Path, script: &Path, after: Option<&str>) -> Result<String, StudyError> {
    let mut command = Command::new(sbatch);
    command.arg("--parsable");
    command.args(after.map(|id| format!("--dependency=afterany:{id}")));
    let output = command.arg(script).output();
    let output =
        output.map_err(|cause| StudyError::Start { what: format!("{} (is Slurm here?)", sbatch.display()), cause })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    let refused = |reason: String| StudyError::Slurm { script: script.into(), reason };
    if !output.status.success() {
        return Err(refused(text(&output.stderr)));
    }
    // `ID` or `ID;CLUSTER`.
    let id = text(&output.stdout).split(';').next().unwrap_or_default().to_string();
    match !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()) {
        true => Ok(id),
        false => Err(refused(format!("it gave no job's number but {:?}", text(&output.stdout)))),
    }
}
