//! The studies that come with the repository.

use std::path::Path;
use std::process::Command;
use uncouple::config::GcdMode;
use uncouple::study::plan::{Study, StudyOverrides};
use uncouple::train::memory::Placement;

/// A model folder as far as a dry run needs it.
fn model(dir: &Path, large: bool) -> String {
    let [layers, hidden, heads, kv, mlp] = if large { [36, 2048, 16, 2, 11008] } else { [30, 576, 9, 3, 1536] };
    let json = serde_json::json!({
        "model_type": if large { "qwen2" } else { "llama" },
        "architectures": [if large { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" }],
        "vocab_size": if large { 151_936 } else { 49_152 }, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": mlp,
        "max_position_embeddings": if large { 32768 } else { 8192 }, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": true, "hidden_act": "silu"
    });
    std::fs::write(dir.join("config.json"), json.to_string()).unwrap();
    dir.display().to_string()
}

fn load(name: &str, model: Option<&str>, place: Placement) -> Study {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("studies").join(name);
    let set = model.map(|dir| format!("model.path={dir}")).into_iter().collect();
    Study::load(&file, StudyOverrides { dir: None, set, place }).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn every_study_parses_and_tells_what_it_will_take() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let all = [
        ("first-light", None, "cpu"),
        ("five-seeds", None, "cpu"),
        ("real", Some(false), "cpu"),
        ("alfworld", Some(false), "cuda"),
        ("paper", Some(true), "cuda"),
    ];
    for (name, large, device) in all {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uncouple"));
        command.arg("study").arg(root.join(format!("studies/{name}.toml"))).args(["--dry-run", "--device", device]);
        command.args(["--memory", "80GB"]);
        if let Some(large) = large {
            command.arg("--model").arg(model(dir.path(), large));
        }
        let output = command.output().unwrap();
        let (told, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}: {error}");
        assert!(told.contains("left, one after another: ") && !told.contains("not known"), "{name}: {told}");
        assert!(told.contains("fits in") && !told.contains("does not fit"), "{name}: {told}");
        assert!(
            told.contains("see a difference of") && told.lines().all(|l| l.chars().count() <= 150),
            "{name}: {told}"
        );
    }
    let files = std::fs::read_dir(root.join("studies")).unwrap().count();
    assert_eq!(files, all.len(), "every file in studies/ is checked here");
}

#[test]
fn first_light_is_two_variants_of_the_default_on_three_seeds() {
    let study = load("first-light.toml", None, Placement::Cpu);
    assert_eq!((study.seeds.len(), study.variants.len(), study.tasks().len()), (3, 2, 9));
    let cell = |name: &str| study.config(&study.task_named(name).unwrap()).unwrap();
    assert_eq!(cell("grpo-seed-11").gcd.mode, GcdMode::Off);
    assert_eq!(cell("gcd-seed-11").gcd, uncouple::config::Config::default().gcd);
    let stated = study.expect.cold_start_minutes * 3.0 + study.expect.cell_minutes * 6.0;
    assert!(stated <= 45.0, "{stated} minutes");
}

#[test]
fn the_real_study_begins_where_coupling_is() {
    let dir = tempfile::tempdir().unwrap();
    let study = load("real.toml", Some(&model(dir.path(), false)), Placement::Cpu);
    let names: Vec<&str> = study.variants.iter().map(|v| &v.name[..]).collect();
    assert_eq!(names, ["grpo", "gcd", "gcd-no-suggestions"]);
    for task in study.tasks() {
        let config = study.config(&task).unwrap();
        assert!(config.sft.steps <= 5 && config.prompt.admissible, "{}", study.name_of(&task));
    }
}
