//! `uncouple counters`.

use super::{CountersArgs, output};
use crate::bench::counters::{self, Row};
use crate::report::results::fitted;
use anyhow::{Context, Result};
use std::process::ExitCode;

pub fn run(args: CountersArgs) -> Result<ExitCode> {
    let name = args.trace.display();
    let text = std::fs::read_to_string(&args.trace).with_context(|| format!("cannot read the trace {name}"))?;
    let found = counters::parse(&text).with_context(|| format!("{name}"))?;
    if args.json {
        output::print_json(&found)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&traffic(&found.rows))?;
    output::print(&work(&found.rows))?;
    let c = found.calls;
    output::print(&format!(
        "{} launches, {} products, {} graphs replayed, {} uploads, {} downloads, {} waits",
        c.launches, c.products, c.replays, c.uploads, c.downloads, c.waits
    ))?;
    output::print("counted on a software GPU; the bound is arithmetic, a floor for a GPU and no measurement of one")?;
    Ok(ExitCode::SUCCESS)
}

/// What moved.
fn traffic(rows: &[Row]) -> String {
    let headings = ["kernel", "launches", "read", "written", "copied", "compulsory"];
    let cells = |row: &Row| {
        let moved = [row.read, row.written, row.copied, row.compulsory].map(output::bytes);
        [row.kernel.clone(), row.launches.to_string()].into_iter().chain(moved)
    };
    fitted(&headings, rows.iter().map(cells), &[1, 2, 3, 4, 5])
}

/// How well, and how soon at best.
fn work(rows: &[Row]) -> String {
    let headings = [
        "kernel",
        "H100 bound µs",
        "sectors / ideal",
        "wavefronts / ideal",
        "matrix flops",
        "registers",
        "occupancy %",
    ];
    let or_none = |number: Option<String>| number.unwrap_or_else(|| "–".into());
    let cells = |row: &Row| {
        [
            row.kernel.clone(),
            format!("{:.3}", 1e6 * row.bound),
            format!("{:.2}", row.sectors),
            format!("{:.2}", row.wavefronts),
            row.flops.to_string(),
            or_none(row.registers.map(|n| n.to_string())),
            or_none(row.occupancy.map(|share| format!("{:.0}", 100.0 * share))),
        ]
    };
    fitted(&headings, rows.iter().map(cells), &[1, 2, 3, 4, 5, 6])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::assert_fits;

    #[test]
    fn its_tables_fit_eighty_columns() {
        let row = Row {
            kernel: "grouped_logprob_backward_hidden_hopper_bf16".into(),
            launches: 123_456,
            read: 1023 << 30,
            written: 1023 << 30,
            copied: 1023 << 30,
            compulsory: 1023 << 30,
            sectors: 12.345,
            wavefronts: 12.345,
            flops: 123_456_789_012,
            registers: Some(255),
            occupancy: Some(1.0),
            bound: 12.345678e-3,
        };
        assert_fits(&traffic(std::slice::from_ref(&row)), &["123456", "1023.0 GiB"]);
        assert_fits(&work(&[row]), &["12345.678", "123456789012"]);
    }
}
