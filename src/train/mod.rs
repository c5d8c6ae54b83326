//! The training loop and what it keeps.

pub mod interrupt;
pub mod memory;
pub mod run_folder;
