//! A game of one's own, examples/guess.py: its demonstrator teaches, its distances label.

use std::path::Path;
use uncouple::config::{Config, Override};
use uncouple::env::Split;
use uncouple::report::metrics;
use uncouple::train::run_folder::Existing;
use uncouple::train::{evaluate, suite, train};

/// The example's configuration, with some values changed.
fn config(dir: &Path, set: &[&str]) -> Config {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut overrides: Vec<Override> = set.iter().map(|s| Override::parse(s).unwrap()).collect();
    let game = root.join("examples/guess.py").display().to_string();
    overrides.push(Override::parse(&format!("env.worker.command=['python3', '{game}']")).unwrap());
    overrides.push(Override::flag("--dir", "run.dir", dir.display().to_string()));
    Config::load(Some(&root.join("examples/guess.toml")), &overrides).unwrap()
}

#[test]
fn the_demonstrator_wins_every_game() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    let suite = suite(&config).unwrap();
    for (split, played) in evaluate::baselines(&config, &*suite, &evaluate::SPLITS).unwrap() {
        assert_eq!((played.oracle, played.demonstrator), (Some(1.0), Some(1.0)), "{split}");
        assert!(played.random.unwrap() < 0.9, "{split}: the random policy does not");
    }
    let held_out = suite.task(Split::L2, 0).unwrap();
    assert!(suite.open_for_training(&held_out).is_err());
}

/// A much shortened form of the example.
#[test]
fn a_game_of_ones_own_is_learnt_from_its_demonstrator() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &["gcd.mode=generate", "sft.steps=60", "run.iterations=1", "eval.judgments=0"]);
    let suite = suite(&config).unwrap();
    let random = evaluate::baselines(&config, &*suite, &[Split::L0]).unwrap()["L0"].random.unwrap();
    let outcome = train(config, &*suite, Existing::Refuse).unwrap();
    let records = metrics::read(&outcome.folder).unwrap();
    let losses: Vec<f64> = records.iter().filter(|r| r.phase == "sft").map(|r| r.values["loss"]).collect();
    assert!(losses[59] < 0.5 * losses[0], "{losses:?}");
    let trained = outcome.rows.iter().find(|row| row.split == "L0" && row.stage == "final").unwrap();
    let success = trained.result.success.value;
    assert!(success > random, "success {success} on L0, {random} at random");
    let grpo = records.iter().find(|r| r.phase == "grpo").unwrap();
    assert!(grpo.values["gcd/labels/good"] > 0.0, "the distances label actions: {:?}", grpo.values.keys());
}
