//! Every op on the CPU, and on a GPU where there is one: bytes read and written per second, or floating-point operations (Gelem/s is
//! GFLOP/s). Ops that work on the calling thread get one block of rows, as the model gives it to one task.
//!
//! `cargo bench --bench ops -- rmsnorm` measures one op.

use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;
use uncouple::device::cuda::Cuda;
use uncouple::device::{Gpu, Result};
use uncouple::ops::CASES;
use uncouple::ops::case::{Clock, Size, Work};

/// Makes a benchmark of each call.
struct Benchmarks<'a> {
    group: BenchmarkGroup<'a, WallTime>,
    name: String,
}

impl Benchmarks<'_> {
    fn throughput(&mut self, work: Work) {
        self.group.throughput(match work {
            Work::Bytes(n) => Throughput::Bytes(n as u64),
            Work::Flops(n) => Throughput::Elements(n as u64),
        });
    }
}

impl Clock for Benchmarks<'_> {
    fn cuda(&mut self, gpu: &Gpu, work: Work, call: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.throughput(work);
        self.group.bench_function(format!("GPU {}", self.name), |b| {
            // By the GPU's own clock.
            b.iter_custom(|n| {
                let seconds = gpu.timed(|| (0..n).try_for_each(|_| call())).expect("the GPU works");
                Duration::from_secs_f64(seconds)
            })
        });
        Ok(())
    }

    fn cpu(&mut self, work: Work, call: &mut dyn FnMut()) {
        self.throughput(work);
        self.group.bench_function(&self.name, |b| b.iter(&mut *call));
    }

    fn cpu_in_place(&mut self, work: Work, input: &[f32], call: &mut dyn FnMut(&mut [f32])) {
        self.throughput(work);
        self.group
            .bench_function(&self.name, |b| b.iter_batched_ref(|| input.to_vec(), |x| call(x), BatchSize::LargeInput));
    }
}

fn ops(c: &mut Criterion) {
    let gpu = Cuda::open(None).map(Gpu::new).inspect_err(|why| eprintln!("not measured on a GPU: {why}")).ok();
    for cases in CASES {
        let mut benchmarks = Benchmarks { group: c.benchmark_group(cases[0].op()), name: String::new() };
        benchmarks.group.sample_size(20);
        let devices = [(None, Size::Task)].into_iter().chain(gpu.as_ref().map(|gpu| (Some(gpu), Size::Model)));
        for (case, (gpu, size)) in cases.iter().flat_map(|case| devices.clone().map(move |device| (case, device))) {
            for instance in case.instances(size) {
                benchmarks.name = format!("{} {}", case.pass(), instance.shape).trim_start().into();
                instance.time(gpu, &mut benchmarks).expect("the GPU works");
            }
        }
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
