//! Running, killing, going on.

use super::{STUDY, command, refused, report, study, succeeds, text};
use crate::common::runs::{left, tiny};
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use uncouple::coupling::Probe;
use uncouple::train::run_folder::Existing;

fn names(dir: &Path) -> Vec<String> {
    let status: Value =
        serde_json::from_slice(&succeeds(dir, &["status", "tiny-study.toml", "--json"]).stdout).unwrap();
    let finished = status.as_array().unwrap().iter().filter(|s| s["state"] == "finished");
    finished.map(|s| s["name"].as_str().unwrap().to_string()).collect()
}

#[test]
fn a_study_runs_end_to_end_and_each_cell_is_what_train_makes_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    study(dir, STUDY);
    let output = succeeds(dir, &["tiny-study.toml", "--jobs", "2"]);
    let told = text(&output.stdout);
    assert!(told.contains("4 of 4 cells are finished") && told.contains("gcd − grpo"), "{told}");
    let all = ["cold-start-seed-5", "grpo-seed-5", "gcd-seed-5", "cold-start-seed-6", "grpo-seed-6", "gcd-seed-6"];
    assert_eq!(names(dir), all);
    // A plain run of the same configuration, without a shared cold start.
    let set = [
        "run.seed=5",
        "run.iterations=3",
        "run.checkpoint_every=1",
        "eval.every=2",
        "eval.games=4",
        "eval.judgments=8",
        "eval.consistency_states=2",
        "coupling.every=2",
    ];
    let config = tiny(dir, "plain", &set);
    let suite = uncouple::train::suite(&config).unwrap();
    let plain = uncouple::train::train(config, &*suite, Existing::Refuse).unwrap().folder;
    let (plain, cell) = (left(&plain), left(&dir.join("runs/tiny-study/grpo-seed-5")));
    assert_eq!(cell.records, plain.records);
    assert_eq!((cell.episodes, cell.summary), (plain.episodes, plain.summary));
    let weights = |files: &[(String, Vec<u8>)]| {
        files
            .iter()
            .filter(|(name, _)| name.ends_with(".safetensors") || name == "state.json")
            .cloned()
            .collect::<Vec<_>>()
    };
    assert!(weights(&cell.files) == weights(&plain.files), "weights, moments and state");
    assert_eq!(weights(&cell.files).len(), 4);
    tables_hold_both_variants(dir);
}

/// All comparisons are there, of the same games and samples.
fn tables_hold_both_variants(dir: &Path) {
    let json = report(dir);
    let rows = |of: &str| json[of].as_array().unwrap().clone();
    assert_eq!((json["finished"].as_u64(), rows("missing").len()), (Some(4), 0));
    assert_eq!(rows("success").len(), 6);
    assert!(rows("success").iter().all(|s| s["games"] == 4 && s["seeds"] == 2), "{json}");
    let differences = rows("differences");
    assert_eq!(differences.len(), 3);
    assert!(differences.iter().all(|d| d["pairs"] == 8 && d["by_seed"].as_array().unwrap().len() == 2), "{json}");
    // The value is the mean of the seeds' own.
    for d in &differences {
        let of: Vec<f64> = d["by_seed"].as_array().unwrap().iter().map(|s| s[1].as_f64().unwrap()).collect();
        assert!((d["value"].as_f64().unwrap() - (of[0] + of[1]) / 2.0).abs() < 1e-12, "{d}");
    }
    // Labels are known where a variant needs them.
    let probe = |name: &str| {
        let probe = Probe::of(&dir.join("runs/tiny-study").join(name)).unwrap();
        probe.samples.into_iter().map(|s| (s.tokens, s.command, s.advantage)).collect::<Vec<_>>()
    };
    assert!(probe("grpo-seed-5") == probe("gcd-seed-5") && probe("grpo-seed-5") != probe("grpo-seed-6"));
    assert_eq!(probe("cold-start-seed-5"), probe("gcd-seed-5"), "the gate measures what the cells begin with");
    let pn =
        rows("coupling").into_iter().find(|c| c["variant"] == "gcd" && c["class"] == "pn" && c["stratum"] == "all");
    assert!(pn.unwrap()["difference"]["value"].is_number());
    let gates = rows("gates");
    assert!(gates.len() == 1 && gates[0]["run"] == "cold-start-seed-5" && gates[0]["episodes"] == 8, "{gates:?}");
    let page = std::fs::read_to_string(dir.join("runs/tiny-study/report.md")).unwrap();
    for part in [
        "# tiny-study",
        "Chosen on other seeds (0): nothing that matters.",
        "| gcd − grpo |",
        "too narrow",
        "success-l0.svg",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(dir.join("runs/tiny-study/success-l0.svg").exists());
}

/// Waits until `reached`, at most two minutes.
fn until(what: &str, reached: impl Fn() -> bool) {
    let began = Instant::now();
    while !reached() {
        assert!(began.elapsed() < Duration::from_secs(120), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_study_killed_anywhere_goes_on_to_the_same_tables() {
    let [whole, killed] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for dir in [&whole, &killed] {
        study(dir.path(), STUDY);
    }
    succeeds(whole.path(), &["tiny-study.toml"]);
    let folder = killed.path().join("runs/tiny-study");
    let records = |name: &str, phase: &str| {
        let text = std::fs::read_to_string(folder.join(name).join("metrics.jsonl")).unwrap_or_default();
        text.matches(&format!("\"phase\":\"{phase}\"")).count()
    };
    // In the cold start, in a cell's training, between cells of the second seed.
    let moments: [&dyn Fn() -> bool; 3] =
        [&|| records("cold-start-seed-5", "sft") > 5, &|| records("grpo-seed-5", "grpo") > 0, &|| {
            folder.join("grpo-seed-6/summary.json").exists()
        }];
    for (i, reached) in moments.into_iter().enumerate() {
        let mut child =
            command(killed.path(), &["tiny-study.toml"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        until(&format!("moment {i}"), reached);
        // SIGKILL: the launcher can tell nobody; its cell notices.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    succeeds(killed.path(), &["tiny-study.toml"]);
    assert_eq!(report(killed.path()), report(whole.path()));
    // What is finished is not done again.
    let again = succeeds(killed.path(), &["tiny-study.toml"]);
    let told = text(&again.stderr);
    assert!(told.contains("6 of 6 runs are done") && !told.contains("begins"), "{told}");
}

#[test]
fn ctrl_c_saves_what_runs_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    study(dir.path(), STUDY);
    let mut child =
        command(dir.path(), &["tiny-study.toml"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let run = dir.path().join("runs/tiny-study/cold-start-seed-5");
    until("the cold start begins", || run.join("metrics.jsonl").exists());
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let status = child.wait().unwrap();
    let mut told = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut told).unwrap();
    assert!(status.code() == Some(130) && told.contains("Go on with the same command"), "{told}");
    assert!(!run.join("summary.json").exists());
}

#[test]
fn a_failing_cell_is_named_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    study(dir, &STUDY.replace("seeds = [5, 6]", "seeds = [5]"));
    // Somebody's run of another configuration stands in its place.
    let other = dir.join("runs/tiny-study/grpo-seed-5");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("config.toml"), "[optim]\nlr = 0.5\n").unwrap();
    let output = command(dir, &["tiny-study.toml"]).output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("grpo-seed-5: failed: the run runs/tiny-study/grpo-seed-5 was begun with another"), "{told}");
    assert!(told.contains("optim.lr: 0.5 → 0.0002") && told.contains("1 of the runs failed: grpo-seed-5"), "{told}");
    assert_eq!(names(dir), ["cold-start-seed-5", "gcd-seed-5"]);
    let table = text(&succeeds(dir, &["status", "tiny-study.toml"]).stdout);
    assert!(table.contains("failed") && table.contains("was begun with another"), "{table}");
    // The report says what is missing.
    assert_eq!(report(dir)["missing"], serde_json::json!(["grpo-seed-5"]));
}

#[test]
fn a_gate_says_what_the_methods_begin_with() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    study(dir, STUDY);
    let told = text(&succeeds(dir, &["gate", "tiny-study.toml"]).stdout);
    assert!(told.contains("gate: the first iteration wins") && told.contains("gate: pn of other states is"), "{told}");
    assert!(told.contains("signed") && told.contains("evaluation after the cold start: L0"), "{told}");
    assert_eq!(names(dir), ["cold-start-seed-5"]);
    // Without learning, every group is lost, and there is nothing to measure.
    study(dir, &STUDY.replace("[set]", "[set]\nsft.steps = 0\nrollout.invalid_reward = 0"));
    let told = text(&succeeds(dir, &["gate", "tiny-study.toml", "--dir", "untaught"]).stdout);
    assert!(told.contains("wins 0 % of 8 episodes") && told.contains("next to nothing can be learnt"), "{told}");
    assert!(told.contains("no coupling can be measured"), "{told}");
}

#[test]
fn cells_end_after_the_environment_steps_that_they_are_granted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // An iteration takes at most 8 × 3 steps, and none takes fewer than 8.
    study(
        dir,
        &STUDY.replace("seeds = [5, 6]", "seeds = [5]\nenv_steps = 30").replace("iterations = 3", "iterations = 9"),
    );
    succeeds(dir, &["tiny-study.toml"]);
    for name in ["grpo-seed-5", "gcd-seed-5"] {
        let file = dir.join("runs/tiny-study").join(name).join("summary.json");
        let summary: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let steps = summary["env_steps"].as_u64().unwrap();
        assert!((30..30 + 24).contains(&steps), "{name}: {steps}");
    }
}

#[test]
fn a_cell_whose_cold_start_is_not_there_says_so() {
    let dir = tempfile::tempdir().unwrap();
    study(dir.path(), STUDY);
    let told = refused(dir.path(), &["cell", "tiny-study.toml", "gcd-seed-6"]);
    assert!(told.contains("runs/tiny-study/cold-start-seed-6 is not finished"), "{told}");
    let told = refused(dir.path(), &["cell", "tiny-study.toml", "gcd-seed-7"]);
    assert!(told.contains("no such cell; there are cold-start-seed-5, grpo-seed-5"), "{told}");
}
