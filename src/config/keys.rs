//! Every key with its text: what `uncouple config` prints and docs/configuration.md holds.
//!
//! The text of a key is its doc comment. The sources of the configuration are embedded and read here, line by line, as rustfmt lays
//! them out; a test holds every key to have a text, and every choice to be one that loads.

use super::load::Merge;
use super::{Config, ConfigError, Override, bounds};
use serde::Serialize;
use std::fmt::Write;
use std::sync::OnceLock;
use toml::{Table, Value};

const SOURCES: [&str; 10] = [
    include_str!("mod.rs"),
    include_str!("lora.rs"),
    include_str!("env.rs"),
    include_str!("gcd.rs"),
    include_str!("judge.rs"),
    include_str!("suggestions.rs"),
    include_str!("decouple.rs"),
    include_str!("coupling.rs"),
    include_str!("../ops/advantage.rs"),
    include_str!("../device/dtype.rs"),
];

/// One key of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Key {
    /// Dotted, e.g. `rollout.group_size`.
    pub key: String,
    /// What the key does, from its doc comment.
    pub text: String,
    /// The value where nothing is set.
    pub default: Value,
    /// What values it takes.
    pub kind: ValueKind,
}

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueKind {
    /// Any text.
    Text,
    /// A list of texts or words.
    List,
    /// `true` or `false`.
    Switch,
    /// A number that may have a fraction.
    Number,
    /// A whole number, from the least to the most.
    Whole {
        /// The smallest value.
        least: i64,
        /// The largest value.
        most: i64,
    },
    /// One of these words.
    Choice(Vec<Choice>),
    /// Any of these words, in an order.
    Choices(Vec<Choice>),
}

/// One word that a key can hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// The word as it is written.
    pub word: String,
    /// What it means.
    pub text: String,
}

/// A section and its keys.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Section {
    /// The section's name in TOML.
    pub name: String,
    /// What the section configures.
    pub text: String,
    /// Its keys, in the order of the file.
    pub keys: Vec<Key>,
}

/// A struct or an enum of the sources: its members are fields with their types, or variants.
struct Item {
    name: &'static str,
    text: String,
    members: Vec<Member>,
}

struct Member {
    name: &'static str,
    of: &'static str,
    text: String,
}

/// All structs and enums of `source`.
fn items(source: &'static str) -> Vec<Item> {
    let (mut found, mut text, mut open): (Vec<Item>, Vec<&str>, bool) = (Vec::new(), Vec::new(), false);
    for line in source.lines() {
        let code = line.trim();
        if let Some(doc) = code.strip_prefix("///") {
            text.push(doc.trim());
            continue;
        }
        if code.starts_with("#[") {
            continue;
        }
        let text = std::mem::take(&mut text).join(" ");
        let named = ["pub struct ", "pub enum "].iter().find_map(|start| line.strip_prefix(start));
        if let Some(name) = named.and_then(|rest| rest.strip_suffix(" {")) {
            found.push(Item { name, text, members: Vec::new() });
            open = true;
        } else if line == "}" {
            open = false;
        } else if let (true, Some(item), Some(member)) = (open, found.last_mut(), code.strip_suffix(',')) {
            let (name, of) =
                member.strip_prefix("pub ").and_then(|field| field.split_once(": ")).unwrap_or((member, ""));
            item.members.push(Member { name, of, text });
        }
    }
    found
}

fn all() -> &'static [Item] {
    static ALL: OnceLock<Vec<Item>> = OnceLock::new();
    ALL.get_or_init(|| SOURCES.into_iter().flat_map(items).collect())
}

fn item(name: &str) -> Option<&'static Item> {
    all().iter().find(|item| item.name == name)
}

/// The name of a variant as serde's kebab-case spells it.
fn kebab(name: &str) -> String {
    let mut word = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !word.is_empty() {
            word.push('-');
        }
        word.push(c.to_ascii_lowercase());
    }
    word
}

fn choices(of: &str) -> Option<Vec<Choice>> {
    let plain = item(of)?.members.iter().all(|m| m.of.is_empty() && !m.name.contains('('));
    let choice = |m: &Member| Choice { word: kebab(m.name), text: m.text.clone() };
    plain.then(|| item(of).into_iter().flat_map(|item| &item.members).map(choice).collect())
}

/// The least number of this key, `least` or a little more, that the default configuration is valid with. The sizes of a model hang
/// together, so that there each alone says little.
fn accepted(key: &str, least: i64) -> i64 {
    let valid = |number: &i64| {
        let mut merged = Merge::new();
        merged.set(&Override::flag("", key, *number)).and_then(|()| merged.config.validate()).is_ok()
    };
    if key.starts_with("model.") { least } else { (least..least + 5).find(valid).unwrap_or(least) }
}

fn kind(key: &str, of: &str, default: &Value) -> ValueKind {
    let list = of.strip_prefix("Vec<").and_then(|of| of.strip_suffix('>'));
    match (default, list.and_then(choices), choices(of)) {
        (_, Some(words), _) => ValueKind::Choices(words),
        (_, _, Some(words)) => ValueKind::Choice(words),
        (Value::Integer(_), ..) => {
            let (least, most) = bounds::range_of(key);
            ValueKind::Whole { least: accepted(key, least), most }
        }
        (Value::Float(_), ..) => ValueKind::Number,
        (Value::Boolean(_), ..) => ValueKind::Switch,
        (Value::Array(_), ..) => ValueKind::List,
        _ => ValueKind::Text,
    }
}

/// The section of the struct `of`, then those within it.
fn section(name: &str, text: &str, of: &str, defaults: &Table, found: &mut Vec<Section>) {
    let members = item(of).map_or(&[][..], |item| &item.members);
    let path = |member: &str| if name.is_empty() { member.to_string() } else { format!("{name}.{member}") };
    let place = found.len();
    let mut keys = Vec::new();
    for (member, default) in defaults {
        let source = members.iter().find(|m| m.name == member);
        let (of, said) = source.map_or(("", ""), |m| (m.of, &m.text));
        match default {
            Value::Table(inner) => {
                let own = item(of).map_or("", |item| &item.text);
                section(&path(member), if said.is_empty() { own } else { said }, of, inner, found);
            }
            leaf => {
                let key = path(member);
                let kind = kind(&key, of, leaf);
                keys.push(Key { key, text: said.into(), default: short(leaf), kind });
            }
        }
    }
    // The struct's own order, which is not the table's.
    let order = |key: &Key| members.iter().position(|m| key.key.rsplit('.').next() == Some(m.name));
    keys.sort_by_key(order);
    if !name.is_empty() {
        found.insert(place, Section { name: name.into(), text: text.into(), keys });
    }
}

/// All sections with their keys, in the order of the sources.
pub fn sections() -> Vec<Section> {
    let mut found = Vec::new();
    section("", "", "Config", &Config::default().table(), &mut found);
    let order = |name: &str| {
        item("Config").and_then(|item| item.members.iter().position(|m| Some(m.name) == name.split('.').next()))
    };
    found.sort_by_key(|section| order(&section.name));
    found
}

/// A key with its text, or a section with its keys.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Found {
    /// One key.
    Key(Key),
    /// A whole section.
    Section(Section),
}

/// The key or section of this name.
///
/// # Errors
/// If there is no such key or section; the error suggests the likely one.
pub fn find(name: &str) -> Result<Found, ConfigError> {
    let sections = sections();
    if let Some(section) = sections.iter().find(|section| section.name == name) {
        return Ok(Found::Section(section.clone()));
    }
    let key = sections.into_iter().flat_map(|section| section.keys).find(|key| key.key == name);
    key.map(Found::Key).ok_or_else(|| ConfigError::unknown_key("uncouple config explain", name))
}

/// A number of f32 without the digits of its f64 image.
fn short(value: &Value) -> Value {
    match value {
        Value::Float(f) => Value::Float((*f as f32).to_string().parse().unwrap_or(*f)),
        other => other.clone(),
    }
}

/// A value as TOML writes it.
fn written(value: &Value) -> String {
    match value {
        Value::Float(f) => format!("{f:?}"),
        other => other.to_string(),
    }
}

/// What a key may hold, in a line; nothing where its default says enough.
fn holds(kind: &ValueKind) -> Option<String> {
    match kind {
        ValueKind::Whole { least, most } if *most == i64::MAX => Some(format!("{least} or more")),
        ValueKind::Whole { least, most } => Some(format!("{least} to {most}")),
        ValueKind::Switch => Some("true or false".into()),
        ValueKind::Text | ValueKind::List | ValueKind::Number | ValueKind::Choice(_) | ValueKind::Choices(_) => None,
    }
}

impl ValueKind {
    fn words(&self) -> &[Choice] {
        match self {
            ValueKind::Choice(words) | ValueKind::Choices(words) => words,
            _ => &[],
        }
    }
}

fn told(choice: &Choice) -> String {
    let Choice { word, text } = choice;
    if text.is_empty() { format!("\"{word}\"") } else { format!("\"{word}\": {text}") }
}

/// `text` as comments of at most 100 columns.
fn comments(text: &str, out: &mut String) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() > 1 && line.chars().count() + word.chars().count() >= 100 {
            out.push_str(&line);
            out.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
}

/// The whole configuration with its defaults, as a TOML file that says what every key is.
pub fn as_toml() -> String {
    let mut out =
        String::from("# Every key with its default. A configuration file needs only the keys that it changes.\n");
    for section in sections() {
        out.push('\n');
        comments(&section.text, &mut out);
        let _ = writeln!(out, "[{}]", section.name);
        for Key { key, text, default, kind } in &section.keys {
            let range = holds(kind).map_or(String::new(), |range| format!(" ({range})"));
            comments(&format!("{text}{range}"), &mut out);
            kind.words().iter().for_each(|choice| comments(&format!("- {}", told(choice)), &mut out));
            let _ = writeln!(out, "{} = {}", key.rsplit('.').next().unwrap_or(key), written(default));
        }
    }
    out
}

/// docs/configuration.md.
pub fn as_markdown() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         Every key, its default and what it does, as `uncouple config` prints them; `uncouple config explain KEY` tells one.\n\
         A file names only the keys that it changes: `uncouple train --config FILE`. `--set KEY=VALUE` goes before the file.\n\
         An unknown key is an error that names the likely one. `uncouple train --dry-run` prints the result.\n\n\
         `--model DIR` brings defaults of its size (learning rates, a short cold start, shorter evaluations), `--device cuda` heads of 64\n\
         for the embedded model (`src/config/given_model.rs`). A file and `--set` go before them.\n\n\
         `--config recipe:NAME` takes a configuration that comes with the program; `uncouple config recipes` lists them.\n\n\
         This page is written by `uncouple config --markdown`; a test holds it to the code.\n",
    );
    let cell = |text: &str| text.replace('|', "\\|").replace('<', "&lt;");
    for section in sections() {
        let _ = write!(out, "\n## {}\n\n{}\n\n| key | default | |\n|---|---|---|\n", section.name, section.text);
        for Key { key, text, default, kind } in &section.keys {
            let range = holds(kind).map_or(String::new(), |range| format!(" ({range})"));
            let words = kind.words().iter().map(|choice| match &choice.text[..] {
                "" => format!("`{}`", choice.word),
                text => format!("`{}`: {}", choice.word, cell(text)),
            });
            let words = words.collect::<Vec<_>>().join("<br>");
            let gap = if words.is_empty() { "" } else { "<br>" };
            // Text in backticks shows as it is.
            let text = text
                .split('`')
                .enumerate()
                .map(|(i, part)| if i % 2 == 1 { part.replace('|', "\\|") } else { cell(part) });
            let text = text.collect::<Vec<_>>().join("`");
            let _ = writeln!(out, "| `{key}` | `{}` | {text}{range}{gap}{words} |", written(default));
        }
    }
    out
}

/// One key for people.
pub fn as_text(found: &Found) -> String {
    let one = |Key { key, text, default, kind }: &Key| {
        let range = holds(kind).map_or(String::new(), |range| format!("Holds: {range}\n"));
        let words: String = kind.words().iter().map(|choice| format!("- {}\n", told(choice))).collect();
        format!("{key} = {}\n{text}\n{range}{words}", written(default))
    };
    match found {
        Found::Key(key) => one(key),
        Found::Section(Section { name, text, keys }) => {
            let keys: Vec<String> = keys.iter().map(one).collect();
            format!("[{name}]\n{text}\n\n{}", keys.join("\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_text_and_every_choice_loads() {
        let keys: Vec<Key> = sections().into_iter().flat_map(|section| section.keys).collect();
        assert!(keys.len() > 90, "{}", keys.len());
        for Key { key, text, kind, default } in &keys {
            let text = text.trim();
            assert!(text.ends_with('.') && text.len() > 8, "src/config: {key} has no doc comment that is a sentence");
            for Choice { word, .. } in kind.words() {
                let value = if matches!(kind, ValueKind::Choices(_)) {
                    format!("{key}=[\"{word}\"]")
                } else {
                    format!("{key}={word}")
                };
                let mut merged = Merge::new();
                merged.set(&Override::parse(&value).unwrap()).unwrap_or_else(|e| panic!("{e}"));
            }
            // A word is told where there are only so many, but for those with a form of their own.
            let free = ["run.", "model.", "env.", "judge.", "prompt.template", "prompt.history"];
            let is_free = free.iter().any(|start| key.starts_with(start));
            assert!(!default.is_str() || is_free || !kind.words().is_empty(), "{key}: its words are not found");
        }
        for section in sections() {
            assert!(section.text.ends_with('.'), "src/config: [{}] has no doc comment", section.name);
        }
    }

    #[test]
    fn the_printed_file_is_the_default_configuration() {
        let printed: Config = toml::from_str(&as_toml()).unwrap();
        assert_eq!(printed, Config::default());
    }
}
