//! Tables of cells whose games are made up, against numbers by hand.

use super::{STUDY, study};
use serde_json::json;
use uncouple::report::metrics::Record;
use uncouple::report::results::{EvalEpisode, Summary};
use uncouple::report::trajectories::EvaluatedEpisode;
use uncouple::study::collect::{Cell, Collected};
use uncouple::study::plan::{Study, StudyOverrides, StudyTask};
use uncouple::study::tables::{self, StudyTables};
use uncouple::study::text;
use uncouple::train::memory::Placement;

/// Games of L0 after `iteration` iterations: a letter each, upper case where it was won. All have 4 turns, a lost one 2 in loops and 1
/// repeated.
fn games(iteration: u64, outcomes: &str) -> Vec<EvaluatedEpisode> {
    let game = |letter: char| {
        let lost = u32::from(letter.is_lowercase());
        EvaluatedEpisode {
            phase: "eval".into(),
            iteration,
            split: "L0".into(),
            task: letter.to_ascii_lowercase().to_string(),
            kind: "place".into(),
            episode: EvalEpisode { success: lost == 0, turns: 4, repeats: lost, loops: 2 * lost },
        }
    };
    outcomes.chars().map(game).collect()
}

fn cell(variant: usize, seed: u64, first: &str, last: &str) -> Cell {
    let eval = |step: u64, seconds: f64, right: f64| {
        Record::new("eval", step, seconds).with("judgment_accuracy", right).with("consistency/high", 0.5)
    };
    let grpo = |step: u64| Record::new("grpo", step, 20.0 + step as f64).with("success", 0.25 * step as f64);
    // The second seed's is of a later program.
    let commit = (seed == 6).then_some("abc");
    let session = json!({"version": "0.1.0", "commit": commit, "command": [], "host": "", "system": "", "device": "", "began": "", "seen": ""});
    let provenance = json!({"games": {"suite": ""}, "sessions": [session]});
    Cell {
        task: StudyTask { start: 0, seed, variant: Some(variant) },
        summary: Summary {
            seconds: 100.0 + seed as f64,
            env_steps: 7,
            provenance: serde_json::from_value(provenance).unwrap(),
            ..Summary::default()
        },
        records: vec![eval(0, 20.0, 0.5), grpo(1), grpo(2), eval(2, 30.0, 0.5 + 0.1 * variant as f64)],
        episodes: [games(0, first), games(2, last)].concat(),
        probed: None,
    }
}

#[test]
fn the_programs_are_those_that_made_the_cells() {
    let (study, tables) = made_up();
    assert_eq!(tables.program, "uncouple 0.1.0, and uncouple 0.1.0, commit abc");
    assert!(text::markdown(&study, &tables, &[]).contains(&format!("finished, by {}. ", tables.program)));
}

fn made_up() -> (Study, StudyTables) {
    let dir = tempfile::tempdir().unwrap();
    let file = study(dir.path(), STUDY);
    let study = Study::load(&file, StudyOverrides { dir: None, set: Vec::new(), place: Placement::Cpu }).unwrap();
    let cells = vec![
        cell(0, 5, "abcd", "Abcd"),
        cell(1, 5, "abcd", "ABCd"),
        cell(0, 6, "Abcd", "ABcd"),
        // One of its games was failed by the environment.
        cell(1, 6, "Abcd", "aBc"),
    ];
    let collected = Collected { cells, missing: Vec::new(), planned: 4, cold_start_seconds: Vec::new() };
    let tables = tables::of(&study, collected, Vec::new());
    (study, tables)
}

#[test]
fn differences_are_paired_by_game_and_seed() {
    let (_, tables) = made_up();
    let [d] = &tables.differences[..] else { panic!("{:?}", tables.differences) };
    assert_eq!((&d.variant[..], &d.against[..], d.seeds, d.pairs), ("gcd", "grpo", 2, 7));
    // Seed 5: 0, 1, 1, 0. Seed 6: −1, 0, 0.
    let third = 1.0 / 3.0;
    assert_eq!(d.by_seed[0], (5, 0.5));
    assert!((d.by_seed[1].1 + third).abs() < 1e-12 && (d.difference.value - (0.5 - third) / 2.0).abs() < 1e-12);
    // Student with one degree of freedom: 12.706 × std / √2, and std = (1/2 + 1/3) / √2.
    let [low, high] = d.student.unwrap();
    assert!((low - (d.difference.value - 12.706 * (0.5 + third) / 2.0)).abs() < 1e-9 && high > 5.0, "{low} {high}");
    // Both seeds drawn twice is a quarter of resamples each, so that the interval reaches beyond both seeds' means.
    let [low, high] = d.difference.ci.unwrap();
    assert!(low <= -third && low >= -1.0 && (0.5..=1.0).contains(&high), "{low} {high}");
}

#[test]
fn success_loops_and_measures_are_means_over_seeds() {
    let (_, tables) = made_up();
    let success = |variant: &str| tables.success.iter().find(|s| s.variant == variant).unwrap();
    // Seeds 1/4 and 1/2, from 0 and 1/4; GCD 3/4 and 1/3.
    let grpo = success("grpo");
    assert_eq!((grpo.last.value, grpo.cold_start.unwrap().value, grpo.games, grpo.seeds), (0.375, 0.125, 4, 2));
    assert!((success("gcd").last.value - (0.75 + 1.0 / 3.0) / 2.0).abs() < 1e-12);
    assert_eq!(grpo.without_suggestions, None);
    let loops = |variant: &str, won: bool| tables.loops.iter().find(|l| l.variant == variant && l.won == won).unwrap();
    let (won, lost) = (loops("grpo", true), loops("grpo", false));
    assert_eq!((won.in_loops.value, won.episodes, lost.in_loops.value, lost.episodes), (0.0, 3, 0.5, 5));
    assert_eq!(lost.repeats.value, 0.25);
    let measure = |variant: &str, name: &str| {
        tables.measures.iter().find(|m| m.variant == variant && m.name == name).unwrap_or_else(|| panic!("{name}"))
    };
    let right = measure("gcd", "judgments right, held-out actions");
    assert!((right.value - 0.6).abs() < 1e-12 && (right.difference.unwrap().value - 0.1).abs() < 1e-12);
    assert_eq!(measure("gcd", "judgments right after the cold start").value, 0.5);
    // 105 and 106 s, 20 of them before GRPO.
    assert_eq!(measure("grpo", "seconds after the cold start").value, 85.5);
    assert_eq!((measure("grpo", "GRPO iterations").value, measure("grpo", "environment steps").value), (2.0, 7.0));
}

#[test]
fn curves_and_the_page_show_the_same() {
    let (study, tables) = made_up();
    let curve = tables.curves.iter().find(|c| c.title == "Success, L0").unwrap();
    let line = curve.lines.iter().find(|line| line.variant == "grpo").unwrap();
    let points: Vec<(u64, f64)> = line.points.iter().map(|p| (p.iteration, p.value.value)).collect();
    assert_eq!(points, [(0, 0.125), (2, 0.375)]);
    let training = tables.curves.iter().find(|c| c.title == "Success in training").unwrap();
    assert_eq!(training.lines[1].points[1].value.value, 0.5);
    let page = text::markdown(&study, &tables, &[("Success, L0".into(), "success-l0.svg".into())]);
    for row in ["| L0 | grpo | 2 × 4 | 12.5 [", "| 7 of 2 seeds | 5: +50.0, 6: -33.3 |", "](success-l0.svg)"] {
        assert!(page.contains(row), "{row}: {page}");
    }
    let short = text::in_short(&tables);
    assert!(short.contains("gcd − grpo") && short.contains("+8.3 ["), "{short}");
    let folder = tempfile::tempdir().unwrap();
    let figures = uncouple::study::figures::write(folder.path(), &tables.curves).unwrap();
    let svg = std::fs::read_to_string(folder.path().join("success-l0.svg")).unwrap();
    assert!(figures.iter().any(|(title, file)| title == "Success, L0" && file == "success-l0.svg"));
    assert!(svg.starts_with("<svg") && svg.contains("gcd") && svg.contains("share of games won"), "{svg}");
}
