//! The tokenizer: Hugging Face files in, chat templates, training a small one, and what it says of bad files.

use std::fs;
use std::path::Path;
use uncouple::model::tokenizer::{END_OF_TEXT, TURN_END, TURN_START, TokenizerError};
use uncouple::model::{Message, Tokenizer};

const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/models");

fn stored() -> Tokenizer {
    Tokenizer::load(&Path::new(MODELS).join("tiny-tied")).unwrap()
}

/// A directory with the stored tokenizer.json and the given chat template fields.
fn with_config(config: &str, jinja: Option<&str>) -> (tempfile::TempDir, Tokenizer) {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(Path::new(MODELS).join("tiny-tied/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    if let Some(jinja) = jinja {
        fs::write(dir.path().join("chat_template.jinja"), jinja).unwrap();
    }
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    (dir, tokenizer)
}

fn hello() -> Vec<Message> {
    vec![Message::new("user", " <b>&'hello' "), Message::new("assistant", "yes")]
}

#[test]
fn a_round_trip_keeps_the_text() {
    let tokenizer = stored();
    let text = "put the mug 12 in/on the\n\n  desk — naïve 日本 🙂";
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    assert_eq!(tokenizer.id(TURN_END), Some(502));
    assert_eq!(tokenizer.vocab_size(), 503);
}

#[test]
fn ids_outside_the_vocabulary_decode_to_nothing() {
    assert_eq!(stored().decode(&[511, 40_000], false).unwrap(), "");
}

#[test]
fn the_template_file_goes_before_the_configuration() {
    let config = r#"{"chat_template": "config"}"#;
    assert_eq!(with_config(config, Some("file")).1.render(&hello(), false).unwrap(), "file");
    assert_eq!(with_config(config, None).1.render(&hello(), false).unwrap(), "config");
}

#[test]
fn a_list_of_templates_uses_the_default() {
    let config = r#"{"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]}"#;
    assert_eq!(with_config(config, None).1.render(&hello(), false).unwrap(), "yes");
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let config = r#"{"eos_token": {"content": "<|im_end|>"}, "bos_token": null}"#;
    let render = |jinja: &str| with_config(config, Some(jinja)).1.render(&hello(), true);
    // trim_blocks drops the newline after a block, lstrip_blocks the white space before it; expressions keep theirs.
    let loops = "{% for m in messages %}\n  {% if loop.first %}\n[{{ m.role }}]\n  {% endif %}\n{% endfor %}\n.";
    assert_eq!(render(loops).unwrap(), "[user]\n.");
    assert_eq!(render("{{ messages[-1]['content'] }}{{ eos_token }}{{ bos_token or '' }}").unwrap(), "yes<|im_end|>");
    // Python's string methods.
    assert_eq!(render("{{ messages[0].content.strip().startswith('<b>') }}").unwrap().to_lowercase(), "true");
    // JSON as Python writes it: spaced, with nothing escaped for HTML.
    assert_eq!(render("{{ messages[1] | tojson }}").unwrap(), r#"{"role": "assistant", "content": "yes"}"#);
    assert_eq!(render("{{ messages[0].content | tojson }}").unwrap(), r#"" <b>&'hello' ""#);
    assert_eq!(render("{{ messages[0].content }}").unwrap(), " <b>&'hello' ");
    // Tools are there, but none; a special token that the tokenizer lacks is not.
    let defined = "{% if tools is defined %}tools{% endif %}{% if tools %}!{% endif %}{% if bos_token is defined %}bos{% endif %}";
    assert_eq!(render(defined).unwrap(), "tools");
    assert_eq!(render("{% if add_generation_prompt %}go{% endif %}").unwrap(), "go");
}

/// Templates, and what transformers makes of them: chat_templates.py writes the rows.
#[test]
fn a_hundred_templates_are_what_transformers_makes_of_them() {
    #[derive(serde::Deserialize)]
    struct Rows {
        messages: Vec<serde_json::Map<String, serde_json::Value>>,
        rows: Vec<Row>,
    }
    #[derive(serde::Deserialize)]
    struct Row {
        template: String,
        /// `null`: it is refused.
        text: Option<String>,
    }
    let Rows { messages, rows } = serde_json::from_str(include_str!("../fixtures/chat_templates.json")).unwrap();
    let said = |m: &serde_json::Map<String, serde_json::Value>, key: &str| m[key].as_str().unwrap().to_string();
    let talk: Vec<Message> = messages.iter().map(|m| Message::new(&said(m, "role"), said(m, "content"))).collect();
    let config = fs::read_to_string(Path::new(MODELS).join("tiny-tied/tokenizer_config.json")).unwrap();
    let mut wrong = Vec::new();
    for Row { template, text } in &rows {
        let ours = with_config(&config, Some(template)).1.render(&talk, true);
        if ours.as_ref().ok() != text.as_ref() {
            wrong.push(format!("{template}\n  transformers: {text:?}\n  here:         {ours:?}"));
        }
    }
    assert!(rows.len() > 90);
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

#[test]
fn a_template_may_refuse_a_conversation() {
    let (_dir, tokenizer) = with_config("{}", Some("{{ raise_exception('roles must alternate') }}"));
    let message = tokenizer.render(&hello(), false).unwrap_err().to_string();
    assert!(message.contains("roles must alternate"), "{message}");
}

#[test]
fn no_template_is_an_error_only_when_it_is_needed() {
    let (_dir, tokenizer) = with_config("{}", None);
    assert!(matches!(tokenizer.render(&hello(), false), Err(TokenizerError::NoTemplate(_))));
}

#[test]
fn bad_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokenizer.json");
    let refusal = || Tokenizer::load(dir.path()).err().expect("refused").to_string();
    assert!(refusal().contains("tokenizer.json"), "missing: {}", refusal());
    for bad in ["", "  \n", "{", "{}", "[1]", r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#] {
        fs::write(&file, bad).unwrap();
        let message = refusal();
        assert!(message.contains("tokenizer.json"), "{bad:?}: {message}");
    }
    fs::copy(Path::new(MODELS).join("tiny-tied/tokenizer.json"), &file).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), "{\"a\":").unwrap();
    assert!(refusal().contains("tokenizer_config.json"), "{}", refusal());
}

fn corpus() -> Vec<String> {
    let places = ["desk", "drawer", "fridge", "counter"];
    places
        .iter()
        .flat_map(|p| (1..9).map(move |i| format!("> go to {p} {i}\nYou arrive at {p} {i}. It's closed.")))
        .collect()
}

#[test]
fn training_is_deterministic_and_learns_the_words() {
    let a = Tokenizer::train(&corpus(), 290).unwrap();
    let b = Tokenizer::train(&corpus(), 290).unwrap();
    assert!(a.files() == b.files(), "two trainings differ");
    assert_eq!(a.vocab_size(), 290);
    assert_eq!([a.id(END_OF_TEXT), a.id(TURN_START), a.id(TURN_END)], [Some(287), Some(288), Some(289)]);
    let ids = a.encode("go to drawer 3").unwrap();
    assert!(ids.len() <= 10, "{ids:?}");
    let unseen = "über\u{0}\t漢字 <|im_end|>";
    assert_eq!(a.decode(&a.encode(unseen).unwrap(), false).unwrap(), unseen);
    assert_eq!(
        a.render(&[Message::new("user", "hi")], true).unwrap(),
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn a_trained_tokenizer_survives_its_files() {
    let trained = Tokenizer::train(&corpus(), 300).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in trained.files() {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let loaded = Tokenizer::load(dir.path()).unwrap();
    for text in corpus() {
        assert_eq!(loaded.encode(&text).unwrap(), trained.encode(&text).unwrap());
    }
    assert_eq!(loaded.template(), trained.template());
}

#[test]
fn a_vocabulary_without_room_for_the_bytes_is_refused() {
    assert!(Tokenizer::train(&corpus(), 258).err().unwrap().to_string().contains("259"));
}
