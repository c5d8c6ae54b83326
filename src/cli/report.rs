//! `uncouple report` and `uncouple compare`.

use super::{CompareArgs, ReportArgs, output};
use crate::files;
use crate::report::compare::{self, Compared};
use crate::report::progress::say;
use crate::train::report::{self, Loaded};
use crate::train::run_folder;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Name of the page that compares runs.
const COMPARISON: &str = "comparison.html";

/// Writes the page of one run, or one that compares several.
pub fn report(args: ReportArgs) -> Result<ExitCode> {
    let written = match &named(&args.runs)[..] {
        [run] => {
            let (page, file) = (Loaded::open(run)?.page()?, args.out.unwrap_or_else(|| run.join(report::PAGE)));
            write(&file, &page)?
        }
        runs => write(&args.out.unwrap_or_else(|| COMPARISON.into()), &compare::page(&load(runs)?)?)?,
    };
    output::print(&written.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

pub fn compare(args: CompareArgs) -> Result<ExitCode> {
    ensure!(args.runs.len() > 1, "compare needs two runs or more: name them, e.g. runs/a runs/b");
    let runs = load(&named(&args.runs))?;
    if args.json {
        let (lines, seeds, notes) = (compare::lines(&runs), compare::seeds(&runs), compare::notes(&runs));
        output::print_json(&serde_json::json!({ "runs": lines, "seeds": seeds, "notes": notes }))?;
    } else {
        output::print(&compare::table(&runs))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn named(runs: &[PathBuf]) -> Vec<PathBuf> {
    runs.iter().map(|run| run_folder::named(run)).collect()
}

fn write(file: &Path, page: &str) -> Result<PathBuf> {
    files::write_file(file, |w| w.write_all(page.as_bytes())).context("the report cannot be written")?;
    Ok(file.into())
}

/// The runs, each held against the first. Two of one name are told apart by their folders.
fn load(folders: &[PathBuf]) -> Result<Vec<Compared>> {
    let runs: Vec<Loaded> = folders.iter().map(|run| Loaded::open(run)).collect::<Result<_, _>>()?;
    let names: Vec<String> = runs.iter().map(Loaded::name).collect();
    let seed = |change: &String| change.starts_with("run.seed:");
    let same_but_seed = |a: &Loaded, b: &Loaded| a.config.changed_since(&b.config).iter().all(seed);
    let methods: Vec<usize> =
        runs.iter().map(|run| runs.iter().position(|other| same_but_seed(run, other)).unwrap_or(0)).collect();
    let changes: Vec<Vec<String>> = runs.iter().map(|run| run.config.changed_since(&runs[0].config)).collect();
    let mut compared = Vec::new();
    for (i, run) in runs.into_iter().enumerate() {
        let alone = names.iter().filter(|name| **name == names[i]).count() == 1;
        run.notice.iter().for_each(|notice| say(&format!("{}: {notice}", run.path.display())));
        compared.push(Compared {
            name: if alone { names[i].clone() } else { run.path.display().to_string() },
            summary: run.summary,
            finished: run.finished,
            records: run.records,
            changes: changes[i].clone(),
            method: methods[i],
        });
    }
    Ok(compared)
}
