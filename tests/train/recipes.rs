//! The configurations that come with the program, and the commands that print configurations.

use std::path::Path;
use std::process::Command;
use uncouple::config::recipes::{RECIPES, Recipe};
use uncouple::config::{Config, Override, keys};
use uncouple::train::memory::{self, Placement};

/// What is in the config.json of a Qwen2.5 model that decides its size: layers, hidden, heads, KV heads, intermediate.
const QWEN: [(&str, [usize; 5]); 4] = [
    ("0.5B", [24, 896, 14, 2, 4864]),
    ("1.5B", [28, 1536, 12, 2, 8960]),
    ("3B", [36, 2048, 16, 2, 11008]),
    ("7B", [28, 3584, 28, 4, 18944]),
];

/// The config.json of the model that a recipe is for.
fn shape(path: &str) -> serde_json::Value {
    let json = |family: [&str; 2], vocab: usize, [layers, hidden, heads, kv, mlp]: [usize; 5]| {
        serde_json::json!({
            "model_type": family[0], "architectures": [family[1]], "vocab_size": vocab, "hidden_size": hidden,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": mlp,
            "max_position_embeddings": if vocab > 100_000 { 32768 } else { 8192 }, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
            "tie_word_embeddings": hidden < 3584, "hidden_act": "silu"
        })
    };
    match QWEN.iter().find(|(size, _)| path.contains(&format!("Qwen2.5-{size}"))) {
        Some((size, sizes)) => {
            json(["qwen2", "Qwen2ForCausalLM"], if *size == "7B" { 152_064 } else { 151_936 }, *sizes)
        }
        None => json(["llama", "LlamaForCausalLM"], 49_152, [30, 576, 9, 3, 1536]),
    }
}

fn uncouple(args: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_uncouple")).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

fn printed(args: &[&str]) -> String {
    let (success, stdout, stderr) = uncouple(args);
    assert!(success, "{args:?}: {stderr}");
    stdout
}

fn refused(args: &[&str]) -> String {
    let (success, stdout, stderr) = uncouple(args);
    assert!(!success && stdout.is_empty(), "{args:?}: {stdout}");
    stderr
}

#[test]
fn every_recipe_is_valid_and_fits_where_it_says() {
    for Recipe { name, toml } in RECIPES {
        let given = format!("recipe:{name}");
        let config = Config::load(Some(Path::new(&given)), &[]).unwrap_or_else(|e| panic!("{e}"));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), shape(&config.model.path).to_string()).unwrap();
        let model = format!("model.path={}", dir.path().display());
        let overrides = [Override::parse(&model).unwrap()];
        let config = Config::load(Some(Path::new(&given)), &overrides).unwrap();
        let defaults = memory::defaults_of_its_model(&config).unwrap();
        let config = Config::load_over(&defaults, Some(Path::new(&given)), &overrides).unwrap();
        let plan = memory::plan(&config, &memory::model_shape(&config).unwrap(), Placement::Gpu);
        let card = if toml.lines().next().is_some_and(|line| line.contains("24 GB")) {
            24_000_000_000
        } else {
            80_000_000_000
        };
        let fit = memory::fit(&plan, Some(card));
        assert!(fit.advice.is_none(), "{name}: {} bytes; {:?}", fit.needed, fit.advice);
        let head: String = toml.lines().take_while(|line| line.starts_with('#')).collect();
        assert!(head.contains(&format!("--config recipe:{name}")), "{name}: its head says how to run it");
        // The whole command, as far as it goes without weights.
        let model = dir.path().to_str().unwrap();
        let dry = ["train", "--dry-run", "--config", &given, "--model", model, "--device", "cuda", "--memory", "80GB"];
        let text = printed(&dry);
        assert!(text.contains("# fits: ") && text.contains(&format!("suite = \"{}\"", config.env.suite)), "{text}");
        assert_eq!(printed(&["config", "--recipe", name]), toml);
        assert!(printed(&["config", "recipes"]).contains(name));
    }
    let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes")).unwrap();
    assert_eq!(files.count(), RECIPES.len(), "every file in recipes/ is embedded");
}

#[test]
fn unknown_recipes_and_mistakes_in_them_are_named() {
    let error = refused(&["train", "--dry-run", "--config", "recipe:alfworld"]);
    assert!(error.starts_with("error: there is no recipe `alfworld`") && error.contains("`scienceworld`"), "{error}");
    assert_eq!(refused(&["config", "--recipe", "alfworld"]), error);
    // Overrides go before a recipe as before a file.
    let lower = [Override::parse("gcd.pairs=7").unwrap()];
    let config = Config::load(Some(Path::new("recipe:qwen2.5-3b-alfworld")), &lower).unwrap();
    assert_eq!((config.gcd.pairs, config.gcd.judgments), (7, 8));
}

#[test]
fn config_prints_every_key_as_a_file_that_loads() {
    let text = printed(&["config"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.toml");
    std::fs::write(&file, &text).unwrap();
    assert_eq!(Config::load(Some(&file), &[]).unwrap(), Config::default());
    assert!(text.lines().all(|line| line.chars().count() <= 120), "lines are short");
    for key in ["group_size = 8", "# Episodes of the same instance.", "[judge]", "# - \"token-mean\": "] {
        assert!(text.contains(key), "{key}: {text}");
    }
    let json: serde_json::Value = serde_json::from_str(&printed(&["config", "--json"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), keys::sections().len());
}

#[test]
fn config_explain_tells_one_key() {
    let text = printed(&["config", "explain", "gcd.pairs"]);
    assert!(
        text.starts_with("gcd.pairs = 60\nLabelled actions judged in an iteration") && text.contains("1 to 65536"),
        "{text}"
    );
    let text = printed(&["config", "explain", "grpo.aggregation"]);
    assert!(text.contains("- \"constant\": Sum over tokens"), "{text}");
    let section = printed(&["config", "explain", "suggestions"]);
    assert!(section.starts_with("[suggestions]\n") && section.contains("suggestions.threshold = 0.5\n"), "{section}");
    let json: serde_json::Value = serde_json::from_str(&printed(&["config", "explain", "optim.lr", "--json"])).unwrap();
    assert_eq!((&json["key"], &json["default"]), (&"optim.lr".into(), &2e-4.into()));
    let error = refused(&["config", "explain", "rollout.grup_size"]);
    assert_eq!(
        error,
        "error: uncouple config explain: unknown key `rollout.grup_size`: did you mean `rollout.group_size`?\n"
    );
}

#[test]
fn the_page_of_the_configuration_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let kept = std::fs::read_to_string(file).unwrap_or_default();
    assert!(
        kept == keys::as_markdown(),
        "docs/configuration.md is out of date; renew it: cargo run --release -- config --markdown > docs/configuration.md"
    );
}
