//! `report.html`: the whole run on one self-contained page. Every text in it is escaped.

use super::metrics::Record;
use super::plot;
use super::results::{BASELINE_HEADINGS, Flawed, HEADINGS, Row, Summary, baseline_cells};
use super::trajectories::Episode;
use minijinja::{AutoEscape, Environment, context};
use serde::Serialize;

/// What the page shows.
pub struct Page<'a> {
    /// The run's name.
    pub name: &'a str,
    /// The resolved configuration, as TOML.
    pub config: &'a str,
    pub summary: &'a Summary,
    pub rows: &'a [Row],
    pub records: &'a [Record],
    pub episodes: &'a [Episode],
}

/// Curves come in this order of names; all others follow by alphabet.
const FIRST: [&str; 8] = ["loss", "reward", "success", "entropy", "kl", "grad_norm", "episode_length", "repeat_rate"];

#[derive(Serialize)]
struct Phase {
    name: String,
    curves: Vec<Curve>,
}

#[derive(Serialize)]
struct Curve {
    name: String,
    svg: String,
}

/// The page as HTML.
pub fn render(page: &Page<'_>) -> Result<String, minijinja::Error> {
    let mut templates = Environment::new();
    templates.set_auto_escape_callback(|_| AutoEscape::Html);
    templates.add_template("report", include_str!("report.html"))?;
    let episodes: Vec<_> = page.episodes.iter().map(episode).collect();
    templates.get_template("report")?.render(context! {
        name => page.name,
        config => page.config,
        summary => page.summary,
        headings => HEADINGS,
        rows => page.rows.iter().map(Row::cells).collect::<Vec<_>>(),
        baseline_headings => BASELINE_HEADINGS,
        baselines => baseline_cells(&page.summary.baselines),
        flawed => flawed(page.summary),
        phases => phases(page.records),
        episodes,
    })
}

fn episode(e: &Episode) -> minijinja::Value {
    let turns: Vec<_> = e
        .turns
        .iter()
        .map(|t| {
            let advantage = t.advantage.map(|a| format!("{a:+.2}")).unwrap_or_default();
            context! { observation => t.observation, action => t.action, valid => t.valid, reward => t.reward, advantage }
        })
        .collect();
    context! {
        task => e.task, split => e.split, phase => e.phase, iteration => e.iteration, success => e.success,
        finish => e.finish, reward => format!("{:.2}", e.reward), turns,
    }
}

/// Measured advantages of flawed actions (dots) on the curve that theory expects.
fn flawed(summary: &Summary) -> Option<String> {
    let points = |y: fn(&Flawed) -> f64| summary.flawed.iter().map(|f| (f.probability, y(f))).collect::<Vec<_>>();
    plot::curve_with(&points(|f| f.expected), &points(|f| f.advantage))
}

/// Every metric of every phase that recorded one, phases in order of appearance.
fn phases(records: &[Record]) -> Vec<Phase> {
    let mut names: Vec<&str> = Vec::new();
    for record in records {
        if !names.contains(&record.phase.as_str()) {
            names.push(&record.phase);
        }
    }
    let curves = |phase: &str| {
        let records: Vec<&Record> = records.iter().filter(|r| r.phase == phase).collect();
        let all: std::collections::BTreeSet<&str> =
            records.iter().flat_map(|r| r.values.keys()).map(String::as_str).collect();
        let rest = all.iter().copied().filter(|name| !FIRST.contains(name));
        let ordered = FIRST.into_iter().filter(|name| all.contains(name)).chain(rest);
        let curve = |name: &str| {
            let points: Vec<(f64, f64)> =
                records.iter().filter_map(|r| Some((r.step as f64, *r.values.get(name)?))).collect();
            Some(Curve { name: name.into(), svg: plot::curve(&points)? })
        };
        ordered.filter_map(curve).collect()
    };
    names.into_iter().map(|name| Phase { name: name.into(), curves: curves(name) }).collect()
}
