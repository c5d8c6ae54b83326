//! `report.html`: the whole run on one self-contained page. Every text in it is escaped, and no sentence says more than its data do.

use super::heatmap::POLICY;
use super::metrics::Record;
use super::results::{BASELINE_HEADINGS, HEADINGS, Row, Summary, baseline_cells};
use super::trajectories::Episode;
use super::{escape, flawed, plot};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value, context, escape_formatter};
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
    /// What its steps are.
    step: &'static str,
    curves: Vec<Curve>,
}

#[derive(Serialize)]
struct Curve {
    name: String,
    svg: String,
}

/// The page as HTML.
pub fn render(page: &Page<'_>) -> Result<String, Error> {
    let mut templates = Environment::new();
    templates.set_auto_escape_callback(|_| AutoEscape::Html);
    templates.set_formatter(escaped);
    templates.add_template("report", include_str!("report.html"))?;
    let episodes: Vec<_> = page.episodes.iter().map(episode).collect();
    templates.get_template("report")?.render(context! {
        policy => POLICY,
        name => page.name,
        config => page.config,
        summary => page.summary,
        headings => HEADINGS,
        rows => page.rows.iter().map(Row::cells).collect::<Vec<_>>(),
        baseline_headings => BASELINE_HEADINGS,
        baselines => baseline_cells(&page.summary.baselines),
        flawed => flawed::section(page.summary),
        times => page.summary.phase_seconds.iter().map(|(part, s)| format!("{part} {s:.1} s")).collect::<Vec<_>>(),
        phases => phases(page.records),
        episodes,
    })
}

fn episode(e: &Episode) -> Value {
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

/// As minijinja escapes, and control characters as well.
fn escaped(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) if !value.is_safe() => {
            out.write_str(&escape::html(text)).map_err(|_| ErrorKind::WriteFailure.into())
        }
        _ => escape_formatter(out, state, value),
    }
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
            Some(Curve { name: name.into(), svg: plot::curve(&points, [step(phase), unit(name)])? })
        };
        ordered.filter_map(curve).collect()
    };
    names.into_iter().map(|name| Phase { name: name.into(), step: step(name), curves: curves(name) }).collect()
}

/// What a phase counts.
fn step(phase: &str) -> &'static str {
    match phase {
        "sft" => "optimizer step",
        "grpo" => "iteration",
        _ => "iterations done",
    }
}

/// The unit of a metric; empty for a plain number.
fn unit(name: &str) -> &'static str {
    let last = name.rsplit('/').next().unwrap_or(name);
    match (name, last) {
        ("seconds/gcd_share", _) => "share",
        (_, "unreadable" | "success" | "repeat_rate" | "loop_rate" | "frac_reward_zero_std" | "judgment_accuracy") => {
            "share"
        }
        ("tokens_per_second", _) => "tokens / s",
        ("entropy" | "kl", _) => "nats",
        (_, "episode_length") => "turns",
        _ if name.starts_with("seconds/") => "s",
        _ if name.starts_with("sampling/") => "nats",
        _ if name.starts_with("reward") => "return",
        _ => "",
    }
}
