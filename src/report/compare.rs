//! Runs side by side: a table for the terminal, and a page with their curves one over another.

use super::metrics::Record;
use super::page::figure::{Figure, FigureLine};
use super::page::{PageError, html};
use super::results::{SplitSummary, Summary, fitted, percent_of};
use super::stats;
use minijinja::context;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// One of the runs.
pub struct Compared {
    pub name: String,
    pub summary: Summary,
    pub finished: bool,
    pub records: Vec<Record>,
    /// What its configuration has otherwise than the first run's: `key: value → value`.
    pub changes: Vec<String>,
    /// Runs with the same number differ by their seeds only.
    pub method: usize,
}

/// A result of a split beside the first run's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunLine {
    pub split: String,
    pub run: String,
    pub cold_start: Option<f64>,
    pub success: f64,
    pub ci: [f64; 2],
    /// Less the first run's, with its 95 % interval.
    pub difference: Option<(f64, [f64; 2])>,
}

/// Mean success over the seeds of one method.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seeds {
    pub split: String,
    /// The first of its runs.
    pub like: String,
    pub runs: usize,
    pub mean: f64,
    pub ci: [f64; 2],
}

/// The last result of each run and split; a run that has not ended has none.
pub fn lines(runs: &[Compared]) -> Vec<RunLine> {
    let splits: BTreeSet<&String> = runs.iter().flat_map(|run| run.summary.eval.last.keys()).collect();
    let first = |split: &String| runs.first()?.summary.eval.last.get(split);
    let line = |split: &String, (i, run): (usize, &Compared)| {
        let of = run.summary.eval.last.get(split)?;
        Some(RunLine {
            split: split.clone(),
            run: run.name.clone(),
            cold_start: run.summary.eval.cold_start.get(split).map(|s| s.success),
            success: of.success,
            ci: of.ci,
            difference: first(split).filter(|_| i > 0).map(|first| difference(of, first)),
        })
    };
    splits.iter().flat_map(|split| runs.iter().enumerate().filter_map(move |run| line(split, run))).collect()
}

/// Difference of two shares with its 95 % interval (Newcombe's, from the two Wilson intervals).
fn difference(a: &SplitSummary, b: &SplitSummary) -> (f64, [f64; 2]) {
    let value = a.success - b.success;
    let half = |x: f64, y: f64| (x * x + y * y).sqrt();
    let low = value - half(a.success - a.ci[0], b.ci[1] - b.success);
    let high = value + half(a.ci[1] - a.success, b.success - b.ci[0]);
    (value, [low, high])
}

/// Methods of which there are several seeds.
pub fn seeds(runs: &[Compared]) -> Vec<Seeds> {
    let methods: BTreeSet<usize> = runs.iter().map(|run| run.method).collect();
    let splits: BTreeSet<&String> = runs.iter().flat_map(|run| run.summary.eval.last.keys()).collect();
    let of = |split: &String, method: usize| {
        let members = || runs.iter().filter(move |run| run.method == method);
        let shares: Vec<f64> = members().filter_map(|run| Some(run.summary.eval.last.get(split)?.success)).collect();
        let like = members().next()?.name.clone();
        let (mean, ci) = (stats::mean(&shares), stats::student(&shares)?.map(|end| end.clamp(0.0, 1.0)));
        Some(Seeds { split: split.clone(), like, runs: shares.len(), mean, ci })
    };
    splits.iter().flat_map(|split| methods.iter().filter_map(move |method| of(split, *method))).collect()
}

const HEADINGS: [&str; 5] = ["split", "run", "cold %", "final %", "less the first, points"];
const SEEDS: [&str; 4] = ["split", "runs like", "seeds", "mean final %"];

/// What the tables do not say, sentence by sentence.
pub fn notes(runs: &[Compared]) -> Vec<String> {
    let mut notes = vec![
        "95 % intervals: Wilson for success, Newcombe for differences of two runs, Student for means over seeds."
            .to_string(),
        "Intervals of single runs cover games and sampling, not how runs of other seeds differ.".into(),
    ];
    let open = runs.iter().filter(|run| !run.finished).map(|run| &run.name[..]).collect::<Vec<_>>();
    if !open.is_empty() {
        notes.push(format!("Not finished, and so without results: {}.", open.join(", ")));
    }
    let panels = |run: &Compared| run.summary.provenance.as_ref().map(|p| p.games.panels.clone());
    if runs.windows(2).any(|pair| panels(&pair[0]) != panels(&pair[1])) {
        notes.push("The runs were not evaluated on the same games (their panels' hashes differ).".into());
    }
    let other = runs.iter().filter(|run| !run.changes.is_empty());
    notes.extend(other.map(|run| format!("{} differs from {}: {}", run.name, runs[0].name, run.changes.join("; "))));
    notes
}

fn line_cells(line: &RunLine) -> [String; 5] {
    let points = |x: f64| format!("{:+.1}", 100.0 * x);
    let difference =
        |(value, [low, high]): (f64, [f64; 2])| format!("{} [{}, {}]", points(value), points(low), points(high));
    [
        line.split.clone(),
        line.run.clone(),
        line.cold_start.map_or("–".into(), |share| format!("{:.1}", 100.0 * share)),
        percent_of(line.success, line.ci),
        line.difference.map_or("–".into(), difference),
    ]
}

fn seed_cells(seeds: &Seeds) -> [String; 4] {
    [seeds.split.clone(), seeds.like.clone(), seeds.runs.to_string(), percent_of(seeds.mean, seeds.ci)]
}

/// The comparison for a terminal or a log.
pub fn table(runs: &[Compared]) -> String {
    let mut text = fitted(&HEADINGS, lines(runs).iter().map(line_cells), &[2, 3, 4]);
    let seeds = seeds(runs);
    if !seeds.is_empty() {
        text += &format!("\n{}", fitted(&SEEDS, seeds.iter().map(seed_cells), &[2, 3]));
    }
    notes(runs).iter().for_each(|note| text += &format!("\n{note}"));
    text
}

#[derive(Serialize)]
struct Data {
    figures: Vec<Figure>,
}

/// Curves that runs are compared by: phase, metric, title, y axis, and whether it is measured now and then.
const CURVES: [(&str, &str, &str, &str, bool); 15] = [
    ("eval", "L0/success", "Success, L0", "share of games won", true),
    ("eval", "L1/success", "Success, L1", "share of games won", true),
    ("eval", "L2/success", "Success, L2", "share of games won", true),
    ("grpo", "success", "Success in training", "share of episodes", false),
    ("grpo", "reward", "Return in training", "return", false),
    ("grpo", "episode_length", "Episode length", "turns", false),
    ("grpo", "loop_rate", "Turns in loops, training", "share of turns", false),
    ("eval", "L1/loop_rate", "Turns in loops, L1", "share of turns", true),
    ("grpo", "gcd/accuracy", "Judgments right, training", "share of judgments", false),
    ("eval", "judgment_accuracy", "Judgments right, held-out actions", "share of judgments", true),
    ("grpo", "coupling/pn", "Gradient cosine, pn", "mean cosine", true),
    ("grpo", "coupling/pp", "Gradient cosine, pp", "mean cosine", true),
    ("grpo", "entropy", "Entropy", "nats", false),
    ("grpo", "grad_norm", "Gradient norm", "norm before clipping", false),
    ("sft", "loss", "Cold-start loss", "nats a token", false),
];

fn overlay(runs: &[Compared], (phase, metric, title, y, points): (&str, &str, &str, &str, bool)) -> Option<Figure> {
    let values = |run: &Compared| -> BTreeMap<u64, f64> {
        let of = run.records.iter().filter(|record| record.phase == phase);
        of.filter_map(|record| Some((record.step, *record.values.get(metric)?))).collect()
    };
    let all: Vec<BTreeMap<u64, f64>> = runs.iter().map(values).collect();
    let steps: BTreeSet<u64> = all.iter().flat_map(BTreeMap::keys).copied().collect();
    let split = metric.strip_suffix("/success");
    let line = |(run, values): (&Compared, &BTreeMap<u64, f64>)| FigureLine {
        name: run.name.clone(),
        values: steps.iter().map(|step| values.get(step).copied()).collect(),
        interval: split.map(|split| steps.iter().map(|step| wilson(run, split, *values.get(step)?)).collect()),
        ..FigureLine::default()
    };
    (!steps.is_empty()).then(|| Figure {
        title: title.into(),
        range: y.starts_with("share").then_some([0.0, 1.0]),
        x: if phase == "sft" { "optimizer step" } else { "iteration" }.into(),
        y: y.into(),
        at: steps.iter().map(|step| *step as f64).collect(),
        lines: runs.iter().zip(&all).map(line).filter(FigureLine::is_filled).collect(),
        points,
        ..Figure::default()
    })
}

/// The interval of a success rate: every evaluation of a run plays as many games as its first.
fn wilson(run: &Compared, split: &str, share: f64) -> Option<[f64; 2]> {
    let games = run.summary.eval.cold_start.get(split)?.games;
    Some(stats::wilson((share * games as f64).round() as u64, games))
}

/// The comparison as a page.
pub fn page(runs: &[Compared]) -> Result<String, PageError> {
    let data = Data { figures: CURVES.iter().filter_map(|curve| overlay(runs, *curve)).collect() };
    let words = context! {
        name => runs.iter().map(|run| &run.name[..]).collect::<Vec<_>>().join(", "),
        headings => HEADINGS,
        rows => lines(runs).iter().map(line_cells).collect::<Vec<_>>(),
        seed_headings => SEEDS,
        seed_rows => seeds(runs).iter().map(seed_cells).collect::<Vec<_>>(),
        notes => notes(runs),
    };
    html::page(include_str!("assets/compare.html"), words, &data, &[])
}
