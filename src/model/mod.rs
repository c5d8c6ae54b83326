//! Qwen2: configuration, weights, forward, backward, KV cache, checkpoints in the Hugging Face layout.

mod chat_syntax;
mod chat_template;
pub mod checkpoint;
pub mod config;
pub mod cuda;
pub mod cuda_decode;
pub mod cuda_sink;
mod cuda_step;
mod decode;
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
pub mod tokenizer;

pub use config::{Qwen2Config, TokenIds};
pub use kv_cache::{KvCache, Slot};
pub use params::Params;
pub use policy::{Decoder, Draw, Policy};
pub use qwen2::{Activations, Keep, Model};
pub use tokenizer::{Message, Tokenizer};
