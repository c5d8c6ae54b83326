//! `report.md`: the tables of a study for people.

use super::gate::{Gate, told};
use super::measures::Measure;
use super::plan::Study;
use super::probed::{Class, PairStratum};
use super::statistics::Interval;
use super::tables::{CouplingRow, Difference, Loops, StudyTables, Success, SumRow};
use crate::report::results::fitted;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Seeds below this number are too few for a bootstrap over them.
const FEW_SEEDS: usize = 5;

/// The report; `figures` are files beside it, with what they show.
pub fn markdown(study: &Study, tables: &StudyTables, figures: &[(String, String)]) -> String {
    let mut out = format!("# {}\n\n{}\n\n", tables.study, tables.question);
    out += &head(study, tables);
    let starts: BTreeSet<&str> = study.starts.iter().map(|start| &start.name[..]).collect();
    for start in starts {
        if !start.is_empty() {
            let _ = write!(out, "\n## Start: {start}\n");
        }
        let gates: Vec<&Gate> = tables.gates.iter().filter(|gate| gate.start == start).collect();
        gates.iter().for_each(|gate| out += &gate_section(gate));
        out += &table("Success", &SUCCESS, of(&tables.success, |s| s.start == start, success_cells));
        out += &table("Differences", &DIFFERENCES, of(&tables.differences, |d| d.start == start, difference_cells));
        out += &table(
            "Coupling at the end",
            &COUPLING,
            of(&tables.coupling, |c| c.start == start && shown(c), coupling_cells),
        );
        out += &table("Sums of gradients, |Σ g|² / Σ |g|²", &SUMS, of(&tables.sums, |s| s.start == start, sum_cells));
        out += &table("Loops in games won and lost", &LOOPS, of(&tables.loops, |l| l.start == start, loop_cells));
        out += &table(
            "Consistency, judgments, flawed actions, cost",
            &MEASURES,
            of(&tables.measures, |m| m.start == start, measure_cells),
        );
    }
    for (title, file) in figures {
        let _ = write!(out, "\n![{title}]({file})\n");
    }
    out
}

fn of<T, const N: usize>(rows: &[T], keep: impl Fn(&T) -> bool, cells: fn(&T) -> [String; N]) -> Vec<[String; N]> {
    rows.iter().filter(|row| keep(row)).map(cells).collect()
}

/// A titled table; nothing without rows.
fn table<const N: usize>(title: &str, headings: &[&str; N], rows: Vec<[String; N]>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let line = |cells: &[String]| {
        format!("| {} |\n", cells.iter().map(|c| c.replace('|', "\\|")).collect::<Vec<_>>().join(" | "))
    };
    let mut out = format!("\n### {title}\n\n{}|{}\n", line(&headings.map(String::from)), "---|".repeat(N));
    rows.iter().for_each(|row| out += &line(row));
    out
}

/// What the tables rest on.
fn head(study: &Study, tables: &StudyTables) -> String {
    let list = |seeds: &[u64]| seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let mut out = format!("{} of {} cells are finished, by {}. ", tables.finished, tables.planned, tables.program);
    let _ = writeln!(out, "Seeds: {}.", list(&tables.seeds));
    match (tables.tuned_on.is_empty(), tables.chosen.is_empty()) {
        (true, _) => out += "\nNothing was chosen on any seed.\n",
        (false, true) => {
            let _ = writeln!(out, "\nChosen on other seeds ({}).", list(&tables.tuned_on));
        }
        (false, false) => {
            let _ = writeln!(
                out,
                "\nChosen on other seeds ({}): {}.",
                list(&tables.tuned_on),
                tables.chosen.trim_end_matches('.')
            );
        }
    }
    if !tables.missing.is_empty() {
        let _ = writeln!(out, "\nWithout results: {}.", tables.missing.join(", "));
    }
    out += &notes(study.seeds.len());
    out
}

/// How the intervals come about, and what they leave out.
fn notes(seeds: usize) -> String {
    let mut out = String::from(
        "\n95 % intervals in brackets: bootstrap over seeds, then over games (of coupling: over samples), with 2000 resamples; where they \
         stand under \"Student\", by Student's t over seeds. Differences are of the same games of the same seed, or of the same samples. \
         All cells played the same evaluation games, and began from their seed's cold start.\n",
    );
    if seeds < FEW_SEEDS {
        let _ = writeln!(
            out,
            "\nWith {seeds} seeds the bootstrap cannot show how other seeds would differ: its intervals are too narrow. Student's are \
             not, and the seeds' own differences stand beside."
        );
    }
    out
}

fn gate_section(gate: &Gate) -> String {
    let cells = |stratum: PairStratum| {
        let cell = |class| gate.of(class, stratum).map_or("–".into(), |cosine| told(&cosine));
        [stratum.name().to_string(), cell(Class::Pp), cell(Class::Nn), cell(Class::Pn)]
    };
    let title = format!("What the methods begin with (seed {})", gate.seed);
    let mut out = table(&title, &["gradient cosine", "pp", "nn", "pn"], PairStratum::ALL.map(cells).to_vec());
    if out.is_empty() {
        let _ = write!(out, "\n### {title}\n");
    }
    out.push('\n');
    if let (Some(signed), Some(unsigned)) = (gate.signed, gate.unsigned) {
        let _ = writeln!(
            out,
            "- |Σ ±g|² / Σ |g|²: {signed:.2} signed, {unsigned:.2} unsigned, of {} samples",
            gate.samples
        );
    }
    gate.verdict.iter().for_each(|line| {
        let _ = writeln!(out, "- {line}");
    });
    out
}

const SUCCESS: [&str; 7] =
    ["split", "variant", "seeds × games", "cold start %", "final %", "final, no suggestions %", "change, points"];

fn success_cells(s: &Success) -> [String; 7] {
    let percent = |i: &Interval| scaled(i, 100.0, 1);
    let change = s.cold_start.map_or("–".into(), |cold| format!("{:+.1}", 100.0 * (s.last.value - cold.value)));
    [
        s.split.clone(),
        s.variant.clone(),
        format!("{} × {}", s.seeds, s.games),
        s.cold_start.as_ref().map_or("–".into(), percent),
        percent(&s.last),
        s.without_suggestions.as_ref().map_or("–".into(), percent),
        change,
    ]
}

const DIFFERENCES: [&str; 6] = ["split", "comparison", "points", "Student", "pairs", "by seed"];

fn difference_cells(d: &Difference) -> [String; 6] {
    let end = if d.suggestions { "" } else { ", no suggestions" };
    let seeds: Vec<String> = d.by_seed.iter().map(|(seed, x)| format!("{seed}: {:+.1}", 100.0 * x)).collect();
    [
        d.split.clone(),
        format!("{} − {}{end}", d.variant, d.against),
        signed(&d.difference, 100.0, 1),
        d.student.map_or("–".into(), |[low, high]| format!("[{:+.1}, {:+.1}]", 100.0 * low, 100.0 * high)),
        format!("{} of {} seeds", d.pairs, d.seeds),
        seeds.join(", "),
    ]
}

const COUPLING: [&str; 6] = ["pairs of samples", "class", "variant", "mean cosine", "difference", "pairs"];

/// Not every class of every stratum: what good and bad share, and within the classes.
fn shown(c: &CouplingRow) -> bool {
    c.class == Class::Pn || matches!(c.stratum, PairStratum::All | PairStratum::OtherState)
}

fn coupling_cells(c: &CouplingRow) -> [String; 6] {
    [
        c.stratum.name().into(),
        c.class.name().into(),
        c.variant.clone(),
        told(&c.cosine),
        c.difference.as_ref().map_or("–".into(), |d| signed(d, 1.0, 3)),
        format!("{} of {} seeds", c.pairs, c.seeds),
    ]
}

const SUMS: [&str; 4] = ["variant", "signed", "unsigned", "seeds"];

fn sum_cells(s: &SumRow) -> [String; 4] {
    let cell = |i: &Option<Interval>| i.as_ref().map_or("–".into(), |i| scaled(i, 1.0, 2));
    [s.variant.clone(), cell(&s.signed), cell(&s.unsigned), s.seeds.to_string()]
}

const LOOPS: [&str; 6] = ["split", "games", "variant", "turns in loops %", "repeated actions %", "episodes"];

fn loop_cells(l: &Loops) -> [String; 6] {
    [
        l.split.clone(),
        if l.won { "won" } else { "lost" }.into(),
        l.variant.clone(),
        scaled(&l.in_loops, 100.0, 1),
        scaled(&l.repeats, 100.0, 1),
        l.episodes.to_string(),
    ]
}

const MEASURES: [&str; 5] = ["measure", "variant", "mean over seeds", "Student", "difference"];

fn measure_cells(m: &Measure) -> [String; 5] {
    let decimals = if m.value.abs() >= 100.0 { 0 } else { 3 };
    [
        m.name.into(),
        m.variant.clone(),
        format!("{:.decimals$}", m.value),
        m.student.map_or("–".into(), |[low, high]| format!("[{low:.decimals$}, {high:.decimals$}]")),
        m.difference.as_ref().map_or("–".into(), |d| signed(d, 1.0, decimals)),
    ]
}

fn scaled(i: &Interval, scale: f64, decimals: usize) -> String {
    let ci =
        i.ci.map_or(String::new(), |[low, high]| format!(" [{:.decimals$}, {:.decimals$}]", scale * low, scale * high));
    format!("{:.decimals$}{ci}", scale * i.value)
}

fn signed(i: &Interval, scale: f64, decimals: usize) -> String {
    let ci = i
        .ci
        .map_or(String::new(), |[low, high]| format!(" [{:+.decimals$}, {:+.decimals$}]", scale * low, scale * high));
    format!("{:+.decimals$}{ci}", scale * i.value)
}

/// Success and differences for a terminal or a log.
pub fn in_short(tables: &StudyTables) -> String {
    let named = |start: &str, name: &str| if start.is_empty() { name.to_string() } else { format!("{start}, {name}") };
    let success = tables.success.iter().map(|s| {
        let [split, _, games, cold, last, ..] = success_cells(s);
        [split, named(&s.start, &s.variant), games, cold, last]
    });
    let mut out = fitted(&["split", "variant", "seeds × games", "cold start %", "final %"], success, &[2, 3, 4]);
    if !tables.differences.is_empty() {
        let rows = tables.differences.iter().map(|d| {
            let [split, what, points, student, pairs, _] = difference_cells(d);
            [split, named(&d.start, &what), points, student, pairs]
        });
        out += &format!("\n{}", fitted(&["split", "comparison", "points", "Student", "pairs"], rows, &[2, 3]));
    }
    out + &notes(tables.seeds.len()).replace("\n\n", "\n")
}
