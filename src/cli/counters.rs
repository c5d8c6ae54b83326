//! `uncouple counters`.

use super::{CountersArgs, output};
use crate::bench::counters::{self, CounterRow};
use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use std::process::ExitCode;

pub fn run(args: CountersArgs) -> Result<ExitCode> {
    let name = args.trace.display();
    let text = std::fs::read_to_string(&args.trace).with_context(|| format!("cannot read the trace {name}"))?;
    let found = counters::parse(&text).with_context(|| format!("{name}"))?;
    if args.json {
        output::print_json(&found)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
        "kernel",
        "launches",
        "read",
        "written",
        "copied",
        "compulsory",
        "sectors / ideal",
        "wavefronts / ideal",
        "matrix flops",
        "registers",
        "occupancy %",
        "H100 bound µs",
    ]);
    for row in &found.rows {
        table.add_row(cells(row));
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    output::print(&table.to_string())?;
    let c = found.calls;
    output::print(&format!(
        "{} launches, {} products, {} graphs replayed, {} uploads, {} downloads, {} waits",
        c.launches, c.products, c.replays, c.uploads, c.downloads, c.waits
    ))?;
    output::print("counted on a software GPU; the bound is arithmetic, a floor for a GPU and no measurement of one")?;
    Ok(ExitCode::SUCCESS)
}

fn cells(row: &CounterRow) -> [String; 12] {
    let or_none = |number: Option<String>| number.unwrap_or_else(|| "–".into());
    [
        row.kernel.clone(),
        row.launches.to_string(),
        output::bytes(row.read),
        output::bytes(row.written),
        output::bytes(row.copied),
        output::bytes(row.compulsory),
        format!("{:.2}", row.sectors),
        format!("{:.2}", row.wavefronts),
        row.flops.to_string(),
        or_none(row.registers.map(|n| n.to_string())),
        or_none(row.occupancy.map(|share| format!("{:.0}", 100.0 * share))),
        format!("{:.3}", 1e6 * row.bound),
    ]
}
