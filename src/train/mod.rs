//! The training loop and what it keeps.

pub mod interrupt;
pub mod run_folder;
