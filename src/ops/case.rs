//! An op as it is checked and measured: one descriptor for the self-test, the benchmarks and the emulated device. Those of an op are
//! in `NAME/case.rs`, and [`super::CASES`] lists them.

use super::philox::{block, normals};
use crate::device::{Gpu, Real, Result, Slice, Tensor};
use half::bf16;
use std::cell::OnceCell;
use std::fmt;

/// A result that was computed in f32 and rounded to bf16 once: half of 2⁻⁷.
pub const BF16: f32 = 1.0 / 256.0;
/// A result in f32.
pub const F32: f32 = 1e-5;
/// The noise of f32 where terms of the size of 1 cancel.
const FLOOR: f32 = 1e-5;

/// What a call must do at least.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// Bytes that are read or written.
    Bytes(usize),
    /// Floating-point operations of tensor cores.
    Flops(f64),
}

/// What shapes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Ragged ones that an emulator gets through.
    Ragged,
    /// Those of a model, which a GPU is held to the CPU on.
    Model,
    /// Those of benches/peers/gpu_peers.py.
    Peers,
    /// What the CPU is timed on: where an op works on the calling thread, what the model gives to one task.
    Task,
}

/// One op, or one direction of it.
pub struct OpCase<S> {
    /// The stem of its files.
    pub op: &'static str,
    /// Which direction; empty where there is but one.
    pub pass: &'static str,
    /// The shapes to be compared, or to be timed.
    pub shapes: fn(Size) -> Vec<S>,
    /// Makes the inputs and hands the trial the CPU's call, the kernels' call, the work of each, and the results to compare.
    pub run: fn(&S, &mut Trial<'_>) -> Result<()>,
}

/// An [`OpCase`] of any shapes.
pub trait Case: Sync {
    /// The op's name, as its file has it.
    fn op(&self) -> &'static str;
    /// The direction: `forward`, `backward` or what the op calls it.
    fn pass(&self) -> &'static str;
    /// The case on each of its shapes.
    fn instances(&self, size: Size) -> Vec<Instance>;

    /// Op and pass.
    fn name(&self) -> String {
        format!("{} {}", self.op(), self.pass()).trim_end().into()
    }
}

/// Runs one size of a case.
type Run = dyn Fn(&mut Trial<'_>) -> Result<()>;

/// A case on one shape.
pub struct Instance {
    /// The shape as a table prints it.
    pub shape: String,
    run: Box<Run>,
}

impl<S: fmt::Display + 'static> Case for OpCase<S> {
    fn op(&self) -> &'static str {
        self.op
    }

    fn pass(&self) -> &'static str {
        self.pass
    }

    fn instances(&self, size: Size) -> Vec<Instance> {
        let run = self.run;
        let instance = |shape: S| Instance { shape: shape.to_string(), run: Box::new(move |trial| run(&shape, trial)) };
        (self.shapes)(size).into_iter().map(instance).collect()
    }
}

impl Instance {
    /// Holds the kernels to the CPU's op.
    ///
    /// # Errors
    /// The device's; results that are wrong are in the verdict.
    pub fn check(&self, gpu: &Gpu, clock: &mut dyn Clock, verdict: &mut Verdict) -> Result<()> {
        verdict.shape.clone_from(&self.shape);
        (self.run)(&mut Trial { gpu: Some(gpu), clock, verdict: Some(verdict) })
    }

    /// Times the kernels; without a GPU, the CPU's op.
    ///
    /// # Errors
    /// The device's.
    pub fn time(&self, gpu: Option<&Gpu>, clock: &mut dyn Clock) -> Result<()> {
        (self.run)(&mut Trial { gpu, clock, verdict: None })
    }
}

/// Times calls, as often as it likes.
pub trait Clock {
    /// Times `call`, the launches of kernels.
    ///
    /// # Errors
    /// If a launch fails.
    fn cuda(&mut self, gpu: &Gpu, work: Work, call: &mut dyn FnMut() -> Result<()>) -> Result<()>;

    /// Times `call` on the CPU.
    fn cpu(&mut self, _work: Work, call: &mut dyn FnMut()) {
        call();
    }

    /// Of a call that changes its input, of which each has its own copy.
    fn cpu_in_place(&mut self, _work: Work, input: &[f32], call: &mut dyn FnMut(&mut [f32])) {
        call(&mut input.to_vec());
    }
}

/// What comparisons found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The largest error, in units of what is allowed; NaN where a result is not a number.
    pub error: f64,
    /// What the largest error is of.
    pub worst: String,
    /// The shape compared.
    shape: String,
}

impl Verdict {
    fn note(&mut self, error: f64, of: impl FnOnce() -> String) {
        // A NaN is the worst of all, and stays.
        if error > self.error || error.is_nan() && !self.error.is_nan() {
            (self.error, self.worst) = (error, format!("{}: {}", self.shape, of()));
        }
    }
}

/// A run of a case on one shape. What it is for decides which device computes, how often, and whether results are compared.
pub struct Trial<'a> {
    /// Where the kernels run; `None`: the CPU's op is timed.
    pub gpu: Option<&'a Gpu>,
    clock: &'a mut dyn Clock,
    verdict: Option<&'a mut Verdict>,
}

impl Trial<'_> {
    /// Whether results are compared.
    pub fn compares(&self) -> bool {
        self.verdict.is_some()
    }

    /// The CPU's op.
    pub fn cpu(&mut self, work: Work, mut call: impl FnMut()) {
        match (&self.verdict, self.gpu) {
            (Some(_), _) => call(),
            (None, None) => self.clock.cpu(work, &mut call),
            (None, Some(_)) => {}
        }
    }

    /// The CPU's op where it changes its input; what becomes of it, where that is compared.
    pub fn cpu_in_place(&mut self, work: Work, input: &Bf16s, mut call: impl FnMut(&mut [f32])) -> Vec<f32> {
        let mut changed = Vec::new();
        match (&self.verdict, self.gpu) {
            (Some(_), _) => {
                changed = input.wide().to_vec();
                call(&mut changed);
            }
            (None, None) => self.clock.cpu_in_place(work, input.wide(), &mut call),
            (None, Some(_)) => {}
        }
        changed
    }

    /// What the CPU's op has to find before it.
    pub fn cpu_before(&self, call: impl FnOnce()) {
        if self.compares() || self.gpu.is_none() {
            call();
        }
    }

    /// The kernels' call: once where results are compared.
    ///
    /// # Errors
    /// If a launch fails.
    pub fn cuda(&mut self, gpu: &Gpu, work: Work, mut call: impl FnMut() -> Result<()>) -> Result<()> {
        self.clock.cuda(gpu, work, &mut call)
    }

    /// Notes an error in units of what is allowed.
    pub fn note(&mut self, error: f64, of: impl FnOnce() -> String) {
        if let Some(verdict) = &mut self.verdict {
            verdict.note(error, of);
        }
    }

    /// Every |got − want| ≤ relative · |want| + 1e-5.
    ///
    /// # Errors
    /// If `got` cannot be read from the device.
    pub fn close<T: Real>(&mut self, what: &str, got: &Slice<T>, want: &[f32], relative: f32) -> Result<()> {
        self.within(what, got, want, |w| relative * w.abs() + FLOOR)
    }

    /// Where what is summed was rounded to bf16, errors have the size of the terms, `unit`, not of the sum.
    ///
    /// # Errors
    /// If `got` cannot be read from the device.
    pub fn near<T: Real>(&mut self, what: &str, got: &Slice<T>, want: &[f32], unit: f32) -> Result<()> {
        self.within(what, got, want, |w| 2.0 * BF16 * (unit + w.abs()))
    }

    /// Sums of `terms` products of standard normal numbers: where one nearly cancels, the error of f32 stays that of its terms.
    ///
    /// # Errors
    /// If `got` cannot be read from the device.
    pub fn sums<T: Real>(&mut self, what: &str, got: &Slice<T>, want: &[f32], terms: usize) -> Result<()> {
        let (rounding, size) = (if T::NAME == "bf16" { BF16 } else { F32 }, (terms as f32).sqrt());
        self.within(what, got, want, |w| rounding * w.abs() + FLOOR * size)
    }

    fn within<T: Real>(
        &mut self,
        what: &str,
        got: &Slice<T>,
        want: &[f32],
        allowed: impl Fn(f32) -> f32,
    ) -> Result<()> {
        let Some(gpu) = self.gpu.filter(|_| self.compares()) else { return Ok(()) };
        let got = widen(&gpu.read(got)?);
        if got.len() != want.len() {
            self.note(f64::NAN, || format!("{what}: {} elements instead of {}", got.len(), want.len()));
        }
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            self.note(f64::from((g - w).abs() / allowed(*w)), || format!("{what}: element {i} is {g}, should be {w}"));
        }
        Ok(())
    }

    /// To the bit.
    ///
    /// # Errors
    /// If `got` cannot be read from the device.
    pub fn equal<T: Real>(&mut self, what: &str, got: &Slice<T>, want: &[f32]) -> Result<()> {
        let Some(gpu) = self.gpu.filter(|_| self.compares()) else { return Ok(()) };
        let got = widen(&gpu.read(got)?);
        if got.len() != want.len() {
            self.note(f64::NAN, || format!("{what}: {} elements instead of {}", got.len(), want.len()));
        }
        if let Some(i) = got.iter().zip(want).position(|(g, w)| g.to_bits() != w.to_bits()) {
            self.note(f64::INFINITY, || format!("{what}: element {i} is {}, should be {} exactly", got[i], want[i]));
        }
        Ok(())
    }
}

/// Standard normal numbers: a million different ones, repeated, as making more would take longer than using them.
pub fn randoms(seed: u64, n: usize) -> Vec<f32> {
    let some: Vec<f32> = (0..n.min(1 << 20).div_ceil(4) as u64).flat_map(|i| normals(block(seed, 0, i))).collect();
    some.into_iter().cycle().take(n).collect()
}

/// Numbers that bf16 holds exactly: as kernels read them, and as the CPU's op does.
pub struct Bf16s {
    narrow: Vec<bf16>,
    wide: OnceCell<Vec<f32>>,
}

impl Bf16s {
    /// `x`, rounded.
    pub fn of(x: &[f32]) -> Bf16s {
        Bf16s { narrow: x.iter().map(|x| bf16::from_f32(*x)).collect(), wide: OnceCell::new() }
    }

    /// Standard normal ones, rounded.
    pub fn randoms(seed: u64, n: usize) -> Bf16s {
        let some = Bf16s::of(&randoms(seed, n.min(1 << 20)));
        Bf16s { narrow: some.narrow.into_iter().cycle().take(n).collect(), ..some }
    }

    /// In f32; made at the first use, as what is timed on a GPU alone need not have it.
    pub fn wide(&self) -> &[f32] {
        self.wide.get_or_init(|| widen(&self.narrow))
    }

    /// On a GPU.
    ///
    /// # Errors
    /// If there is too little device memory.
    pub fn on(&self, gpu: &Gpu) -> Result<Tensor<bf16>> {
        gpu.tensor(&self.narrow)
    }
}

/// The values in f32.
pub fn widen<T: Real>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// Sizes, as 16384x2048.
pub struct Sizes<const N: usize>(pub [usize; N]);

impl<const N: usize> fmt::Display for Sizes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|n| n.to_string()).join("x"))
    }
}

/// Rows of a task of the CPU, those of the peers.
pub const TASK_ROWS: usize = crate::device::cpu::BLOCK;
/// Rows of the peers' benchmarks.
pub const PEERS_ROWS: usize = 16384;

/// Rows and columns; so many columns to a task of the CPU and to the peers. The ragged ones are edge cases and a few at random; 540
/// rows are more than a kernel has blocks that sum over rows.
pub fn matrices(size: Size, [task, peers]: [usize; 2]) -> Vec<Sizes<2>> {
    let random = |i: u64| {
        let r = block(11, 0, i);
        [1 + r[0] as usize % 64, 8 + 8 * (r[1] as usize % 80)]
    };
    let ragged = [[1, 8], [257, 104], [3, 896], [2, 2048], [540, 16]].into_iter().chain((0..4).map(random));
    let shapes = match size {
        Size::Ragged => ragged.collect(),
        Size::Model => vec![[4099, 896], [4096, 2048]],
        Size::Peers => vec![[PEERS_ROWS, peers]],
        Size::Task => vec![[TASK_ROWS, task]],
    };
    shapes.into_iter().map(Sizes).collect()
}

/// Columns for [`matrices`]: the hidden width of Qwen2.5-0.5B, that of the peers.
pub const HIDDEN: [usize; 2] = [896, 2048];
/// The same of the feed-forward layer.
pub const FFN: [usize; 2] = [4864, 11008];
