//! Qwen2: configuration, weights, forward, backward, KV cache, checkpoints in the Hugging Face layout.

pub mod checkpoint;
pub mod config;
pub mod cuda;
pub mod cuda_decode;
pub mod cuda_sink;
mod cuda_step;
mod decode;
mod init;
pub mod kv_cache;
pub mod pages;
pub mod params;
pub mod policy;
pub mod qwen2;
pub(crate) mod recipe;
pub mod sink;
pub mod tokenizer;

pub use config::{Qwen2Config, TokenIds};
pub use kv_cache::{KvCache, Slot};
pub use params::Params;
pub use policy::{Decoder, Draw, Policy};
pub use qwen2::{Activations, Keep, Model};
pub use tokenizer::{Message, Tokenizer};
