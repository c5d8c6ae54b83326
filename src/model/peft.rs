//! Adapters as Hugging Face's PEFT keeps them: `adapter_config.json` and `adapter_model.safetensors`, in and out.

use super::adapter::{Adapter, AdapterLayout};
use super::weights::{CheckpointError, SaveDtype, Shard, from_shards, read_json, save_params};
use super::{Architecture, Params};
use crate::config::{LORA_TARGETS, Lora};
use crate::files::FileError;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

pub(super) const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// The field that names the model itself.
pub(super) const BASE: &str = "base_model_name_or_path";

/// Fields that change what an adapter computes, and the values that change nothing.
const PLAIN: [(&str, &[Value]); 17] = [
    ("use_rslora", &[Value::Bool(false)]),
    ("use_dora", &[Value::Bool(false)]),
    ("use_qalora", &[Value::Bool(false)]),
    ("fan_in_fan_out", &[Value::Bool(false)]),
    ("lora_bias", &[Value::Bool(false)]),
    ("modules_to_save", &[]),
    ("layers_to_transform", &[]),
    ("layer_replication", &[]),
    ("target_parameters", &[]),
    ("trainable_token_indices", &[]),
    ("alora_invocation_tokens", &[]),
    ("megatron_config", &[]),
    ("use_bdlora", &[Value::Bool(false)]),
    ("kasa_config", &[]),
    ("velora_config", &[]),
    ("monteclora_config", &[]),
    ("arrow_config", &[]),
];

/// What `adapter_config.json` says.
pub struct AdapterConfig {
    file: PathBuf,
    fields: Map<String, Value>,
}

impl AdapterConfig {
    /// Reads `dir/adapter_config.json`; `None` where there is none.
    ///
    /// # Errors
    /// If the file cannot be read or is not JSON.
    pub fn read(dir: &Path) -> Result<Option<AdapterConfig>, CheckpointError> {
        let file = dir.join(CONFIG);
        if !file.exists() {
            return Ok(None);
        }
        Ok(Some(AdapterConfig { fields: read_json(&file)?, file }))
    }

    fn refuse(&self, field: &'static str, reason: String) -> CheckpointError {
        CheckpointError::Adapter { file: self.file.clone(), field, reason }
    }

    /// The folder of the model itself: as it is named, or as it is named from the adapter's folder `dir`.
    ///
    /// # Errors
    /// If there is no such folder.
    pub fn base(&self, dir: &Path) -> Result<PathBuf, CheckpointError> {
        let named = self.fields.get(BASE).and_then(Value::as_str).unwrap_or_default();
        let places = [PathBuf::from(named), dir.join(named)];
        let found = places.into_iter().find(|place| !named.is_empty() && place.is_dir());
        found.ok_or_else(|| {
            let reason = format!("is {named:?}, but there is no such folder: write the folder of its base model there");
            self.refuse(BASE, reason)
        })
    }

    /// Rank and scale; the targets are those that the tensors have.
    ///
    /// # Errors
    /// If the adapter is of a kind that is not supported.
    fn lora(&self, targets: Vec<String>) -> Result<Lora, CheckpointError> {
        let kind = self.fields.get("peft_type").and_then(Value::as_str).unwrap_or_default();
        if kind != "LORA" {
            return Err(self.refuse("peft_type", format!("is {kind:?}; only \"LORA\" is supported")));
        }
        for (field, plain) in PLAIN {
            let value = self.fields.get(field).unwrap_or(&Value::Null);
            if !value.is_null() && !plain.contains(value) {
                let merge = "is not supported: merge the adapter into its base with peft in Python \
                             (AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(OUT))";
                return Err(self.refuse(field, format!("= {value} {merge}")));
            }
        }
        for field in ["rank_pattern", "alpha_pattern"] {
            if self.fields.get(field).and_then(Value::as_object).is_some_and(|pattern| !pattern.is_empty()) {
                return Err(self.refuse(field, "is not supported: all adapters have one rank and one alpha".into()));
            }
        }
        if let Some(bias) = self.fields.get("bias").and_then(Value::as_str).filter(|bias| *bias != "none") {
            return Err(
                self.refuse("bias", format!("is {bias:?}: adapters of biases are not supported, only \"none\""))
            );
        }
        let rank = self.fields.get("r").and_then(Value::as_u64).filter(|r| (1..=1 << 12).contains(r));
        let rank = rank.ok_or_else(|| self.refuse("r", "must be a rank from 1 to 4096".into()))?;
        let alpha = self.fields.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite());
        let alpha = alpha.ok_or_else(|| self.refuse("lora_alpha", "must be a number".into()))?;
        Ok(Lora { rank: rank as usize, alpha: alpha as f32, targets })
    }
}

/// Reads the adapter in `dir`, which stands beside a model of this shape.
///
/// # Errors
/// If a file is missing or damaged, does not fit the model, or is of an adapter of a kind that is not supported.
pub fn load(dir: &Path, shape: &Architecture) -> Result<Adapter, CheckpointError> {
    let config = AdapterConfig::read(dir)?;
    let missing = || CheckpointError::NoWeights { dir: dir.into() };
    let (config, file) = (config.ok_or_else(missing)?, dir.join(WEIGHTS));
    let shard = Shard::open(file.clone())?;
    let names = shard.names()?;
    let has = |target: &&&str| names.iter().any(|name| name.contains(&format!(".{target}.lora_")));
    let targets: Vec<String> = LORA_TARGETS.iter().filter(has).map(|target| target.to_string()).collect();
    if targets.is_empty() {
        let known = LORA_TARGETS.join(", ");
        let reason = format!("names none of the linear maps that can have an adapter here: {known}");
        return Err(config.refuse("target_modules", reason));
    }
    let lora = config.lora(targets)?;
    let layout = AdapterLayout::new(shape, &lora).tensors;
    Ok(Adapter::new(shape, &lora, from_shards(layout, &file, &[shard])?))
}

/// Writes the adapter's two files into `dir`, in f32.
///
/// # Errors
/// If a file cannot be written.
pub fn save(dir: &Path, lora: &Lora, params: &Params, base: &str) -> Result<(), CheckpointError> {
    // A whole number as PEFT writes it.
    let alpha = if lora.alpha.fract() == 0.0 { json!(lora.alpha as i64) } else { json!(lora.alpha) };
    let config = json!({
        "alpha_pattern": {},
        BASE: base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "target_modules": lora.targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    let file = dir.join(CONFIG);
    std::fs::write(&file, format!("{config:#}\n")).map_err(|e| FileError::new("write", file, e))?;
    save_params(&dir.join(WEIGHTS), params, SaveDtype::F32)
}
