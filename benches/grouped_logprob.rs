//! Grouped log-prob on all threads, and on a GPU: floating-point operations per second of the head's matrix products. The vocabulary is a
//! tenth of Qwen2.5's, so that the head fits any machine.

mod common;

use common::{GPU_ROWS, HIDDEN, ROWS, flops, gpu, on_gpu, time, values};
use criterion::{Criterion, criterion_group, criterion_main};
use uncouple::device::Dtype;
use uncouple::ops::grouped_logprob::{Head, HeadGrads, Target, TokenGrad, cuda, forward, forward_backward};

const VOCAB: usize = 15_194;

fn bench(c: &mut Criterion) {
    let (weight, hidden) = (values(1, VOCAB * HIDDEN), values(2, ROWS * HIDDEN));
    let (mut d_weight, mut d_hidden) = (vec![0.0; weight.len()], vec![0.0; hidden.len()]);
    let head = Head { weight: &weight, hidden: &hidden, width: HIDDEN, temperature: 1.0, dtype: Dtype::F32 };
    let targets: Vec<_> = (0..ROWS as u32).map(|row| Target { row, token: row * 59 % VOCAB as u32 }).collect();
    let product = 2 * ROWS * VOCAB * HIDDEN;
    let mut group = c.benchmark_group("grouped_logprob");
    group.sample_size(20);
    group.throughput(flops(product));
    group.bench_function("forward", |b| b.iter(|| forward(head, &targets)));
    group.throughput(flops(3 * product));
    for (name, entropy) in [("forward and backward", 0.0), ("forward and backward with entropy", 0.01)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let grads = HeadGrads { weight: &mut d_weight, hidden: &mut d_hidden };
                forward_backward(head, &targets, grads, &mut |_, _, _| TokenGrad { logprob: 0.1, entropy })
            })
        });
    }

    let Some(gpu) = gpu() else { return };
    let (weight, hidden) = (on_gpu(&gpu, 1, VOCAB * HIDDEN), on_gpu(&gpu, 2, GPU_ROWS * HIDDEN));
    let head = cuda::Head { weight: &weight, hidden: &hidden, width: HIDDEN, temperature: 1.0 };
    let targets: Vec<_> = (0..GPU_ROWS as u32).map(|row| Target { row, token: row * 59 % VOCAB as u32 }).collect();
    let targets = cuda::Targets::new(&gpu, &targets, GPU_ROWS).unwrap();
    let (d, dh) = (gpu.tensor(&vec![0.1f32; GPU_ROWS]).unwrap(), gpu.zeros(hidden.len()).unwrap());
    let dw = gpu.zeros::<f32>(weight.len()).unwrap();
    let sums = cuda::Gradients { d_logprob: &d, d_entropy: &d, d_weight: &dw, d_hidden: &dh };
    group.throughput(flops(2 * GPU_ROWS * VOCAB * HIDDEN));
    time(&mut group, &gpu, "GPU forward", || cuda::forward(&gpu, head, &targets).map(drop));
    group.throughput(flops(6 * GPU_ROWS * VOCAB * HIDDEN));
    time(&mut group, &gpu, "GPU forward and backward", || {
        let scores = cuda::forward(&gpu, head, &targets)?;
        cuda::backward(&gpu, head, &targets, &scores, sums)
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
