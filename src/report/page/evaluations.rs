//! Evaluations over time: success, loops and task types, with intervals.

use super::figure::{Figure, FigureLine, Mark};
use crate::report::results::{Estimate, EvalEpisode, Evaluation, SplitTable, TypeRow};
use crate::report::trajectories::EvaluatedEpisode;
use serde::Serialize;
use std::collections::BTreeMap;

/// The phase of evaluations, and of the last one without suggestions.
pub const EVAL: &str = "eval";
pub const WITHOUT_SUGGESTIONS: &str = "eval-no-suggestions";

/// The evaluations of a phase by the iterations done.
pub fn by_iteration(episodes: &[EvaluatedEpisode], phase: &str) -> BTreeMap<u64, Evaluation> {
    let mut all: BTreeMap<u64, Evaluation> = BTreeMap::new();
    for e in episodes.iter().filter(|e| e.phase == phase) {
        all.entry(e.iteration).or_default().entry(e.split.clone()).or_default().push(e.episode);
    }
    all
}

fn splits(evaluations: &BTreeMap<u64, Evaluation>) -> Vec<&String> {
    let all: std::collections::BTreeSet<&String> = evaluations.values().flat_map(|e| e.keys()).collect();
    all.into_iter().collect()
}

/// A line with a value and its interval at each evaluation that has one.
fn line(
    name: &str,
    evaluations: &BTreeMap<u64, Evaluation>,
    split: &str,
    of: &dyn Fn(&[EvalEpisode]) -> Option<Estimate>,
) -> FigureLine {
    let estimates: Vec<Option<Estimate>> = evaluations.values().map(|evaluation| of(evaluation.get(split)?)).collect();
    FigureLine {
        name: name.into(),
        values: estimates.iter().map(|e| e.map(|e| e.value)).collect(),
        interval: Some(estimates.iter().map(|e| e.map(|e| e.ci)).collect()),
        ..FigureLine::default()
    }
}

fn figure(title: &str, y: &str, evaluations: &BTreeMap<u64, Evaluation>, lines: Vec<FigureLine>) -> Option<Figure> {
    let lines: Vec<FigureLine> = lines.into_iter().filter(FigureLine::is_filled).collect();
    (!lines.is_empty()).then(|| Figure {
        title: title.into(),
        x: "iterations done".into(),
        y: y.into(),
        range: Some([0.0, 1.0]),
        at: evaluations.keys().map(|iteration| *iteration as f64).collect(),
        lines,
        points: true,
        ..Figure::default()
    })
}

/// Success on every split, in one figure.
pub fn success(evaluations: &BTreeMap<u64, Evaluation>, marks: &[Mark]) -> Option<Figure> {
    let of = |split: &&String| line(split, evaluations, split, &|e| Some(SplitTable::new(e).success));
    let made = figure("Success", "share of games won", evaluations, splits(evaluations).iter().map(of).collect())?;
    let note = "Bars: 95 % Wilson intervals. Dashed verticals: new suggestions.".into();
    Some(Figure { note, marks: marks.to_vec(), ..made })
}

/// Turns in loops and repeated actions in games won and lost: a figure a split, all with one scale.
pub fn loops(evaluations: &BTreeMap<u64, Evaluation>) -> Vec<Figure> {
    let of = |split: &&String| {
        let rate = |won: bool, of: fn(SplitTable) -> Estimate| {
            move |episodes: &[EvalEpisode]| {
                let some: Vec<EvalEpisode> = episodes.iter().filter(|e| e.success == won).copied().collect();
                (!some.is_empty()).then(|| of(SplitTable::new(&some)))
            }
        };
        let line = |style, name: &str, won, of| FigureLine {
            style: Some(style),
            ..line(name, evaluations, split, &rate(won, of))
        };
        let lines = vec![
            line(0, "loops, won", true, |t| t.loop_rate),
            line(1, "loops, lost", false, |t| t.loop_rate),
            line(2, "repeats, won", true, |t| t.repeat_rate).thin(),
            line(3, "repeats, lost", false, |t| t.repeat_rate).thin(),
        ];
        figure(split, "share of turns", evaluations, lines)
    };
    splits(evaluations).iter().filter_map(of).collect()
}

/// Success in a task type, first and last.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TypeChange {
    pub split: String,
    pub kind: String,
    pub games: u64,
    pub first: Estimate,
    /// Absent where there was one evaluation.
    pub last: Option<Estimate>,
}

/// Success by task type in the evaluations after `first` and `last` iterations.
pub fn types(episodes: &[EvaluatedEpisode], first: u64, last: u64) -> Vec<TypeChange> {
    let rows = |iteration: u64| {
        let mut counts: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
        for e in episodes.iter().filter(|e| e.phase == EVAL && e.iteration == iteration) {
            let (won, games) = counts.entry((&e.split, &e.kind)).or_default();
            (*won, *games) = (*won + u64::from(e.episode.success), *games + 1);
        }
        counts.into_iter().map(|(key, (won, games))| (key, TypeRow::new(key.0.into(), key.1, won, games)))
    };
    let later: BTreeMap<_, TypeRow> = if last > first { rows(last).collect() } else { BTreeMap::new() };
    let change = |(key, row): (_, TypeRow)| TypeChange {
        last: later.get(&key).map(|row| row.success),
        split: row.split,
        kind: row.kind,
        games: row.games,
        first: row.success,
    };
    rows(first).map(change).collect()
}
