//! Inputs that once broke a reader: what is changed in which base, and whether it may load now.

use crate::targets::Bases;
use serde_json::{Value, json};

/// The base of a target with one JSON value changed.
pub struct Known {
    pub target: &'static str,
    pub input: Vec<u8>,
}

pub fn all(bases: &Bases) -> Vec<Known> {
    let changed = |target: &'static str, base: Vec<u8>, pointer: &str, value: Value| {
        let mut document: Value = serde_json::from_slice(&base).unwrap();
        *document.pointer_mut(pointer).unwrap() = value;
        Known { target, input: document.to_string().into_bytes() }
    };
    let recipe = |field: &str, value: u64| {
        changed("config of a recipe", bases.model("mini-hd64", "config.json"), field, json!(value))
    };
    let golden = |pointer: &str, value: Value| changed("golden", bases.golden("golden.json"), pointer, value);
    let line = |from: &str, to: &str| {
        assert!(bases.toml.contains(from), "{from}");
        Known { target: "configuration", input: bases.toml.replace(from, to).into_bytes() }
    };
    vec![
        // Memory was taken for sizes that nothing but this file stands for.
        recipe("/hidden_size", 256_000),
        recipe("/intermediate_size", 704_000),
        recipe("/num_hidden_layers", 512),
        recipe("/num_hidden_layers", 2000),
        line("num_hidden_layers = 2\n", "num_hidden_layers = 16777216\n"),
        line("num_hidden_layers = 2\n", "num_hidden_layers = 4294967295\n"),
        line("num_hidden_layers = 2\n", "num_hidden_layers = 9223372036854775807\n"),
        // No duration is so long.
        line("timeout = 60.0\n", "timeout = 1e38\n"),
        line("timeout = 60.0\n", "timeout = nan\n"),
        // A token that the embedding has no row for.
        changed("tokenizer", bases.tied("tokenizer.json"), "/model/vocab/rawer", json!(131_072)),
        // A decoder that is none: the parser of the library gives up.
        changed(
            "tokenizer",
            bases.tied("tokenizer.json"),
            "/decoder",
            json!({ "type": "ByteLevel", "add_prefix_space": null }),
        ),
        golden("/grpo/completions/0/2", json!(0)),
        golden("/grpo/cases/onpolicy/lo", json!(i64::MIN)),
    ]
}
