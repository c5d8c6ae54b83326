//! `report.html`: a whole run on one self-contained page. What the page says in words is in its HTML, escaped; figures and training
//! groups are packed data that its own scripts unpack, and nothing else may run. No sentence says more than its data do.

mod browser;
pub(crate) mod curves;
pub(crate) mod embed;
mod evaluations;
pub(crate) mod figure;
mod heat;
pub(crate) mod html;
pub(crate) mod verdict;

pub use heat::Heat;

use super::flawed;
use super::metrics::Record;
use super::results::{self, BASELINE_HEADINGS, HEADINGS, StageRow, Summary, baseline_cells};
use super::trajectories::{Confusion, EvaluatedEpisode, TrajectoryReader};
use crate::files::FileError;
use evaluations::{EVAL, WITHOUT_SUGGESTIONS};
use figure::{Figure, Mark};
use minijinja::{Value, context};
use serde::Serialize;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum PageError {
    #[error("cannot render the report: {0}")]
    Template(#[from] minijinja::Error),
    #[error("cannot pack the report's data: {0}")]
    Data(#[from] serde_json::Error),
    #[error(transparent)]
    File(#[from] FileError),
}

/// What the page shows.
pub struct PageRun<'a> {
    /// The run's name.
    pub name: &'a str,
    /// The resolved configuration, as TOML.
    pub config: &'a str,
    /// What `summary.json` holds.
    pub summary: &'a Summary,
    /// Whether the run came to its end; if not, `summary` is that of its last checkpoint.
    pub finished: bool,
    /// The run's seed.
    pub seed: u64,
    /// GRPO iterations planned.
    pub iterations: u32,
    /// The records of `metrics.jsonl`, oldest first.
    pub records: &'a [Record],
    /// Gradient cosines by layer, at the end.
    pub heat: Option<Heat>,
    /// The run's episodes, where it has any.
    pub trajectories: Option<&'a TrajectoryReader>,
    /// Why trajectories are missing.
    pub notice: Option<String>,
    /// Probability above which a flawed action is a likely one.
    pub threshold: f64,
    /// Text of tokens.
    pub decode: &'a dyn Fn(&[u32]) -> String,
}

/// What the page's scripts draw.
#[derive(Debug, Default, Serialize)]
struct Data {
    success: Vec<Figure>,
    loops: Vec<Figure>,
    consistency: Vec<Figure>,
    coupling: Vec<Figure>,
    heat: Option<Heat>,
    flawed: Vec<Figure>,
    judgments: Vec<Figure>,
    confusion: Vec<Confusion>,
    types: Vec<evaluations::TypeChange>,
    subjects: Vec<curves::Subject>,
    browser: browser::BrowserIndex,
}

/// The page as HTML.
///
/// # Errors
/// If the episodes cannot be read, or the page cannot be rendered.
pub fn render(run: &PageRun<'_>) -> Result<String, PageError> {
    let episodes = run.trajectories.map(TrajectoryReader::evaluated).transpose()?.unwrap_or_default();
    let (data, groups) = data(run, &episodes)?;
    let volume = run.trajectories.map(TrajectoryReader::volume).transpose()?.unwrap_or_default();
    let rows = rows(&episodes);
    let part = context! {
        name => run.name,
        config => run.config,
        notice => run.notice,
        status => status(run),
        summary => run.summary,
        verdicts => verdicts(&episodes, EVAL),
        without => verdicts(&episodes, WITHOUT_SUGGESTIONS),
        provenance => provenance(run),
        headings => HEADINGS,
        rows => rows.iter().map(StageRow::cells).collect::<Vec<_>>(),
        baseline_headings => BASELINE_HEADINGS,
        baselines => baseline_cells(&run.summary.baselines),
        flawed => flawed::section(run.summary),
        times => times(run.summary),
        volume => volume.iter().map(|(phase, [n, read, sampled])| context! { phase, n, read, sampled }).collect::<Vec<_>>(),
        subjects => data.subjects.iter().map(|s| &s.title).collect::<Vec<_>>(),
        has => has(&data),
    };
    html::page(include_str!("../assets/run.html"), part, &data, &groups)
}

fn data(run: &PageRun<'_>, episodes: &[EvaluatedEpisode]) -> Result<(Data, Vec<String>), PageError> {
    let (browser, groups) = match run.trajectories {
        Some(reader) => browser::select(reader, run.threshold, run.decode)?,
        None => Default::default(),
    };
    let mut marks: Vec<Mark> = Vec::new();
    for made in &browser.suggestions {
        match marks.iter_mut().find(|mark| mark.x == made.iteration as f64) {
            Some(mark) => mark.text += &format!(" {}", made.text),
            None => marks.push(Mark { x: made.iteration as f64, text: made.text.clone() }),
        }
    }
    let all = evaluations::by_iteration(episodes, EVAL);
    let (first, last) = (all.keys().next().copied().unwrap_or(0), all.keys().last().copied().unwrap_or(0));
    let data = Data {
        success: evaluations::success(&all, &marks).into_iter().collect(),
        loops: evaluations::loops(&all),
        consistency: curves::consistency(run.records).into_iter().collect(),
        coupling: curves::coupling(run.records, &marks).into_iter().collect(),
        heat: run.heat.clone().or_else(|| Heat::of_records(run.records)),
        flawed: flawed::figure(run.summary).into_iter().collect(),
        judgments: curves::judgments(run.records),
        confusion: run.trajectories.map(TrajectoryReader::confusion).transpose()?.unwrap_or_default(),
        types: evaluations::types(episodes, first, last),
        subjects: curves::subjects(run.records),
        browser,
    };
    Ok((data, groups))
}

/// Which parts of the page there are.
fn has(data: &Data) -> Value {
    context! {
        success => !data.success.is_empty(),
        loops => !data.loops.is_empty() || !data.consistency.is_empty(),
        coupling => !data.coupling.is_empty() || data.heat.is_some(),
        heat => data.heat.is_some(),
        judgments => !data.judgments.is_empty() || !data.confusion.is_empty(),
        confusion => !data.confusion.is_empty(),
        types => !data.types.is_empty(),
        groups => !data.browser.groups.is_empty(),
        suggestions => !data.browser.suggestions.is_empty(),
    }
}

/// The table of results: after the cold start, at the end, and without suggestions.
fn rows(episodes: &[EvaluatedEpisode]) -> Vec<StageRow> {
    let (all, without) =
        (evaluations::by_iteration(episodes, EVAL), evaluations::by_iteration(episodes, WITHOUT_SUGGESTIONS));
    let label = |iteration: u64, last: bool| match (iteration, last) {
        (0, _) => "cold start".to_string(),
        (_, true) => "final".into(),
        (n, false) => format!("iteration {n}"),
    };
    let last = all.keys().last().copied();
    let mut stages: Vec<(String, &results::Evaluation)> = Vec::new();
    for at in all.keys().next().copied().into_iter().chain(last.filter(|last| all.len() > 1 || *last > 0)) {
        if let Some(evaluation) = all.get(&at).filter(|_| stages.len() < 2) {
            stages.push((label(at, Some(at) == last), evaluation));
        }
    }
    if let Some((_, evaluation)) = without.last_key_value() {
        stages.push(("final, no suggestions".into(), evaluation));
    }
    let stages: Vec<(&str, &results::Evaluation)> = stages.iter().map(|(name, of)| (&name[..], *of)).collect();
    results::rows(&stages)
}

/// The last evaluation of the phase `last` against the first of all.
fn verdicts(episodes: &[EvaluatedEpisode], last: &str) -> Vec<verdict::Verdict> {
    let iterations = |phase: &str| episodes.iter().filter(move |e| e.phase == phase).map(|e| e.iteration).collect();
    let [first, last_of]: [Vec<u64>; 2] = [EVAL, last].map(iterations);
    match (first.iter().min(), last_of.iter().max()) {
        (Some(first), Some(at)) if at > first => verdict::verdicts(episodes, (EVAL, *first), (last, *at)),
        _ => Vec::new(),
    }
}

fn status(run: &PageRun<'_>) -> String {
    let done = run.records.iter().filter(|r| r.phase == "grpo").map(|r| r.step).max().unwrap_or(0);
    match run.finished {
        true => "finished".into(),
        false => format!("not finished: {done} of {} GRPO iterations at the last checkpoint", run.iterations),
    }
}

/// Where the run came from, as (what, value).
fn provenance(run: &PageRun<'_>) -> Vec<(String, String)> {
    let Some(of) = &run.summary.provenance else { return Vec::new() };
    let mut facts: Vec<(String, String)> = Vec::new();
    for (i, p) in of.sessions.iter().enumerate() {
        let nth = |what: &str| if i == 0 { what.to_string() } else { format!("{what}, resumed ({i})") };
        let commit = p.commit.as_ref().map(|commit| format!(", commit {commit}")).unwrap_or_default();
        facts.push((nth("program"), format!("uncouple {}{commit}", p.version)));
        facts.push((nth("command"), p.command_line()));
        facts.push((nth("machine"), format!("{}: {}; {}", p.host, p.device, p.system)));
        facts.push((nth("time"), format!("{} to {} (UTC)", p.began, p.seen)));
        // Of a resumed run only those that are not as they were.
        let before = i.checked_sub(1).map_or(&[][..], |before| &of.sessions[before].files);
        let files = p.files.iter().filter(|file| !before.contains(file));
        facts.extend(files.map(|file| (nth(&file.key), format!("{}, sha256 {}", file.path, file.sha256))));
    }
    let content = of.games.content.as_ref().map(|hash| format!(", files sha256 {hash}")).unwrap_or_default();
    facts.push(("seed".into(), run.seed.to_string()));
    facts.push(("games".into(), format!("{}{content}", of.games.suite)));
    let panels = of.games.panels.iter().map(|(split, hash)| (format!("games of {split}"), format!("sha256 {hash}")));
    facts.extend(panels);
    facts
}

/// Time by phase and part, largest first, with its share of the whole run in percent.
fn times(summary: &Summary) -> Vec<Value> {
    let mut parts: Vec<(&String, &f64)> = summary.phase_seconds.iter().collect();
    parts.sort_by(|a, b| b.1.total_cmp(a.1));
    let share = |seconds: f64| 100.0 * seconds / summary.seconds.max(f64::MIN_POSITIVE);
    let row = |(part, s): (&String, &f64)| context! { part, seconds => format!("{s:.1}"), share => format!("{:.1}", share(*s)) };
    parts.into_iter().map(row).collect()
}
