//! Flawed actions in the report: what their probabilities and advantages show, in words that follow the data.

use super::page::figure::{Figure, FigureLine};
use super::results::{ClusterMean, Flawed, FlawedFit, Summary};
use serde::Serialize;

/// The section of the page; its words are the program's own.
#[derive(Debug, Serialize)]
pub struct Section {
    /// What the data show, or that they show nothing.
    pub findings: Vec<String>,
    pub headings: [&'static str; 6],
    pub rows: Vec<[String; 6]>,
}

const HEADINGS: [&str; 6] = ["mean q", "actions", "groups", "mean advantage A", "mean q × A", "curve q·r·(q − 1)"];
/// Steps of the curve from q = 0 to q = 1.
const STEPS: u32 = 50;

/// `None` where no flawed action was taken.
pub fn section(summary: &Summary) -> Option<Section> {
    let flawed = &summary.flawed;
    if flawed.is_empty() {
        return None;
    }
    let rows = flawed.iter().map(|f| {
        [
            format!("{:.3}", f.probability),
            f.count.to_string(),
            f.groups.to_string(),
            estimate(f.advantage, f.advantage_ci),
            estimate(f.contribution, f.contribution_ci),
            f.expected.map_or("–".into(), |expected| format!("{expected:.4}")),
        ]
    });
    let findings = match &summary.flawed_fit {
        Some(fit) => findings(summary, fit),
        None => vec![nothing(summary)],
    };
    Some(Section { findings, headings: HEADINGS, rows: rows.collect() })
}

/// The curve that comes nearest, and the tenths of q beside it; `None` where there is nothing to set against a curve.
pub fn figure(summary: &Summary) -> Option<Figure> {
    let fit = summary.flawed_fit?;
    let steps = (0..=STEPS).map(|step| (f64::from(step) / f64::from(STEPS), None));
    let mut points: Vec<(f64, Option<&Flawed>)> = steps.collect();
    points.extend(summary.flawed.iter().map(|f| (f.probability, Some(f))));
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (at, tenths): (Vec<f64>, Vec<Option<&Flawed>>) = points.into_iter().unzip();
    let curve = |risk: f64| at.iter().map(|q| Some(q * risk * (q - 1.0))).collect::<Vec<_>>();
    let ends = fit.ci.map(|[low, high]| curve(low).into_iter().zip(curve(high)));
    let band = ends.map(|ends| ends.map(|(a, b)| Some([a?.min(b?), a?.max(b?)])).collect());
    let measured = FigureLine {
        name: "flawed actions, by tenths of q".into(),
        values: tenths.iter().map(|f| Some(f.as_ref()?.contribution)).collect(),
        interval: Some(tenths.iter().map(|f| f.as_ref()?.contribution_ci).collect()),
        labels: Some(tenths.iter().map(|f| Some(f.as_ref()?.count.to_string())).collect()),
        dots: true,
        ..FigureLine::default()
    };
    let fitted =
        FigureLine { name: "q·r·(q − 1)".into(), values: curve(fit.risk), interval: band, ..FigureLine::default() };
    let counts = actions(summary);
    Some(Figure {
        title: "Flawed actions against q·r·(q − 1)".into(),
        note: format!(
            "r = {} by least squares over {counts} actions; bars and band: 95 % intervals, groups as clusters; above the points: actions.",
            estimate(fit.risk, fit.ci)
        ),
        x: "probability q".into(),
        y: "q × advantage (return)".into(),
        at,
        lines: vec![fitted, measured],
        points: true,
        ..Figure::default()
    })
}

fn actions(summary: &Summary) -> u64 {
    summary.flawed.iter().map(|f| f.count).sum()
}

/// Why there is no curve.
fn nothing(summary: &Summary) -> String {
    let (count, zero) = (actions(summary), summary.flawed.iter().all(|f| f.advantage == 0.0));
    let why = match zero {
        true => "have a mean advantage of 0 in every row",
        false => "are certain or never sampled (q is 0 or 1), where the curve is 0 whatever r",
    };
    format!("The {count} flawed actions {why}. They say nothing about how advantage depends on probability.")
}

fn findings(summary: &Summary, fit: &FlawedFit) -> Vec<String> {
    let count = actions(summary);
    let risk = format!("Least squares over {count} actions give r = {}", estimate(fit.risk, fit.ci));
    let verdict = match fit.ci {
        None => "one group cannot tell that from chance",
        Some([low, _]) if low > 0.0 => "above 0, as where a flawed action costs return",
        Some([_, high]) if high < 0.0 => {
            "below 0: episodes with flawed actions returned more than the rest of their groups, which the curve does not foresee"
        }
        Some(_) => "its interval holds 0, so that these data do not show the curve",
    };
    let told: Vec<bool> = summary
        .flawed
        .iter()
        .filter_map(|f| f.contribution_ci.zip(f.expected).map(|([low, high], y)| low <= y && y <= high))
        .collect();
    let within = told.iter().filter(|within| **within).count();
    let explained = 100.0 * fit.explained;
    let mut findings = vec![
        format!("{risk}: {verdict}."),
        format!(
            "The curve takes away {explained:.1} % of Σ (q × A)², and passes through the interval of {within} of the {} rows that \
             have one.",
            told.len()
        ),
    ];
    findings.extend(fit.unlikely.zip(fit.likely).map(|(unlikely, likely)| halves(&unlikely, &likely)));
    findings
}

/// Whether likely flawed actions fared otherwise than unlikely ones.
fn halves(unlikely: &ClusterMean, likely: &ClusterMean) -> String {
    let told = |m: &ClusterMean| format!("{} ({} actions in {} groups)", estimate(m.mean, m.ci), m.count, m.groups);
    let verdict = match (unlikely.ci, likely.ci) {
        (Some([_, high]), Some([low, _])) if low > high => "the likely ones have the higher one",
        (Some([low, _]), Some([_, high])) if high < low => "the likely ones have the lower one",
        (Some(_), Some(_)) => "the intervals overlap, so that no difference is shown",
        _ => "one group cannot tell a difference from chance",
    };
    format!("Mean advantage where q ≤ 0.5: {}; where q > 0.5: {}: {verdict}.", told(unlikely), told(likely))
}

fn estimate(value: f64, ci: Option<[f64; 2]>) -> String {
    let number = |x: f64| format!("{x:.4}").replace('-', "−");
    match ci {
        Some([low, high]) => format!("{} [{}, {}]", number(value), number(low), number(high)),
        None => number(value),
    }
}
