//! What a GPU does at most, as measured: kernels and whole steps are held against it.

use crate::device::{Dtype, Gpu, Matmul, Operand, Result, Slice, Tensor};
use crate::ops::case::{Bf16s, Work};
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

impl Ceilings {
    /// By copying 512 MiB, and by a product of matrices of 8192 columns; with `small` by what a simulated device gets through.
    ///
    /// # Errors
    /// The device's.
    pub fn measure(gpu: &Gpu, small: bool) -> Result<Ceilings> {
        let (copied, n) = if small { (1 << 20, 64) } else { (512 << 20, 8192) };
        let (from, to, flush) = (gpu.zeros::<u8>(copied)?, gpu.zeros::<u8>(copied)?, Flush::new(gpu, small)?);
        let copy = median(gpu, &flush, &mut || gpu.copy(&from, &to))?;
        let ab = Bf16s::randoms(7, n * n);
        let [a, b, c] = [ab.on(gpu)?, ab.on(gpu)?, gpu.uninit(n * n)?];
        let matrix = |x: &Slice<bf16>| {
            let (address, dtype) = (x.address(), Dtype::Bf16);
            Operand { address, dtype, stride: n, transposed: false, batch_stride: 0 }
        };
        let (a, b, c, alpha, beta, bias) = (matrix(&a), matrix(&b), matrix(&c), 1.0, 0.0, None);
        let product = Matmul { m: n, n, k: n, batch: 1, alpha, beta, a, b, c, bias };
        let matmul = median(gpu, &flush, &mut || gpu.matmul(&product))?;
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

/// Takes the inputs out of the second-level cache between calls, as training finds them: by a copy larger than it.
pub(super) struct Flush {
    from: Tensor<u8>,
    to: Tensor<u8>,
}

impl Flush {
    pub(super) fn new(gpu: &Gpu, small: bool) -> Result<Flush> {
        let bytes = if small { 256 } else { 128 << 20 };
        Ok(Flush { from: gpu.zeros(bytes)?, to: gpu.zeros(bytes)? })
    }
}

/// Seconds of one call. A simulated device is called once, for the sake of the call.
pub(super) fn median(gpu: &Gpu, flush: &Flush, call: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let (warm_up, calls) = if gpu.is_simulated() { (0, 1) } else { (WARM_UP, CALLS) };
    (0..warm_up).try_for_each(|_| call())?;
    let timed = |_| {
        gpu.copy(&flush.from, &flush.to)?;
        gpu.timed(&mut *call)
    };
    Ok(middle((0..calls).map(timed).collect::<Result<_>>()?))
}

/// The median.
pub(super) fn middle(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
