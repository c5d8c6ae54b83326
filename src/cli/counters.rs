//! `uncouple counters`.

use super::{CountersArgs, output};
use crate::bench::counters::{self, CounterRow};
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
    for table in [bounds, traffic, work] {
        output::print(&table(&found.rows))?;
    }
    let c = found.calls;
    output::print(&format!(
        "{} launches, {} products, {} graphs replayed, {} uploads, {} downloads, {} waits",
        c.launches, c.products, c.replays, c.uploads, c.downloads, c.waits
    ))?;
    output::print("counted on a software GPU; the bound is arithmetic, a floor for a GPU and no measurement of one")?;
    Ok(ExitCode::SUCCESS)
}

/// What is the least that the kernels can take, and what of a multiprocessor they fill.
fn bounds(rows: &[CounterRow]) -> String {
    let or_none = |number: Option<String>| number.unwrap_or_else(|| "–".into());
    let cells = |row: &CounterRow| {
        [
            row.kernel.clone(),
            row.launches.to_string(),
            format!("{:.3}", 1e6 * row.bound),
            or_none(row.occupancy.map(|share| format!("{:.0}", 100.0 * share))),
            or_none(row.registers.map(|n| n.to_string())),
        ]
    };
    let headings = ["kernel", "launches", "H100 bound µs", "occupancy %", "registers"];
    fitted(&headings, rows.iter().map(cells), &[1, 2, 3, 4])
}

/// What moved.
fn traffic(rows: &[CounterRow]) -> String {
    let cells = |row: &CounterRow| {
        let moved = [row.read, row.written, row.copied, row.compulsory].map(output::bytes);
        [row.kernel.clone()].into_iter().chain(moved)
    };
    fitted(&["kernel", "read", "written", "copied", "compulsory"], rows.iter().map(cells), &[1, 2, 3, 4])
}

/// How well it moved, and what was multiplied.
fn work(rows: &[CounterRow]) -> String {
    let cells = |row: &CounterRow| {
        let [sectors, wavefronts] = [row.sectors, row.wavefronts].map(|of| format!("{of:.2}"));
        [row.kernel.clone(), sectors, wavefronts, row.flops.to_string()]
    };
    fitted(&["kernel", "sectors / ideal", "wavefronts / ideal", "matrix flops"], rows.iter().map(cells), &[1, 2, 3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::assert_fits;

    #[test]
    fn its_tables_fit_eighty_columns() {
        let row = CounterRow {
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
        let rows = [row];
        assert_fits(&bounds(&rows), &["123456", "12345.678", "occupancy", "registers"]);
        assert_fits(&traffic(&rows), &["1023.0", "GiB", "compulsory"]);
        assert_fits(&work(&rows), &["wavefronts", "123456789012"]);
    }
}
