//! Decoder-only transformers: architecture, weights, forward, backward, KV cache, checkpoints in the Hugging Face layout.

pub(crate) mod architecture;
pub mod backend;
mod chat_syntax;
mod chat_template;
pub mod checkpoint;
mod cpu_model;
mod document;
pub mod families;
pub(crate) mod generate;
mod init;
mod input;
pub(crate) mod jinja;
pub mod pages;
pub mod params;
pub(crate) mod policy;
mod python_text;
pub(crate) mod recipe;
mod special_tokens;
mod token_ids;
pub mod tokenizer;
mod transformer;

pub use architecture::Architecture;
pub use backend::SavedActivations;
pub use backend::cpu::Activations;
pub use backend::kv_cache::KvCache;
pub use chat_template::Message;
pub use cpu_model::Model;
pub use document::ModelConfigError;
pub use pages::SequenceId;
pub use params::Params;
pub use policy::{Decoder, Policy, SampleRequest};
pub use token_ids::TokenIds;
pub use tokenizer::Tokenizer;
