//! Token ids with a role: `config.json` and `generation_config.json`.

use super::document::{Document, ModelConfigError};
use serde_json::{Value, json};
use std::path::Path;

/// Token ids with a role, from `generation_config.json` and `config.json`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenIds {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Any of these ends a turn. Never empty after [`TokenIds::read`].
    pub eos: Vec<u32>,
    /// Fills up a batch.
    pub pad: Option<u32>,
}

impl TokenIds {
    /// Reads the ids of a model directory; `generation_config.json`, when there, goes before `config.json`.
    ///
    /// Its sampling defaults and repetition penalty are not read: a trainer's sampling is its own configuration's.
    ///
    /// # Errors
    /// If a file cannot be read or is not JSON, or no id ends a turn.
    pub fn read(dir: &Path) -> Result<TokenIds, ModelConfigError> {
        let config = Document::read(dir.join("config.json"))?;
        let path = dir.join("generation_config.json");
        let generation = if path.exists() { Some(Document::read(path)?) } else { None };
        let ids = |field: &str| -> Result<Vec<u32>, ModelConfigError> {
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
    pub(super) fn eos_as_written(&self) -> Value {
        if let [id] = self.eos[..] { json!(id) } else { json!(self.eos) }
    }
}
