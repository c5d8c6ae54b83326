//! What switches the process to exact products: device code, and golden sets replayed.

#[path = "../common/mod.rs"]
mod common;

mod device;
mod reference;
