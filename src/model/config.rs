//! `config.json` of a Qwen2 model, in both spellings (flat `rope_theta`, and transformers 5's `rope_parameters`).

use super::input;
use crate::config::bounds::{MAX_ANGLES, MAX_LAYERS, MAX_SIZE};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The shape of a Qwen2 model. Field names are Hugging Face's.
#[derive(Debug, Clone, PartialEq)]
pub struct Qwen2Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    pub tie_word_embeddings: bool,
}

/// Token ids with a role, from `generation_config.json` and `config.json`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenIds {
    pub bos: Option<u32>,
    /// Any of these ends a turn. Never empty after [`TokenIds::read`].
    pub eos: Vec<u32>,
    pub pad: Option<u32>,
}

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {file}: {source}")]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{file} is not valid JSON: {reason}")]
    Json { file: PathBuf, reason: String },
    #[error("{file}: `{field}` is {found}; {mend}")]
    Field { file: PathBuf, field: String, found: String, mend: String },
}

/// Largest configuration file, in bytes.
const MAX_FILE: u64 = 1 << 24;

impl Qwen2Config {
    /// Reads `dir/config.json`.
    pub fn read(dir: &Path) -> Result<Qwen2Config, ConfigError> {
        let doc = Document::read(dir.join("config.json"))?;
        doc.check_architecture()?;
        let hidden_size = doc.size("hidden_size", None)?;
        let num_attention_heads = doc.size("num_attention_heads", None)?;
        let num_key_value_heads = doc.size("num_key_value_heads", Some(num_attention_heads))?;
        if doc.get("head_dim").is_none() && !hidden_size.is_multiple_of(num_attention_heads) {
            return Err(doc.refuse("num_attention_heads", format!("it must divide hidden_size ({hidden_size})")));
        }
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let mend = format!("it must divide num_attention_heads ({num_attention_heads})");
            return Err(doc.refuse("num_key_value_heads", mend));
        }
        let num_hidden_layers = doc.size("num_hidden_layers", None)?;
        if num_hidden_layers > MAX_LAYERS {
            return Err(doc.refuse("num_hidden_layers", format!("at most {MAX_LAYERS} are supported")));
        }
        let head_dim = doc.size("head_dim", Some(hidden_size / num_attention_heads))?;
        if !head_dim.is_multiple_of(2) {
            return Err(doc.refuse("head_dim", format!("rotary embeddings need an even head size, not {head_dim}")));
        }
        if num_attention_heads > MAX_SIZE / head_dim {
            let mend = format!("with heads of {head_dim} at most {} are supported", MAX_SIZE / head_dim);
            return Err(doc.refuse("num_attention_heads", mend));
        }
        let max_position_embeddings = doc.size("max_position_embeddings", Some(32768))?;
        let most = MAX_ANGLES / head_dim;
        if max_position_embeddings > most {
            return Err(doc.refuse("max_position_embeddings", format!("at most {most} are supported; lower it")));
        }
        Ok(Qwen2Config {
            vocab_size: doc.size("vocab_size", None)?,
            hidden_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            intermediate_size: doc.size("intermediate_size", None)?,
            max_position_embeddings,
            rms_norm_eps: doc.positive("rms_norm_eps", doc.get("rms_norm_eps"), 1e-6)?,
            rope_theta: doc.rope_theta()?,
            tie_word_embeddings: doc.flag("tie_word_embeddings")?,
        })
    }

    /// The file's content in the spelling that transformers 4 and 5 both read; `dtype` as torch names it (`float32`).
    pub fn to_json(&self, ids: &TokenIds, dtype: &str) -> Value {
        json!({
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": ids.bos,
            "eos_token_id": ids.eos_as_written(),
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "max_window_layers": self.num_hidden_layers,
            "model_type": "qwen2",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_theta": shortest(self.rope_theta),
            "sliding_window": null,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": dtype,
            "use_cache": true,
            "use_sliding_window": false,
            "vocab_size": self.vocab_size,
        })
    }
}

/// The f64 with the fewest digits that rounds to `x`: 1e-6 is written as 1e-6, not as 9.99999997e-7.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

impl TokenIds {
    /// Reads the ids of a model directory; `generation_config.json`, when there, goes before `config.json`.
    ///
    /// Its sampling defaults and repetition penalty are not read: a trainer's sampling is its own configuration's.
    pub fn read(dir: &Path) -> Result<TokenIds, ConfigError> {
        let config = Document::read(dir.join("config.json"))?;
        let path = dir.join("generation_config.json");
        let generation = if path.exists() { Some(Document::read(path)?) } else { None };
        let ids = |field: &str| -> Result<Vec<u32>, ConfigError> {
            for doc in generation.iter().chain([&config]) {
                let found = doc.ids(field)?;
                if !found.is_empty() {
                    return Ok(found);
                }
            }
            Ok(Vec::new())
        };
        let eos = ids("eos_token_id")?;
        if eos.is_empty() {
            return Err(config.refuse("eos_token_id", "name the token that ends a turn".into()));
        }
        Ok(TokenIds { bos: ids("bos_token_id")?.first().copied(), eos, pad: ids("pad_token_id")?.first().copied() })
    }

    /// `generation_config.json` without any sampling default.
    pub fn to_generation_config(&self) -> Value {
        json!({ "bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad })
    }

    /// Makes `id`, with which a turn ends, one of the tokens that end a text: what generates with the model stops there.
    pub fn stop_at(&mut self, id: u32) {
        if !self.eos.contains(&id) {
            self.eos.push(id);
        }
    }

    /// One id by itself, as `config.json` mostly has it, or the list.
    fn eos_as_written(&self) -> Value {
        if let [id] = self.eos[..] { json!(id) } else { json!(self.eos) }
    }
}

/// A parsed JSON object and where it came from, so that every refusal names file and field.
struct Document {
    file: PathBuf,
    value: Value,
}

impl Document {
    fn read(file: PathBuf) -> Result<Document, ConfigError> {
        let text = input::read(&file, MAX_FILE).map_err(|source| ConfigError::Read { file: file.clone(), source })?;
        match serde_json::from_slice::<Value>(&text) {
            Ok(value @ Value::Object(_)) => Ok(Document { file, value }),
            Ok(_) => Err(ConfigError::Json { file, reason: "the top level is not an object".into() }),
            Err(e) => Err(ConfigError::Json { file, reason: e.to_string() }),
        }
    }

    /// The field's value; JSON `null` counts as absent.
    fn get(&self, field: &str) -> Option<&Value> {
        self.value.get(field).filter(|v| !v.is_null())
    }

    fn refuse(&self, field: &str, mend: String) -> ConfigError {
        let leaf = field.split('.').try_fold(&self.value, |v, key| v.get(key));
        let found = leaf.map_or("missing".into(), Value::to_string);
        ConfigError::Field { file: self.file.clone(), field: field.into(), found, mend }
    }

    fn size(&self, field: &str, default: Option<usize>) -> Result<usize, ConfigError> {
        let value = match (self.get(field), default) {
            (None, Some(default)) => return Ok(default),
            (value, _) => value.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()),
        };
        value
            .filter(|n| (1..=MAX_SIZE).contains(n))
            .ok_or_else(|| self.refuse(field, format!("it must be a whole number from 1 to {MAX_SIZE}")))
    }

    fn positive(&self, field: &str, value: Option<&Value>, default: f32) -> Result<f32, ConfigError> {
        let Some(value) = value else { return Ok(default) };
        value
            .as_f64()
            .map(|x| x as f32)
            .filter(|x| x.is_finite() && *x > 0.0)
            .ok_or_else(|| self.refuse(field, "it must be a positive number".into()))
    }

    fn flag(&self, field: &str) -> Result<bool, ConfigError> {
        match self.get(field) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.refuse(field, "it must be true or false".into())),
        }
    }

    fn ids(&self, field: &str) -> Result<Vec<u32>, ConfigError> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let found = match self.get(field) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        found.ok_or_else(|| self.refuse(field, "it must be a token id or a list of token ids".into()))
    }

    /// Refuses whatever would make the model compute something else than the Qwen2 this crate has.
    fn check_architecture(&self) -> Result<(), ConfigError> {
        if self.get("model_type").and_then(Value::as_str) != Some("qwen2") {
            return Err(self.refuse("model_type", "only \"qwen2\" models are supported".into()));
        }
        if let Some(names) = self.get("architectures") {
            let known = names.as_array().is_some_and(|l| l.iter().any(|n| n == "Qwen2ForCausalLM"));
            if !known {
                return Err(self.refuse("architectures", "only [\"Qwen2ForCausalLM\"] is supported".into()));
            }
        }
        if self.get("hidden_act").is_some_and(|act| act != "silu") {
            return Err(self.refuse("hidden_act", "only \"silu\" is supported".into()));
        }
        if self.flag("use_sliding_window")? {
            let mend = "sliding-window attention is not supported; use a checkpoint that has it switched off";
            return Err(self.refuse("use_sliding_window", mend.into()));
        }
        if let Some(types) = self.get("layer_types") {
            let full = types.as_array().is_some_and(|l| l.iter().all(|t| t == "full_attention"));
            if !full {
                return Err(self.refuse("layer_types", "every layer must be \"full_attention\"".into()));
            }
        }
        if self.get("quantization_config").is_some() {
            let mend = "quantised weights cannot be trained; use the bf16, f16 or f32 checkpoint";
            return Err(self.refuse("quantization_config", mend.into()));
        }
        Ok(())
    }

    /// transformers takes the older `rope_scaling`, where it is given, for the whole of `rope_parameters`; what such a table lacks is
    /// beside it.
    fn rope_theta(&self) -> Result<f32, ConfigError> {
        for table in ["rope_parameters", "rope_scaling"] {
            self.check_rope(table)?;
        }
        let given = |table: &&str| self.get(table).and_then(Value::as_object).is_some_and(|fields| !fields.is_empty());
        if let Some(table) = ["rope_scaling", "rope_parameters"].into_iter().find(given) {
            let theta = self.get(table).and_then(|t| t.get("rope_theta")).filter(|theta| !theta.is_null());
            if theta.is_some() {
                return self.positive(&format!("{table}.rope_theta"), theta, 0.0);
            }
        }
        self.positive("rope_theta", self.get("rope_theta"), 10_000.0)
    }

    /// Refuses all that is not the plain rotary embedding of every element.
    fn check_rope(&self, table: &str) -> Result<(), ConfigError> {
        let Some(value) = self.get(table) else { return Ok(()) };
        let Some(fields) = value.as_object() else {
            return Err(self.refuse(table, "it must be an object".into()));
        };
        let plain = "scaled rotary embeddings are not supported; only \"default\" is";
        for (key, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            let mend = match &key[..] {
                "rope_type" | "type" if value == "default" => continue,
                "rope_type" | "type" => plain,
                "rope_theta" => continue,
                "partial_rotary_factor" if value.as_f64() == Some(1.0) => continue,
                // Without a type, and for text alone, they change nothing.
                "factor" | "original_max_position_embeddings" | "mrope_section" => continue,
                _ => "this rotary embedding is not supported; remove the field if it changes nothing",
            };
            return Err(self.refuse(&format!("{table}.{key}"), mend.into()));
        }
        Ok(())
    }
}
