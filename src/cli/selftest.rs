//! `uncouple selftest`: every kernel on this machine's GPU against the CPU.

use super::{DeviceArg, SelftestArgs, output};
use crate::bench::ceilings::Ceilings;
use crate::device::{Gpu, cuda::Cuda};
use crate::selftest::{self, CaseOutcome};
use anyhow::{Context, Result, bail};
use std::process::ExitCode;

/// Of the GPU's memory: the checks need little, and others may be using it.
const ARENA: usize = 2 << 30;
/// The same with `--small`.
const SMALL_ARENA: usize = 256 << 20;

pub fn run(args: SelftestArgs) -> Result<ExitCode> {
    if args.device == DeviceArg::Cpu {
        bail!("selftest compares a GPU with the CPU: use --device cuda");
    }
    let arena = if args.small { SMALL_ARENA } else { ARENA };
    let gpu = Gpu::new(Cuda::open(Some(arena)).context("selftest --device cuda")?);
    if !args.json {
        output::print(&gpu.describe())?;
    }
    let ceilings = Ceilings::measure(&gpu, args.small).context("selftest")?;
    let mut outcomes = Vec::new();
    for case in selftest::checks() {
        let outcome = selftest::run(case, &gpu, !args.small, &ceilings);
        let outcome = outcome.with_context(|| format!("selftest: {}", case.name()))?;
        if !args.json {
            output::print(&line(&outcome))?;
        }
        outcomes.push(outcome);
    }
    let failed = outcomes.iter().filter(|o| !o.passed()).count();
    if args.json {
        output::print_json(&outcomes)?;
    } else if failed == 0 {
        output::print(&format!("all {} checks passed", outcomes.len()))?;
    } else {
        output::print(&format!("{failed} of {} checks FAILED: do not train on this GPU", outcomes.len()))?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The error as a share of what is allowed, the time and how much of it is needed at least.
fn line(o: &CaseOutcome) -> String {
    let verdict = if o.passed() { "ok" } else { "FAILED" };
    let why = if o.passed() { String::new() } else { format!("\n{:9}→ {}", "", o.worst) };
    let (time, share) = (output::decimals(1e6 * o.seconds, 1), output::decimals(100.0 * o.share, 0));
    format!("{verdict:8} {:22} error {:7.3} of 1 allowed {time:>10} µs {share:>4} % of the floor{why}", o.name, o.error)
}
