//! The architecture of a model: `config.json`, in both spellings (flat `rope_theta`, and transformers 5's `rope_parameters`).

use super::TokenIds;
use super::document::{Document, ModelConfigError};
use super::families::{FAMILIES, Family};
use crate::config::bounds::{MAX_ANGLES, MAX_LAYERS, MAX_SIZE};
use crate::ops::rope::{self, Scaling};
use serde_json::{Value, json};
use std::path::Path;

/// The shape of a decoder-only transformer. Field names are Hugging Face's.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// The family, which says what the fields mean.
    pub family: &'static Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads of a layer.
    pub num_attention_heads: usize,
    /// Key and value heads of a layer.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// The longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// What RMSNorm adds to the mean square.
    pub rms_norm_eps: f32,
    /// The base of the rotary embeddings' frequencies.
    pub rope_theta: f32,
    /// How the rotary embeddings are scaled, where they are.
    pub rope_scaling: Option<Scaling>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
}

impl Architecture {
    /// Reads `dir/config.json`.
    ///
    /// # Errors
    /// If the file is missing, is not JSON, is of an unknown family, or has a field that is refused; the error names
    /// the field.
    pub fn read(dir: &Path) -> Result<Architecture, ModelConfigError> {
        let doc = Document::read(dir.join("config.json"))?;
        let family = family(&doc)?;
        let hidden_size = doc.size("hidden_size", None)?;
        let num_attention_heads = doc.size("num_attention_heads", None)?;
        let num_key_value_heads = doc.size("num_key_value_heads", Some(num_attention_heads))?;
        if doc.get("head_dim").is_none()
            && family.head_dim.is_none()
            && !hidden_size.is_multiple_of(num_attention_heads)
        {
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
        let head_dim = doc.size("head_dim", family.head_dim.or(Some(hidden_size / num_attention_heads)))?;
        if !head_dim.is_multiple_of(2) {
            return Err(doc.refuse("head_dim", format!("rotary embeddings need an even head size, not {head_dim}")));
        }
        if num_attention_heads > MAX_SIZE / head_dim {
            let mend = format!("with heads of {head_dim} at most {} are supported", MAX_SIZE / head_dim);
            return Err(doc.refuse("num_attention_heads", mend));
        }
        let max_position_embeddings = doc.size("max_position_embeddings", Some(family.max_position_embeddings))?;
        let most = MAX_ANGLES / head_dim;
        if max_position_embeddings > most {
            return Err(doc.refuse("max_position_embeddings", format!("at most {most} are supported; lower it")));
        }
        Ok(Architecture {
            family,
            vocab_size: doc.size("vocab_size", None)?,
            hidden_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            intermediate_size: doc.size("intermediate_size", None)?,
            max_position_embeddings,
            rms_norm_eps: doc.positive("rms_norm_eps", doc.get("rms_norm_eps"), 1e-6)?,
            rope_theta: rope_theta(&doc, family)?,
            rope_scaling: rope_scaling(&doc, family)?,
            tie_word_embeddings: doc.flag("tie_word_embeddings")?,
        })
    }

    /// The file's content in the spelling that transformers 4 and 5 both read; `dtype` as torch names it (`float32`).
    pub fn to_json(&self, ids: &TokenIds, dtype: &str) -> Value {
        let mut file = json!({
            "architectures": [self.family.class],
            "attention_dropout": 0.0,
            "bos_token_id": ids.bos,
            "eos_token_id": ids.eos_as_written(),
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.family.model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_scaling": self.rope_scaling.as_ref().map(scaling_to_json),
            "rope_theta": shortest(self.rope_theta),
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": dtype,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        let fixed: serde_json::Map<String, Value> = serde_json::from_str(self.family.fixed).unwrap_or_default();
        fixed.into_iter().for_each(|(field, value)| file[field] = value);
        file
    }

    /// The angles of the first `positions` positions.
    pub fn rope_tables(&self, positions: usize) -> rope::Tables {
        let plain = rope::frequencies(self.rope_theta, self.head_dim);
        let frequencies = match &self.rope_scaling {
            Some(scaling) => scaling.apply(plain),
            None => plain,
        };
        rope::Tables::of(frequencies, positions)
    }
}

/// The f64 with the fewest digits that rounds to `x`: 1e-6 is written as 1e-6, not as 9.99999997e-7.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// The model's family; refuses whatever would make the model compute something else than this crate does.
fn family(doc: &Document) -> Result<&'static Family, ModelConfigError> {
    let known = FAMILIES.map(|family| format!("{:?}", family.model_type)).join(", ");
    let family = FAMILIES.into_iter().find(|family| doc.get("model_type").is_some_and(|t| t == family.model_type));
    let family = family.ok_or_else(|| doc.refuse("model_type", format!("only {known} are supported")))?;
    if let Some(names) = doc.get("architectures") {
        let listed = names.as_array().is_some_and(|l| l.iter().any(|n| n == family.class));
        if !listed {
            return Err(doc.refuse("architectures", format!("only [{:?}] is supported", family.class)));
        }
    }
    if doc.get("hidden_act").is_some_and(|act| act != "silu") {
        return Err(doc.refuse("hidden_act", "only \"silu\" is supported".into()));
    }
    for (switch, mend) in family.refused {
        if doc.flag(switch)? {
            return Err(doc.refuse(switch, mend.to_string()));
        }
    }
    if let Some(types) = doc.get("layer_types") {
        let full = types.as_array().is_some_and(|l| l.iter().all(|t| t == "full_attention"));
        if !full {
            return Err(doc.refuse("layer_types", "every layer must be \"full_attention\"".into()));
        }
    }
    if doc.get("quantization_config").is_some() {
        let mend = "quantised weights cannot be trained; use the bf16, f16 or f32 checkpoint";
        return Err(doc.refuse("quantization_config", mend.into()));
    }
    Ok(family)
}

/// transformers takes the older `rope_scaling`, where it is given, for the whole of `rope_parameters`; what such a table lacks is
/// beside it.
fn rope_theta(doc: &Document, family: &Family) -> Result<f32, ModelConfigError> {
    for table in ["rope_parameters", "rope_scaling"] {
        check_rope(doc, family, table)?;
    }
    if let Some((table, _)) = rope_table(doc) {
        let theta = doc.get(table).and_then(|t| t.get("rope_theta")).filter(|theta| !theta.is_null());
        if theta.is_some() {
            return doc.positive(&format!("{table}.rope_theta"), theta, 0.0);
        }
    }
    doc.positive("rope_theta", doc.get("rope_theta"), 10_000.0)
}

/// The table that says how positions are embedded, and its name.
fn rope_table(doc: &Document) -> Option<(&'static str, &serde_json::Map<String, Value>)> {
    let given = |table| doc.get(table).and_then(Value::as_object).filter(|fields| !fields.is_empty());
    ["rope_scaling", "rope_parameters"].into_iter().find_map(|table| Some((table, given(table)?)))
}

/// Llama 3.1's scaling, where a table has it.
fn rope_scaling(doc: &Document, family: &Family) -> Result<Option<Scaling>, ModelConfigError> {
    let Some((table, fields)) = rope_table(doc).filter(|(_, fields)| family.rope_scaling && is_llama3(fields)) else {
        return Ok(None);
    };
    let number =
        |key: &str| doc.positive(&format!("{table}.{key}"), Some(fields.get(key).unwrap_or(&Value::Null)), 0.0);
    let scaling = Scaling {
        factor: number("factor")?,
        low_freq_factor: number("low_freq_factor")?,
        high_freq_factor: number("high_freq_factor")?,
        original_max_position_embeddings: number("original_max_position_embeddings")?,
    };
    if scaling.low_freq_factor >= scaling.high_freq_factor {
        let mend = format!("it must be above low_freq_factor ({})", scaling.low_freq_factor);
        return Err(doc.refuse(&format!("{table}.high_freq_factor"), mend));
    }
    Ok(Some(scaling))
}

fn is_llama3(fields: &serde_json::Map<String, Value>) -> bool {
    ["rope_type", "type"].iter().any(|key| fields.get(*key).is_some_and(|kind| kind == "llama3"))
}

fn scaling_to_json(scaling: &Scaling) -> Value {
    json!({
        "rope_type": "llama3",
        "factor": shortest(scaling.factor),
        "low_freq_factor": shortest(scaling.low_freq_factor),
        "high_freq_factor": shortest(scaling.high_freq_factor),
        "original_max_position_embeddings": scaling.original_max_position_embeddings as u64,
    })
}

/// Refuses all rotary embeddings but the plain one of every element, and the family's scaled one.
fn check_rope(doc: &Document, family: &Family, table: &str) -> Result<(), ModelConfigError> {
    let Some(value) = doc.get(table) else { return Ok(()) };
    let Some(fields) = value.as_object() else {
        return Err(doc.refuse(table, "it must be an object".into()));
    };
    let plain = match family.rope_scaling {
        true => "this scaling of rotary embeddings is not supported; only \"default\" and \"llama3\" are",
        false => "scaled rotary embeddings are not supported; only \"default\" is",
    };
    let scaled = family.rope_scaling && is_llama3(fields);
    for (key, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        let mend = match &key[..] {
            "rope_type" | "type" if value == "default" || scaled && value == "llama3" => continue,
            "low_freq_factor" | "high_freq_factor" if scaled => continue,
            "rope_type" | "type" => plain,
            "rope_theta" => continue,
            "partial_rotary_factor" if value.as_f64() == Some(1.0) => continue,
            // Without a type, and for text alone, they change nothing.
            "factor" | "original_max_position_embeddings" | "mrope_section" => continue,
            _ => "this rotary embedding is not supported; remove the field if it changes nothing",
        };
        return Err(doc.refuse(&format!("{table}.{key}"), mend.into()));
    }
    Ok(())
}
