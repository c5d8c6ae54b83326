//! Results on stdout: text for people, JSON for programs.

use crate::report::terminal;
use anyhow::{Context, Result};
use serde::Serialize;
use std::io::{self, ErrorKind, Write};

/// Prints a result and a line break. A reader that has gone away (`| head`) is no error.
pub fn print(text: &str) -> Result<()> {
    write(&terminal::lines(text))
}

fn write(text: &str) -> Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

/// Prints a value as JSON.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    write(&terminal::json(&serde_json::to_string_pretty(value)?))
}

/// Prints a value as JSON on one line.
pub fn print_json_line(value: &impl Serialize) -> Result<()> {
    write(&terminal::json(&serde_json::to_string(value)?))
}

/// Reads a size: a number, and perhaps a unit (`80GB`, `24 GiB`).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (text[..end].parse::<f64>(), text[end..].trim().to_ascii_lowercase());
    let scale = match unit.trim_end_matches('b') {
        "" => Some(1.0),
        "k" => Some(1e3),
        "m" => Some(1e6),
        "g" => Some(1e9),
        "t" => Some(1e12),
        "ki" => Some(f64::powi(1024.0, 1)),
        "mi" => Some(f64::powi(1024.0, 2)),
        "gi" => Some(f64::powi(1024.0, 3)),
        "ti" => Some(f64::powi(1024.0, 4)),
        _ => None,
    };
    match (number, scale) {
        (Ok(number), Some(scale)) if number > 0.0 => Ok((number * scale) as u64),
        _ => Err("it must be a size, such as 80GB or 24GiB".into()),
    }
}

/// Holds a table to 80 columns; no word of `whole` is broken to get there.
#[cfg(test)]
pub fn assert_fits(table: &str, whole: &[&str]) {
    let widest = table.lines().map(|line| line.chars().count()).max();
    assert!(widest.is_some_and(|widest| widest <= 80), "{widest:?} columns:\n{table}");
    whole.iter().for_each(|word| assert!(table.contains(word), "{word}:\n{table}"));
}

/// A number with so many decimals; nothing was measured where it is none.
pub fn decimals(number: f64, decimals: usize) -> String {
    if number.is_nan() { "–".into() } else { format!("{number:.decimals$}") }
}

/// A size for people, e.g. `13.9 MiB`.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (1..units.len()).rev().find(|&p| count >> (10 * p) > 0).unwrap_or(0);
    if power == 0 {
        format!("{count} B")
    } else {
        format!("{:.1} {}", count as f64 / f64::powi(1024.0, power as i32), units[power])
    }
}
