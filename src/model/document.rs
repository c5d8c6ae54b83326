//! A JSON file of a model directory, read field by field, so that every refusal names file and field.

use super::input;
use crate::config::bounds::MAX_SIZE;
use serde_json::Value;
use std::path::PathBuf;

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum ModelConfigError {
    #[error("cannot read {file}: {source}")]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{file} is not valid JSON: {reason}")]
    Json { file: PathBuf, reason: String },
    #[error("{file}: `{field}` is {found}; {mend}")]
    Field { file: PathBuf, field: String, found: String, mend: String },
}

/// Largest configuration file, in bytes.
const MAX_FILE: u64 = 1 << 24;

/// A parsed JSON object, and where it came from.
pub(super) struct Document {
    pub file: PathBuf,
    value: Value,
}

impl Document {
    pub fn read(file: PathBuf) -> Result<Document, ModelConfigError> {
        let text =
            input::read(&file, MAX_FILE).map_err(|source| ModelConfigError::Read { file: file.clone(), source })?;
        match serde_json::from_slice::<Value>(&text) {
            Ok(value @ Value::Object(_)) => Ok(Document { file, value }),
            Ok(_) => Err(ModelConfigError::Json { file, reason: "the top level is not an object".into() }),
            Err(e) => Err(ModelConfigError::Json { file, reason: e.to_string() }),
        }
    }

    /// The field's value; JSON `null` counts as absent.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.value.get(field).filter(|v| !v.is_null())
    }

    pub fn refuse(&self, field: &str, mend: String) -> ModelConfigError {
        let leaf = field.split('.').try_fold(&self.value, |v, key| v.get(key));
        let found = leaf.map_or("missing".into(), Value::to_string);
        ModelConfigError::Field { file: self.file.clone(), field: field.into(), found, mend }
    }

    pub fn size(&self, field: &str, default: Option<usize>) -> Result<usize, ModelConfigError> {
        let value = match (self.get(field), default) {
            (None, Some(default)) => return Ok(default),
            (value, _) => value.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()),
        };
        value
            .filter(|n| (1..=MAX_SIZE).contains(n))
            .ok_or_else(|| self.refuse(field, format!("it must be a whole number from 1 to {MAX_SIZE}")))
    }

    pub fn positive(&self, field: &str, value: Option<&Value>, default: f32) -> Result<f32, ModelConfigError> {
        let Some(value) = value else { return Ok(default) };
        value
            .as_f64()
            .map(|x| x as f32)
            .filter(|x| x.is_finite() && *x > 0.0)
            .ok_or_else(|| self.refuse(field, "it must be a positive number".into()))
    }

    pub fn flag(&self, field: &str) -> Result<bool, ModelConfigError> {
        match self.get(field) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.refuse(field, "it must be true or false".into())),
        }
    }

    pub fn ids(&self, field: &str) -> Result<Vec<u32>, ModelConfigError> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let found = match self.get(field) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        found.ok_or_else(|| self.refuse(field, "it must be a token id or a list of token ids".into()))
    }
}
