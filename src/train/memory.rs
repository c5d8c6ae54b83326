//! What a run will need in memory, from its configuration alone, and whether the machine, or a GPU, has it.

use crate::config::{Config, DecoupleMethod, MomentDtype, Override};
use crate::device::Dtype;
use crate::model::Architecture;
use crate::model::adapter::AdapterLayout;
use crate::model::backend::cuda_step::DRAWS;
use crate::model::checkpoint::{self, CheckpointError};
use crate::model::families::QWEN2;
use crate::model::pages::PAGE;
use crate::model::params::Layout;
use crate::ops::{adamw_8bit, grouped_logprob};
use serde::Serialize;
use std::path::Path;

/// One consumer of memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryUse {
    /// What needs it.
    pub name: &'static str,
    /// How the bytes come about.
    pub formula: String,
    /// Bytes.
    pub bytes: u64,
    /// The key that makes this part smaller; `None`: only a smaller model does.
    pub lower: Option<&'static str>,
}

/// The shape of the model a configuration names: its folder's, or the embedded one's.
///
/// # Errors
/// If the `config.json` of the model's folder is refused.
pub fn model_shape(config: &Config) -> Result<Architecture, CheckpointError> {
    let m = &config.model;
    if !m.path.is_empty() {
        return checkpoint::architecture(Path::new(&m.path));
    }
    Ok(Architecture {
        family: &QWEN2,
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
        rope_scaling: None,
        tie_word_embeddings: true,
    })
}

/// What the model that `config` names makes different from the embedded one's defaults, see [`Config::for_a_given_model`].
///
/// # Errors
/// If the `config.json` of the model's folder is refused.
pub fn defaults_of_its_model(config: &Config) -> Result<Vec<Override>, CheckpointError> {
    let parameters = Layout::new(&model_shape(config)?).len as u64;
    Ok(Config::for_a_given_model(parameters, config.prompt.format, config.lora.is_on()))
}

/// Where a run's numbers live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// All of them in f32; with `model.dtype = "bf16"`, the packed weights, keys and values in bf16.
    Cpu,
    /// Weights, activations, keys and values in bf16; the optimizer's numbers and sums in f32.
    Gpu,
}

impl Placement {
    /// Bytes of a weight, activation, key or value.
    fn width(self) -> u64 {
        match self {
            Placement::Cpu => 4,
            Placement::Gpu => 2,
        }
    }
}

/// The largest parts of a training run's memory, at their peaks. With adapters, what is trained is theirs, and the reference of the KL
/// term is an adapter beside the same weights.
pub fn plan(config: &Config, model: &Architecture, place: Placement) -> Vec<MemoryUse> {
    let params = Layout::new(model).len as u64;
    let of = |name, copies: u64, count: u64, width: u64| MemoryUse {
        name,
        formula: format!("{copies} x {count} parameters of {width} bytes"),
        bytes: count.saturating_mul(width * copies),
        lower: None,
    };
    let adapter = config.lora.is_on().then(|| AdapterLayout::new(model, &config.lora).tensors.len as u64);
    let trained = adapter.unwrap_or(params);
    let gradients = if config.decouple.method == DecoupleMethod::Pcgrad { 2 } else { 1 };
    let mut parts = vec![of("weights", 1, params, place.width())];
    parts.extend(adapter.map(|count| of("adapters", 1, count, place.width())));
    let master = place == Placement::Gpu && !config.optim.stochastic_rounding;
    parts.extend(master.then(|| of("master weights", 1, trained, 4)));
    parts.push(of("gradients", gradients, trained, 4));
    parts.push(match config.optim.moments {
        MomentDtype::F32 => of("AdamW moments", 2, trained, 4),
        MomentDtype::Dynamic8 => moments_8bit(trained),
    });
    if config.grpo.beta > 0.0 {
        parts.push(MemoryUse { lower: Some("grpo.beta"), ..of("reference model", 1, trained, place.width()) });
    }
    match place {
        // In bf16 training reads them too.
        Placement::Cpu => {
            parts.push(of("packed weights", 1, params, config.model.dtype.bytes() as u64));
            parts.push(cpu_head(config, model));
        }
        Placement::Gpu => parts.push(head(config, model)),
    }
    parts.push(activations(config, model, place));
    parts.push(kv_cache(config, model, place));
    parts
}

/// Two codes of a byte for each parameter, and two scales in f32 for each block.
fn moments_8bit(parameters: u64) -> MemoryUse {
    let (block, blocks) = (adamw_8bit::BLOCK as u64, parameters.div_ceil(adamw_8bit::BLOCK as u64));
    MemoryUse {
        name: "AdamW moments",
        formula: format!("2 x {parameters} parameters of 1 byte, and 4 bytes for each {block}"),
        bytes: parameters.saturating_add(4 * blocks).saturating_mul(2),
        lower: None,
    }
}

/// On a CPU: a chunk of logits, hidden states and their gradients, in f32; in bf16 the head packed twice, for both of its passes.
fn cpu_head(config: &Config, model: &Architecture) -> MemoryUse {
    let (vocab, width) = (model.vocab_size as u64, model.hidden_size as u64);
    let rows = u64::from(config.grpo.micro_tokens).min(grouped_logprob::chunk_rows(model.vocab_size) as u64);
    let packed = if config.model.dtype == Dtype::Bf16 { 2 } else { 0 };
    MemoryUse {
        name: "logits",
        formula: format!("{rows} rows x ({vocab} + 2 x {width}) of 4 bytes, and the head {packed} x in bf16"),
        bytes: (4 * rows).saturating_mul(vocab + 2 * width).saturating_add((2 * packed * vocab).saturating_mul(width)),
        lower: None,
    }
}

/// On a GPU: the gradient of a chunk of logits in bf16, at most [`grouped_logprob::cuda::CHUNK`] bytes, and the logits that sampling
/// reads, f32 `[256, vocab]`.
fn head(config: &Config, model: &Architecture) -> MemoryUse {
    let (tokens, vocab) = (u64::from(config.grpo.micro_tokens), model.vocab_size as u64);
    let chunk = tokens.saturating_mul(2 * vocab).min(grouped_logprob::cuda::CHUNK as u64);
    let sampled = 4 * vocab * DRAWS as u64;
    MemoryUse {
        name: "logits",
        formula: format!("a chunk of {chunk} bytes in training, {DRAWS} x {vocab} when sampling"),
        bytes: chunk.saturating_add(sampled),
        lower: None,
    }
}

/// With h hidden, q and kv the widths of queries and keys, f intermediate, n heads: a token keeps in every layer norms 2h + 2,
/// residuals 2h, q + 2kv, attention q + n, and 3f; and once the last residual, final norm and its gradient 3h, and the
/// gradients of one layer 2h + 2q + 2kv (on a GPU f + 4h + q + q + 2kv). With recomputation the layer's share beyond its input h
/// counts once. Queries and keys before a QK-norm add q + kv.
fn activations(config: &Config, model: &Architecture, place: Placement) -> MemoryUse {
    let (h, f, n) = (model.hidden_size, model.intermediate_size, model.num_attention_heads);
    let (q, kv) = (n * model.head_dim, model.num_key_value_heads * model.head_dim);
    let layers = model.num_hidden_layers;
    let kept = if config.model.recompute { 1 } else { layers };
    let raw = if model.family.qk_norm { q + kv } else { 0 };
    let within = 3 * h + 2 + (q + 2 * kv) + (q + n) + 3 * f + raw;
    let once = match place {
        Placement::Cpu => 3 * h + (2 * h + 2 * q + 2 * kv),
        Placement::Gpu => 4 * h + (f + h + q + q + 2 * kv),
    };
    let per_token = layers * h + kept * within + once;
    let tokens = config.grpo.micro_tokens;
    MemoryUse {
        name: "activations",
        formula: format!("{tokens} tokens of a micro-batch x {per_token}"),
        bytes: (per_token as u64).saturating_mul(place.width() * u64::from(tokens)),
        lower: Some(if config.model.recompute {
            "grpo.micro_tokens"
        } else {
            "grpo.micro_tokens, or set model.recompute = true"
        }),
    }
}

/// Most episodes that are alive at once, and most tokens of a sequence.
fn sequences(config: &Config, model: &Architecture) -> (u64, usize) {
    let r = &config.rollout;
    let episodes = (u64::from(r.groups) * u64::from(r.group_size)).min(r.max_live.into());
    let context = model.max_position_embeddings;
    let tokens = if r.max_episode_tokens == 0 { context } else { context.min(r.max_episode_tokens as usize) };
    (episodes, tokens)
}

/// Tokens within which a KV cache keeps finished sequences beside those in use.
pub fn cached_tokens(config: &Config, model: &Architecture) -> usize {
    let (episodes, tokens) = sequences(config, model);
    episodes as usize * tokens
}

/// Keys and values of every layer, as if no two episodes shared a prefix; whole pages. What finished episodes leave for judgments
/// stays within this.
fn kv_cache(config: &Config, model: &Architecture, place: Placement) -> MemoryUse {
    let (episodes, tokens) = sequences(config, model);
    let pages = tokens.div_ceil(PAGE) * PAGE;
    let per_token = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim;
    let width = match place {
        Placement::Cpu => config.model.dtype.bytes() as u64,
        Placement::Gpu => place.width(),
    };
    MemoryUse {
        name: "KV cache",
        formula: format!("{episodes} episodes x {pages} tokens x {per_token}, at most: shared prefixes are kept once"),
        bytes: ((pages * per_token) as u64).saturating_mul(width * episodes),
        lower: Some("rollout.max_live or rollout.max_episode_tokens"),
    }
}

/// A plan held against the machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fit {
    /// Bytes of the whole plan.
    pub needed: u64,
    /// Bytes that programs can still take; `None` where the system does not say.
    pub available: Option<u64>,
    /// What to lower, where the plan does not fit.
    pub advice: Option<String>,
}

/// Holds `plan` against `available` bytes.
pub fn fit(plan: &[MemoryUse], available: Option<u64>) -> Fit {
    let needed = plan.iter().fold(0, |sum: u64, part| sum.saturating_add(part.bytes));
    let short = available.and_then(|available| needed.checked_sub(available)).filter(|short| *short > 0);
    Fit { needed, available, advice: short.map(|short| advice(plan, short)) }
}

/// The key of the largest part that a key can lower, if that alone is enough; else of all such parts, largest first.
fn advice(plan: &[MemoryUse], short: u64) -> String {
    let mut parts: Vec<(&str, &MemoryUse)> = plan.iter().filter_map(|part| Some((part.lower?, part))).collect();
    parts.sort_by_key(|(_, part)| std::cmp::Reverse(part.bytes));
    let lowered = parts.iter().fold(0, |sum: u64, (_, part)| sum.saturating_add(part.bytes));
    match parts.first() {
        Some((key, part)) if part.bytes > short => {
            let share = 100.0 * (part.bytes - short) as f64 / part.bytes as f64;
            format!("lower {key}: the {} may take at most {share:.0} % of what they take now", part.name)
        }
        Some(_) if lowered > short => {
            format!("lower {}", parts.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(", and "))
        }
        _ => "choose a smaller model: its weights, gradients and moments alone do not fit".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Vec<MemoryUse> {
        let part = |name, bytes, lower| MemoryUse { name, formula: String::new(), bytes, lower };
        vec![part("weights", 400, None), part("activations", 500, Some("a")), part("KV cache", 100, Some("b"))]
    }

    #[test]
    fn a_gpu_holds_half_as_wide_activations_and_master_weights_beside() {
        let config = Config::default();
        let model = model_shape(&config).unwrap();
        let of = |place, name: &str| {
            plan(&config, &model, place).into_iter().find(|part| part.name == name).map(|p| p.bytes)
        };
        let params = Layout::new(&model).len as u64;
        assert_eq!(
            [of(Placement::Cpu, "weights"), of(Placement::Gpu, "weights")],
            [Some(4 * params), Some(2 * params)]
        );
        assert_eq!(
            [of(Placement::Cpu, "master weights"), of(Placement::Gpu, "master weights")],
            [None, Some(4 * params)]
        );
        assert_eq!(of(Placement::Gpu, "AdamW moments"), Some(8 * params));
        assert_eq!(of(Placement::Gpu, "KV cache").map(|bytes| 2 * bytes), of(Placement::Cpu, "KV cache"));
        assert_eq!(of(Placement::Gpu, "packed weights"), None);
    }

    #[test]
    fn with_adapters_nothing_is_kept_of_the_weights_but_themselves() {
        let mut config = Config::default();
        let model = model_shape(&config).unwrap();
        (config.lora.rank, config.grpo.beta) = (8, 0.1);
        let of = |place, name: &str| {
            plan(&config, &model, place).into_iter().find(|part| part.name == name).map(|part| part.bytes)
        };
        // Two layers of h = 192, of which 4 heads of 48 read and 2 are read, and f = 448: rank times inputs and outputs of each map.
        let (h, kv, f) = (192, 96, 448);
        let adapter = 2 * 8 * ((h + h) + 2 * (h + kv) + (h + h) + 2 * (h + f) + (f + h));
        let params = Layout::new(&model).len as u64;
        for (place, width) in [(Placement::Cpu, 4), (Placement::Gpu, 2)] {
            assert_eq!([of(place, "weights"), of(place, "adapters")], [params, adapter].map(|n| Some(width * n)));
            assert_eq!([of(place, "gradients"), of(place, "AdamW moments")], [4, 8].map(|n| Some(n * adapter)));
            assert_eq!(of(place, "reference model"), Some(width * adapter));
        }
        assert_eq!(of(Placement::Gpu, "master weights"), Some(4 * adapter));
    }

    #[test]
    fn a_plan_that_fits_needs_no_advice() {
        assert_eq!(fit(&small(), Some(1000)), Fit { needed: 1000, available: Some(1000), advice: None });
        assert_eq!(fit(&small(), None).advice, None);
    }

    #[test]
    fn the_advice_names_the_key_of_the_largest_part_that_is_enough() {
        let advice = |available| fit(&small(), Some(available)).advice.unwrap();
        assert_eq!(advice(900), "lower a: the activations may take at most 80 % of what they take now");
        assert_eq!(advice(450), "lower a, and b");
        assert!(advice(400).contains("smaller model"));
    }
}
