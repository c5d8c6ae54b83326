//! Qwen3's dense models: no biases, and a norm on each head's queries and keys.

use super::{ATTENTION_BIAS, Family, SLIDING_WINDOW};

/// Qwen3.
pub static QWEN3: Family = Family {
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    qkv_bias: false,
    qk_norm: true,
    head_dim: Some(128),
    max_position_embeddings: 32768,
    rope_scaling: false,
    refused: &[SLIDING_WINDOW, ATTENTION_BIAS],
    fixed: r#"{"attention_bias": false, "sliding_window": null, "use_sliding_window": false}"#,
};
