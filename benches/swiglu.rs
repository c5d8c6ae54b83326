//! SwiGLU on one block of rows and one thread, and on a GPU: bytes read and written per second.

mod common;

use common::{FFN, GPU_ROWS, ROWS, bytes, gpu, on_gpu, time, values};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use uncouple::ops::swiglu;

fn bench(c: &mut Criterion) {
    let n = ROWS * FFN;
    let (gate_up, dy, mut y) = (values(1, 2 * n), values(2, n), vec![0.0; n]);
    let mut group = c.benchmark_group("swiglu");
    group.throughput(bytes(3 * n));
    group.bench_function("forward", |b| b.iter(|| swiglu::forward(&gate_up, FFN, &mut y)));
    group.throughput(bytes(5 * n));
    group.bench_function("backward", |b| {
        // It overwrites its input, so each run gets a copy.
        b.iter_batched_ref(|| gate_up.clone(), |g| swiglu::backward(&dy, FFN, g), BatchSize::LargeInput)
    });

    let Some(gpu) = gpu() else { return };
    let n = GPU_ROWS * FFN;
    let (gate_up, dy, y) = (on_gpu(&gpu, 1, 2 * n), on_gpu(&gpu, 2, n), gpu.zeros(n).unwrap());
    // Half as many bytes to a number as on the CPU.
    group.throughput(bytes(3 * n / 2));
    time(&mut group, &gpu, "GPU forward", || swiglu::cuda::forward(&gpu, &gate_up, FFN, &y));
    group.throughput(bytes(5 * n / 2));
    time(&mut group, &gpu, "GPU backward", || swiglu::cuda::backward(&gpu, &dy, FFN, &gate_up));
}

criterion_group!(benches, bench);
criterion_main!(benches);
