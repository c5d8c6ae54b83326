//! The tokenizer's part of a golden set: strings and conversations to ids and back.

use super::{ReferenceError, models, read_json};
use crate::model::checkpoint::CheckpointError;
use crate::model::{Architecture, Message, Tokenizer};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

pub const FILE: &str = "tokenizer_golden.json";

/// Recomputes `tokenizer_golden.json` from its texts and messages.
pub fn compute(set: &Path) -> Result<Value, ReferenceError> {
    let file = set.join(FILE);
    let raw = read_json(&file)?;
    let corrupt = |reason: &str| ReferenceError::Corrupt { file: file.clone(), reason: reason.into() };
    let list = |field: &str| raw[field].as_array().ok_or_else(|| corrupt(&format!("`{field}` is no list")));

    // All models of a set share one vocabulary; the template is what differs.
    let names = models(set)?;
    let load = |name: &str| -> Result<Tokenizer, ReferenceError> {
        let dir = set.join("models").join(name);
        let tokenizer = Tokenizer::load(&dir)?;
        tokenizer.check_fits(&Architecture::read(&dir).map_err(CheckpointError::from)?)?;
        Ok(tokenizer)
    };
    let tokenizer = load(&names[0])?;

    let text =
        |string: &Value| string["text"].as_str().map(String::from).ok_or_else(|| corrupt("a string has no `text`"));
    let texts: Vec<String> = list("strings")?.iter().map(text).collect::<Result<_, _>>()?;
    let strings: Vec<Value> = texts.iter().map(|text| coded(&tokenizer, text)).collect::<Result<_, _>>()?;

    let mut chats = Vec::new();
    for chat in list("chats")? {
        let name = chat["tokenizer_of"].as_str().ok_or_else(|| corrupt("a chat has no `tokenizer_of`"))?;
        if !names.iter().any(|n| n == name) {
            return Err(corrupt(&format!("a chat is of `{name}`, which is no model of the set")));
        }
        let messages: Vec<Message> =
            serde_json::from_value(chat["messages"].clone()).map_err(|e| corrupt(&e.to_string()))?;
        let prompt = chat["add_generation_prompt"].as_bool().unwrap_or(false);
        let tokenizer = load(name)?;
        let text = tokenizer.render(&messages, prompt)?;
        chats.push(json!({
            "tokenizer_of": name,
            "messages": chat["messages"],
            "add_generation_prompt": prompt,
            "ids": tokenizer.encode(&text)?,
            "text": text,
        }));
    }

    let special_ids = tokenizer.special_tokens().into_iter().map(|(t, id)| (t, id.into()));
    Ok(json!({
        "special_ids": special_ids.collect::<Map<String, Value>>(),
        "vocab_with_added": tokenizer.vocab_size(),
        "pre_tokenizer_regex": pre_tokenizer_regex(&tokenizer),
        "strings": strings,
        "chats": chats,
        "templates": templates(set, &names)?,
    }))
}

/// A text's ids, and the texts of these.
fn coded(tokenizer: &Tokenizer, text: &str) -> Result<Value, ReferenceError> {
    let ids = tokenizer.encode(text)?;
    let without_last = &ids[..ids.len().saturating_sub(1)];
    Ok(json!({
        "text": text,
        "ids": ids,
        "decoded": tokenizer.decode(&ids, false)?,
        "decoded_skip_special": tokenizer.decode(&ids, true)?,
        "decoded_without_last_id": tokenizer.decode(without_last, false)?,
    }))
}

fn pre_tokenizer_regex(tokenizer: &Tokenizer) -> Value {
    let json = tokenizer.files().iter().find(|(name, _)| name == "tokenizer.json").map(|(_, content)| content);
    let parsed: Value = json.and_then(|c| serde_json::from_slice(c).ok()).unwrap_or_default();
    parsed["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].clone()
}

/// The template of the directories that keep it inside `tokenizer_config.json` (v4), and of those with a file of its own (v5).
fn templates(set: &Path, names: &[String]) -> Result<Value, ReferenceError> {
    let mut templates = Map::new();
    for name in names {
        let dir: PathBuf = set.join("models").join(name);
        let style = if dir.join("chat_template.jinja").exists() { "v5_style_dirs" } else { "v4_style_dirs" };
        if let Some(template) = Tokenizer::load(&dir)?.template() {
            templates.insert(style.into(), template.into());
        }
    }
    templates.sort_keys();
    Ok(templates.into())
}
