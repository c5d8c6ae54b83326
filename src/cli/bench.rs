//! `uncouple bench`.

mod tables;

use super::{BenchArg, BenchArgs, DeviceArg, output};
use crate::bench::ceilings::Ceilings;
use crate::bench::{self, Bench, BenchReport, decode, gcd, kernels, real, step};
use crate::device::{Dtype, Gpu, cuda::Cuda};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::ExitCode;

pub fn run(args: BenchArgs) -> Result<ExitCode> {
    let what = match (args.what, args.device) {
        (BenchArg::Kernels | BenchArg::Step | BenchArg::Decode | BenchArg::Gcd | BenchArg::GrpoStep, _)
            if args.model.is_some() =>
        {
            bail!("--model is for bench train-step, generate, prefill and gradient-cosine: leave it out")
        }
        (BenchArg::Kernels | BenchArg::Step | BenchArg::Decode, DeviceArg::Cpu) => {
            bail!("bench kernels, step and decode measure a GPU: use --device cuda")
        }
        (BenchArg::Kernels, DeviceArg::Cuda) => return run_kernels(&args),
        (BenchArg::Step, DeviceArg::Cuda) => return run_step(&args),
        (BenchArg::Decode, DeviceArg::Cuda) => return run_decode(&args),
        (_, DeviceArg::Cuda) => bail!("this benchmark runs on the CPU: leave --device out, or measure `bench kernels`"),
        (BenchArg::Gcd, _) if args.peer => bail!("bench gcd has no peer: leave --peer out"),
        (BenchArg::Gcd, _) => return run_gcd(args.json),
        (BenchArg::TrainStep, _) => Bench::TrainStep,
        (BenchArg::Generate, _) => Bench::Generate,
        (BenchArg::GrpoStep, _) => Bench::GrpoStep,
        (BenchArg::GradientCosine, _) => Bench::GradientCosine,
        (BenchArg::Prefill, _) => Bench::Prefill,
    };
    if let Some(dir) = &args.model {
        return run_real(what, dir, &args);
    }
    let report = bench::run(what, args.peer.then_some(&*args.python))?;
    if args.json {
        output::print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    print_report(&report)
}

fn print_report(report: &BenchReport) -> Result<ExitCode> {
    output::print(&tables::report(report))?;
    if !report.growth.is_empty() {
        output::print(&tables::growth(&report.growth))?;
    }
    output::print(&format!(
        "{:.0} tokens/s; {:.0} % of the {:.0} GFLOP/s that matrix products alone reach here",
        report.tokens_per_second,
        100.0 * report.gemm_share,
        report.gemm_gflops
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn run_real(what: Bench, dir: &Path, args: &BenchArgs) -> Result<ExitCode> {
    let report = real::run(what, dir, args.dtype.into(), args.peer.then_some(&*args.python))?;
    if args.json {
        output::print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&tables::real(&report.rows))?;
    if report.dtype == Dtype::Bf16 {
        output::print(&format!("products in bf16 by {}", report.unit))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_gcd(json: bool) -> Result<ExitCode> {
    let report = gcd::run().context("bench gcd")?;
    if json {
        output::print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&tables::gcd(&report))?;
    output::print(&format!("sums over {} iterations", report.iterations))?;
    Ok(ExitCode::SUCCESS)
}

fn run_kernels(args: &BenchArgs) -> Result<ExitCode> {
    let gpu = Gpu::new(Cuda::open(None).context("bench kernels --device cuda")?);
    let report = kernels::run(&gpu, args.small).context("bench kernels")?;
    if args.json {
        output::print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&tables::kernels(&report.rows))?;
    print_device(&report.device, report.ceilings)
}

/// What every benchmark of a GPU ends with.
fn print_device(device: &str, c: Ceilings) -> Result<ExitCode> {
    let (copy, products) = (output::decimals(c.copy_gbps, 0), output::decimals(c.matmul_tflops, 0));
    let measured = format!("copy {copy} GB/s, bf16 products {products} TFLOP/s");
    output::print(&format!("{device}; its ceilings as measured: {measured}"))?;
    Ok(ExitCode::SUCCESS)
}

fn run_step(args: &BenchArgs) -> Result<ExitCode> {
    let gpu = Gpu::new(Cuda::open(None).context("bench step --device cuda")?);
    let ceilings = Ceilings::measure(&gpu, args.small).context("bench step")?;
    let settings = if args.small { step::StepSettings::small() } else { step::StepSettings::full() };
    let report = step::run(&gpu, ceilings, &settings).context("bench step")?;
    if args.json {
        output::print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&tables::step(&report.rows))?;
    report.left_out.iter().try_for_each(|line| output::print(line))?;
    print_device(&report.device, report.ceilings)
}

fn run_decode(args: &BenchArgs) -> Result<ExitCode> {
    let gpu = Gpu::new(Cuda::open(None).context("bench decode --device cuda")?);
    let ceilings = Ceilings::measure(&gpu, args.small).context("bench decode")?;
    let settings = if args.small { decode::DecodeSettings::small() } else { decode::DecodeSettings::full() };
    let report = decode::run(&gpu, ceilings, &settings).context("bench decode")?;
    if args.json {
        output::print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&tables::decode(&report.rows))?;
    print_device(&report.device, report.ceilings)
}
