//! The trainer: configuration, prompts, rollouts, losses, GCD, runs, commands.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/emulated.rs"]
mod emulated;

mod ablation;
mod agent;
mod browser;
mod cli;
mod config;
mod coupling;
mod docs;
mod gcd;
mod gcd_judge;
mod grpo;
mod layers;
mod lora;
mod moments;
mod recipes;
mod report;
mod rollout;
mod run_folder;
mod runs;
mod suggestions;
mod words;
