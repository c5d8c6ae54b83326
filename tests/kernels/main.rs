//! Every CUDA kernel on the emulator, under all its schedules, against the CPU op; build.rs and what it made.

#[path = "../common/emulated.rs"]
mod emulated;

mod build;
mod cases;
mod decode_attention;
mod edges;
mod grouped_logprob;
mod refusals;

use kernel_emulator::{Arg, Buffer};
