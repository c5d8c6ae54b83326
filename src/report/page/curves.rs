//! Which metrics stand together: figures by subject, with axes and units.

use super::figure::{Figure, FigureLine, Mark, Phase};
use crate::report::metrics::Record;
use serde::Serialize;
use std::collections::BTreeSet;

/// Figures about one subject.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Subject {
    pub title: String,
    pub figures: Vec<Figure>,
    /// Metrics that never changed, with their values.
    pub constant: Vec<(String, f64)>,
}

/// Metrics of one figure: a phase, its subject, a title, the y axis, and the metrics. In a name `*` is any text, which names the line.
type Family = (&'static str, &'static str, &'static str, &'static str, &'static [&'static str]);

const RETURN: &str = "Return and success";
const BEHAVIOUR: &str = "Behaviour in training";
const OPTIMISATION: &str = "Optimisation";
const GCD: &str = "Labels and judgments";
const COUPLING: &str = "Gradient coupling in detail";
const SPEED: &str = "Time and throughput";
const COLD: &str = "Cold start";
const EVALUATIONS: &str = "Evaluations";

const FAMILIES: [Family; 45] = [
    ("grpo", RETURN, "Success", "share of episodes", &["success"]),
    ("grpo", RETURN, "Return", "return", &["reward", "reward_std"]),
    ("grpo", RETURN, "Groups whose returns are all alike", "share of groups", &["frac_reward_zero_std"]),
    ("grpo", BEHAVIOUR, "Episode length", "turns", &["episode_length"]),
    ("grpo", BEHAVIOUR, "Sampled tokens in an episode", "tokens", &["completions/mean_length"]),
    (
        "grpo",
        BEHAVIOUR,
        "Loops, repeats, invalid turns",
        "share of turns",
        &["loop_rate", "repeat_rate", "invalid_rate"],
    ),
    ("grpo", BEHAVIOUR, "Repeated actions in episodes won and lost", "share of turns", &["repeat_rate/*"]),
    ("grpo", BEHAVIOUR, "Turns that hold a verdict", "share of turns", &["verdict_rate"]),
    ("grpo", BEHAVIOUR, "Turns that could not be read, by why", "turns", &["refused/*"]),
    ("grpo", BEHAVIOUR, "Episodes that the environment failed", "episodes", &["env_failed"]),
    ("grpo", OPTIMISATION, "Loss", "loss", &["loss"]),
    ("grpo", OPTIMISATION, "Gradient norm", "norm before clipping", &["grad_norm"]),
    ("grpo", OPTIMISATION, "Entropy", "nats", &["entropy"]),
    ("grpo", OPTIMISATION, "KL to the reference", "nats", &["kl"]),
    ("grpo", OPTIMISATION, "Clipped tokens", "share of tokens", &["clip_ratio/*"]),
    (
        "grpo",
        OPTIMISATION,
        "Log-probs in training less those when sampled",
        "nats, absolute",
        &["sampling/sampling_logp_difference/*"],
    ),
    ("grpo", OPTIMISATION, "Cosine of the gradients of good and bad advantages", "cosine", &["decouple/cosine"]),
    ("grpo", OPTIMISATION, "Contrastive loss", "loss", &["decouple/contrastive_loss"]),
    ("grpo", GCD, "Labels of all turns", "turns", &["gcd/labels/*"]),
    ("grpo", GCD, "Judged actions", "actions", &["gcd/pairs"]),
    ("grpo", GCD, "Value head's loss", "loss", &["gcd/critic_loss"]),
    ("grpo", GCD, "Loop labels against the oracle", "share", &["gcd/loop_precision", "gcd/loop_recall"]),
    ("grpo", GCD, "The judge's labels against the oracle", "share", &["gcd/judge_precision", "gcd/judge_recall"]),
    ("grpo", GCD, "Actions that the judge left open", "actions", &["gcd/judge_missing"]),
    ("grpo", GCD, "Flawed actions: mean probability", "q", &["flawed/probability"]),
    ("grpo", GCD, "Flawed actions: mean advantage", "return", &["flawed/advantage"]),
    ("grpo", COUPLING, "Cosine of the states", "cosine", &["coupling/state/*"]),
    ("grpo", COUPLING, "Attention", "gradient cosine", &["coupling/attention/*"]),
    ("grpo", COUPLING, "MLP", "gradient cosine", &["coupling/mlp/*"]),
    ("grpo", COUPLING, "Embedding", "gradient cosine", &["coupling/embedding/*"]),
    ("grpo", COUPLING, "Head", "gradient cosine", &["coupling/head/*"]),
    ("grpo", COUPLING, "Norms", "gradient cosine", &["coupling/norm/*"]),
    ("grpo", COUPLING, "Biases", "gradient cosine", &["coupling/bias/*"]),
    ("grpo", COUPLING, "Projection on the own gradient", "⟨g, h⟩ / ⟨g, g⟩", &["coupling/projection/*"]),
    ("grpo", COUPLING, "Sum of gradients against single ones", "|Σ g|² / Σ |g|²", &["coupling/sum/*"]),
    ("grpo", COUPLING, "Permutation test", "p", &["coupling/p_value"]),
    ("grpo", COUPLING, "Samples without a gradient", "samples", &["coupling/zero_gradients"]),
    ("grpo", SPEED, "Throughput", "tokens / s", &["tokens_per_second"]),
    (
        "grpo",
        SPEED,
        "Time of an iteration",
        "s",
        &["seconds/rollout", "seconds/gcd", "seconds/train", "seconds/coupling"],
    ),
    ("grpo", SPEED, "GCD's part of the time", "share", &["seconds/gcd_share"]),
    ("grpo", SPEED, "Tokens shared by forest batches", "tokens without sharing / with", &["sharing"]),
    ("sft", COLD, "Loss", "nats a token", &["loss"]),
    ("sft", COLD, "Gradient norm", "norm before clipping", &["grad_norm"]),
    ("sft", COLD, "Learning rate", "learning rate", &["learning_rate"]),
    ("sft", COLD, "Time of a step", "s", &["seconds/train"]),
];

/// What an evaluation measures of every split, by the end of its name: a line a split, all on one scale.
const OF_SPLITS: [(&str, &str, &str); 5] = [
    ("reward", "Return", "return"),
    ("episode_length", "Episode length", "turns"),
    ("unreadable", "Turns that could not be read", "share of turns"),
    ("repeat_rate", "Repeated actions", "share of turns"),
    ("loop_rate", "Turns in loops", "share of turns"),
];

/// What other parts of the page show.
const ELSEWHERE: [&str; 6] =
    ["/success", "/loop_rate/", "/repeat_rate/", "consistency/", "judgment_accuracy", "/success/"];

/// The curves that no other part of the page shows, by subject; every metric is in one figure, or among the constants.
pub fn subjects(records: &[Record]) -> Vec<Subject> {
    let mut subjects: Vec<Subject> = Vec::new();
    for (phase, families) in [("grpo", true), ("sft", true), ("eval", false)] {
        let phase = Phase::of(records, phase);
        let mut left: BTreeSet<&str> = phase.names().into_iter().filter(|name| !is_elsewhere(&phase, name)).collect();
        let shown = if families { of_families(&phase, &mut left) } else { of_splits(&phase, &mut left) };
        for (title, figure, constant) in shown.into_iter().chain(of_the_rest(&phase, &left)) {
            let at = subjects.iter().position(|s| s.title == title).unwrap_or_else(|| {
                subjects.push(Subject { title: title.into(), figures: Vec::new(), constant: Vec::new() });
                subjects.len() - 1
            });
            subjects[at].figures.extend(figure);
            subjects[at].constant.extend(constant);
        }
    }
    subjects
}

fn is_elsewhere(phase: &Phase<'_>, name: &str) -> bool {
    let coupling =
        ["pp", "nn", "pn"].iter().any(|class| name.starts_with("coupling/") && name.contains(&format!("/{class}")));
    let strata = ["same_state", "same_verb", "other_verb"].iter().any(|stratum| name.contains(stratum));
    let layer = name.starts_with("coupling/layer_");
    let own = matches!(name.split('/').nth(1), Some("pp" | "nn" | "pn" | "pp_error" | "nn_error" | "pn_error"));
    match phase.name {
        "grpo" => coupling && (strata || layer || own) || name.starts_with("gcd/accuracy") || name == "gcd/unparsable",
        _ => ELSEWHERE.iter().any(|part| name.contains(part)) && phase.name == "eval",
    }
}

type Shown = (&'static str, Option<Figure>, Vec<(String, f64)>);

fn of_families(phase: &Phase<'_>, left: &mut BTreeSet<&str>) -> Vec<Shown> {
    let mut shown = Vec::new();
    for (_, subject, title, y, patterns) in FAMILIES.iter().filter(|family| family.0 == phase.name) {
        let mut lines: Vec<(String, &str)> = Vec::new();
        for pattern in *patterns {
            let matching: Vec<&str> = left.iter().copied().filter(|name| matches(pattern, name).is_some()).collect();
            for name in matching {
                left.remove(name);
                lines.push((matches(pattern, name).unwrap_or_default().to_string(), name));
            }
        }
        shown.extend(figure_of(phase, subject, title, y, &lines));
    }
    shown
}

fn of_splits(phase: &Phase<'_>, left: &mut BTreeSet<&str>) -> Vec<Shown> {
    let mut shown = Vec::new();
    for (end, title, y) in OF_SPLITS {
        let of = |name: &str| name.split_once('/').filter(|(_, rest)| *rest == end).map(|(split, _)| split.to_string());
        let lines: Vec<(String, &str)> = left.iter().filter_map(|name| Some((of(name)?, *name))).collect();
        left.retain(|name| lines.iter().all(|(_, shown)| shown != name));
        shown.extend(figure_of(phase, EVALUATIONS, title, y, &lines));
    }
    shown
}

/// A figure for each metric that has no place.
fn of_the_rest<'a>(phase: &Phase<'a>, left: &BTreeSet<&'a str>) -> Vec<Shown> {
    let subject = match phase.name {
        "sft" => COLD,
        "eval" => EVALUATIONS,
        _ => "Other metrics",
    };
    let of = |name: &&str| {
        let unit = if name.starts_with("seconds/") { "s" } else { "" };
        figure_of(phase, subject, name, unit, &[(name.to_string(), name)])
    };
    left.iter().filter_map(of).collect()
}

/// A figure of the metrics that change; the others are told by their values.
fn figure_of(
    phase: &Phase<'_>,
    subject: &'static str,
    title: &str,
    y: &str,
    lines: &[(String, &str)],
) -> Option<Shown> {
    let constant = |name: &str| phase.constant(name).filter(|_| phase.at(&[name]).len() > 1);
    let (still, moving): (Vec<_>, Vec<_>) = lines.iter().partition(|(_, name)| constant(name).is_some());
    // A line that stands still says something beside one that does not.
    let drawn: &[(String, &str)] = if moving.is_empty() { &[] } else { lines };
    let named: Vec<(&str, &str)> = drawn.iter().map(|(line, name)| (&line[..], *name)).collect();
    let figure = phase.figure(title, y, &named).map(|made| Figure { points: phase.name == "eval", ..made });
    let still: Vec<(String, f64)> = match moving.is_empty() {
        true => still.into_iter().filter_map(|(_, name)| Some((name.to_string(), constant(name)?))).collect(),
        false => Vec::new(),
    };
    (figure.is_some() || !still.is_empty()).then_some((subject, figure, still))
}

/// What `*` stands for, or the last part of a name without one.
fn matches<'a>(pattern: &str, name: &'a str) -> Option<&'a str> {
    match pattern.split_once('*') {
        Some((start, end)) => name.strip_prefix(start)?.strip_suffix(end),
        None => (pattern == name).then(|| name.rsplit('/').next().unwrap_or(name)),
    }
}

/// Cosines of pairs of gradients, by class, all strata in one figure.
pub fn coupling(records: &[Record], marks: &[Mark]) -> Option<Figure> {
    const CLASSES: [&str; 3] = ["pp", "nn", "pn"];
    const STRATA: [(&str, &str); 3] =
        [("same_state", "same state"), ("same_verb", "other state, same verb"), ("other_verb", "other state and verb")];
    let phase = Phase::of(records, "grpo");
    let names = CLASSES.map(|class| format!("coupling/{class}"));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let all = |(class, name): (&str, &&str)| phase.line_with_error(class, name, &format!("{name}_error"), &names);
    let mut lines: Vec<FigureLine> = CLASSES.into_iter().zip(&names).map(all).collect();
    for class in ["pn", "pp", "nn"] {
        for (key, stratum) in STRATA {
            let (value, name) = (format!("coupling/{key}/{class}"), format!("{class}, {stratum}"));
            lines.push(phase.line_with_error(&name, &value, "", &names).thin().hidden(class != "pn"));
        }
    }
    lines.retain(FigureLine::is_filled);
    (!lines.is_empty()).then(|| Figure {
        title: "Cosine of the gradients of two samples, by the signs of their advantages".into(),
        note: "pp: both positive, nn: both negative, pn: one of each. Bars: 95 % intervals, jackknife over samples. Thin: pairs that share \
               their state or their verb; click a name to show or hide it. Dashed verticals: new suggestions."
            .into(),
        x: phase.step().into(),
        y: "mean cosine".into(),
        at: phase.at(&names),
        lines,
        marks: marks.to_vec(),
        points: true,
        ..Figure::default()
    })
}

/// How alike the policy's actions are in one state.
pub fn consistency(records: &[Record]) -> Option<Figure> {
    let lines = [
        ("states where half of the samples agree", "consistency/high"),
        ("mean share of the most frequent", "consistency/mean"),
    ];
    let made = Phase::of(records, "eval").figure("Consistency", "share", &lines)?;
    Some(Figure { range: Some([0.0, 1.0]), points: true, ..made })
}

/// Shares of judgments that are right, in training and on held-out actions.
pub fn judgments(records: &[Record]) -> Vec<Figure> {
    let training = [
        ("all right", "gcd/accuracy"),
        ("good called good", "gcd/accuracy/good"),
        ("bad called bad", "gcd/accuracy/bad"),
        ("unreadable", "gcd/unparsable"),
    ];
    let held_out = [
        ("all right", "judgment_accuracy"),
        ("good called good", "judgment_accuracy/good"),
        ("bad called bad", "judgment_accuracy/bad"),
    ];
    let y = "share of judgments";
    let figures = [
        Phase::of(records, "grpo").figure("In training", y, &training),
        Phase::of(records, "eval").figure("On held-out actions", y, &held_out).map(|f| Figure { points: true, ..f }),
    ];
    figures.into_iter().flatten().map(|figure| Figure { range: Some([0.0, 1.0]), ..figure }).collect()
}
