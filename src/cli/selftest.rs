//! `uncouple selftest`: every kernel on this machine's GPU against the CPU.

use super::{DeviceArg, SelftestArgs, output};
use crate::device::{Gpu, cuda::Cuda};
use crate::selftest::{CHECKS, Outcome, Size};
use anyhow::{Context, Result, bail};
use std::process::ExitCode;

/// Of the GPU's memory: the checks need little, and others may be using it.
const ARENA: usize = 2 << 30;

pub fn run(args: SelftestArgs) -> Result<ExitCode> {
    if args.device == DeviceArg::Cpu {
        bail!("selftest compares a GPU with the CPU: use --device cuda");
    }
    let gpu = Gpu::new(Cuda::open(Some(ARENA)).context("selftest --device cuda")?);
    if !args.json {
        output::print(&gpu.describe())?;
    }
    let mut outcomes = Vec::new();
    for check in CHECKS {
        let outcome = check.run(&gpu, Size::Full).with_context(|| format!("selftest: {}", check.name))?;
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

/// The error as a share of what is allowed.
fn line(o: &Outcome) -> String {
    let verdict = if o.passed() { "ok" } else { "FAILED" };
    let why = if o.passed() { String::new() } else { format!("\n{:9}→ {}", "", o.worst) };
    format!("{verdict:8} {:22} error {:7.3} of 1 allowed {:10.1} µs{why}", o.name, o.error, 1e6 * o.seconds)
}
