//! From text to [`Config`]: defaults ← defaults for a given model ← TOML file ← overrides, in that order; and back to text.

use super::{Config, recipes};
use crate::files::{self, MOST_WRITTEN};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// What is wrong with a configuration. Every message says where it is, what it is, and what would be right.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the config file {}", .file.display())]
    Read { file: PathBuf, source: std::io::Error },
    /// The text is not TOML.
    #[error("{origin}: not valid TOML: {reason}")]
    Syntax { origin: String, reason: String },
    /// `--set` without `=`.
    #[error("--set {text}: write it as --set SECTION.KEY=VALUE, e.g. --set rollout.group_size=8")]
    NotAnOverride { text: String },
    /// No such key.
    #[error("{origin}: unknown key `{key}`: {hint}")]
    UnknownKey { origin: String, key: String, hint: String },
    /// The value has another type than the key.
    #[error("{origin}: `{key}` must be {expected}, not {found}")]
    WrongType { origin: String, key: String, expected: String, found: String },
    /// The type is right, but the value is not one the key can hold.
    #[error("{origin}: `{key}`: {reason}")]
    WrongValue { origin: String, key: String, reason: String },
    /// The value parses but makes no sense for training.
    #[error("`{key} = {value}`: {reason}")]
    Invalid { key: &'static str, value: String, reason: String },
    /// A number outside its range.
    #[error("`{key} = {value}`: {reason}")]
    Range { key: String, value: String, reason: String },
    /// No such recipe.
    #[error("there is no recipe `{name}`: {hint}")]
    NoRecipe { name: String, hint: String },
}

impl ConfigError {
    /// There is no `key`; `origin` says where it was written.
    pub(super) fn unknown_key(origin: &str, key: &str) -> ConfigError {
        let hint = hint(&Config::default().table(), key);
        ConfigError::UnknownKey { origin: origin.into(), key: key.into(), hint }
    }
}

/// One value given on the command line.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    origin: String,
    key: String,
    value: Value,
    /// The value as typed, for keys that hold text: `--set run.name=7` names the run "7".
    typed: Option<String>,
}

impl Override {
    /// `a.b=value` of `--set`: the value is TOML; anything that is not is taken as a plain string.
    ///
    /// # Errors
    /// If there is no `=`, or nothing before it.
    pub fn parse(text: &str) -> Result<Override, ConfigError> {
        let (key, value) = text.split_once('=').ok_or(ConfigError::NotAnOverride { text: text.into() })?;
        let (key, typed) = (key.trim(), value.trim());
        if key.is_empty() {
            return Err(ConfigError::NotAnOverride { text: text.into() });
        }
        let parsed = format!("v = {typed}").parse::<Table>().ok().filter(|t| t.len() == 1);
        let value = parsed.and_then(|mut t| t.remove("v")).unwrap_or_else(|| Value::String(typed.into()));
        Ok(Override { origin: format!("--set {text}"), key: key.into(), value, typed: Some(typed.into()) })
    }

    /// A value that has a flag of its own, e.g. `("--name", "run.name", "first")`.
    pub fn flag(flag: &str, key: &str, value: impl Into<Value>) -> Override {
        Override { origin: flag.into(), key: key.into(), value: value.into(), typed: None }
    }
}

impl Config {
    /// Defaults, then the file (or an embedded recipe, `recipe:NAME`), then the overrides in their order; the result is validated.
    ///
    /// ```
    /// use uncouple::config::{Config, Override};
    ///
    /// let config = Config::load(None, &[Override::parse("rollout.group_size=16")?])?;
    /// assert_eq!(config.rollout.group_size, 16);
    /// let error = Config::load(None, &[Override::parse("rollout.grup_size=16")?]).unwrap_err();
    /// assert!(error.to_string().ends_with("did you mean `rollout.group_size`?"));
    /// # Ok::<(), uncouple::config::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// If the file or recipe cannot be read, is not TOML, has an unknown key or a value of the wrong type, or the
    /// result is refused by [`Config::validate`].
    pub fn load(file: Option<&Path>, overrides: &[Override]) -> Result<Config, ConfigError> {
        Config::load_over(&[], file, overrides)
    }

    /// The same over other `defaults`, e.g. [`Config::for_a_given_model`], which the file and the overrides go before.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_over(
        defaults: &[Override],
        file: Option<&Path>,
        overrides: &[Override],
    ) -> Result<Config, ConfigError> {
        let mut merge = Merge::new();
        for o in defaults {
            merge.value(&o.key, &o.value, None, &|_| o.origin.clone())?;
        }
        if let Some(name) = file.and_then(recipes::named) {
            let recipe = recipes::find(name)?;
            merge.file(&format!("recipe:{name}"), recipe.toml)?;
        } else if let Some(file) = file {
            let text = files::read_text(file, MOST_WRITTEN)
                .map_err(|source| ConfigError::Read { file: file.into(), source })?;
            merge.file(&file.display().to_string(), &text)?;
        }
        overrides.iter().try_for_each(|o| merge.set(o))?;
        let config = merge.config;
        config.validate()?;
        Ok(config)
    }

    /// The resolved configuration as TOML: loading it gives the same configuration.
    ///
    /// # Panics
    /// Never: a valid configuration always has a TOML form.
    pub fn to_toml(&self) -> String {
        // Every field is a number, a bool, a string or a unit enum; seeds beyond i64 are refused by `validate`.
        toml::to_string(self).expect("a Config always has a TOML form")
    }

    /// The part of the configuration that decides what training computes. Only what is kept, where, how much longer to
    /// train, and how memory is spent may change when a run is resumed.
    fn lasting(&self) -> Config {
        let mut config = self.clone();
        let defaults = Config::default();
        config.run = super::Run { seed: self.run.seed, ..defaults.run };
        config.model.recompute = defaults.model.recompute;
        config.sft.checkpoint_every = defaults.sft.checkpoint_every;
        config.eval.every = defaults.eval.every;
        config
    }

    /// SHA-256 (hex) of everything that must not change when a run is resumed.
    pub fn fingerprint(&self) -> String {
        Sha256::digest(self.lasting().to_toml()).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Keys that must not change on resume but differ from `saved`, as `key: saved → now`.
    pub fn changed_since(&self, saved: &Config) -> Vec<String> {
        let (before, now) = (flatten(&saved.lasting().table()), flatten(&self.lasting().table()));
        let pairs = before.iter().zip(&now).filter(|(b, n)| b.1 != n.1);
        pairs.map(|((key, b), (_, n))| format!("{key}: {b} → {n}")).collect()
    }

    pub(super) fn table(&self) -> Table {
        Table::try_from(self).expect("a Config always has a TOML form")
    }
}

/// Leaves of a table as (dotted key, printed value), in order.
fn flatten(table: &Table) -> Vec<(String, String)> {
    let mut leaves = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => leaves.extend(flatten(inner).into_iter().map(|(k, v)| (format!("{key}.{k}"), v))),
            // f32 values print as f32, not with the digits of their f64 image.
            Value::Float(f) => leaves.push((key.clone(), (*f as f32).to_string())),
            other => leaves.push((key.clone(), other.to_string())),
        }
    }
    leaves
}

/// The configuration so far, and the table of defaults that says which keys there are and of which type.
pub(super) struct Merge {
    schema: Table,
    pub(super) config: Config,
}

impl Merge {
    pub(super) fn new() -> Merge {
        let config = Config::default();
        Merge { schema: config.table(), config }
    }

    /// Puts a value of the command line in place.
    pub(super) fn set(&mut self, o: &Override) -> Result<(), ConfigError> {
        self.value(&o.key, &o.value, o.typed.as_deref(), &|_| o.origin.clone())
    }

    fn file(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let syntax = |e: toml::de::Error| {
            let line = e.span().map_or(1, |span| line_of(text, span.start));
            ConfigError::Syntax { origin: format!("{name}:{line}"), reason: e.message().to_string() }
        };
        let places = DeTable::parse(text).map_err(syntax)?;
        let origin = |key: &str| match place_of(places.get_ref(), key) {
            Some(at) => format!("{name}:{}", line_of(text, at)),
            None => name.to_string(),
        };
        let table = text.parse::<Table>().map_err(syntax)?;
        table.iter().try_for_each(|(key, value)| self.value(key, value, None, &origin))
    }

    /// Puts one value (a section: each of its values) in place; `origin` says where a key was written.
    fn value(
        &mut self,
        key: &str,
        value: &Value,
        typed: Option<&str>,
        origin: &dyn Fn(&str) -> String,
    ) -> Result<(), ConfigError> {
        let Some(default) = lookup(&self.schema, key) else {
            let hint = hint(&self.schema, key);
            return Err(ConfigError::UnknownKey { origin: origin(key), key: key.into(), hint });
        };
        if let (Value::Table(_), Value::Table(inner)) = (default, value) {
            return inner.iter().try_for_each(|(k, v)| self.value(&format!("{key}.{k}"), v, None, origin));
        }
        let value = match (default, typed) {
            (Value::String(_), Some(typed)) if !value.is_str() => Value::String(typed.into()),
            _ => value.clone(),
        };
        if !(default.same_type(&value) || default.is_float() && value.is_integer()) {
            return Err(ConfigError::WrongType {
                origin: origin(key),
                key: key.into(),
                expected: expected(default).into(),
                found: format!("{} ({value})", expected(&value)),
            });
        }
        // One value at a time, so that a value serde refuses can be named.
        let mut table = self.config.table();
        *lookup_mut(&mut table, key) = value;
        self.config = Config::deserialize(table).map_err(|e| ConfigError::WrongValue {
            origin: origin(key),
            key: key.into(),
            reason: e.message().to_string(),
        })?;
        Ok(())
    }
}

fn lookup<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    let (head, tail) = key.split_once('.').map_or((key, None), |(h, t)| (h, Some(t)));
    let value = table.get(head)?;
    match tail {
        None => Some(value),
        Some(tail) => lookup(value.as_table()?, tail),
    }
}

/// Like [`lookup`], for a key that is known to exist.
fn lookup_mut<'a>(table: &'a mut Table, key: &str) -> &'a mut Value {
    match key.split_once('.') {
        None => &mut table[key],
        Some((head, tail)) => match &mut table[head] {
            Value::Table(inner) => lookup_mut(inner, tail),
            leaf => leaf,
        },
    }
}

fn expected(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "an array",
        Value::Table(_) => "a section of keys",
    }
}

/// Keys and sections that had another name, and their name now; some were parted.
const RENAMED: [(&str, &str); 12] = [
    ("sft.slip", "sft.noise_action"),
    ("run.max_bad_steps", "run.max_nonfinite_steps"),
    ("gcd.judge", "judge"),
    ("env.command", "env.worker.command"),
    ("env.url", "env.openenv.url"),
    ("env.action", "env.openenv.action"),
    ("env.data", "env.alfworld.data"),
    ("env.data", "env.scienceworld.data"),
    ("env.train_types", "env.alfworld.train_types"),
    ("env.train_types", "env.scienceworld.train_types"),
    ("env.simplifications", "env.scienceworld.simplifications"),
    ("env.reward", "env.scienceworld.reward"),
];

/// What `key`, or the section that it is in, is called now.
fn renamed(key: &str) -> Vec<String> {
    let now = |(then, now): &(&str, &str)| {
        let rest = key.strip_prefix(then).filter(|rest| rest.is_empty() || rest.starts_with('.'))?;
        Some(format!("`{now}{rest}`"))
    };
    RENAMED.iter().filter_map(now).collect()
}

/// What the user may have meant: the key's name now, the keys closest in spelling, or what the section holds.
fn hint(schema: &Table, key: &str) -> String {
    let now = renamed(key);
    if !now.is_empty() {
        return format!("it is now {}", now.join(" or "));
    }
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_string();
    let leaves: Vec<String> = flatten(schema).into_iter().map(|(k, _)| k).collect();
    // A close last part counts a little less than a close whole, so that `lr` finds `optim.lr` and `sft.lr`.
    let score = |candidate: &str| {
        let whole = strsim::normalized_damerau_levenshtein(key, candidate);
        whole.max(0.95 * strsim::normalized_damerau_levenshtein(&last(key), &last(candidate)))
    };
    let candidates = schema.keys().chain(&leaves).map(|c| (score(c), c)).filter(|(s, _)| *s >= 0.6);
    let candidates: Vec<(f64, &String)> = candidates.collect();
    let best = candidates.iter().map(|(s, _)| *s).fold(0.0, f64::max);
    let closest: Vec<String> =
        candidates.iter().filter(|(s, _)| *s > best - 1e-9).map(|(_, c)| format!("`{c}`")).collect();
    if !closest.is_empty() {
        return format!("did you mean {}?", closest.join(" or "));
    }
    let section = key.rsplit_once('.').and_then(|(section, _)| Some((section, lookup(schema, section)?.as_table()?)));
    match section {
        Some((name, table)) => format!("[{name}] has {}", table.keys().cloned().collect::<Vec<_>>().join(", ")),
        None => format!("the sections are {}", schema.keys().cloned().collect::<Vec<_>>().join(", ")),
    }
}

/// Byte offset of a dotted key in the parsed text.
fn place_of(table: &DeTable<'_>, key: &str) -> Option<usize> {
    let (head, tail) = key.split_once('.').map_or((key, None), |(h, t)| (h, Some(t)));
    let (name, value) = table.iter().find(|(k, _)| k.get_ref().as_ref() == head)?;
    match (tail, value.get_ref()) {
        (Some(tail), DeValue::Table(inner)) => place_of(inner, tail),
        _ => Some(name.span().start),
    }
}

fn line_of(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|b| *b == b'\n').count()
}
