//! The checks of every CUDA kernel against the CPU's ops: by `uncouple selftest` on a GPU, by the tests on the emulated device.

mod attention;
mod decode;
mod gradient_cosine;
mod head;
mod ops;
mod sampling;

pub use ops::CHECKS;

use crate::bench::ceilings::{Ceilings, Work};
use crate::device::{Gpu, Real, Result, Slice, Tensor};
use crate::ops::philox::{block, normals};
use half::bf16;

/// A result that was computed in f32 and rounded to bf16 once: half of 2⁻⁷.
const BF16: f32 = 1.0 / 256.0;
/// A result in f32.
const F32: f32 = 1e-5;
/// The noise of f32 where terms of the size of 1 cancel.
const FLOOR: f32 = 1e-5;

/// One op, or one direction of it.
pub struct Check {
    pub name: &'static str,
    run: fn(&mut Probe) -> Result<()>,
}

/// How large the shapes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Ragged ones that an emulator gets through.
    Small,
    /// The same, and those of a model.
    Full,
}

/// What a check found.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Outcome {
    pub name: &'static str,
    /// The largest error, in units of what is allowed; NaN where a result is not a number.
    pub error: f64,
    /// The device's time for the last shape; not a number where it is simulated.
    pub seconds: f64,
    /// Of that time: what its bytes or flops take at the device's measured ceilings.
    pub share: f64,
    /// What the largest error is of.
    pub worst: String,
}

impl Outcome {
    pub fn passed(&self) -> bool {
        self.error <= 1.0
    }
}

impl Check {
    /// The error is the device's; results that are wrong are an outcome.
    pub fn run(&self, gpu: &Gpu, size: Size, ceilings: &Ceilings) -> Result<Outcome> {
        let work = Work::Bytes(0);
        let mut probe = Probe { gpu, size, error: 0.0, worst: String::new(), time: f64::NAN, work };
        (self.run)(&mut probe)?;
        gpu.synchronize()?;
        let Probe { error, worst, time, work, .. } = probe;
        Ok(Outcome { name: self.name, error, seconds: time, share: ceilings.floor(work) / time, worst })
    }
}

/// What a check works with.
struct Probe<'a> {
    gpu: &'a Gpu,
    size: Size,
    error: f64,
    worst: String,
    /// Of what was timed last.
    time: f64,
    work: Work,
}

impl Probe<'_> {
    /// Rows and columns: edge cases, a few at random (up to 64 rows of a multiple of 8), and then a model's.
    fn shapes(&self) -> Vec<(usize, usize)> {
        let random = (0..3).map(|i| block(11, 0, i)).map(|r| (1 + r[0] as usize % 64, 8 + 8 * (r[1] as usize % 80)));
        let mut shapes: Vec<_> = [(1, 8), (257, 104), (3, 896)].into_iter().chain(random).collect();
        if self.size == Size::Full {
            shapes.extend([(4099, 896), (4096, 2048)]);
        }
        shapes
    }

    /// Runs what is checked, once, and times it.
    fn time(&mut self, work: Work, call: impl FnMut() -> Result<()>) -> Result<()> {
        (self.time, self.work) = (self.gpu.timed(call)?, work);
        Ok(())
    }

    /// Every |got − want| ≤ relative · |want| + 1e-5.
    fn close<T: Real>(&mut self, what: &str, got: &Slice<T>, want: &[f32], relative: f32) -> Result<()> {
        let got = widen(&self.gpu.read(got)?);
        if got.len() != want.len() {
            self.note(f64::NAN, || format!("{what}: {} elements instead of {}", got.len(), want.len()));
        }
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let error = f64::from(g - w).abs() / f64::from(relative * w.abs() + FLOOR);
            self.note(error, || format!("{what}: element {i} is {g}, should be {w}"));
        }
        Ok(())
    }

    /// To the bit.
    fn equal<T: Real>(&mut self, what: &str, got: &Slice<T>, want: &[f32]) -> Result<()> {
        let got = widen(&self.gpu.read(got)?);
        let wrong = got.iter().zip(want).position(|(g, w)| g.to_bits() != w.to_bits());
        if let Some(i) = wrong {
            self.note(f64::INFINITY, || format!("{what}: element {i} is {}, should be {} exactly", got[i], want[i]));
        }
        Ok(())
    }

    fn note(&mut self, error: f64, of: impl FnOnce() -> String) {
        // A NaN is the worst of all, and stays.
        if error > self.error || error.is_nan() && !self.error.is_nan() {
            (self.error, self.worst) = (error, of());
        }
    }
}

/// Standard normal numbers.
fn randoms(seed: u64, n: usize) -> Vec<f32> {
    (0..n.div_ceil(4) as u64).flat_map(|i| normals(block(seed, 0, i))).take(n).collect()
}

/// The same as numbers that bf16 holds exactly: as the kernel reads them, and as the CPU's op does.
fn randoms_bf16(seed: u64, n: usize) -> (Vec<bf16>, Vec<f32>) {
    let narrow: Vec<bf16> = randoms(seed, n).into_iter().map(bf16::from_f32).collect();
    let wide = widen(&narrow);
    (narrow, wide)
}

fn widen<T: Real>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// Compares sums of `terms` products of standard normal numbers.
fn close_sums<T: Real>(p: &mut Probe, what: &str, got: &Slice<T>, want: &[f32], terms: usize) -> Result<()> {
    // Where a sum nearly cancels, the error of f32 stays that of its terms: scaled down, as all is compared to the same floor.
    let scale = 1.0 / (terms as f32).sqrt();
    let rounding = if T::NAME == "bf16" { BF16 } else { F32 };
    let (gpu, small) = (p.gpu, |x: &[f32]| -> Vec<f32> { x.iter().map(|x| x * scale).collect() });
    let got: Tensor<f32> = gpu.tensor(&small(&widen(&gpu.read(got)?)))?;
    p.close(what, &got, &small(want), rounding)
}
