//! `uncouple` trains language-model agents on one device with GRPO and Generative Classification Disentanglement (GCD),
//! and measures the thing GCD is meant to cure: gradient coupling (arXiv 2509.23870).
//!
//! Imports point down: `cli → study → train → (coupling, gcd, grpo, rollout) → (agent, env, model, forest) → ops → device`; `files` lies below all.

// What is printed passes `report::terminal`.
#![warn(clippy::print_stderr, clippy::print_stdout)]
#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc, missing_docs)]

pub mod agent;
pub mod bench;
pub mod cli;
pub mod config;
pub mod coupling;
pub mod device;
pub mod env;
pub mod files;
pub mod forest;
pub mod gcd;
pub mod grpo;
pub mod model;
pub mod ops;
pub mod reference;
pub mod report;
pub mod rollout;
pub mod selftest;
pub mod study;
pub mod train;
