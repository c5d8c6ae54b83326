//! Inputs for the benchmarks of single ops, in the sizes of Qwen2.5-0.5B.
#![allow(dead_code)]

use uncouple::device::cpu;
use uncouple::ops::philox;

pub const HIDDEN: usize = 896;
pub const FFN: usize = 4864;
/// The rows that the model gives to one task.
pub const ROWS: usize = cpu::BLOCK;

/// `n` uniform numbers in ±1.
pub fn values(seed: u64, n: usize) -> Vec<f32> {
    (0..n).map(|i| philox::uniform(philox::block(seed, 0, i as u64)[0]) * 2.0 - 1.0).collect()
}

/// Bytes of `n` f32 values.
pub fn bytes(n: usize) -> criterion::Throughput {
    criterion::Throughput::Bytes(4 * n as u64)
}

/// Floating-point operations: Gelem/s is GFLOP/s.
pub fn flops(n: usize) -> criterion::Throughput {
    criterion::Throughput::Elements(n as u64)
}
