//! The results of a study as numbers: `report.json`. Every comparison is of the same games, or of the same samples,
//! seed by seed.

use super::StudyError;
use super::collect::{Cell, CellGroup, Collected, EVAL, WITHOUT_SUGGESTIONS, collect, groups};
use super::curves::{self, Curve};
use super::gate::{self, Gate};
use super::measures::{self, Measure};
use super::plan::Study;
use super::probed::{self, Class, PairStratum, Probed, Sum};
use super::statistics::{Interval, mean_of_means, ratio};
use crate::report::provenance::ProcessRecord;
use crate::report::stats;
use crate::report::trajectories::EvaluatedEpisode;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// All results.
#[derive(Debug, Serialize)]
pub struct StudyTables {
    /// The study's name.
    pub study: String,
    /// What it asks.
    pub question: String,
    /// The seeds of its cells.
    pub seeds: Vec<u64>,
    /// The seeds that settings were chosen on.
    pub tuned_on: Vec<u64>,
    /// How settings were chosen.
    pub chosen: String,
    /// Versions and commits of the programs that made the cells.
    pub program: String,
    /// Number of cells of the study.
    pub planned: usize,
    /// Number of finished cells.
    pub finished: usize,
    /// Cells without results yet.
    pub missing: Vec<String>,
    /// What the study says of each variant that is compared.
    pub gates: Vec<Gate>,
    /// Success of each variant on each split.
    pub success: Vec<Success>,
    /// Differences of success, game by game.
    pub differences: Vec<Difference>,
    /// Gradient cosines by class and stratum.
    pub coupling: Vec<CouplingRow>,
    /// Sums of gradients.
    pub sums: Vec<SumRow>,
    /// Loops and repeats.
    pub loops: Vec<Loops>,
    /// Other measures.
    pub measures: Vec<Measure>,
    /// Curves over iterations.
    pub curves: Vec<Curve>,
}

/// Success of a variant on a split: means over seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Success {
    /// The start's name.
    pub start: String,
    /// The split's name.
    pub split: String,
    /// The variant's name.
    pub variant: String,
    /// Number of seeds.
    pub seeds: usize,
    /// Of every seed.
    pub games: usize,
    /// After the cold start.
    pub cold_start: Option<Interval>,
    /// After the last iteration.
    pub last: Interval,
    /// After the last iteration, without suggestions in the prompt.
    pub without_suggestions: Option<Interval>,
}

/// Success of a variant less another's, game by game.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The start's name.
    pub start: String,
    /// The split's name.
    pub split: String,
    /// Whether there were suggestions in the prompt.
    pub suggestions: bool,
    /// The variant.
    pub variant: String,
    /// The variant that it is compared with.
    pub against: String,
    /// Number of seeds.
    pub seeds: usize,
    /// Games that both played, of all seeds.
    pub pairs: usize,
    /// The mean difference of success, a fraction.
    #[serde(flatten)]
    pub difference: Interval,
    /// By Student's t over the seeds' own differences.
    pub student: Option<[f64; 2]>,
    /// (seed, difference).
    pub by_seed: Vec<(u64, f64)>,
}

/// The mean gradient cosine of a class of pairs at the end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CouplingRow {
    /// The start's name.
    pub start: String,
    /// The variant's name.
    pub variant: String,
    /// What the samples of a pair share.
    pub stratum: PairStratum,
    /// The class of pair.
    pub class: Class,
    /// Number of seeds.
    pub seeds: usize,
    /// Of all seeds.
    pub pairs: usize,
    /// The mean cosine.
    #[serde(flatten)]
    pub cosine: Interval,
    /// Less that of the variant it is compared with, on the same samples.
    pub difference: Option<Interval>,
}

/// |Σ g|² / Σ |g|² of the probe sets at the end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SumRow {
    /// The start's name.
    pub start: String,
    /// The variant's name.
    pub variant: String,
    /// Number of seeds.
    pub seeds: usize,
    /// With gradients weighted by their advantages.
    pub signed: Option<Interval>,
    /// With all weights 1.
    pub unsigned: Option<Interval>,
}

/// Turns in loops, and repeated actions, in games won or lost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Loops {
    /// The start's name.
    pub start: String,
    /// The split's name.
    pub split: String,
    /// The variant's name.
    pub variant: String,
    /// Whether these are the games won, or those lost.
    pub won: bool,
    /// Number of episodes.
    pub episodes: usize,
    /// Share of turns in loops.
    pub in_loops: Interval,
    /// Share of turns that repeat an action.
    pub repeats: Interval,
}

/// Computes all tables from what is finished.
///
/// # Errors
/// If the files of a finished cell cannot be read.
pub fn tables(study: &Study) -> Result<StudyTables, StudyError> {
    Ok(of(study, collect(study)?, gate::all(study)?))
}

/// Computes the tables of these cells.
pub fn of(study: &Study, collected: Collected, gates: Vec<Gate>) -> StudyTables {
    let Collected { cells, missing, planned, .. } = collected;
    let groups = groups(study, &cells);
    StudyTables {
        study: study.name.clone(),
        question: study.question.clone(),
        seeds: study.seeds.clone(),
        tuned_on: study.tuned_on.clone(),
        chosen: study.chosen.clone(),
        program: programs(&cells),
        planned,
        finished: cells.len(),
        missing,
        gates,
        success: groups.iter().flat_map(success).collect(),
        differences: groups.iter().flat_map(differences).collect(),
        coupling: groups.iter().flat_map(coupling).collect(),
        sums: groups.iter().filter_map(sums).collect(),
        loops: groups.iter().flat_map(loops).collect(),
        measures: groups.iter().flat_map(measures::of).collect(),
        curves: curves::all(study, &groups),
    }
}

fn programs(cells: &[Cell]) -> String {
    let sessions = cells.iter().filter_map(|cell| cell.summary.provenance.as_ref()).flat_map(|p| &p.sessions);
    let program = |s: &ProcessRecord| {
        let commit = s.commit.as_ref().map_or(String::new(), |commit| format!(", commit {commit}"));
        format!("uncouple {}{commit}", s.version)
    };
    let all: BTreeSet<String> = sessions.map(program).collect();
    if all.is_empty() {
        "a program that is not known".into()
    } else {
        all.into_iter().collect::<Vec<_>>().join(", and ")
    }
}

fn splits(cells: &[&Cell]) -> BTreeSet<String> {
    cells.iter().flat_map(|cell| cell.episodes.iter().map(|e| e.split.clone())).collect()
}

fn won(e: &EvaluatedEpisode) -> f64 {
    f64::from(u8::from(e.episode.success))
}

/// A mean over seeds of what each has.
fn over_seeds(cells: &[&Cell], of: &dyn Fn(&Cell) -> Option<Vec<f64>>) -> Option<Interval> {
    mean_of_means(&cells.iter().filter_map(|cell| of(cell)).collect::<Vec<_>>())
}

fn success(group: &CellGroup<'_>) -> Vec<Success> {
    let row = |split: String| {
        let of = |cell: &Cell, phase: &str, first: bool| {
            let iterations = cell.iterations(phase);
            let at = if first { iterations.first() } else { iterations.last() }.copied();
            Some(cell.at(phase, at).get(&split[..])?.values().map(|e| won(e)).collect::<Vec<_>>())
        };
        let last = |cell: &Cell| of(cell, EVAL, false);
        Some(Success {
            start: group.start.into(),
            variant: group.variant.into(),
            seeds: group.cells.len(),
            games: group.cells.iter().filter_map(|cell| Some(last(cell)?.len())).max().unwrap_or(0),
            cold_start: over_seeds(&group.cells, &|cell| of(cell, EVAL, true)),
            last: over_seeds(&group.cells, &last)?,
            without_suggestions: over_seeds(&group.cells, &|cell| of(cell, WITHOUT_SUGGESTIONS, false)),
            split,
        })
    };
    splits(&group.cells).into_iter().filter_map(row).collect()
}

fn differences(group: &CellGroup<'_>) -> Vec<Difference> {
    let Some((against, _)) = group.against else { return Vec::new() };
    let pairs = group.pairs();
    let without = |cell: &Cell| !cell.iterations(WITHOUT_SUGGESTIONS).is_empty();
    let any_without = pairs.iter().any(|(a, b)| without(a) || without(b));
    let mut rows = Vec::new();
    for split in splits(&group.cells) {
        for suggestions in [true, false].into_iter().filter(|suggestions| *suggestions || any_without) {
            let last = |cell: &'_ Cell| match suggestions || !without(cell) {
                true => outcomes(cell, EVAL, &split),
                false => outcomes(cell, WITHOUT_SUGGESTIONS, &split),
            };
            let paired = |(a, b): &(&Cell, &Cell)| {
                let (a, of_b) = (last(a), last(b));
                a.into_iter().filter_map(|(game, x)| Some(x - of_b.get(&game)?)).collect::<Vec<f64>>()
            };
            let by_seed: Vec<(u64, Vec<f64>)> =
                pairs.iter().map(|pair| (pair.0.task.seed, paired(pair))).filter(|(_, d)| !d.is_empty()).collect();
            let values: Vec<Vec<f64>> = by_seed.iter().map(|(_, values)| values.clone()).collect();
            let means: Vec<(u64, f64)> = by_seed.iter().map(|(seed, values)| (*seed, stats::mean(values))).collect();
            rows.extend(mean_of_means(&values).map(|difference| Difference {
                start: group.start.into(),
                split: split.clone(),
                suggestions,
                variant: group.variant.into(),
                against: against.into(),
                seeds: values.len(),
                pairs: values.iter().map(Vec::len).sum(),
                difference,
                student: stats::student(&means.iter().map(|(_, mean)| *mean).collect::<Vec<_>>()),
                by_seed: means,
            }));
        }
    }
    rows
}

/// Whether each game of a split was won in the last evaluation of a phase.
fn outcomes(cell: &Cell, phase: &str, split: &str) -> BTreeMap<String, f64> {
    let last = cell.last(phase);
    last.get(split).into_iter().flatten().map(|(game, e)| (game.to_string(), won(e))).collect()
}

fn coupling(group: &CellGroup<'_>) -> Vec<CouplingRow> {
    let probes: Vec<&Probed> = group.cells.iter().filter_map(|cell| cell.probed.as_ref()).collect();
    let pairs: Vec<(&Probed, &Probed)> =
        group.pairs().into_iter().filter_map(|(a, b)| Some((a.probed.as_ref()?, b.probed.as_ref()?))).collect();
    let row = |(stratum, class): (PairStratum, Class)| {
        Some(CouplingRow {
            start: group.start.into(),
            variant: group.variant.into(),
            stratum,
            class,
            seeds: probes.len(),
            pairs: probes.iter().map(|probe| probe.count(class, stratum)).sum(),
            cosine: probed::cosine(&probes, class, stratum)?,
            difference: probed::difference(&pairs, class, stratum),
        })
    };
    let all = PairStratum::ALL.into_iter().flat_map(|stratum| Class::ALL.map(|class| (stratum, class)));
    all.filter_map(row).collect()
}

fn sums(group: &CellGroup<'_>) -> Option<SumRow> {
    let probes: Vec<&Probed> = group.cells.iter().filter_map(|cell| cell.probed.as_ref()).collect();
    (!probes.is_empty()).then(|| SumRow {
        start: group.start.into(),
        variant: group.variant.into(),
        seeds: probes.len(),
        signed: probed::sums(&probes, Sum::Signed),
        unsigned: probed::sums(&probes, Sum::Unsigned),
    })
}

fn loops(group: &CellGroup<'_>) -> Vec<Loops> {
    let mut rows = Vec::new();
    for split in splits(&group.cells) {
        for outcome in [true, false] {
            let of = |count: fn(&EvaluatedEpisode) -> u32| {
                let turns = |e: &&EvaluatedEpisode| [f64::from(count(e)), f64::from(e.episode.turns)];
                let seed = |cell: &&Cell| {
                    let last = cell.last(EVAL);
                    let games = last.get(&split[..]).into_iter().flatten().map(|(_, e)| *e);
                    games.filter(|e| e.episode.success == outcome).map(|e| turns(&e)).collect::<Vec<_>>()
                };
                group.cells.iter().map(seed).collect::<Vec<_>>()
            };
            let (in_loops, repeats) = (of(|e| e.episode.loops), of(|e| e.episode.repeats));
            if let (Some(share), Some(repeats)) = (ratio(&in_loops), ratio(&repeats)) {
                rows.push(Loops {
                    start: group.start.into(),
                    split: split.clone(),
                    variant: group.variant.into(),
                    won: outcome,
                    episodes: in_loops.iter().map(Vec::len).sum(),
                    in_loops: share,
                    repeats,
                });
            }
        }
    }
    rows
}
