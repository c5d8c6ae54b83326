//! What switches the whole process to other products: exact ones for device code and for golden sets replayed, and every unit for bf16.

#[path = "../common/mod.rs"]
mod common;

mod bf16;
mod device;
mod reference;
