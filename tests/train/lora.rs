//! Whole runs that train an adapter: they resume bit for bit, leave what PEFT reads, and refuse what does not combine.

use crate::common;

use common::runs::{left, tiny};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use uncouple::config::{Config, Override};
use uncouple::model::checkpoint;
use uncouple::report::metrics;
use uncouple::train::run_folder::{Existing, RunFolder};
use uncouple::train::{suite, train};

fn run(config: &Config, existing: Existing) -> Result<PathBuf, String> {
    train(config.clone(), &*suite(config).unwrap(), existing).map(|outcome| outcome.folder).map_err(|e| e.to_string())
}

fn last_checkpoint(run: &Path) -> PathBuf {
    RunFolder::finished_checkpoints(run).unwrap().pop().expect("a checkpoint").1
}

/// A small model that has learnt a little, as a directory; and settings that train an adapter beside it.
fn base(dir: &Path) -> (PathBuf, Vec<String>) {
    let trained = last_checkpoint(&run(&tiny(dir, "base", &["run.iterations=1"]), Existing::Refuse).unwrap());
    let set =
        [&format!("model.path={}", trained.display())[..], "lora.rank=4", "lora.alpha=8", "sft.steps=3", "sft.lr=0.01"];
    (trained, set.map(String::from).to_vec())
}

fn with<'a>(set: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    set.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

#[test]
fn a_run_trains_the_adapter_alone_and_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (trained, set) = base(dir.path());
    let everything = [
        "grpo.beta=0.1",
        "gcd.mode=generate",
        "gcd.pairs=4",
        "gcd.judgments=2",
        "gcd.max_tokens=8",
        "coupling.every=1",
        "decouple.method=pcgrad",
        "optim.lr=0.01",
    ];
    let of = |name, iterations| tiny(dir.path(), name, &with(&set, &[&everything[..], &[iterations]].concat()));
    let whole = run(&of("whole", "run.iterations=3"), Existing::Refuse).unwrap();
    run(&of("a", "run.iterations=2"), Existing::Refuse).unwrap();
    let resumed = run(&of("a", "run.iterations=3"), Existing::Resume).unwrap();
    assert!(left(&resumed) == left(&whole));

    // The checkpoint is an adapter beside weights that nobody changed.
    let last = last_checkpoint(&whole);
    assert!(!last.join("model.safetensors").exists());
    let (model, before) = (checkpoint::load(&last).unwrap(), checkpoint::load(&trained).unwrap());
    assert!(model.params == before.params);
    let adapter = model.adapter.as_ref().expect("an adapter");
    let b = adapter.params.layout.entries.iter().filter(|e| e.name.contains("lora_B"));
    assert!(b.into_iter().all(|e| adapter.params.flat[e.range.clone()].iter().any(|w| *w != 0.0)), "all were trained");
    // The reference of the KL term is kept as an adapter, too, and the first step is at no distance from it.
    assert!(
        whole.join("reference/adapter_model.safetensors").exists()
            && !whole.join("reference/model.safetensors").exists()
    );
    let kl: Vec<f64> =
        metrics::read(&whole).unwrap().iter().filter(|r| r.phase == "grpo").map(|r| r.values["kl"]).collect();
    assert!(kl[0].abs() < 1e-6 && kl.iter().skip(1).any(|kl| *kl > 1e-6), "{kl:?}");
    let card = fs::read_to_string(last.join("README.md")).unwrap();
    assert!(card.contains("library_name: peft") && card.contains("rank 4"), "{card}");
}

#[test]
fn training_goes_on_from_an_adapter_that_the_configuration_describes() {
    let dir = tempfile::tempdir().unwrap();
    let (trained, set) = base(dir.path());
    let first = run(&tiny(dir.path(), "first", &with(&set, &["run.iterations=1"])), Existing::Refuse).unwrap();
    let adapter = last_checkpoint(&first);
    let path = format!("model.path={}", adapter.display());
    let refusal =
        |more: &[&str]| run(&tiny(dir.path(), "b", &[&[&path[..], "sft.steps=0"], more].concat()), Existing::Refuse);
    for (more, part) in [(&["lora.rank=0"][..], "rank 4"), (&["lora.rank=8", "lora.alpha=8"], "alpha 8")] {
        let error = refusal(more).unwrap_err();
        assert!(error.contains("lora.rank") && error.contains(part) && error.contains("uncouple merge"), "{error}");
        assert!(!dir.path().join("b").exists(), "no folder was made");
    }
    let on = refusal(&["lora.rank=4", "lora.alpha=8", "run.iterations=1"]).unwrap();
    let again = checkpoint::load(&last_checkpoint(&on)).unwrap();
    assert!(again.params == checkpoint::load(&trained).unwrap().params, "beside the same weights");
}

#[test]
fn the_command_merges_an_adapter_into_an_ordinary_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (trained, set) = base(dir.path());
    let adapter =
        last_checkpoint(&run(&tiny(dir.path(), "a", &with(&set, &["run.iterations=1"])), Existing::Refuse).unwrap());
    let out = dir.path().join("merged");
    let merge = |model: &Path| {
        let command = Command::new(env!("CARGO_BIN_EXE_uncouple"))
            .args(["merge", "--model"])
            .arg(model)
            .arg("--out")
            .arg(&out)
            .output()
            .unwrap();
        (command.status.success(), String::from_utf8(command.stderr).unwrap())
    };
    let (success, error) = merge(&trained);
    assert!(!success && error.contains("holds no adapter") && !out.exists(), "{error}");
    assert!(merge(&adapter).0);
    let (merged, beside) = (checkpoint::load(&out).unwrap(), checkpoint::load(&adapter).unwrap());
    assert!(merged.adapter.is_none() && merged.params != beside.params);
    assert!(merged.params == beside.merged().params);
    assert!(fs::metadata(out.join("tokenizer.json")).is_ok() && !out.join("adapter_config.json").exists());
    let (success, error) = merge(&adapter);
    assert!(!success && error.contains("exists already"), "{error}");
}

#[test]
fn settings_that_cannot_train_an_adapter_are_refused_with_the_mend() {
    let load = |sets: &[&str]| {
        let sets: Vec<Override> = sets.iter().map(|set| Override::parse(set).unwrap()).collect();
        Config::load(None, &sets).map_err(|e| e.to_string())
    };
    let cases: [(&[&str], &str); 6] = [
        (&["lora.rank=8"], "name one by model.path"),
        (&["lora.rank=8", "model.path=m", "lora.alpha=0"], "`lora.alpha = 0`"),
        (&["lora.rank=8", "model.path=m", "lora.targets=[]"], "q_proj, k_proj"),
        (&["lora.rank=8", "model.path=m", "lora.targets=[\"qproj\"]"], "q_proj, k_proj"),
        (&["lora.rank=8", "model.path=m", "lora.targets=[\"q_proj\", \"q_proj\"]"], "named twice"),
        (&["lora.rank=5000", "model.path=m"], "`lora.rank = 5000`"),
    ];
    for (sets, part) in cases {
        let error = load(sets).unwrap_err();
        assert!(error.contains(part) && error.contains("lora.") && error.lines().count() == 1, "{sets:?}: {error}");
    }
    let narrow = load(&["lora.rank=12", "model.path=m"]).unwrap();
    assert!(narrow.validate_for_gpu().unwrap_err().to_string().contains("multiple of 8"));
}
