//! Gradient coupling: how alike the gradients of single (state, action) samples are, and whether good and bad actions share them.

pub mod gram;
mod measure;
mod output;
mod permutation;
mod probe;
mod rank;
mod strata;

pub use gram::{Grams, SampleError, StateAction};
pub use measure::{CouplingError, Measurement, ParameterGroup, SampleWeights, Sums, measure};
pub use output::{FOLDER, read, write};
pub use probe::{Probe, ProbeCommand, ProbeError, ProbeSample, Side};
pub use rank::{pairs, rank_correlation};
pub use strata::{Means, Spread, Strata, Stratum, Traits, errors};
