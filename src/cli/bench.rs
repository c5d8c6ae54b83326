//! `uncouple bench`.

use super::{BenchArg, BenchArgs, output};
use crate::bench::{self, Bench};
use anyhow::Result;
use comfy_table::{Table, presets};
use std::process::ExitCode;

pub fn run(args: BenchArgs) -> Result<ExitCode> {
    let what = match args.what {
        BenchArg::TrainStep => Bench::TrainStep,
        BenchArg::Generate => Bench::Generate,
        BenchArg::GrpoStep => Bench::GrpoStep,
    };
    let report = bench::run(what, args.peer.then_some(&*args.python))?;
    if args.json {
        output::print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([report.name, "median ms", "its time / ours"]);
    table.add_row(["uncouple".into(), format!("{:.1}", 1e3 * report.seconds), "1.00".into()]);
    for peer in &report.peers {
        table.add_row([peer.name.clone(), format!("{:.1}", 1e3 * peer.seconds), format!("{:.2}", peer.ratio)]);
    }
    output::print(&table.to_string())?;
    output::print(&format!(
        "{:.0} tokens/s; {:.0} % of the {:.0} GFLOP/s that matrix products alone reach here",
        report.tokens_per_second,
        100.0 * report.gemm_share,
        report.gemm_gflops
    ))?;
    Ok(ExitCode::SUCCESS)
}
