//! Every CUDA kernel against the CPU's ops: by `uncouple selftest` on a GPU, by the tests on the emulated device.

use crate::bench::ceilings::Ceilings;
use crate::device::{Dtype, Gpu, Result};
use crate::ops::case::{BF16, Bf16s, Case, Clock, OpCase, Size, Sizes, Trial, Verdict, Work, widen};
use crate::ops::linear::Weight;
use crate::ops::{CASES, linear, rmsnorm};
use half::bf16;

/// What a case found on all its shapes.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CaseOutcome {
    /// Op and direction.
    pub name: String,
    /// The largest error, in units of what is allowed; NaN where a result is not a number.
    pub error: f64,
    /// The device's time for the last shape; not a number where it is simulated.
    pub seconds: f64,
    /// Of that time: what its bytes or flops take at the device's measured ceilings.
    pub share: f64,
    /// What the largest error is of.
    pub worst: String,
}

impl CaseOutcome {
    /// Whether every result is within its tolerance.
    pub fn passed(&self) -> bool {
        self.error <= 1.0
    }
}

/// Every op's cases that there are ragged shapes of, and the device's graphs.
pub fn checks() -> impl Iterator<Item = &'static dyn Case> {
    let ops = CASES.iter().flat_map(|cases| cases.iter().copied());
    ops.filter(|case| !case.instances(Size::Ragged).is_empty()).chain([&GRAPH as &dyn Case])
}

/// Runs a case on ragged shapes, and with `model` on a model's, too.
///
/// # Errors
/// The device's; results that are wrong are an outcome.
pub fn run(case: &dyn Case, gpu: &Gpu, model: bool, ceilings: &Ceilings) -> Result<CaseOutcome> {
    let (mut verdict, mut clock) = (Verdict::default(), Once { seconds: f64::NAN, work: Work::Bytes(0) });
    let mut instances = case.instances(Size::Ragged);
    instances.extend(if model { case.instances(Size::Model) } else { Vec::new() });
    instances.iter().try_for_each(|instance| instance.check(gpu, &mut clock, &mut verdict))?;
    gpu.synchronize()?;
    let Verdict { error, worst, .. } = verdict;
    let (seconds, share) = (clock.seconds, ceilings.floor(clock.work) / clock.seconds);
    Ok(CaseOutcome { name: case.name(), error, seconds, share, worst })
}

/// Times the one call that results are compared of.
struct Once {
    seconds: f64,
    work: Work,
}

impl Clock for Once {
    fn cuda(&mut self, gpu: &Gpu, work: Work, call: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        (self.seconds, self.work) = (gpu.timed(call)?, work);
        Ok(())
    }
}

const GRAPH: OpCase<Sizes<2>> = OpCase { op: "device", pass: "graph", shapes: graph_shapes, run: graph_replay };

fn graph_shapes(size: Size) -> Vec<Sizes<2>> {
    if size == Size::Ragged { vec![Sizes([5, 64])] } else { Vec::new() }
}

/// A norm and a product, captured once and replayed with other inputs.
fn graph_replay(Sizes([rows, hidden]): &Sizes<2>, t: &mut Trial<'_>) -> Result<()> {
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (eps, n, weights) = (1e-6, rows * hidden, [Bf16s::randoms(1, *hidden), Bf16s::randoms(2, hidden * hidden)]);
    let (w, matrix, x) = (weights[0].on(gpu)?, weights[1].on(gpu)?, gpu.zeros::<bf16>(n)?);
    let (h, y, rstd) = (gpu.zeros::<bf16>(n)?, gpu.zeros::<f32>(n)?, gpu.zeros::<f32>(*rows)?);
    let graph = gpu.capture(|| {
        rmsnorm::cuda::forward(gpu, &x, &w, eps, &h, &rstd)?;
        linear::cuda::forward(gpu, &h, &matrix, None, *hidden, &y)
    })?;
    for seed in [3, 4] {
        let (input, mut normed) = (Bf16s::randoms(seed, n), vec![0.0; n]);
        gpu.copy(&*input.on(gpu)?, &x)?;
        t.cuda(gpu, Work::Flops(2.0 * (n * hidden) as f64), || graph.replay())?;
        rmsnorm::forward(input.wide(), weights[0].wide(), eps, &mut normed, &mut vec![0.0; *rows]);
        t.close("the norm", &h, &normed, BF16)?;
        let (normed, mut want) = (widen(&gpu.read(&h)?), vec![0.0; n]);
        linear::forward(&normed, Weight::new(Dtype::F32, weights[1].wide(), *hidden), None, &mut want);
        t.sums("the product", &y, &want, *hidden)?;
    }
    Ok(())
}
