//! A cluster that runs what it is given: a script in place of `sbatch`.

use super::{STUDY, command, report, study, succeeds, text};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Runs every task of an array at once, in the order of its numbers, and writes down what it was asked.
const SBATCH: &str = r#"#!/bin/bash
set -eu
echo "$*" >> "$(dirname "$0")/asked"
script=${!#}
id=$(wc -l < "$(dirname "$0")/asked")
for task in $(sed -n 's/^#SBATCH --array=//p' "$script" | tr , ' '); do
    SLURM_ARRAY_TASK_ID=$task bash "$script" >> "$(dirname "$0")/output" 2>&1 || echo "task $task failed" >> "$(dirname "$0")/output"
done
echo "$id;here"
"#;

fn sbatch(dir: &Path, text: &str) -> PathBuf {
    let file = dir.join("sbatch");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[test]
fn two_arrays_run_cold_starts_and_then_cells() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    study(dir, &(STUDY.to_string() + "[slurm]\noptions = ['--partition=small']\nsetup = ['export READY=1']\n"));
    let program = sbatch(dir, SBATCH);
    let args = ["tiny-study.toml", "--launcher", "slurm", "--sbatch", program.to_str().unwrap()];
    let told = text(&succeeds(dir, &args).stdout);
    assert!(told.contains("job 1: 2 runs") && told.contains("job 2: 4 runs"), "{told}");
    let asked = std::fs::read_to_string(dir.join("asked")).unwrap();
    let asked: Vec<&str> = asked.lines().collect();
    assert!(
        asked.len() == 2 && asked[0].starts_with("--parsable runs/tiny-study/slurm/cold-starts.sbatch"),
        "{asked:?}"
    );
    assert!(asked[1].contains("--dependency=afterany:1 ") && asked[1].ends_with("cells.sbatch"), "{asked:?}");
    let script = std::fs::read_to_string(dir.join("runs/tiny-study/slurm/cells.sbatch")).unwrap();
    for line in
        ["#SBATCH --array=1,2,4,5", "#SBATCH --partition=small", "#SBATCH --signal=B:TERM@120", "export READY=1"]
    {
        assert!(script.lines().any(|l| l == line), "{line}: {script}");
    }
    // Nothing is left: the same command reports.
    let told = text(&succeeds(dir, &args).stdout);
    assert!(told.contains("4 of 4 cells are finished"), "{told}");
    let of_cluster = report(dir);
    // As on one machine.
    let local = tempfile::tempdir().unwrap();
    study(local.path(), STUDY);
    succeeds(local.path(), &["tiny-study.toml", "--jobs", "2"]);
    assert_eq!(of_cluster, report(local.path()));
}

#[test]
fn what_sbatch_says_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    study(dir, STUDY);
    let program = sbatch(dir, "#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n");
    let fails = |program: &str| {
        let output = command(dir, &["tiny-study.toml", "--launcher", "slurm", "--sbatch", program]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    let told = fails(program.to_str().unwrap());
    assert!(told.contains("sbatch refused") && told.contains("invalid partition"), "{told}");
    assert!(fails("no-such-sbatch").contains("cannot start no-such-sbatch (is Slurm here?)"));
    let program = sbatch(dir, "#!/bin/sh\necho hello\n");
    assert!(fails(program.to_str().unwrap()).contains("it gave no job's number but \"hello\""));
}
