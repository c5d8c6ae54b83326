//! SwiGLU on one block of rows and one thread: bytes read and written per second.

mod common;

use common::{FFN, ROWS, bytes, values};
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
}

criterion_group!(benches, bench);
criterion_main!(benches);
