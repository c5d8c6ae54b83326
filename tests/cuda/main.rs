//! The CUDA code on the emulated device against the CPU.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/emulated.rs"]
mod emulated;

mod coupling;
mod decode;
mod device;
mod lora;
mod memory;
mod model;
mod ops;
mod pair;
