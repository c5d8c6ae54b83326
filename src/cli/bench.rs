//! `uncouple bench`.

use super::{BenchArg, BenchArgs, DeviceArg, output};
use crate::bench::ceilings::Ceilings;
use crate::bench::{self, Bench, BenchReport, decode, gcd, kernels, real, step};
use crate::device::{Dtype, Gpu, cuda::Cuda};
use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
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
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([report.name, "median ms", "its time / ours"]);
    table.add_row(["uncouple".into(), format!("{:.1}", 1e3 * report.seconds), "1.00".into()]);
    for peer in &report.peers {
        table.add_row([peer.name.clone(), format!("{:.1}", 1e3 * peer.seconds), format!("{:.2}", peer.ratio)]);
    }
    output::print(&table.to_string())?;
    if !report.growth.is_empty() {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
            "samples",
            "tokens of each",
            "ms",
            "slabs",
            "ghosts",
        ]);
        for g in &report.growth {
            let ms = format!("{:.1}", 1e3 * g.seconds);
            table.add_row([g.samples.to_string(), g.length.to_string(), ms, g.slab.to_string(), g.ghost.to_string()]);
        }
        output::print(&table.to_string())?;
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
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["work", "by", "ms", "tokens/s", "its time / ours"]);
    for row in &report.rows {
        let (ms, rate) = (|s: f64| format!("{:.1}", 1e3 * s), format!("{:.0}", row.tokens_per_second));
        table.add_row([row.work.clone(), "uncouple".into(), ms(row.seconds), rate, "1.00".into()]);
        for peer in &row.peers {
            let rate = format!("{:.0}", row.tokens_per_second / peer.ratio);
            table.add_row([String::new(), peer.name.clone(), ms(peer.seconds), rate, format!("{:.2}", peer.ratio)]);
        }
    }
    output::print(&table.to_string())?;
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
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
        "step",
        "actions x judgments",
        "rollout s",
        "judge s",
        "gradient s",
        "packed tokens",
        "added %",
    ]);
    let (rollout, seconds) = (format!("{:.2}", report.rollout_seconds), |s: f64| format!("{s:.2}"));
    table.add_row([
        "GRPO alone".into(),
        "".into(),
        rollout.clone(),
        "".into(),
        seconds(report.train_seconds),
        "".into(),
        "".into(),
    ]);
    for size in report.sizes {
        for (name, cost) in [("GCD, prompts shared", size.shared), ("GCD, unshared", size.unshared)] {
            table.add_row([
                name.into(),
                format!("{} x {}", size.pairs, size.judgments),
                rollout.clone(),
                seconds(cost.judge_seconds),
                seconds(cost.train_seconds),
                cost.unique_tokens.to_string(),
                format!("{:.1}", 100.0 * cost.added),
            ]);
        }
    }
    output::print(&table.to_string())?;
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
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["kernel", "median ms", "rate", "% of ceiling"]);
    for row in &report.rows {
        let rate = match (row.gbps, row.tflops) {
            (Some(gbps), _) => format!("{} GB/s", output::decimals(gbps, 0)),
            (_, Some(tflops)) => format!("{} TFLOP/s", output::decimals(tflops, 0)),
            _ => String::new(),
        };
        table.add_row([
            row.name.clone(),
            output::decimals(1e3 * row.seconds, 3),
            rate,
            output::decimals(100.0 * row.share, 0),
        ]);
    }
    output::print(&table.to_string())?;
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
    let mut table = Table::new();
    let header = ["step", "recompute", "ms", "forward", "head", "backward", "optimizer", "tokens/s", "MFU %"];
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(header);
    for row in &report.rows {
        let mut cells = vec![row.name.clone(), row.recompute.to_string()];
        cells.extend(
            [row.seconds, row.forward, row.head, row.backward, row.optimizer].map(|s| output::decimals(1e3 * s, 1)),
        );
        cells.extend([output::decimals(row.tokens_per_second, 0), output::decimals(100.0 * row.mfu, 1)]);
        table.add_row(cells);
    }
    output::print(&table.to_string())?;
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
    let mut table = Table::new();
    let header = ["decode", "seconds", "prompts ms", "step ms", "tokens/s", "% of the floor"];
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(header);
    for row in &report.rows {
        table.add_row([
            row.name.clone(),
            output::decimals(row.seconds, 3),
            output::decimals(1e3 * row.prefill, 1),
            output::decimals(1e3 * row.step, 3),
            output::decimals(row.tokens_per_second, 0),
            output::decimals(100.0 * row.share, 0),
        ]);
    }
    output::print(&table.to_string())?;
    print_device(&report.device, report.ceilings)
}
