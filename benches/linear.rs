//! Linear on one block of rows and one thread: floating-point operations per second, two for each product.

mod common;

use common::{FFN, HIDDEN, ROWS, flops, values};
use criterion::{Criterion, criterion_group, criterion_main};
use uncouple::ops::linear::{self, Weight};

fn bench(c: &mut Criterion) {
    let (x, w, dy) = (values(1, ROWS * HIDDEN), values(2, FFN * HIDDEN), values(3, ROWS * FFN));
    let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
    let mut group = c.benchmark_group("linear");
    group.throughput(flops(2 * ROWS * HIDDEN * FFN));
    group.bench_function("forward", |b| b.iter(|| linear::forward(&x, Weight::new(&w, HIDDEN), None, &mut y)));
    group.bench_function("backward input", |b| b.iter(|| linear::backward_input(&dy, &w, HIDDEN, &mut dx)));
    group.bench_function("backward weight", |b| b.iter(|| linear::backward_weight(&dy, FFN, 0, &x, HIDDEN, &mut dw)));
}

criterion_group!(benches, bench);
criterion_main!(benches);
