//! `uncouple selftest`: every kernel on this machine's GPU against the CPU.

use super::{DeviceArg, SelftestArgs, output};
use crate::bench::ceilings::Ceilings;
use crate::device::{Gpu, cuda::Cuda};
use crate::selftest::{CHECKS, Outcome, Size};
use anyhow::{Context, Result, bail};
use std::process::ExitCode;

/// Of the GPU's memory: the checks need little, and others may be using it.
const ARENA: usize = 2 << 30;
/// Bytes copied, and the side of the product, for the ceilings.
const COPIED: usize = 512 << 20;
const SQUARE: usize = 8192;
/// The same with `--small`.
const SMALL_ARENA: usize = 256 << 20;
const SMALL_COPIED: usize = 1 << 20;
const SMALL_SQUARE: usize = 64;

pub fn run(args: SelftestArgs) -> Result<ExitCode> {
    if args.device == DeviceArg::Cpu {
        bail!("selftest compares a GPU with the CPU: use --device cuda");
    }
    let (size, arena, copied, square) = match args.small {
        true => (Size::Small, SMALL_ARENA, SMALL_COPIED, SMALL_SQUARE),
        false => (Size::Full, ARENA, COPIED, SQUARE),
    };
    let gpu = Gpu::new(Cuda::open(Some(arena)).context("selftest --device cuda")?);
    if !args.json {
        output::print(&gpu.describe())?;
    }
    let ceilings = Ceilings::measure(&gpu, copied, square).context("selftest")?;
    let mut outcomes = Vec::new();
    for check in CHECKS {
        let outcome = check.run(&gpu, size, &ceilings).with_context(|| format!("selftest: {}", check.name))?;
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
fn line(o: &Outcome) -> String {
    let verdict = if o.passed() { "ok" } else { "FAILED" };
    let why = if o.passed() { String::new() } else { format!("\n{:9}→ {}", "", o.worst) };
    let (time, share) = (output::decimals(1e6 * o.seconds, 1), output::decimals(100.0 * o.share, 0));
    format!("{verdict:8} {:22} error {:7.3} of 1 allowed {time:>10} µs {share:>4} % of the floor{why}", o.name, o.error)
}
