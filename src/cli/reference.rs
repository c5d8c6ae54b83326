//! `uncouple reference`: golden sets, for authors of other backends and for our own proof.

use super::{DeviceArg, output};
use crate::reference::{self, CheckReport};
use crate::report::progress::say;
use clap::Subcommand;
use comfy_table::{CellAlignment, Table, presets};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(crate) enum ReferenceCommand {
    /// Compute everything a golden set holds from its inputs, and write it in the set's own layout.
    Replay {
        /// The golden set: a folder with models/, golden/ and tokenizer_golden.json.
        #[arg(long, value_name = "DIR")]
        set: PathBuf,
        /// One of the set's models.
        #[arg(long, value_name = "NAME")]
        model: String,
        /// Where NAME/ and tokenizer_golden.json are written.
        #[arg(long, value_name = "OUT")]
        out: PathBuf,
        /// On cuda: log-probs, losses, gradients and steps.
        #[arg(long, value_enum, default_value_t)]
        device: DeviceArg,
    },
    /// Replay every model of a golden set and judge each quantity against the set's noise floor.
    Check {
        /// The golden set.
        #[arg(long, value_name = "DIR")]
        set: PathBuf,
        /// Print the rows as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Exit status: 0 when all went well and, for a check, every quantity passed.
pub(crate) fn run(command: ReferenceCommand) -> anyhow::Result<ExitCode> {
    match command {
        ReferenceCommand::Replay { set, model, out, device } => {
            reference::replay(&set, &model, &out, device.open()?.as_ref())?;
            say(&format!("wrote {}", out.join(&model).display()));
            Ok(ExitCode::SUCCESS)
        }
        ReferenceCommand::Check { set, json } => {
            let report = reference::check(&set)?;
            if json {
                output::print_json(&report)?;
            } else {
                output::print(&table(&report).to_string())?;
                let failed = report.rows.iter().filter(|(_, row)| !row.pass).count();
                output::print(&format!("{} of {} quantities pass", report.rows.len() - failed, report.rows.len()))?;
            }
            Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// One aligned line per quantity.
pub fn table(report: &CheckReport) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["model", "quantity", "measure", "error", "noise floor", "ratio", ""]);
    for (model, row) in &report.rows {
        let verdict = if row.pass { "pass" } else { "FAIL" };
        table.add_row([
            model.clone(),
            row.quantity.clone(),
            row.measure.to_string(),
            format!("{:.2e}", row.error),
            format!("{:.2e}", row.floor),
            format!("{:.2}", row.ratio),
            verdict.to_string(),
        ]);
    }
    for column in 3..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
