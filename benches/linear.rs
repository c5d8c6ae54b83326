//! Linear on one block of rows and one thread, and on a GPU: floating-point operations per second, two for each product.

mod common;

use common::{FFN, GPU_ROWS, HIDDEN, ROWS, flops, gpu, on_gpu, time, values};
use criterion::{Criterion, criterion_group, criterion_main};
use uncouple::device::Dtype;
use uncouple::ops::linear::{self, Weight};

fn bench(c: &mut Criterion) {
    let (x, w, dy) = (values(1, ROWS * HIDDEN), values(2, FFN * HIDDEN), values(3, ROWS * FFN));
    let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
    let mut group = c.benchmark_group("linear");
    group.throughput(flops(2 * ROWS * HIDDEN * FFN));
    group.bench_function("forward", |b| {
        b.iter(|| linear::forward(&x, Weight::new(Dtype::F32, &w, HIDDEN), None, &mut y))
    });
    group.bench_function("backward input", |b| b.iter(|| linear::backward_input(Dtype::F32, &dy, &w, HIDDEN, &mut dx)));
    group.bench_function("backward weight", |b| {
        b.iter(|| linear::backward_weight(Dtype::F32, &dy, FFN, 0, &x, HIDDEN, &mut dw))
    });

    let Some(gpu) = gpu() else { return };
    let [x, w, dy] =
        [(1, GPU_ROWS * HIDDEN), (2, FFN * HIDDEN), (3, GPU_ROWS * FFN)].map(|(seed, n)| on_gpu(&gpu, seed, n));
    let (y, dx, dw) = (on_gpu(&gpu, 4, dy.len()), on_gpu(&gpu, 5, x.len()), gpu.zeros::<f32>(w.len()).unwrap());
    group.throughput(flops(2 * GPU_ROWS * HIDDEN * FFN));
    time(&mut group, &gpu, "GPU forward", || linear::cuda::forward(&gpu, &x, &w, None, HIDDEN, &*y));
    time(&mut group, &gpu, "GPU backward input", || {
        linear::cuda::backward_input(Dtype::F32, &gpu, &dy, &w, HIDDEN, &dx)
    });
    time(&mut group, &gpu, "GPU backward weight", || {
        linear::cuda::backward_weight(Dtype::F32, &gpu, &dy, &x, HIDDEN, &*dw)
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
