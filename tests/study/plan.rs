//! What a study file may say.

use super::{STUDY, refused, study, succeeds, text};

fn refuses(from: &str, to: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    assert!(STUDY.contains(from), "{from}");
    study(dir.path(), &STUDY.replacen(from, to, 1));
    refused(dir.path(), &["tiny-study.toml", "--dry-run"])
}

#[test]
fn seeds_that_something_was_chosen_on_are_refused() {
    let told = refuses("tuned_on = [0]", "tuned_on = [0, 6]");
    assert!(told.contains("`seeds`: 6 is in tuned_on as well"), "{told}");
    let told = refuses("tuned_on = [0]", "");
    assert!(told.contains("missing field `tuned_on`"), "{told}");
}

#[test]
fn what_could_not_be_compared_is_refused_by_name() {
    for key in
        ["sft.steps = 3", "prompt.admissible = true", "eval.games = 2", "rollout.groups = 4", "gcd.cold_start = 1"]
    {
        let told = refuses("gcd.pairs = 4", key);
        let name = key.split(' ').next().unwrap();
        assert!(told.contains(&format!("`{name}`: of the variant `gcd`: all variants share")), "{told}");
    }
    assert!(refuses("seeds = [5, 6]", "seeds = [5, 5]").contains("`seeds`: must name one seed or more, each once"));
    assert!(refuses("seeds = [5, 6]", "seeds = []").contains("`seeds`"));
    assert!(refuses("name = 'gcd'", "name = 'grpo'").contains("`variant`: needs a `name` of its own"));
    assert!(refuses("name = 'gcd'", "name = 'cold-start'").contains("other than `cold-start`"));
    assert!(refuses("name = 'gcd'", "name = 'gcd'\nagainst = 'ppo'").contains("`variant.against`: of `gcd`"));
    assert!(refuses("[[variant]]", "[expect]\nsuccess = 2\n[[variant]]").contains("`expect.success`"));
}

#[test]
fn mistakes_are_named_with_their_place() {
    let told = refuses("question", "qestion");
    assert!(told.contains("tiny-study.toml:") && told.contains("qestion"), "{told}");
    let told = refuses("gcd.pairs = 4", "gcd.pears = 4");
    assert!(told.contains("tiny-study.toml, [[variant]]") && told.contains("did you mean `gcd.pairs`?"), "{told}");
    let told = refuses("config = 'tiny.toml'", "config = 'none.toml'");
    assert!(told.contains("none.toml"), "{told}");
    let told = refuses("gcd.judgments = 2", "gcd.judgments = 1");
    assert!(told.contains("gcd.judgments = 1"), "{told}");
}

#[test]
fn a_dry_run_tells_time_memory_and_power_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    study(dir, STUDY);
    let told = text(&succeeds(dir, &["tiny-study.toml", "--dry-run"]).stdout);
    for part in [
        "6 runs in runs/tiny-study, 0 finished",
        "not known",
        "needs most",
        "L0, L1, L2: 2 seeds × 4 games see a difference of",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!dir.join("runs").exists());
    // Stated times, and the memory of another machine.
    let stated = STUDY.to_string() + "[expect]\ncold_start_minutes = 1\ncell_minutes = 2\n";
    study(dir, &stated);
    let json = succeeds(dir, &["tiny-study.toml", "--dry-run", "--memory", "1kB", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    // Two cold starts and four cells.
    assert_eq!((json["seconds_left"].as_f64(), &json["parts"][0]["source"]), (Some(600.0), &"stated".into()));
    assert!(json["memory"][0]["advice"].is_string());
    // Success 0.5, correlation 0.3, spread 0.05: √(0.0025 / 2 + 0.5 × 0.7 / 8) times (12.706 + 1.376).
    let detectable = json["power"][0]["detectable"].as_f64().unwrap();
    assert!((detectable - 14.082 * (0.00125_f64 + 0.04375).sqrt()).abs() < 1e-9, "{detectable}");
    // After a run, what was measured takes the place of what was stated.
    succeeds(dir, &["tiny-study.toml"]);
    let json = succeeds(dir, &["tiny-study.toml", "--dry-run", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((json["seconds_left"].as_f64(), &json["parts"][1]["source"]), (Some(0.0), &"measured".into()));
}

#[test]
fn starts_are_cold_starts_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let starts =
        "[[start]]\nname = 'none'\nset.sft.steps = 0\n[[start]]\nname = 'some'\nseeds = [6]\nset.sft.steps = 4\n";
    let file = study(dir.path(), &(STUDY.to_string() + starts));
    let given = uncouple::study::plan::StudyOverrides {
        dir: None,
        set: Vec::new(),
        place: uncouple::train::memory::Placement::Cpu,
    };
    let study = uncouple::study::plan::Study::load(&file, given).unwrap();
    let tasks = study.tasks();
    let names: Vec<String> = tasks.iter().map(|task| study.name_of(task)).collect();
    let expected = [
        "none-cold-start-seed-5",
        "none-grpo-seed-5",
        "none-gcd-seed-5",
        "none-cold-start-seed-6",
        "none-grpo-seed-6",
        "none-gcd-seed-6",
        "some-cold-start-seed-6",
        "some-grpo-seed-6",
        "some-gcd-seed-6",
    ];
    assert_eq!(names, expected);
    let gated: Vec<&String> =
        tasks.iter().zip(&names).filter(|(task, _)| study.is_gated(task)).map(|(_, n)| n).collect();
    assert_eq!(gated, ["none-cold-start-seed-5", "some-cold-start-seed-6"]);
    let config = |name: &str| study.config(&study.task_named(name).unwrap()).unwrap();
    let (cold, cell) = (config("some-cold-start-seed-6"), config("some-gcd-seed-6"));
    assert_eq!((cold.sft.steps, cold.run.iterations, cell.run.iterations, cell.run.seed), (4, 0, 3, 6));
    assert_eq!((cold.gcd.pairs, cell.gcd.pairs), (60, 4), "a variant's keys are not its cold start's");
    let mut without_games = STUDY.to_string();
    without_games.push_str("[[start]]\nname = 'a'\nseeds = [7]\n[[start]]\nname = 'b'\n");
    super::study(dir.path(), &without_games);
    let told = refused(dir.path(), &["tiny-study.toml", "--dry-run"]);
    assert!(told.contains("`start.seeds`: must be some of the study's seeds"), "{told}");
}
