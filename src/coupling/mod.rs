//! Gradient coupling: how alike the gradients of single (state, action) samples are.

pub mod gram;

pub use gram::{Grams, SampleError, StateAction};
