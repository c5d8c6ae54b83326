//! Models: passes, families, checkpoints, tokenizers, forests.

#[path = "../common/mod.rs"]
mod common;

mod adapters;
mod checkpoint;
mod families;
mod forest;
mod pages;
mod passes;
mod real_models;
mod tokenizer;
