//! RMSNorm on one block of rows and one thread: bytes read and written per second.

mod common;

use common::{HIDDEN, ROWS, bytes, values};
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
}

criterion_group!(benches, bench);
criterion_main!(benches);
