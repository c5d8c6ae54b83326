//! Gradient coupling: how alike the gradients of single (state, action) samples are, and whether good and bad actions share them.

pub mod gram;
mod measure;
mod output;
mod probe;

pub use gram::{Grams, SampleError, StateAction};
pub use measure::{CouplingError, Group, Means, Measurement, Spread, Weights, measure};
pub use output::{FOLDER, write};
pub use probe::{Probe, ProbeError, ProbeSample};
