//! The real program with `--device cuda` against the software GPU (kernels/driver): every call of CUDA's and cuBLASLt's that it makes,
//! from `selftest` to a training run that is killed and resumed. A build without CUDA kernels has nothing to run here, and says so.
//! `.ci/coverage` tells which lines of src/device/cuda they reach.

mod commands;
mod counters;
mod counts;
mod device;
mod failures;
mod selftest;
mod training;

#[path = "../common/runs.rs"]
#[allow(dead_code)]
mod runs;
