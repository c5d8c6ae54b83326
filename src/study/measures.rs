//! What each cell has one number of: consistency, judgments, flawed actions, cost.

use super::collect::{Cell, CellGroup};
use super::statistics::{Interval, mean_of_means};
use crate::report::metrics::Record;
use crate::report::results::Summary;
use crate::report::stats;
use serde::Serialize;

/// A mean over seeds, and over their differences from the variant that it is compared with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measure {
    /// The start's name.
    pub start: String,
    /// The variant's name.
    pub variant: String,
    /// What is measured.
    pub name: &'static str,
    /// Number of seeds.
    pub seeds: usize,
    /// The mean over seeds.
    pub value: f64,
    /// By Student's t over seeds.
    pub student: Option<[f64; 2]>,
    /// The mean difference from the variant that it is compared with.
    pub difference: Option<Interval>,
}

type Of = fn(&Cell) -> Option<f64>;

/// What depends on the clock.
pub const TIMES: [&str; 2] = ["seconds after the cold start", "GCD's share of the time"];

const MEASURES: [(&str, Of); 17] = [
    ("states with half of the samples alike", |c| c.metric("eval", "consistency/high")),
    ("share of the most frequent action", |c| c.metric("eval", "consistency/mean")),
    ("judgments right after the cold start", |c| first(c, "judgment_accuracy")),
    ("judgments right, held-out actions", |c| at_the_end(c, "judgment_accuracy")),
    ("good called good", |c| at_the_end(c, "judgment_accuracy/good")),
    ("bad called bad", |c| at_the_end(c, "judgment_accuracy/bad")),
    ("flawed actions: mean q", |c| mean(c, "flawed/probability")),
    ("flawed actions: mean advantage", |c| mean(c, "flawed/advantage")),
    ("flawed actions: risk r of q·r·(q − 1)", |c| Some(c.summary.flawed_fit?.risk)),
    ("flawed actions: mean advantage, q ≤ 1/2", |c| Some(c.summary.flawed_fit?.unlikely?.mean)),
    ("flawed actions: mean advantage, q > 1/2", |c| Some(c.summary.flawed_fit?.likely?.mean)),
    ("GRPO iterations", |c| Some(c.records.iter().filter(|r| r.phase == "grpo").count() as f64)),
    ("environment steps", |c| Some(c.summary.env_steps as f64)),
    ("tokens, with the cold start's", |c| Some(c.summary.tokens as f64)),
    ("optimizer steps, with the cold start's", |c| Some(c.summary.train_steps as f64)),
    (TIMES[0], |c| Some(seconds(&c.summary, &c.records))),
    (TIMES[1], |c| mean(c, "seconds/gcd_share")),
];

/// Of the evaluation before GRPO.
fn first(cell: &Cell, name: &str) -> Option<f64> {
    cell.records.iter().find(|r| r.phase == "eval")?.values.get(name).copied()
}

/// Of the last evaluation, if it measured that.
fn at_the_end(cell: &Cell, name: &str) -> Option<f64> {
    cell.records.iter().rfind(|r| r.phase == "eval")?.values.get(name).copied()
}

/// Over training.
fn mean(cell: &Cell, name: &str) -> Option<f64> {
    let values: Vec<f64> =
        cell.records.iter().filter(|r| r.phase == "grpo").filter_map(|r| r.values.get(name).copied()).collect();
    (!values.is_empty()).then(|| stats::mean(&values))
}

/// Seconds of a cell's own: a run's time less that of its cold start.
pub fn seconds(summary: &Summary, records: &[Record]) -> f64 {
    let before = records.iter().filter(|r| r.phase == "sft" || r.phase == "eval" && r.step == 0);
    summary.seconds - before.map(|r| r.seconds).fold(0.0, f64::max)
}

/// All measures of a group of cells.
pub fn of(group: &CellGroup<'_>) -> Vec<Measure> {
    let row = |(name, of): (&'static str, Of)| {
        let values: Vec<f64> = group.cells.iter().filter_map(|cell| of(cell)).collect();
        let differences: Vec<Vec<f64>> =
            group.pairs().into_iter().filter_map(|(a, b)| Some(vec![of(a)? - of(b)?])).collect();
        (!values.is_empty()).then(|| Measure {
            start: group.start.into(),
            variant: group.variant.into(),
            name,
            seeds: values.len(),
            value: stats::mean(&values),
            student: stats::student(&values),
            difference: mean_of_means(&differences),
        })
    };
    MEASURES.into_iter().filter_map(row).collect()
}
