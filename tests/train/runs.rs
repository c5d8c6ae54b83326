//! Whole training runs, very small: what they leave behind, that they repeat and resume bit for bit, and how they fail.

use crate::common;

use common::runs::{checkpoints, left, state, tiny};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use uncouple::config::Config;
use uncouple::env::household::Household;
use uncouple::env::{EnvError, Environment, Split, Suite, Task};
use uncouple::model::TokenIds;
use uncouple::model::checkpoint::{self, SaveDtype};
use uncouple::model::tokenizer::Tokenizer;
use uncouple::report::metrics;
use uncouple::train::run_folder::{Existing, RunFolder};
use uncouple::train::{RunOutcome, TrainError, suite, train};

fn try_run(config: &Config, existing: Existing) -> Result<RunOutcome, TrainError> {
    train(config.clone(), &*suite(config).unwrap(), existing)
}

fn run(config: &Config) -> PathBuf {
    try_run(config, Existing::Refuse).unwrap_or_else(|e| panic!("{e}")).folder
}

fn resume(config: &Config) -> PathBuf {
    try_run(config, Existing::Resume).unwrap_or_else(|e| panic!("{e}")).folder
}

/// The one line with which a run ends in error.
fn refused(config: &Config, existing: Existing) -> String {
    let error = try_run(config, existing).err().expect("the run fails").to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(last_checkpoint(run).join("model.safetensors")).unwrap()
}

fn last_checkpoint(run: &Path) -> PathBuf {
    RunFolder::finished_checkpoints(run).unwrap().pop().expect("a checkpoint").1
}

#[test]
fn a_run_leaves_everything_the_design_names() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(dir.path(), "a", &[]);
    let outcome = try_run(&config, Existing::Refuse).unwrap_or_else(|e| panic!("{e}"));
    let run = outcome.folder;
    assert_eq!(run, dir.path().join("a"));
    assert_eq!(Config::load(Some(&run.join("config.toml")), &[]).unwrap(), config);
    assert_eq!(checkpoints(&run), [40, 42], "after the cold start and at the end");
    assert_eq!(fs::read_dir(run.join("tensorboard")).unwrap().count(), 1);
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("cold start") && page.contains("grpo") && page.contains("data-figures=\"success\""));
    assert!(page.contains("finished") && page.contains("Where this run comes from"));

    let summary: serde_json::Value = serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    let keys = |json: &serde_json::Value| json.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        keys(&summary),
        [
            "seconds",
            "phase_seconds",
            "train_steps",
            "env_steps",
            "tokens",
            "eval",
            "baselines",
            "coupling",
            "provenance"
        ]
    );
    let provenance = &summary["provenance"];
    assert_eq!(keys(&provenance["games"]["panels"]), ["L0", "L1", "L2"]);
    assert_eq!(provenance["sessions"].as_array().unwrap().len(), 1);
    assert!(provenance["sessions"][0]["files"].is_null(), "it brought none: {provenance}");
    for key in ["version", "command", "host", "system", "device", "began", "seen"] {
        assert!(!provenance["sessions"][0][key].is_null(), "{key}: {provenance}");
    }
    assert_eq!(keys(&summary["eval"]), ["cold_start", "final"]);
    for stage in ["cold_start", "final"] {
        assert_eq!(keys(&summary["eval"][stage]), ["L0", "L1", "L2"]);
        let l1 = &summary["eval"][stage]["L1"];
        assert_eq!(keys(l1), ["success", "ci", "games", "repeat_rate", "loop_rate", "episode_length"]);
        assert_eq!(l1["games"], 2);
    }
    assert_eq!(summary["train_steps"], 42);
    assert_eq!(serde_json::json!(outcome.summary), summary);

    let records = metrics::read(&run).unwrap();
    let steps: Vec<(&str, u64)> = records.iter().map(|r| (&r.phase[..], r.step)).collect();
    let sft: Vec<_> = (1..=40).map(|step| ("sft", step)).collect();
    assert_eq!(steps, [&sft[..], &[("eval", 0), ("grpo", 1), ("grpo", 2), ("eval", 2)]].concat());
    let first = &records[41];
    for name in ["loss", "kl", "entropy", "grad_norm", "reward", "reward_std", "frac_reward_zero_std"] {
        assert!(first.values[name].is_finite(), "{name}");
    }
    let difference = first.values["sampling/sampling_logp_difference/max"];
    assert!(difference < 1e-3, "sampling and training agree: {difference}");
    assert_eq!(left(&run).episodes.len(), 2 * 3 * 2 + 2 * 8, "two evaluations and two iterations");
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_another() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| left(&run(&tiny(dir.path(), name, &[]))));
    assert!(a == b);
    let other = left(&run(&tiny(dir.path(), "c", &["run.seed=1"])));
    assert!(a.files != other.files && a.episodes != other.episodes);
}

#[test]
fn a_checkpoint_has_a_card() {
    let dir = tempfile::tempdir().unwrap();
    let set = ["run.checkpoint_every=1", "run.keep_checkpoints=9", "suggestions.mode=fixed", "suggestions.every=1"];
    let path = run(&tiny(dir.path(), "nameless", &set));
    let read =
        |step: u64, file: &str| fs::read_to_string(path.join(format!("checkpoints/step-{step}/{file}"))).unwrap();
    let (first, last) = (read(40, "README.md"), read(42, "README.md"));
    for part in [
        "the suite `household`",
        "seed: 0",
        "no GCD",
        "| L0 | cold start |",
        "Format `compact`",
        "40 steps of the cold start",
    ] {
        assert!(first.contains(part) && last.contains(part), "{part}: {last}");
    }
    assert!(!first.contains("final") && last.contains("| L2 | final |"), "{last}");
    assert!(!last.contains("nameless") && !last.contains(dir.path().to_str().unwrap()), "{last}");
    // It is no part of what a checkpoint is checked by; the suggestions are.
    let manifest = read(42, "manifest.json");
    assert!(!manifest.contains("README.md"), "{manifest}");
    let told = uncouple::train::state::suggestions(&path.join("checkpoints/step-42")).unwrap();
    assert_eq!(manifest.contains("suggestions.json"), !told.is_empty());
    if !told.is_empty() {
        let written: Vec<String> = serde_json::from_str(&read(42, "suggestions.json")).unwrap();
        assert!(written == told && told.iter().all(|sentence| last.contains(&sentence[..])), "{last}");
    }
    let config: serde_json::Value = serde_json::from_str(&read(42, "tokenizer_config.json")).unwrap();
    assert_eq!(config["chat_template"], uncouple::agent::COMPACT_TEMPLATE);
}

/// Set on top of the tiny run: everything that must survive in a checkpoint, at once.
const ALL: [&str; 7] = [
    "grpo.beta=0.1",
    "grpo.epochs=2",
    "grpo.entropy_coef=0.01",
    "run.checkpoint_every=1",
    "run.keep_checkpoints=9",
    "eval.every=1",
    "run.iterations=3",
];

#[test]
fn a_run_killed_anywhere_goes_on_from_its_last_checkpoint_as_if_nothing_had_been() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(dir.path(), "a", &ALL);
    let whole = left(&run(&config));
    let path = dir.path().join("a");
    let all = checkpoints(&path);
    assert_eq!(all, [40, 41, 42, 43]);
    assert!(whole.records.iter().filter(|r| r.phase == "eval").map(|r| r.step).eq([0, 1, 2, 3]));
    // Everything after a checkpoint was recorded, but no later checkpoint was written; `None`: there was none at all.
    for last in [None, Some(40), Some(41), Some(42), Some(43)] {
        for step in checkpoints(&path) {
            if last.is_none_or(|last| step > last) {
                fs::remove_dir_all(path.join(format!("checkpoints/step-{step}"))).unwrap();
            }
        }
        resume(&config);
        assert!(left(&path) == whole, "resumed at {last:?}");
    }
}

#[test]
fn a_run_killed_in_the_cold_start_goes_on_inside_it() {
    let dir = tempfile::tempdir().unwrap();
    let whole = left(&run(&tiny(dir.path(), "whole", &["sft.checkpoint_every=0"])));
    let config = tiny(dir.path(), "a", &["sft.checkpoint_every=15", "run.keep_checkpoints=9"]);
    let path = run(&config);
    assert_eq!(checkpoints(&path), [15, 30, 40, 42]);
    assert!(left(&path) == whole, "checkpoints change nothing");
    for last in [30, 15] {
        for step in checkpoints(&path).into_iter().filter(|step| *step > last) {
            fs::remove_dir_all(path.join(format!("checkpoints/step-{step}"))).unwrap();
        }
        assert_eq!(state(&path)["sft_steps"], last);
        resume(&config);
        assert_eq!(checkpoints(&path), [15, 30, 40, 42]);
        assert!(left(&path) == whole, "resumed at {last}");
    }
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let set = [&ALL[..], &["suggestions.mode=fixed", "suggestions.every=1"]].concat();
    let config = tiny(dir.path(), "a", &set);
    let whole = left(&run(&config));
    let path = dir.path().join("a");
    let step = |step: u64, file: &str| path.join(format!("checkpoints/step-{step}/{file}"));
    let suggestions = || fs::read_to_string(path.join("suggestions.json")).unwrap();
    let written = suggestions();
    let damages: [(&str, &dyn Fn()); 4] = [
        ("model.safetensors has 1000 bytes", &|| {
            fs::OpenOptions::new().write(true).open(step(43, "model.safetensors")).unwrap().set_len(1000).unwrap();
        }),
        ("adamw_v.safetensors was edited, or belongs to another step", &|| {
            fs::copy(step(42, "adamw_v.safetensors"), step(43, "adamw_v.safetensors")).unwrap();
        }),
        ("tokenizer.json is missing", &|| fs::remove_file(step(43, "tokenizer.json")).unwrap()),
        ("state.json was edited", &|| {
            let text = fs::read_to_string(step(43, "state.json")).unwrap();
            fs::write(step(43, "state.json"), text.replace("\"iterations\": 3", "\"iterations\": 2")).unwrap();
        }),
    ];
    for (says, damage) in damages {
        damage();
        // It stops before anything new: what it keeps fits the checkpoint that it has taken.
        let opened = Command::new(env!("CARGO_BIN_EXE_uncouple"))
            .args(["train", "--resume", "--name", "a", "--set", "run.iterations=2", "--dir"])
            .arg(dir.path())
            .output()
            .unwrap();
        let told = String::from_utf8(opened.stderr).unwrap();
        assert!(
            told.contains(&format!("step-43 is damaged: {says}")) && told.contains("going on from step-42"),
            "{told}"
        );
        assert!(path.join("checkpoints/damaged-step-43").exists());
        assert!(metrics::read(&path).unwrap().iter().all(|r| r.phase == "sft" || r.step <= 2));
        assert!(left(&path).episodes.iter().all(|e| !e.starts_with("grpo|3|") && !e.starts_with("eval|3|")));
        let updates: Vec<serde_json::Value> = serde_json::from_str(&suggestions()).unwrap();
        assert!(updates.iter().all(|r| r["iterations"].as_u64().unwrap() <= 2), "{updates:?}");
        resume(&config);
        assert!(left(&path) == whole, "{says}");
        assert_eq!(suggestions(), written);
        fs::remove_dir_all(path.join("checkpoints/damaged-step-43")).unwrap();
    }

    let reference = path.join("reference/model.safetensors");
    let weights = fs::read(&reference).unwrap();
    fs::copy(step(43, "model.safetensors"), &reference).unwrap();
    let error = refused(&config, Existing::Resume);
    assert!(error.contains("reference") && error.contains("model.safetensors was edited"), "{error}");
    fs::write(&reference, weights).unwrap();
    // As an earlier version left it.
    fs::remove_file(path.join("reference/manifest.json")).unwrap();
    for step in checkpoints(&path) {
        fs::remove_file(path.join(format!("checkpoints/step-{step}/manifest.json"))).unwrap();
    }
    fs::remove_dir_all(path.join("checkpoints/step-43")).unwrap();
    resume(&config);
    assert!(left(&path) == whole);
}

#[cfg(unix)]
#[test]
fn a_step_that_stands_is_not_written_again() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(dir.path(), "a", &["run.checkpoint_every=1"]);
    let path = run(&config);
    let before = left(&path);
    let inode = || fs::metadata(last_checkpoint(&path)).unwrap().ino();
    let stood = inode();
    resume(&config);
    assert_eq!((inode(), checkpoints(&path)), (stood, vec![41, 42]));
    assert!(left(&path) == before);
    resume(&tiny(dir.path(), "a", &["run.checkpoint_every=1", "run.keep_checkpoints=1"]));
    assert_eq!((inode(), checkpoints(&path)), (stood, vec![42]), "but no more stay than configured");
}

#[test]
fn a_longer_run_is_a_shorter_one_resumed() {
    let dir = tempfile::tempdir().unwrap();
    for (name, set) in [("plain", &[][..]), ("all", &ALL[..])] {
        let set = |n| [set, &[n][..]].concat();
        let whole = left(&run(&tiny(dir.path(), &format!("{name}-4"), &set("run.iterations=4"))));
        let path = run(&tiny(dir.path(), name, &set("run.iterations=2")));
        resume(&tiny(dir.path(), name, &set("run.iterations=4")));
        let resumed = left(&path);
        assert!(resumed.files == whole.files, "{name}: weights, moments and counters");
        assert!(resumed == whole, "{name}");
    }
}

#[test]
fn every_form_of_the_loss_trains() {
    let dir = tempfile::tempdir().unwrap();
    let small = "grpo.micro_tokens=64";
    let plain = weights(&run(&tiny(dir.path(), "plain", &[small])));
    let forms = [
        "grpo.aggregation=micro-token-mean",
        "grpo.aggregation=sequence-mean",
        "grpo.aggregation=constant",
        "grpo.ratio=sequence",
        "grpo.advantage=batch",
        "grpo.advantage=none",
        "grpo.dual_clip=3",
        "grpo.beta=0.5",
        "grpo.entropy_coef=0.1",
        "grpo.epochs=3",
        "prompt.admissible=true",
    ];
    for (i, form) in forms.into_iter().enumerate() {
        let path = run(&tiny(dir.path(), &format!("form-{i}"), &[small, form]));
        let records = metrics::read(&path).unwrap();
        let taught = records.iter().filter(|r| r.phase == "grpo" && r.values.contains_key("loss"));
        assert!(taught.clone().count() > 0, "{form}: something was learnt");
        assert!(taught.clone().all(|r| r.values["grad_norm"].is_finite() && r.values["grad_norm"] > 0.0), "{form}");
        // One on-policy step has ratio 1: neither the ratio's level nor a dual clip can show.
        let alike = ["grpo.ratio=sequence", "grpo.dual_clip=3"].contains(&form);
        assert!(alike || weights(&path) != plain, "{form} changes what is learnt");
    }
}

#[test]
fn recomputing_activations_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let kept = run(&tiny(dir.path(), "kept", &["grpo.micro_tokens=64"]));
    let again = run(&tiny(dir.path(), "again", &["grpo.micro_tokens=64", "model.recompute=true"]));
    assert!(left(&kept).files == left(&again).files);
}

#[test]
fn without_grpo_there_is_no_final_evaluation() {
    let dir = tempfile::tempdir().unwrap();
    let outcome =
        try_run(&tiny(dir.path(), "a", &["run.iterations=0"]), Existing::Refuse).unwrap_or_else(|e| panic!("{e}"));
    assert!(outcome.summary.eval.last.is_empty() && outcome.summary.eval.cold_start.len() == 3);
    assert!(outcome.rows.iter().all(|row| row.stage == "cold start"));
}

/// The tiny run's trained model as a directory of its own, its weights changed by `edit`.
fn model_dir(dir: &Path, edit: impl FnOnce(&mut [f32])) -> PathBuf {
    let trained = last_checkpoint(&run(&tiny(dir, "base", &["run.iterations=1"])));
    let mut model = checkpoint::load(&trained).unwrap();
    edit(&mut model.params.flat);
    let target = dir.join("model");
    let (ids, tokenizer) = (TokenIds::read(&trained).unwrap(), Tokenizer::load(&trained).unwrap());
    checkpoint::save(&target, &model, &ids, tokenizer.files(), SaveDtype::F32).unwrap();
    target
}

#[test]
fn training_starts_from_a_model_directory_and_resumes_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), |_| {});
    let path_is = format!("model.path={}", model.display());
    let set = |n| [&path_is[..], "sft.steps=0", n];
    let whole = left(&run(&tiny(dir.path(), "whole", &set("run.iterations=2"))));
    run(&tiny(dir.path(), "a", &set("run.iterations=1")));
    fs::remove_dir_all(&model).unwrap();
    assert!(left(&resume(&tiny(dir.path(), "a", &set("run.iterations=2")))) == whole);
}

#[test]
fn models_that_cannot_be_used_are_refused_before_a_folder_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), |_| {});
    let config = |path: &Path| tiny(dir.path(), "a", &[&format!("model.path={}", path.display())]);
    let error = refused(&config(Path::new("no/such/model")), Existing::Refuse);
    assert!(error.contains("no/such/model"), "{error}");

    let tokenizer = model.join("tokenizer.json");
    let whole = fs::read(&tokenizer).unwrap();
    fs::write(&tokenizer, "").unwrap();
    let error = refused(&config(&model), Existing::Refuse);
    assert!(error.contains("tokenizer.json is empty"), "{error}");
    fs::write(&tokenizer, whole).unwrap();

    let mut small = checkpoint::load(&model).unwrap();
    small.config.vocab_size = 280;
    let small = uncouple::model::Model::new(small.config.clone(), uncouple::model::Params::random(&small.config, 0));
    let (ids, tokenizer) = (TokenIds::read(&model).unwrap(), Tokenizer::load(&model).unwrap());
    checkpoint::save(&model, &small, &ids, tokenizer.files(), SaveDtype::F32).unwrap();
    let error = refused(&config(&model), Existing::Refuse);
    assert!(error.contains("the id 299") && error.contains("280 rows"), "{error}");
    assert!(!dir.path().join("a").exists(), "no folder was made");
}

#[test]
fn where_every_prompt_is_longer_than_the_context_the_run_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for (name, steps, what) in [
        ("cold", "sft.steps=40", "nothing for the cold start to learn from: 6 of 6 demonstrations"),
        ("rollout", "sft.steps=0", "not one episode of the iteration can be used"),
    ] {
        let set = ["model.max_position_embeddings=20", "rollout.max_turn_tokens=4", steps];
        let error = refused(&tiny(dir.path(), name, &set), Existing::Refuse);
        assert!(error.contains(what), "{error}");
        assert!(error.contains("the prompt of task") && error.contains("within 20, the model's context"), "{error}");
    }
}

/// Household games, but every third training game begins with very many words.
struct Wordy(Household);

struct WordyGame(Box<dyn Environment>);

impl Environment for WordyGame {
    fn reset(&mut self) -> Result<uncouple::env::Observation, EnvError> {
        let seen = self.0.reset()?;
        Ok(uncouple::env::Observation { text: seen.text.repeat(30), ..seen })
    }
    fn step(&mut self, command: &str) -> Result<uncouple::env::Observation, EnvError> {
        self.0.step(command)
    }
    fn demonstrate(&mut self) -> Option<String> {
        self.0.demonstrate()
    }
}

impl Suite for Wordy {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        let task = self.0.task(split, index)?;
        let kind = if split == Split::Train && index.is_multiple_of(3) { "wordy".into() } else { task.kind };
        Ok(Task { kind, ..task })
    }
    fn len(&self, split: Split) -> Option<u64> {
        self.0.len(split)
    }
    fn open_for_training(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        let game = self.0.open_for_training(task)?;
        Ok(if task.kind == "wordy" { Box::new(WordyGame(game)) } else { game })
    }
    fn open(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        self.0.open(task)
    }
}

#[test]
fn one_long_first_observation_fails_its_episodes_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let play = |name, iterations, existing| {
        let config = tiny(dir.path(), name, &["sft.games=7", iterations, "gcd.mode=generate", "gcd.pairs=4"]);
        train(config, &Wordy(Household::new(0)), existing).unwrap_or_else(|e| panic!("{e}")).folder
    };
    let whole = play("whole", "run.iterations=3", Existing::Refuse);
    let failed: Vec<f64> =
        metrics::read(&whole).unwrap().iter().filter_map(|r| r.values.get("env_failed").copied()).collect();
    // Games 7 and 8, 9 and 10, 11 and 12: the long ones are 9 and 12, of four episodes each.
    assert_eq!(failed, [0.0, 4.0, 4.0]);
    play("parts", "run.iterations=1", Existing::Refuse);
    assert!(left(&play("parts", "run.iterations=3", Existing::Resume)) == left(&whole), "resume goes on");
}

#[test]
fn a_run_name_is_not_used_twice() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(dir.path(), "a", &["run.iterations=0"]);
    let before = left(&run(&config));
    let error = refused(&config, Existing::Refuse);
    assert!(error.contains("--resume") && error.contains("--overwrite"), "{error}");
    assert!(left(&dir.path().join("a")) == before);
    try_run(&config, Existing::Overwrite).unwrap_or_else(|e| panic!("{e}"));
    assert!(left(&dir.path().join("a")) == before, "replaced by the same");
}

#[test]
fn a_model_that_is_not_made_of_numbers_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let model = model_dir(dir.path(), |weights| *weights.last_mut().unwrap() = value);
        let says = format!("tensor `model.norm.weight` in {} holds {shown} (value 31 of 32)", model.display());
        let set = format!("model.path={}", model.display());
        let error = refused(&tiny(dir.path(), "a", &[&set]), Existing::Refuse);
        assert!(error.contains(&says) && !dir.path().join("a").exists(), "{error}");
        let probe = dir.path().join("probe.json");
        fs::write(&probe, r#"{"iteration":0,"samples":[{"tokens":[1,2,3],"action":1,"advantage":1.0,"label":1}]}"#)
            .unwrap();
        let [model, probe, out] =
            [&model, &probe, &dir.path().join("out")].map(|path| path.to_str().unwrap().to_string());
        for command in
            [&["eval", "--model", &model][..], &["coupling", "--model", &model, "--probe", &probe, "--out", &out]]
        {
            let output = Command::new(env!("CARGO_BIN_EXE_uncouple")).args(command).output().unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(1) && error.contains(&says), "{command:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        fs::remove_dir_all(dir.path().join("base")).unwrap();
    }
}

#[test]
fn a_model_that_computes_no_numbers_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    // Finite, but the logits overflow.
    let model = model_dir(dir.path(), |weights| weights.iter_mut().rev().take(32).for_each(|w| *w = f32::MAX));
    let path_is = format!("model.path={}", model.display());
    let config = tiny(dir.path(), "sft", &[&path_is, "run.max_nonfinite_steps=3"]);
    let error = refused(&config, Existing::Refuse);
    let path = dir.path().join("sft");
    assert!(error.contains("not finite 3 times in a row") && error.contains("bad_batches"), "{error}");
    assert_eq!(fs::read_dir(path.join("bad_batches")).unwrap().count(), 3);
    let batch: serde_json::Value =
        serde_json::from_slice(&fs::read(path.join("bad_batches/sft-1.json")).unwrap()).unwrap();
    assert!(batch["sequences"].as_array().unwrap().len() == 4 && batch["sequences"][0][0].is_u64());
    assert_eq!(metrics::read(&path).unwrap().len(), 3, "the bad steps are recorded, too");

    let error = refused(&tiny(dir.path(), "grpo", &[&path_is, "sft.steps=0"]), Existing::Refuse);
    assert!(error.contains("does not compute finite numbers (task "), "{error}");
    assert!(checkpoints(&dir.path().join("grpo")).is_empty());
    let output = Command::new(env!("CARGO_BIN_EXE_uncouple"))
        .args(["eval", "--set", "prompt.format=compact", "--games", "2", "--model"])
        .arg(&model)
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("does not compute finite numbers"), "{error}");
}

#[test]
fn a_run_that_breaks_keeps_its_good_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let good = weights(&run(&tiny(dir.path(), "good", &["run.iterations=0"])));
    // The first step breaks the weights: so much that they are no numbers, or that no log-prob comes out. A configuration file
    // may not ask for so much.
    for (i, (every, lr)) in [(1, 1e38), (0, 1e38), (1, 1e30)].into_iter().enumerate() {
        let set = ["run.max_nonfinite_steps=3", "run.iterations=9", "optim.warmup=1"];
        let mut config = tiny(dir.path(), &format!("bad-{i}"), &set);
        (config.run.checkpoint_every, config.optim.lr) = (every, lr);
        let error = refused(&config, Existing::Refuse);
        assert!(error.contains("no longer computes finite"), "{error}");
        let cold = dir.path().join(format!("bad-{i}/checkpoints/step-40/model.safetensors"));
        assert!(fs::read(cold).unwrap() == good, "as it was after the cold start");
    }
    // Sound weights, but an entropy bonus beyond f32: every step is skipped.
    let set = [
        "run.max_nonfinite_steps=3",
        "run.keep_checkpoints=1",
        "grpo.aggregation=constant",
        "grpo.constant_length=1",
        "run.iterations=5",
    ];
    let mut config = tiny(dir.path(), "skipped", &set);
    config.grpo.entropy_coef = 3e38;
    let error = refused(&config, Existing::Refuse);
    assert!(error.contains("not finite 3 times in a row"), "{error}");
    let path = dir.path().join("skipped");
    assert!(path.join("bad_batches/grpo-3.json").exists());
    assert_eq!(checkpoints(&path), [40, 43], "while steps are bad no checkpoint goes");
    assert!(weights(&path) == good, "a skipped step changes nothing");
}

/// Household games, but from some training task on something else happens.
struct Doctored {
    inner: Household,
    from: u64,
    task: fn(&Household) -> Task,
    broken: bool,
}

impl Suite for Doctored {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        if split == Split::Train && index >= self.from {
            Ok((self.task)(&self.inner))
        } else {
            self.inner.task(split, index)
        }
    }
    fn len(&self, split: Split) -> Option<u64> {
        self.inner.len(split)
    }
    fn open_for_training(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        if self.broken && *task == (self.task)(&self.inner) {
            return Err(EnvError::Failed { name: task.id.clone(), reason: "its worker died".into() });
        }
        self.inner.open_for_training(task)
    }
    fn open(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        self.inner.open(task)
    }
}

#[test]
fn held_out_games_are_refused_in_cold_start_and_grpo_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let held_out = |h: &Household| Task { split: Split::Train, ..h.task(Split::L2, 3).unwrap() };
    let doctored = |from| Doctored { inner: Household::new(0), from, task: held_out, broken: false };
    let id = held_out(&Household::new(0)).id;
    let config = tiny(dir.path(), "cold", &[]);
    let error = train(config, &doctored(5), Existing::Refuse).err().unwrap().to_string();
    assert!(error.contains(&format!("the split guard refuses {id}")) && error.contains("held out for L2"), "{error}");

    // Six games were demonstrated, two are played in each iteration: the third iteration is refused.
    let config = tiny(dir.path(), "grpo", &["run.iterations=4", "run.checkpoint_every=0"]);
    let error = train(config.clone(), &doctored(10), Existing::Refuse).err().unwrap().to_string();
    assert!(error.contains(&format!("the split guard refuses {id}")), "{error}");
    assert_eq!(state(&dir.path().join("grpo"))["iterations"], 2);
    let whole = left(&run(&tiny(dir.path(), "whole", &["run.iterations=4"])));
    assert!(left(&resume(&config)) == whole, "the iterations before count");
}

#[test]
fn an_iteration_whose_environments_all_fail_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let task = |h: &Household| h.task(Split::Train, 99).unwrap();
    let doctored = |from| Doctored { inner: Household::new(0), from, task, broken: true };
    let error = train(tiny(dir.path(), "a", &[]), &doctored(8), Existing::Refuse).err().unwrap().to_string();
    assert!(error.contains("8 of 8 episodes") && error.contains("its worker died"), "{error}");
    assert_eq!(state(&dir.path().join("a"))["iterations"], 1);
    // One group of two fails: the other is learnt from.
    let path = train(tiny(dir.path(), "b", &["run.iterations=1"]), &doctored(7), Existing::Refuse)
        .unwrap_or_else(|e| panic!("{e}"))
        .folder;
    let record = metrics::read(&path).unwrap().into_iter().find(|r| r.phase == "grpo").unwrap();
    assert_eq!((record.values["env_failed"], record.values.contains_key("loss")), (4.0, true));
}

/// Resumes a run in a process of its own that can write no file longer than 128 KiB.
#[cfg(unix)]
#[test]
fn a_full_disk_while_saving_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // The weights are larger than the limit, everything else is smaller.
    let set = |n| ["model.hidden_size=96", "rollout.groups=1", "rollout.group_size=2", "eval.games=1", n];
    let whole = left(&run(&tiny(dir.path(), "whole", &set("run.iterations=2"))));
    let path = run(&tiny(dir.path(), "a", &set("run.iterations=1")));
    let before = weights(&path);
    assert!(before.len() > 128 << 10, "{}", before.len());
    let limited = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 256; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_uncouple"),
            "train",
            "--resume",
        ])
        .args(["--name", "a", "--set", "run.iterations=2", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    let error = String::from_utf8(limited.stderr).unwrap();
    assert_eq!(limited.status.code(), Some(1), "{error}");
    assert!(error.lines().last().unwrap().contains("model.safetensors"), "{error}");
    assert_eq!(checkpoints(&path), [40, 41]);
    assert!(weights(&path) == before);
    let names = fs::read_dir(path.join("checkpoints")).unwrap();
    assert_eq!(names.count(), 2, "nothing half-written is left");
    assert!(left(&resume(&tiny(dir.path(), "a", &set("run.iterations=2")))) == whole);
}

#[cfg(unix)]
#[test]
fn a_full_disk_at_the_very_end_costs_one_evaluation() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(dir.path(), "a", &[]);
    let path = run(&config);
    let whole = left(&path);
    fs::remove_file(path.join("summary.json")).unwrap();
    std::os::unix::fs::symlink("/dev/full", path.join(".summary.json.unfinished")).unwrap();
    let error = refused(&config, Existing::Resume);
    assert!(
        error.contains("summary.json") && error.contains("the disk is full") && error.contains("--resume"),
        "{error}"
    );
    assert!(left(&resume(&config)) == whole);
}

/// GRPO, GCD and cold start with a prompt for each turn: the loop runs, and what was sampled is what is trained on.
#[test]
fn a_windowed_history_is_trained_on_as_it_was_sampled() {
    let dir = tempfile::tempdir().unwrap();
    let set = [
        "prompt.history=window:1",
        "gcd.mode=generate",
        "gcd.cold_start=1",
        "suggestions.mode=fixed",
        "suggestions.every=1",
    ];
    let run = run(&tiny(dir.path(), "a", &set));
    let records = metrics::read(&run).unwrap();
    let grpo: Vec<_> = records.iter().filter(|r| r.phase == "grpo").collect();
    assert_eq!(grpo.len(), 2);
    for record in grpo {
        assert!(record.values["sampling/sampling_logp_difference/max"] < 1e-4);
        assert!(record.values["sharing"] > 1.0 && record.values["loss"].is_finite());
    }
}
