//! What a run will need in memory, from its configuration alone. Everything is f32.

use crate::config::{Config, DecoupleMethod};
use crate::model::Qwen2Config;
use crate::model::config::ConfigError;
use crate::model::kv_cache::PAGE;
use crate::model::params::Layout;
use serde::Serialize;
use std::path::Path;

/// One consumer of memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    pub name: &'static str,
    /// How the bytes come about.
    pub formula: String,
    pub bytes: u64,
}

/// The shape of the model a configuration names: its folder's, or the embedded one's.
pub fn model_shape(config: &Config) -> Result<Qwen2Config, ConfigError> {
    let m = &config.model;
    if !m.path.is_empty() {
        return Qwen2Config::read(Path::new(&m.path));
    }
    Ok(Qwen2Config {
        vocab_size: m.vocab_size,
        hidden_size: m.hidden_size,
        num_hidden_layers: m.num_hidden_layers,
        num_attention_heads: m.num_attention_heads,
        num_key_value_heads: m.num_key_value_heads,
        head_dim: m.hidden_size / m.num_attention_heads,
        intermediate_size: m.intermediate_size,
        max_position_embeddings: m.max_position_embeddings,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
    })
}

/// The largest parts of a training run's memory, at their peaks.
pub fn plan(config: &Config, model: &Qwen2Config) -> Vec<Part> {
    let params = Layout::new(model).len as u64;
    let weights = |name, copies: u64| Part {
        name,
        formula: format!("{copies} x {params} parameters"),
        bytes: 4 * copies * params,
    };
    let gradients = if config.decouple.method == DecoupleMethod::Pcgrad { 2 } else { 1 };
    let mut parts = vec![weights("weights", 1), weights("gradients", gradients), weights("AdamW moments", 2)];
    if config.grpo.beta > 0.0 {
        parts.push(weights("reference model", 1));
    }
    parts.push(activations(config, model));
    parts.push(kv_cache(config, model));
    parts
}

/// With h hidden, q and kv the widths of queries and keys, f intermediate, n heads: a token keeps in every layer norms 2h + 2,
/// residuals 2h, q + 2kv, attention q + n, and 3f; and once the last residual, final norm and its gradient 3h, and the
/// gradients of one layer 2h + 2q + 2kv. With recomputation the layer's share beyond its input h counts once.
fn activations(config: &Config, model: &Qwen2Config) -> Part {
    let (h, f, n) = (model.hidden_size, model.intermediate_size, model.num_attention_heads);
    let (q, kv) = (n * model.head_dim, model.num_key_value_heads * model.head_dim);
    let layers = model.num_hidden_layers;
    let kept = if config.model.recompute { 1 } else { layers };
    let within = 3 * h + 2 + (q + 2 * kv) + (q + n) + 3 * f;
    let once = 3 * h + (2 * h + 2 * q + 2 * kv);
    let per_token = layers * h + kept * within + once;
    let tokens = config.grpo.micro_tokens;
    Part {
        name: "activations",
        formula: format!("{tokens} tokens of a micro-batch x {per_token}"),
        bytes: 4 * u64::from(tokens) * per_token as u64,
    }
}

/// Most episodes that are alive at once, and most tokens of a sequence.
fn sequences(config: &Config, model: &Qwen2Config) -> (u64, usize) {
    let r = &config.rollout;
    let episodes = (u64::from(r.groups) * u64::from(r.group_size)).min(r.max_live.into());
    let context = model.max_position_embeddings;
    let tokens = if r.max_episode_tokens == 0 { context } else { context.min(r.max_episode_tokens as usize) };
    (episodes, tokens)
}

/// Tokens within which a KV cache keeps finished sequences beside those in use.
pub fn cached_tokens(config: &Config, model: &Qwen2Config) -> usize {
    let (episodes, tokens) = sequences(config, model);
    episodes as usize * tokens
}

/// Keys and values of every layer, as if no two episodes shared a prefix; whole pages. What finished episodes leave for judgments
/// stays within this.
fn kv_cache(config: &Config, model: &Qwen2Config) -> Part {
    let (episodes, tokens) = sequences(config, model);
    let pages = tokens.div_ceil(PAGE) * PAGE;
    let per_token = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim;
    Part {
        name: "KV cache",
        formula: format!("{episodes} episodes x {pages} tokens x {per_token}, at most: shared prefixes are kept once"),
        bytes: 4 * episodes * (pages * per_token) as u64,
    }
}
