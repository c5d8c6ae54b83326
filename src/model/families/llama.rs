//! Llama 2 and 3 and what has their shape (SmolLM2): no biases, rotary embeddings perhaps scaled.

use super::{ATTENTION_BIAS, Family};

/// Llama 2 and 3, and SmolLM2.
pub static LLAMA: Family = Family {
    model_type: "llama",
    class: "LlamaForCausalLM",
    qkv_bias: false,
    qk_norm: false,
    head_dim: None,
    max_position_embeddings: 2048,
    rope_scaling: true,
    refused: &[ATTENTION_BIAS, ("mlp_bias", "biases in the MLP are not supported; use a checkpoint that has none")],
    fixed: r#"{"attention_bias": false, "mlp_bias": false}"#,
};
