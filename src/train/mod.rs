//! The training loop: cold start, GRPO iterations, evaluation, checkpoints, resume.

pub mod learner;
