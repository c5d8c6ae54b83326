//! Inputs for the benchmarks of single ops, in the sizes of Qwen2.5-0.5B.
#![allow(dead_code)]

use criterion::BenchmarkGroup;
use criterion::measurement::WallTime;
use half::bf16;
use std::time::Duration;
use uncouple::device::cuda::Cuda;
use uncouple::device::{Gpu, Result, Tensor, cpu};
use uncouple::ops::philox;

pub const HIDDEN: usize = 896;
pub const FFN: usize = 4864;
/// The rows that the model gives to one task.
pub const ROWS: usize = cpu::BLOCK;
/// The rows that a GPU gets at once.
pub const GPU_ROWS: usize = 4096;

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

/// This machine's GPU, with 4 GiB of it; says why there is none.
pub fn gpu() -> Option<Gpu> {
    Cuda::open(Some(4 << 30)).map(Gpu::new).inspect_err(|why| eprintln!("not measured on a GPU: {why}")).ok()
}

/// `values` on the GPU.
pub fn on_gpu(gpu: &Gpu, seed: u64, n: usize) -> Tensor<bf16> {
    gpu.tensor(&values(seed, n).into_iter().map(bf16::from_f32).collect::<Vec<_>>()).unwrap()
}

/// Measures `call` by the GPU's own clock.
pub fn time(group: &mut BenchmarkGroup<'_, WallTime>, gpu: &Gpu, name: &str, call: impl Fn() -> Result<()>) {
    group.bench_function(name, |b| {
        b.iter_custom(|n| {
            let seconds = gpu.timed(|| (0..n).try_for_each(|_| call())).unwrap();
            Duration::from_secs_f64(seconds)
        })
    });
}
