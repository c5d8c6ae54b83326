//! The families of decoder-only transformers that can be trained: what a `config.json` of each means, and what is refused.

mod llama;
mod qwen2;
mod qwen3;

pub use llama::LLAMA;
pub use qwen2::QWEN2;
pub use qwen3::QWEN3;

/// What tells a family from the others. Field names are Hugging Face's.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// What `config.json` calls the family.
    pub model_type: &'static str,
    /// transformers' class.
    pub class: &'static str,
    /// The projections to queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Queries and keys are normed, head by head, before they are rotated.
    pub qk_norm: bool,
    /// `head_dim` where the file says nothing; `None`: hidden_size / num_attention_heads.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings` where the file says nothing.
    pub max_position_embeddings: usize,
    /// Rotary embeddings may be scaled as Llama 3.1's are.
    pub rope_scaling: bool,
    /// Switches that must be off or absent, and what to do where one is on.
    pub refused: &'static [(&'static str, &'static str)],
    /// Fields of `config.json` that are the same in all models of the family, as JSON.
    pub fixed: &'static str,
}

/// All of them.
pub const FAMILIES: [&Family; 3] = [&QWEN2, &QWEN3, &LLAMA];

const SLIDING_WINDOW: (&str, &str) =
    ("use_sliding_window", "sliding-window attention is not supported; use a checkpoint that has it switched off");
const ATTENTION_BIAS: (&str, &str) =
    ("attention_bias", "this family is supported without biases; use a checkpoint that has none");
