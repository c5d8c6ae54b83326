//! Model directories: both spellings, every stored type, shards and recipes in; what we save; and every refusal.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use uncouple::forest::Forest;
use uncouple::model::checkpoint::{self, CheckpointError, SaveDtype};

use uncouple::model::{
    Activations, Architecture, Message, Model, ModelConfigError, Params, SavedActivations, TokenIds, Tokenizer,
};

const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/models");

fn stored(name: &str) -> PathBuf {
    Path::new(MODELS).join(name)
}

/// A writable copy of a stored model.
fn copy_of(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(stored(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::write(dir.path().join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
    }
    dir
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    all.tensors().into_iter().map(|(n, t)| (n, (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(n, (d, s, b))| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A copy of tiny-tied whose tensors were changed by `edit`.
fn with_tensors(edit: impl FnOnce(&mut Tensors)) -> tempfile::TempDir {
    let dir = copy_of("tiny-tied");
    let file = dir.path().join("model.safetensors");
    let mut tensors = read_tensors(&file);
    edit(&mut tensors);
    write_tensors(&file, &tensors);
    dir
}

fn refusal(dir: &Path) -> CheckpointError {
    checkpoint::load(dir).err().expect("the checkpoint is refused")
}

fn model() -> Model {
    checkpoint::load(&stored("tiny-tied")).unwrap()
}

fn save_to(dir: &Path, model: &Model, dtype: SaveDtype) -> Result<(), CheckpointError> {
    let ids = TokenIds::read(&stored("tiny-tied")).unwrap();
    let tokenizer = Tokenizer::load(&stored("tiny-tied")).unwrap();
    checkpoint::save(dir, model, &ids, tokenizer.files(), dtype)
}

#[test]
fn both_spellings_are_read() {
    let v4 = Architecture::read(&stored("tiny-tied")).unwrap();
    let v5 = Architecture::read(&stored("tiny-untied-gqa")).unwrap();
    assert_eq!((v4.rope_theta, v4.head_dim, v4.num_key_value_heads, v4.tie_word_embeddings), (1e6, 16, 2, true));
    assert_eq!((v5.rope_theta, v5.head_dim, v5.num_key_value_heads, v5.tie_word_embeddings), (1e4, 16, 1, false));
    let ids = TokenIds::read(&stored("tiny-tied")).unwrap();
    assert_eq!(ids, TokenIds { bos: Some(500), eos: vec![502, 500], pad: Some(500) });
}

#[test]
fn without_a_generation_config_the_eos_is_the_config_s() {
    let dir = copy_of("tiny-tied");
    fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    assert_eq!(TokenIds::read(dir.path()).unwrap().eos, [502]);
}

#[test]
fn shards_and_recipes_load() {
    let untied = checkpoint::load(&stored("tiny-untied-gqa")).unwrap();
    assert_eq!(untied.params.flat.len(), 302_112);
    assert_eq!(untied.params.get("lm_head.weight").unwrap().len(), 512 * 96);
    for recipe in ["mini-hd64", "mini-hd128"] {
        checkpoint::load(&stored(recipe)).unwrap(); // the digest is checked in loading
    }
    assert!(model().params.get("lm_head.weight").is_none());
}

#[test]
fn a_changed_recipe_is_refused() {
    let dir = copy_of("mini-hd64");
    edit_json(&dir.path().join("recipe.json"), |r| r["seed"] = json!(1));
    assert!(matches!(refusal(dir.path()), CheckpointError::Digest { .. }));
}

#[test]
fn half_precision_on_disk_is_widened_exactly() {
    for (dtype, narrow) in [
        (Dtype::BF16, (|x: f32| half::bf16::from_f32(x).to_le_bytes()) as fn(f32) -> [u8; 2]),
        (Dtype::F16, |x: f32| half::f16::from_f32(x).to_le_bytes()),
    ] {
        let dir = with_tensors(|tensors| {
            for (kind, _, bytes) in tensors.values_mut() {
                *kind = dtype;
                *bytes = bytes.chunks(4).flat_map(|b| narrow(f32::from_le_bytes(b.try_into().unwrap()))).collect();
            }
        });
        let (full, half) = (model(), checkpoint::load(dir.path()).unwrap());
        for (a, b) in full.params.flat.iter().zip(&half.params.flat) {
            let want = match dtype {
                Dtype::BF16 => half::bf16::from_f32(*a).to_f32(),
                _ => half::f16::from_f32(*a).to_f32(),
            };
            assert_eq!(want.to_bits(), b.to_bits());
        }
    }
}

#[test]
fn a_saved_model_loads_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("step-1");
    for name in ["tiny-tied", "tiny-untied-gqa"] {
        let model = checkpoint::load(&stored(name)).unwrap();
        save_to(&target, &model, SaveDtype::F32).unwrap();
        let again = checkpoint::load(&target).unwrap();
        assert_eq!(again.config, model.config);
        assert!(again.params == model.params);
        assert_eq!(TokenIds::read(&target).unwrap().eos, [502, 500]);
        assert_eq!(Tokenizer::load(&target).unwrap().vocab_size(), 503);
    }
    let leftovers: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(leftovers, ["step-1"]);
}

#[test]
fn bf16_on_disk_rounds_to_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("half");
    save_to(&target, &model(), SaveDtype::Bf16).unwrap();
    let again = checkpoint::load(&target).unwrap();
    assert!(model().params.flat.iter().zip(&again.params.flat).all(|(a, b)| half::bf16::from_f32(*a).to_f32() == *b));
    let config: Value = serde_json::from_slice(&fs::read(target.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "bfloat16");
}

#[test]
fn a_head_stored_twice_must_be_the_embedding() {
    let same = with_tensors(|t| {
        t.insert("lm_head.weight".into(), t["model.embed_tokens.weight"].clone());
    });
    assert!(checkpoint::load(same.path()).unwrap().params == model().params);
    let other = with_tensors(|t| {
        let mut head = t["model.embed_tokens.weight"].clone();
        head.2[3] ^= 0x10;
        t.insert("lm_head.weight".into(), head);
    });
    assert!(matches!(refusal(other.path()), CheckpointError::NotTied { .. }));
}

#[test]
fn refusals_name_the_tensor_and_the_file() {
    let norm = "model.layers.1.input_layernorm.weight";
    let cases: [(&str, tempfile::TempDir, &[&str]); 4] = [
        ("missing", with_tensors(|t| drop(t.remove(norm))), &[norm, "missing"]),
        (
            "unexpected",
            with_tensors(|t| drop(t.insert("model.layers.2.x".into(), t[norm].clone()))),
            &["model.layers.2.x", "unexpected"],
        ),
        ("shape", with_tensors(|t| t.get_mut(norm).unwrap().1 = vec![8, 8]), &[norm, "[8, 8]", "[64]"]),
        ("dtype", with_tensors(|t| t.get_mut(norm).unwrap().0 = Dtype::I32), &[norm, "I32"]),
    ];
    for (case, dir, parts) in &cases {
        let message = refusal(dir.path()).to_string();
        for part in parts.iter().chain(&["model.safetensors"]) {
            assert!(message.contains(part), "{case}: no {part:?} in {message:?}");
        }
    }
}

#[test]
fn absurd_sizes_are_refused_before_memory_is_asked_for() {
    let dir = copy_of("tiny-tied");
    edit_json(&dir.path().join("config.json"), |c| {
        c["vocab_size"] = json!(1 << 24);
        c["hidden_size"] = json!(1 << 24);
    });
    let message = refusal(dir.path()).to_string();
    assert!(message.contains("config.json"), "{message}");
}

/// The logits that transformers computes from what we saved, against ours. Needs a Python with torch and transformers
/// (`UNCOUPLE_PYTHON`, else `python3`); says so and passes where there is none.
#[test]
fn transformers_loads_what_we_save() {
    let python = std::env::var("UNCOUPLE_PYTHON").unwrap_or("python3".into());
    let has = Command::new(&python).args(["-c", "import torch, transformers"]).output();
    if !has.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: {python} has no torch and transformers; set UNCOUPLE_PYTHON to one that has");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let trained = Tokenizer::train(&["go to desk 1", "take the mug from the desk"], 300).unwrap();
    let family = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(name);
    for (name, of, untied) in [
        ("tied", stored("tiny-tied"), false),
        ("untied", stored("tiny-tied"), true),
        ("qwen3", family("qwen3"), false),
        ("llama", family("llama"), false),
        ("llama3", family("llama3"), true),
    ] {
        let config = Architecture { tie_word_embeddings: !untied, vocab_size: 300, ..Architecture::read(&of).unwrap() };
        let model = Model::new(config.clone(), Params::random(&config, 3));
        let ids =
            TokenIds { bos: None, eos: vec![trained.id("<|im_end|>").unwrap()], pad: trained.id("<|endoftext|>") };
        let target = dir.path().join(name);
        checkpoint::save(&target, &model, &ids, trained.files(), SaveDtype::F32).unwrap();
        let prompt = trained.render(&[Message::new("user", "go to desk 1")], true).unwrap();
        let tokens = trained.encode(&prompt).unwrap();

        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/transformers_logits.py");
        let output = Command::new(&python).arg(script).arg(&target).arg("go to desk 1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(theirs["ids"], json!(tokens), "{name}");
        assert_eq!(theirs["eos"], json!(ids.eos), "{name}");
        assert_eq!(theirs["class"], config.family.class, "{name}");

        let forest = Forest::new(&[&tokens]);
        let mut acts = Activations::default();
        model.forward(&forest, SavedActivations::Nothing, &mut acts);
        let logits = model.logits(&acts.hidden);
        let theirs: Vec<f64> = serde_json::from_value(theirs["logits"].clone()).unwrap();
        assert_eq!(logits.len(), theirs.len());
        let worst = logits.iter().zip(&theirs).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(worst < 2e-6, "{name}: logits differ by {worst}");
    }
}

#[test]
fn damaged_files_are_refused() {
    let whole = fs::read(stored("tiny-tied").join("model.safetensors")).unwrap();
    let dir = copy_of("tiny-tied");
    let mut wild = whole.clone();
    wild[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let cuts = [0, 4, 100, whole.len() / 2, whole.len() - 1].map(|n| whole[..n].to_vec());
    for bytes in cuts.into_iter().chain([wild, b"<html>not found</html>".to_vec()]) {
        fs::write(dir.path().join("model.safetensors"), &bytes).unwrap();
        let message = refusal(dir.path()).to_string();
        assert!(message.contains("model.safetensors"), "{} bytes: {message}", bytes.len());
    }
}

#[test]
fn shards_must_be_what_the_index_says() {
    let dir = copy_of("tiny-untied-gqa");
    let index = dir.path().join("model.safetensors.index.json");
    let good = fs::read(&index).unwrap();
    fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert!(refusal(dir.path()).to_string().contains("model-00002-of-00002.safetensors"));

    let dir = copy_of("tiny-untied-gqa");
    let index = dir.path().join("model.safetensors.index.json");
    edit_json(&index, |i| i["weight_map"]["lm_head.weight"] = json!("model-00001-of-00002.safetensors"));
    let message = refusal(dir.path()).to_string();
    assert!(message.contains("lm_head.weight") && message.contains("model-00001"), "{message}");

    fs::write(&index, &good).unwrap();
    edit_json(&index, |i| i["weight_map"]["lm_head.weight"] = json!("../elsewhere.safetensors"));
    assert!(matches!(refusal(dir.path()), CheckpointError::BadShard { .. }));

    fs::write(&index, &good).unwrap();
    edit_json(&index, |i| drop(i["weight_map"].as_object_mut().unwrap().remove("lm_head.weight")));
    checkpoint::load(dir.path()).unwrap(); // the shard has it all the same
}

#[test]
fn missing_things_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(refusal(&dir.path().join("nowhere")), CheckpointError::NoFolder(_)));
    assert!(refusal(dir.path()).to_string().contains("config.json"));
    fs::copy(stored("tiny-tied").join("config.json"), dir.path().join("config.json")).unwrap();
    assert!(matches!(refusal(dir.path()), CheckpointError::NoWeights { .. }));
}

#[test]
fn configurations_of_other_models_are_refused() {
    let cases = [
        ("model_type", json!("mistral")),
        ("model_type", Value::Null),
        ("architectures", json!(["Qwen2ForSequenceClassification"])),
        ("hidden_act", json!("gelu")),
        ("use_sliding_window", json!(true)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
        ("rope_parameters", json!({"rope_type": "llama3", "rope_theta": 1e4})),
        ("rope_theta", json!(-1.0)),
        ("rms_norm_eps", json!("small")),
        ("quantization_config", json!({"bits": 4})),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(1u64 << 40)),
        ("hidden_size", json!(-64)),
        ("num_attention_heads", json!(5)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(15)),
        ("num_hidden_layers", json!(1_000_000)),
        ("vocab_size", json!("512")),
        ("num_hidden_layers", Value::Null),
        ("tie_word_embeddings", json!("yes")),
    ];
    for (field, value) in cases {
        let dir = copy_of("tiny-tied");
        edit_json(&dir.path().join("config.json"), |c| c[field] = value.clone());
        match Architecture::read(dir.path()) {
            Err(ModelConfigError::Field { file, field: named, .. }) => {
                assert!(named.starts_with(field), "{field}: {named}");
                assert!(file.ends_with("config.json"));
            }
            other => panic!("{field} = {value}: {other:?}"),
        }
    }
}

#[test]
fn random_weights_have_their_deviations_and_their_seed() {
    let config = Architecture::read(&stored("mini-hd64")).unwrap();
    let params = Params::random(&config, 7);
    let std = |name: &str| {
        let w = params.get(name).unwrap();
        (w.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / w.len() as f64).sqrt()
    };
    let wide = (0.4f64 / 256.0).sqrt();
    assert!((std("model.embed_tokens.weight") / wide - 1.0).abs() < 0.01);
    // Two layers add four matrices to the residual stream.
    assert!((std("model.layers.0.self_attn.o_proj.weight") / (wide / 2.0) - 1.0).abs() < 0.01);
    assert!((std("model.layers.1.mlp.down_proj.weight") / (wide / 2.0) - 1.0).abs() < 0.01);
    assert!(params.get("model.norm.weight").unwrap().iter().all(|x| *x == 1.0));
    assert!(params.get("model.layers.0.self_attn.q_proj.bias").unwrap().iter().all(|x| *x == 0.0));
    assert!(params == Params::random(&config, 7));
    assert!(params.flat != Params::random(&config, 8).flat);
}

/// Runs only as a child of [`a_full_disk_loses_nothing`], with a limit on the size of files it may write.
#[test]
#[ignore = "a child process of a_full_disk_loses_nothing"]
fn save_where_there_is_no_room() {
    let target = PathBuf::from(std::env::var_os("UNCOUPLE_TEST_TARGET").expect("run by a_full_disk_loses_nothing"));
    let error = save_to(&target, &model(), SaveDtype::F32).expect_err("there is no room");
    assert!(matches!(error, CheckpointError::File(_)), "{error}");
    let message = error.to_string();
    assert!(message.contains("model.safetensors") && !message.contains('\n'), "{message}");
}

#[cfg(unix)]
#[test]
fn a_full_disk_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("step-1");
    save_to(&target, &model(), SaveDtype::Bf16).unwrap();
    let before = fs::read(target.join("model.safetensors")).unwrap();
    // A limit of 128 KiB per file fails the write half-way, as a full disk does; the ignored signal makes it an error.
    let output = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 256; exec \"$0\" --exact checkpoint::save_where_there_is_no_room --ignored",
        ])
        .arg(std::env::current_exe().unwrap())
        .env("UNCOUPLE_TEST_TARGET", &target)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    assert!(before == fs::read(target.join("model.safetensors")).unwrap(), "the previous checkpoint changed");
    checkpoint::load(&target).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the partial folder is still there");
}
