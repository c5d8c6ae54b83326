//! Qwen2 and Qwen2.5: biases on queries, keys and values.

use super::{Family, SLIDING_WINDOW};

/// Qwen2 and Qwen2.5.
pub static QWEN2: Family = Family {
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    qkv_bias: true,
    qk_norm: false,
    head_dim: None,
    max_position_embeddings: 32768,
    rope_scaling: false,
    refused: &[SLIDING_WINDOW],
    fixed: r#"{"sliding_window": null, "use_sliding_window": false}"#,
};
