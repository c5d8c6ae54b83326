//! Learning curves: means over seeds with bands.

use super::collect::{Cell, CellGroup, EVAL};
use super::plan::Study;
use super::statistics::{Interval, mean_of_means};
use crate::report::metrics::Record;
use serde::Serialize;
use std::collections::BTreeSet;

/// The curves of one quantity, a line for each variant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    pub start: String,
    pub title: String,
    pub y: &'static str,
    pub lines: Vec<CurveLine>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CurveLine {
    pub variant: String,
    pub points: Vec<CurvePoint>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CurvePoint {
    pub iteration: u64,
    /// Bootstrap over seeds; of success on a split, over games as well.
    #[serde(flatten)]
    pub value: Interval,
}

/// A title, the y axis, and where the value is.
type Training = (&'static str, &'static str, fn(&Record) -> Option<f64>);

const TRAINING: [Training; 4] = [
    ("Success in training", "share of episodes", |r| r.values.get("success").copied()),
    ("Gradient cosine, pn, other state", "mean cosine", other_state),
    ("Gradient cosine, pn, same state", "mean cosine", |r| r.values.get("coupling/same_state/pn").copied()),
    ("Judgments right, training", "share of judgments", |r| r.values.get("gcd/accuracy").copied()),
];

/// The mean over pairs of other states, whatever their verbs.
fn other_state(record: &Record) -> Option<f64> {
    let mut sums = [0.0; 2];
    for stratum in ["same_verb", "other_verb"] {
        let of = |name: &str| record.values.get(&format!("coupling/{stratum}/{name}")).copied();
        if let (Some(mean), Some(pairs)) = (of("pn"), of("pn_pairs")) {
            sums = [sums[0] + mean * pairs, sums[1] + pairs];
        }
    }
    (sums[1] > 0.0).then(|| sums[0] / sums[1])
}

/// All curves that have a value, start by start.
pub fn all(study: &Study, groups: &[CellGroup<'_>]) -> Vec<Curve> {
    let mut curves = Vec::new();
    for start in &study.starts {
        let of: Vec<&CellGroup<'_>> = groups.iter().filter(|group| group.start == start.name).collect();
        let splits: BTreeSet<&str> =
            of.iter().flat_map(|g| &g.cells).flat_map(|c| &c.episodes).map(|e| &e.split[..]).collect();
        for split in splits {
            let line = |group: &CellGroup<'_>| evaluated(group, split);
            curves.extend(curve(&start.name, &format!("Success, {split}"), "share of games won", &of, &line));
        }
        for (title, y, value) in TRAINING {
            curves.extend(curve(&start.name, title, y, &of, &|group| trained(group, value)));
        }
    }
    curves
}

fn curve(
    start: &str,
    title: &str,
    y: &'static str,
    groups: &[&CellGroup<'_>],
    points: &dyn Fn(&CellGroup<'_>) -> Vec<CurvePoint>,
) -> Option<Curve> {
    let line = |group: &&CellGroup<'_>| CurveLine { variant: group.variant.into(), points: points(group) };
    let lines: Vec<CurveLine> = groups.iter().map(line).filter(|line| !line.points.is_empty()).collect();
    (!lines.is_empty()).then(|| Curve { start: start.into(), title: title.into(), y, lines })
}

fn evaluated(group: &CellGroup<'_>, split: &str) -> Vec<CurvePoint> {
    let iterations: BTreeSet<u64> = group.cells.iter().flat_map(|cell| cell.iterations(EVAL)).collect();
    let games = |cell: &Cell, iteration: u64| {
        let splits = cell.at(EVAL, Some(iteration));
        Some(splits.get(split)?.values().map(|e| f64::from(u8::from(e.episode.success))).collect::<Vec<_>>())
    };
    let point = |iteration: u64| {
        let seeds: Vec<Vec<f64>> = group.cells.iter().filter_map(|cell| games(cell, iteration)).collect();
        Some(CurvePoint { iteration, value: mean_of_means(&seeds)? })
    };
    iterations.into_iter().filter_map(point).collect()
}

fn trained(group: &CellGroup<'_>, value: fn(&Record) -> Option<f64>) -> Vec<CurvePoint> {
    let records = |cell: &Cell| cell.records.iter().filter(|r| r.phase == "grpo").cloned().collect::<Vec<_>>();
    let cells: Vec<Vec<Record>> = group.cells.iter().map(|cell| records(cell)).collect();
    let steps: BTreeSet<u64> =
        cells.iter().flatten().filter(|record| value(record).is_some()).map(|record| record.step).collect();
    let point = |step: u64| {
        let of = |records: &Vec<Record>| records.iter().find(|r| r.step == step).and_then(value);
        let seeds: Vec<Vec<f64>> = cells.iter().filter_map(|records| Some(vec![of(records)?])).collect();
        Some(CurvePoint { iteration: step, value: mean_of_means(&seeds)? })
    };
    steps.into_iter().filter_map(point).collect()
}
