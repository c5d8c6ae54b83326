//! `uncouple theory`.

use super::{TheoryArgs, output};
use crate::files;
use crate::gcd::theory;
use crate::report::plot::{self, Dot};
use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use std::process::ExitCode;

/// Points of the curve, less one.
const STEPS: u32 = 20;

pub fn run(args: TheoryArgs) -> Result<ExitCode> {
    ensure!(args.risk > 0.0 && args.risk <= 1.0, "--risk {}: must be above 0 and at most 1", args.risk);
    let points = theory::curve(args.risk, STEPS, args.seed);
    if let Some(file) = &args.svg {
        let line: Vec<_> = points.iter().map(|p| (p.q, p.expected)).collect();
        let dot = |p: &theory::TheoryPoint| Dot { x: p.q, y: p.simulated, interval: None };
        let dots: Vec<_> = points.iter().map(dot).collect();
        let axes = ["probability q", "expected advantage (return)"];
        let svg = plot::curve_with(&line, &dots, axes).context("the curve cannot be drawn")?;
        files::write_file(file, |w| w.write_all(svg.as_bytes()))?;
    }
    if args.json {
        output::print_json(&points)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["q", "q r (q - 1)", "simulated", "standard error"]);
    for p in &points {
        let number = |x: f64| format!("{x:.4}");
        table.add_row([format!("{:.2}", p.q), number(p.expected), number(p.simulated), number(p.error)]);
    }
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    output::print(&table.to_string())?;
    output::print(&format!(
        "expected advantage of a flawed action of probability q that costs risk r = {}",
        args.risk
    ))?;
    Ok(ExitCode::SUCCESS)
}
