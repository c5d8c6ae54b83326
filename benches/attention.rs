//! Attention on all threads, and on a GPU: floating-point operations per second of the matrix products over visible pairs alone, for one
//! chain, and for a group of eight that shares its prompt.

mod common;

use common::{flops, gpu, on_gpu, time, values};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use uncouple::device::Dtype;
use uncouple::forest::Forest;
use uncouple::ops::attention::cuda::Backward;
use uncouple::ops::attention::{self, Shape, Visibility};

const SHAPE: Shape = Shape { heads: 14, kv_heads: 2, head_dim: 64 };

fn bench(c: &mut Criterion) {
    let chain: Vec<u32> = (0..1024).collect();
    let with_answer =
        |i: u32| -> Vec<u32> { chain[..768].iter().copied().chain((0..64).map(|t| 10_000 * i + t)).collect() };
    let shared: Vec<_> = (1..=8).map(with_answer).collect();
    let mut group = c.benchmark_group("attention");
    let gpu = gpu();
    for (name, forest) in [("chain", Forest::new(&[&chain[..]])), ("shared prompt", Forest::new(&shared))] {
        let n = forest.len();
        let pairs: usize = forest.position.iter().map(|p| *p as usize + 1).sum();
        let visibility = Visibility::new(&forest.reach);
        let (qkv, d_out) = (values(1, n * SHAPE.qkv_dim()), values(2, n * SHAPE.q_dim()));
        let (mut out, mut softmax) = (vec![0.0; d_out.len()], vec![0.0; n * SHAPE.heads * 2]);
        let mut d_qkv = vec![0.0; qkv.len()];
        // A product over the pairs costs two operations for each element of every head: two products forward, five backward.
        group.throughput(flops(4 * pairs * SHAPE.q_dim()));
        group.bench_function(BenchmarkId::new("forward", name), |b| {
            b.iter(|| attention::forward(Dtype::F32, &qkv, SHAPE, &visibility, &mut out, &mut softmax))
        });
        group.throughput(flops(10 * pairs * SHAPE.q_dim()));
        group.bench_function(BenchmarkId::new("backward", name), |b| {
            b.iter(|| attention::backward(Dtype::F32, &d_out, &qkv, &out, &softmax, SHAPE, &visibility, &mut d_qkv))
        });

        let Some(gpu) = &gpu else { continue };
        let (qkv, d_out, out) = (on_gpu(gpu, 1, qkv.len()), on_gpu(gpu, 2, out.len()), gpu.zeros(out.len()).unwrap());
        let (softmax, d_qkv) = (gpu.zeros(softmax.len()).unwrap(), gpu.zeros(qkv.len()).unwrap());
        let visibility = attention::cuda::Visibility::new(gpu, &forest.reach).unwrap();
        group.throughput(flops(4 * pairs * SHAPE.q_dim()));
        time(&mut group, gpu, &format!("GPU forward, {name}"), || {
            attention::cuda::forward(gpu, &qkv, SHAPE, &visibility, &out, &softmax)
        });
        group.throughput(flops(10 * pairs * SHAPE.q_dim()));
        time(&mut group, gpu, &format!("GPU backward, {name}"), || {
            let pass = Backward { d_out: &d_out, qkv: &qkv, out: &out, softmax: &softmax, d_qkv: &d_qkv };
            attention::cuda::backward(gpu, pass, SHAPE, &visibility)
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
