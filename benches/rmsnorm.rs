//! RMSNorm on one block of rows and one thread, and on a GPU: bytes read and written per second.

mod common;

use common::{GPU_ROWS, HIDDEN, ROWS, bytes, gpu, on_gpu, time, values};
use criterion::{Criterion, criterion_group, criterion_main};
use uncouple::ops::rmsnorm;

fn bench(c: &mut Criterion) {
    let n = ROWS * HIDDEN;
    let (x, w, dy) = (values(1, n), values(2, HIDDEN), values(3, n));
    let (mut y, mut rstd, mut dx, mut dw) = (vec![0.0; n], vec![0.0; ROWS], vec![0.0; n], vec![0.0; HIDDEN]);
    let mut group = c.benchmark_group("rmsnorm");
    group.throughput(bytes(2 * n));
    group.bench_function("forward", |b| b.iter(|| rmsnorm::forward(&x, &w, 1e-6, &mut y, &mut rstd)));
    group.throughput(bytes(4 * n));
    group.bench_function("backward", |b| b.iter(|| rmsnorm::backward(&dy, &x, &w, &rstd, &mut dx, &mut dw)));

    let Some(gpu) = gpu() else { return };
    let n = GPU_ROWS * HIDDEN;
    let [x, w, dy] = [(1, n), (2, HIDDEN), (3, n)].map(|(seed, n)| on_gpu(&gpu, seed, n));
    let (y, rstd, dw) = (gpu.zeros(n).unwrap(), gpu.zeros(GPU_ROWS).unwrap(), gpu.zeros::<f32>(HIDDEN).unwrap());
    // Half as many bytes to a number as on the CPU.
    group.throughput(bytes(n));
    time(&mut group, &gpu, "GPU forward", || rmsnorm::cuda::forward(&gpu, &x, &w, 1e-6, &y, &rstd));
    group.throughput(bytes(2 * n));
    time(&mut group, &gpu, "GPU backward", || rmsnorm::cuda::backward(&gpu, &dy, &x, &w, &rstd, &y, &dw));
}

criterion_group!(benches, bench);
criterion_main!(benches);
