//! AdamW on all threads, and on a GPU: bytes per second, of seven f32 values for each parameter (p, m, v read and written, g read),
//! and of a copy in bf16 there.

mod common;

use common::{bytes, gpu, time, values};
use criterion::{Criterion, criterion_group, criterion_main};
use uncouple::ops::adamw::{AdamW, cuda, grad_norm, step};

/// Larger than any cache.
const PARAMS: usize = 1 << 24;

fn bench(c: &mut Criterion) {
    let (mut p, g) = (values(1, PARAMS), values(2, PARAMS));
    let (mut m, mut v) = (vec![0.0; PARAMS], vec![0.0; PARAMS]);
    let o = AdamW { lr: 1e-6, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, grad_scale: 1.0, step: 10 };
    let mut group = c.benchmark_group("adamw");
    group.throughput(bytes(PARAMS));
    group.bench_function("norm", |b| b.iter(|| grad_norm(&g)));
    group.throughput(bytes(7 * PARAMS));
    group.bench_function("step", |b| b.iter(|| step(&o, true, &mut p, &g, &mut m, &mut v)));

    let Some(gpu) = gpu() else { return };
    let [p, g, m, v] = [&p, &g, &m, &v].map(|x| gpu.tensor(x).unwrap());
    let (copy, norm, scale) = (gpu.zeros(PARAMS).unwrap(), gpu.zeros(2).unwrap(), gpu.tensor(&[1.0]).unwrap());
    let state = cuda::State { p: &p, m: &m, v: &v, copy: &copy };
    group.throughput(bytes(PARAMS));
    time(&mut group, &gpu, "GPU norm", || cuda::grad_norm(&gpu, &*g, 1.0, &norm));
    group.throughput(bytes(7 * PARAMS + PARAMS / 2));
    time(&mut group, &gpu, "GPU step", || cuda::step(&gpu, &o, true, &state, &*g, &scale, cuda::Rounding::Nearest));
}

criterion_group!(benches, bench);
criterion_main!(benches);
