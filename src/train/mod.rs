//! The training loop: cold start, GRPO iterations, evaluation, checkpoints, resume.

pub mod learner;
//! The training loop and what it keeps.

pub mod interrupt;
pub mod memory;
pub mod run_folder;
