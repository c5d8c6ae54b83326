//! Qwen2: configuration, weights, forward, backward, KV cache, checkpoints in the Hugging Face layout.

pub mod architecture;
mod chat_syntax;
mod chat_template;
pub mod checkpoint;
pub mod cuda;
pub mod cuda_decode;
pub mod cuda_sink;
mod cuda_step;
mod decode;
mod document;
pub mod families;
mod init;
mod input;
pub(crate) mod jinja;
pub mod kv_cache;
pub mod pages;
pub mod params;
pub mod policy;
mod python_text;
pub mod qwen2;
pub(crate) mod recipe;
pub mod sink;
mod special_tokens;
mod token_ids;
pub mod tokenizer;

pub use architecture::Architecture;
pub use document::ConfigError;
pub use kv_cache::{KvCache, Slot};
pub use params::Params;
pub use policy::{Decoder, Draw, Policy};
pub use qwen2::{Activations, Keep, Model};
pub use token_ids::TokenIds;
pub use tokenizer::{Message, Tokenizer};
