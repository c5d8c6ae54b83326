//! Speed of the CUDA kernels on the shapes of benches/peers/gpu_peers.py, beside what the device was seen to do at most.

use super::ceilings::{Ceilings, Flush, median};
use crate::device::{Gpu, Result};
use crate::ops::CASES;
use crate::ops::case::{Clock, Size, Work};
use serde::Serialize;

/// One case on one shape, named as the peers name theirs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelRow {
    /// Op, direction and shape.
    pub name: String,
    /// Median of the calls.
    pub seconds: f64,
    /// Achieved bandwidth, in GB/s, where bytes bound the case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gbps: Option<f64>,
    /// Achieved rate, in TFLOP/s, where arithmetic bounds the case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tflops: Option<f64>,
    /// Of the ceiling that bounds it.
    pub share: f64,
}

/// The speed of every case on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelReport {
    /// The device as it describes itself.
    pub device: String,
    /// What the device can do at most.
    pub ceilings: Ceilings,
    /// One row for each case and shape.
    pub rows: Vec<KernelRow>,
}

/// Measures the ceilings, then every case on the peers' shapes; with `small` each on one that a simulated device gets through.
///
/// # Errors
/// The device's.
pub fn run(gpu: &Gpu, small: bool) -> Result<KernelReport> {
    let ceilings = Ceilings::measure(gpu, small)?;
    let mut clock = KernelClock { name: String::new(), ceilings, flush: Flush::new(gpu, small)?, rows: Vec::new() };
    for case in CASES.iter().flat_map(|cases| cases.iter()) {
        let mut instances = case.instances(Size::Peers);
        if small && !instances.is_empty() {
            instances = case.instances(Size::Ragged).into_iter().take(1).collect();
        }
        for instance in instances {
            clock.name = format!("{} {} {}", case.op(), instance.shape, case.pass()).trim_end().into();
            instance.time(Some(gpu), &mut clock)?;
        }
    }
    Ok(KernelReport { device: gpu.describe(), ceilings, rows: clock.rows })
}

/// Makes a row of each call.
struct KernelClock {
    /// The next row's.
    name: String,
    ceilings: Ceilings,
    flush: Flush,
    rows: Vec<KernelRow>,
}

impl Clock for KernelClock {
    fn cuda(&mut self, gpu: &Gpu, work: Work, call: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let seconds = median(gpu, &self.flush, call)?;
        let (gbps, tflops) = match work {
            Work::Bytes(n) => (Some(n as f64 / seconds / 1e9), None),
            Work::Flops(n) => (None, Some(n / seconds / 1e12)),
        };
        let (name, share) = (self.name.clone(), self.ceilings.floor(work) / seconds);
        self.rows.push(KernelRow { name, seconds, gbps, tflops, share });
        Ok(())
    }
}
