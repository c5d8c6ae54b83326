//! What a GPU does at most, as measured: kernels and whole steps are held against it.

use crate::device::{Dtype, Gpu, Matmul, Operand, Result, Slice, Tensor};
use crate::ops::philox::{block, normals};
use half::bf16;
use serde::Serialize;

/// Timed calls; their median counts.
const CALLS: usize = 50;
const WARM_UP: usize = 5;

/// What the device did at most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ceilings {
    /// A large copy, bytes read plus bytes written.
    pub copy_gbps: f64,
    /// A large product of bf16 matrices by cuBLASLt.
    pub matmul_tflops: f64,
}

/// What a call must do at least.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// Bytes that are read or written.
    Bytes(usize),
    Flops(f64),
}

impl Ceilings {
    /// By copying so many bytes, and by a product of matrices of this side.
    pub fn measure(gpu: &Gpu, copied: usize, square: usize) -> Result<Ceilings> {
        let (from, to) = (gpu.zeros::<u8>(copied)?, gpu.zeros::<u8>(copied)?);
        let copy = median(gpu, &[()], |()| gpu.copy(&from, &to))?;
        let n = square;
        let [a, b, c] = [random(gpu, n * n)?, random(gpu, n * n)?, random(gpu, n * n)?];
        let matrix = |x: &Slice<bf16>| {
            let (address, dtype) = (x.address(), Dtype::Bf16);
            Operand { address, dtype, stride: n, transposed: false, batch_stride: 0 }
        };
        let (a, b, c, alpha, beta, bias) = (matrix(&a), matrix(&b), matrix(&c), 1.0, 0.0, None);
        let product = Matmul { m: n, n, k: n, batch: 1, alpha, beta, a, b, c, bias };
        let matmul = median(gpu, &[()], |()| gpu.matmul(&product))?;
        Ok(Ceilings {
            copy_gbps: 2.0 * copied as f64 / copy / 1e9,
            matmul_tflops: 2.0 * (n as f64).powi(3) / matmul / 1e12,
        })
    }

    /// The least seconds for `work`.
    pub fn floor(&self, work: Work) -> f64 {
        match work {
            Work::Bytes(n) => n as f64 / (1e9 * self.copy_gbps),
            Work::Flops(n) => n / (1e12 * self.matmul_tflops),
        }
    }
}

/// Seconds of one call, on each set in turn. A simulated device is called once, for the sake of the call.
pub(super) fn median<T>(gpu: &Gpu, sets: &[T], call: impl Fn(&T) -> Result<()>) -> Result<f64> {
    let (warm_up, calls) = if gpu.is_simulated() { (0, 1) } else { (WARM_UP, CALLS) };
    for set in sets.iter().cycle().take(warm_up) {
        call(set)?;
    }
    let times = sets.iter().cycle().take(calls).map(|set| gpu.timed(|| call(set)));
    Ok(middle(times.collect::<Result<_>>()?))
}

/// The median.
pub(super) fn middle(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

pub(super) fn random_f32(gpu: &Gpu, n: usize) -> Result<Tensor<f32>> {
    gpu.tensor(&normal(n))
}

/// Never zeros: products of them run faster than real ones.
pub(super) fn random(gpu: &Gpu, n: usize) -> Result<Tensor<bf16>> {
    gpu.tensor(&normal(n).into_iter().map(bf16::from_f32).collect::<Vec<_>>())
}

/// A million different ones, repeated: making more would take longer than timing them.
pub(super) fn normal(n: usize) -> Vec<f32> {
    let some: Vec<f32> = (0..n.min(1 << 20).div_ceil(4) as u64).flat_map(|i| normals(block(7, 0, i))).collect();
    some.into_iter().cycle().take(n).collect()
}
