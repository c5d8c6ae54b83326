//! The golden set: every quantity of every model, and the tokenizer; and a set whose outputs are gone.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use uncouple::cli::reference::table;
use uncouple::reference::{self, CheckReport};

const SET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden");

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::write(&target, fs::read(&path).unwrap()).unwrap();
        }
    }
}

/// A copy of the set with only the named models.
fn set_of(models: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");
    for model in models {
        copy_tree(&Path::new(SET).join("models").join(model), &set.join("models").join(model));
        copy_tree(&Path::new(SET).join("golden").join(model), &set.join("golden").join(model));
    }
    let mut tokenizer: Value = read(&Path::new(SET).join("tokenizer_golden.json"));
    let chats = tokenizer["chats"].as_array_mut().unwrap();
    chats.retain(|c| models.iter().any(|m| c["tokenizer_of"] == *m));
    fs::write(set.join("tokenizer_golden.json"), tokenizer.to_string()).unwrap();
    (dir, set)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn edit(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = read(path);
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn failures(report: &CheckReport) -> Vec<&str> {
    report.rows.iter().filter(|(_, row)| !row.pass).map(|(_, row)| row.quantity.as_str()).collect()
}

/// Keeps the fields that a replay reads, and nothing that it computes.
fn strip_outputs(set: &Path, model: &str) {
    let dir = set.join("golden").join(model);
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if stem != "golden" {
            fs::remove_file(&path).unwrap();
        }
    }
    let keep = |section: &mut Value, fields: &[&str]| {
        section.as_object_mut().unwrap().retain(|key, _| fields.contains(&key.as_str()));
    };
    edit(&dir.join("golden.json"), |golden| {
        keep(golden, &["model", "forward", "adamw", "persample", "generate", "grpo"]);
        keep(&mut golden["forward"], &["sequences", "prompt_lens", "pad_id", "logits_sequence"]);
        keep(&mut golden["adamw"], &["lr", "betas", "eps", "weight_decay", "clip", "batches"]);
        keep(&mut golden["persample"], &["sequences", "prompt_lens", "advantages"]);
        keep(&mut golden["generate"], &["prompts", "eos_ids_for_stop_case", "sampling_prompt", "sampling_cases"]);
        for case in golden["generate"]["sampling_cases"].as_array_mut().unwrap() {
            keep(case, &["temperature", "top_k", "top_p", "min_p"]);
        }
        let inputs = [
            "group_size",
            "rewards",
            "advantage_eps",
            "max_completion_length",
            "pad_id",
            "prompts",
            "completions",
            "empty_row_index",
            "cases",
        ];
        keep(&mut golden["grpo"], &inputs);
        let parameters = ["loss", "scale", "beta", "lo", "hi", "bc", "level", "old", "temp", "tool", "empty", "micro"];
        for case in golden["grpo"]["cases"].as_object_mut().unwrap().values_mut() {
            keep(case, &parameters);
        }
    });
    let file = dir.join("golden.safetensors");
    let bytes = fs::read(&file).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let inputs = ["grpo.old_logps", "grpo.ref_logps", "grpo.tool_mask"].map(|name| (name, all.tensor(name).unwrap()));
    safetensors::serialize_to_file(inputs, None, &file).unwrap();
    edit(&set.join("tokenizer_golden.json"), |golden| {
        keep(golden, &["strings", "chats"]);
        golden["strings"].as_array_mut().unwrap().iter_mut().for_each(|s| keep(s, &["text"]));
        let chat = ["tokenizer_of", "messages", "add_generation_prompt"];
        golden["chats"].as_array_mut().unwrap().iter_mut().for_each(|c| keep(c, &chat));
    });
}

/// Every file below `dir`, by relative path.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(p, b)| (Path::new(path.file_name().unwrap()).join(p), b)));
        } else {
            found.insert(path.file_name().unwrap().into(), fs::read(&path).unwrap());
        }
    }
    found
}

/// Paths of all keys of a JSON value; lists count as one.
fn keys(value: &Value, at: &str, out: &mut Vec<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        out.push(format!("{at}/{key}"));
        keys(value, &format!("{at}/{key}"), out);
    }
}

#[test]
fn every_golden_quantity_is_within_ten_noise_floors() {
    let report = reference::check(Path::new(SET)).unwrap();
    println!("{}", table(&report));
    assert!(report.passed(), "failed: {:?}", failures(&report));
    for model in ["tiny-tied", "tiny-untied-gqa", "mini-hd64", "mini-hd128", "tokenizer"] {
        assert!(report.rows.iter().any(|(m, _)| m == model), "no row of {model}");
    }
}

#[test]
fn a_set_without_outputs_replays_the_same() {
    for model in ["tiny-tied", "mini-hd64"] {
        let (_keep, set) = set_of(&[model]);
        let (full, without) = (set.join("full"), set.join("without"));
        reference::replay(&set, model, &full, None).unwrap();
        strip_outputs(&set, model);
        reference::replay(&set, model, &without, None).unwrap();
        let (full, without) = (files(&full), files(&without));
        assert!(full.keys().eq(without.keys()), "{:?} and {:?}", full.keys(), without.keys());
        for (path, content) in &full {
            // Advantages are fed to the losses in f32 and computed in f64, so even these bytes agree.
            assert!(without[path] == *content, "{model}: {} differs", path.display());
        }
    }
}

#[test]
fn a_replay_has_the_set_s_files_keys_and_tensors() {
    for model in ["tiny-tied", "tiny-untied-gqa"] {
        let out = tempfile::tempdir().unwrap();
        reference::replay(Path::new(SET), model, out.path(), None).unwrap();
        let golden = files(&Path::new(SET).join("golden").join(model));
        let ours = files(&out.path().join(model));
        assert!(golden.keys().eq(ours.keys()), "{:?}", ours.keys());
        for (path, bytes) in golden.iter().filter(|(p, _)| p.extension().unwrap() == "safetensors") {
            let shapes = |bytes: &[u8]| -> BTreeMap<String, _> {
                let all = safetensors::SafeTensors::deserialize(bytes).unwrap();
                all.tensors().into_iter().map(|(n, t)| (n, (t.dtype(), t.shape().to_vec()))).collect()
            };
            assert_eq!(shapes(bytes), shapes(&ours[path]));
        }
        // Fields that only describe the reference implementation have no counterpart.
        let only_theirs = |key: &String| {
            ["noise_floor", "_f64", "/checks", "other_rows", "same_when_left_padded", "bf16_by_hf"]
                .iter()
                .any(|part| key.contains(part))
        };
        let (mut want, mut have) = (Vec::new(), Vec::new());
        keys(&serde_json::from_slice(&golden[Path::new("golden.json")]).unwrap(), "", &mut want);
        keys(&serde_json::from_slice(&ours[Path::new("golden.json")]).unwrap(), "", &mut have);
        want.retain(|key| !only_theirs(key));
        want.sort();
        have.sort();
        assert_eq!(have, want);
        let theirs = read(&Path::new(SET).join("tokenizer_golden.json"));
        assert!(read(&out.path().join("tokenizer_golden.json")) == theirs);
    }
}

#[test]
fn a_wrong_number_fails_its_row_and_the_whole() {
    let (_keep, set) = set_of(&["tiny-tied"]);
    edit(&set.join("golden/tiny-tied/golden.json"), |golden| {
        let loss = golden["forward"]["ce_loss"].as_f64().unwrap();
        golden["forward"]["ce_loss"] = (loss + 1e-4).into();
        golden["forward"]["ce_loss_f64"] = (loss + 1e-4).into();
        golden["generate"]["new_tokens_greedy"][1][3] = 7.into();
        golden["grpo"]["cases"]["gspo"]["metrics"]["clip_ratio/high_mean"][0] = 0.9.into();
    });
    edit(&set.join("tokenizer_golden.json"), |golden| {
        golden["strings"][5]["ids"] = Value::Array(vec![1.into()]);
        golden["templates"]["v5_style_dirs"] = "not the template".into();
    });
    let report = reference::check(&set).unwrap();
    assert!(!report.passed());
    assert_eq!(
        failures(&report),
        [
            "forward.ce_loss",
            "generate.new_tokens_greedy",
            "grpo.cases.gspo.metrics.clip_ratio~1high_mean",
            "strings",
            "templates"
        ]
    );
}

#[test]
fn broken_sets_are_refused_by_name() {
    let (_keep, set) = set_of(&["tiny-tied"]);
    let out = set.join("out");
    let refusal = |model: &str| reference::replay(&set, model, &out, None).expect_err("refused").to_string();
    assert!(refusal("tiny-large").contains("tiny-large"));
    let golden = set.join("golden/tiny-tied/golden.json");
    edit(&golden, |g| g["forward"]["sequences"][0][0] = 9999.into());
    assert!(refusal("tiny-tied").contains("9999"));
    edit(&golden, |g| drop(g.as_object_mut().unwrap().remove("forward")));
    let message = refusal("tiny-tied");
    assert!(message.contains("golden.json") && message.contains("forward"), "{message}");
    fs::write(set.join("golden/tiny-tied/golden.safetensors"), b"short").unwrap();
    assert!(refusal("tiny-tied").contains("golden"));
}
