//! Evaluations: the episodes counted, their table for people, `summary.json` for programs.

use super::provenance::Provenance;
use super::stats::{self, Clusters};
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What an evaluation keeps of an episode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvalEpisode {
    /// Whether the game was won.
    pub success: bool,
    /// Length in agent turns.
    pub turns: u32,
    /// Turns that repeat a command already tried at the same observation.
    pub repeats: u32,
    /// Turns that repeat, or come back to an observation seen before.
    pub loops: u32,
}

/// Episodes by split (`L0`, `L1`, `L2`).
pub type Evaluation = BTreeMap<String, Vec<EvalEpisode>>;

/// A number and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Its interval, [low, high].
    pub ci: [f64; 2],
}

/// The statistics of one split, as the table shows them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SplitTable {
    /// Number of episodes.
    pub games: u64,
    /// Share of episodes won (Wilson interval).
    pub success: Estimate,
    /// Share of turns that repeat (normal interval, episodes as clusters).
    pub repeat_rate: Estimate,
    /// Share of turns in loops (likewise).
    pub loop_rate: Estimate,
    /// Mean turns (normal interval).
    pub episode_length: Estimate,
}

impl SplitTable {
    /// The statistics of these episodes.
    pub fn new(episodes: &[EvalEpisode]) -> SplitTable {
        let games = episodes.len() as u64;
        let share = |count: usize| Estimate {
            value: count as f64 / games.max(1) as f64,
            ci: stats::wilson(count as u64, games),
        };
        let turns: Vec<f64> = episodes.iter().map(|e| f64::from(e.turns)).collect();
        let rate = |count: fn(&EvalEpisode) -> u32| {
            let counts: Vec<f64> = episodes.iter().map(|e| f64::from(count(e))).collect();
            let (value, ci) = stats::ratio(&counts, &turns);
            Estimate { value, ci }
        };
        SplitTable {
            games,
            success: share(episodes.iter().filter(|e| e.success).count()),
            repeat_rate: rate(|e| e.repeats),
            loop_rate: rate(|e| e.loops),
            episode_length: Estimate { value: stats::mean(&turns), ci: stats::normal(&turns) },
        }
    }
}

/// One line of the final table: a stage's result on a split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageRow {
    /// The split's name.
    pub split: String,
    /// E.g. `cold start`, `final`.
    pub stage: String,
    /// The statistics.
    #[serde(flatten)]
    pub result: SplitTable,
}

/// Rows of several stages, split by split, so that a split's stages stand together.
pub fn rows(stages: &[(&str, &Evaluation)]) -> Vec<StageRow> {
    let splits: std::collections::BTreeSet<&String> = stages.iter().flat_map(|(_, e)| e.keys()).collect();
    let row = |split: &String, stage: &str, e: &Evaluation| {
        let result = SplitTable::new(e.get(split)?);
        Some(StageRow { split: split.clone(), stage: stage.into(), result })
    };
    splits.into_iter().flat_map(|split| stages.iter().filter_map(move |(s, e)| row(split, s, e))).collect()
}

/// Headings of the table in the report page.
pub const HEADINGS: [&str; 7] =
    ["split", "stage", "success %", "repeated actions %", "turns in loops %", "episode length", "games"];

impl StageRow {
    /// The cells under [`HEADINGS`]: estimates with their 95 % intervals.
    pub fn cells(&self) -> [String; 7] {
        let r = &self.result;
        let length = r.episode_length;
        [
            self.split.clone(),
            self.stage.clone(),
            percent(r.success),
            percent(r.repeat_rate),
            percent(r.loop_rate),
            format!("{:.2} [{:.2}, {:.2}]", length.value, length.ci[0], length.ci[1]),
            r.games.to_string(),
        ]
    }
}

/// The tables for a terminal or a log, no wider than 80 columns: success first, then how it was played.
pub fn table(rows: &[StageRow]) -> String {
    let mut stages: Vec<&str> = Vec::new();
    let mut splits: BTreeMap<&str, Vec<&StageRow>> = BTreeMap::new();
    for row in rows {
        if !stages.contains(&&row.stage[..]) {
            stages.push(&row.stage);
        }
        splits.entry(&row.split).or_default().push(row);
    }
    let success = splits.iter().map(|(split, of)| {
        let at = |stage: &&str| of.iter().find(|row| row.stage == *stage).map(|row| percent(row.result.success));
        let games = of.iter().map(|row| row.result.games).max().unwrap_or(0).to_string();
        let cells = stages.iter().map(|stage| at(stage).unwrap_or("–".into()));
        [split.to_string()].into_iter().chain(cells).chain([games]).collect::<Vec<_>>()
    });
    let headings: Vec<String> = stages.iter().map(|stage| format!("{stage} %")).collect();
    let headings: Vec<&str> =
        ["split"].into_iter().chain(headings.iter().map(String::as_str)).chain(["games"]).collect();
    let right: Vec<usize> = (1..headings.len()).collect();
    let first = fitted(&headings, success, &right);
    let played = rows.iter().map(|row| {
        let r = &row.result;
        let cells = [half(r.repeat_rate, 100.0, 1), half(r.loop_rate, 100.0, 1), half(r.episode_length, 1.0, 2)];
        [row.split.clone(), row.stage.clone()].into_iter().chain(cells).collect::<Vec<_>>()
    });
    let second = fitted(&PLAYED, played, &[2, 3, 4]);
    format!("success\n{first}\nplay\n{second}\n[95 % intervals: Wilson for success, normal for the others]")
}

const PLAYED: [&str; 5] = ["split", "stage", "repeats %", "in loops %", "turns"];

/// An estimate and half of its interval.
fn half(e: Estimate, scale: f64, decimals: usize) -> String {
    let half = scale * (e.ci[1] - e.ci[0]) / 2.0;
    format!("{:.decimals$} ± {half:.decimals$}", scale * e.value)
}

/// Turns of a split that held no command that could be read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Unreadable {
    /// All turns of the split.
    pub turns: u64,
    /// Share of the turns (normal interval, episodes as clusters).
    pub rate: Estimate,
    /// Turns by why.
    pub reasons: BTreeMap<String, u64>,
}

impl Unreadable {
    /// `refused` are the reasons of each episode's unreadable turns, `turns` its number of turns.
    pub fn new(refused: &[Vec<&str>], turns: &[usize]) -> Unreadable {
        let counts: Vec<f64> = refused.iter().map(|reasons| reasons.len() as f64).collect();
        let (value, ci) = stats::ratio(&counts, &turns.iter().map(|n| *n as f64).collect::<Vec<_>>());
        let mut reasons = BTreeMap::new();
        refused.iter().flatten().for_each(|reason| *reasons.entry(reason.to_string()).or_default() += 1);
        Unreadable { turns: turns.iter().sum::<usize>() as u64, rate: Estimate { value, ci }, reasons }
    }
}

/// Success in one task type of a split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TypeRow {
    /// The split's name.
    pub split: String,
    /// The task type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Number of episodes.
    pub games: u64,
    /// Share of episodes won (Wilson interval).
    pub success: Estimate,
}

impl TypeRow {
    /// Of `games` episodes of this type, `won` were won.
    pub fn new(split: String, kind: &str, won: u64, games: u64) -> TypeRow {
        let success = Estimate { value: won as f64 / games.max(1) as f64, ci: stats::wilson(won, games) };
        TypeRow { split, kind: kind.into(), games, success }
    }
}

/// Unreadable turns for a terminal or a log.
pub fn unreadable_table(splits: &BTreeMap<String, Unreadable>) -> String {
    let reasons = |u: &Unreadable| u.reasons.iter().map(|(why, n)| format!("{why} {n}")).collect::<Vec<_>>().join(", ");
    let rows = splits.iter().map(|(split, u)| [split.clone(), percent(u.rate), u.turns.to_string(), reasons(u)]);
    fitted(&["split", "unreadable turns %", "turns", "why"], rows, &[1, 2])
}

/// Success by task type for a terminal or a log.
pub fn type_table(types: &[TypeRow]) -> String {
    let rows = types.iter().map(|t| {
        let kind: String = t.kind.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        [t.split.clone(), kind, percent(t.success), t.games.to_string()]
    });
    fitted(&["split", "task type", "success %", "games"], rows, &[2, 3])
}

/// Columns of the narrowest terminal that tables are made for.
const WIDTH: u16 = 80;
/// Blanks on both sides of a cell.
const PADDING: u16 = 2;

/// A table whose columns `right` hold numbers, no word of which is broken; longer texts are broken into lines.
pub fn fitted<R: IntoIterator<Item = String>>(
    headings: &[&str],
    rows: impl Iterator<Item = R>,
    right: &[usize],
) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(headings);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    let longest = |text: &str| text.split(' ').map(|word| word.chars().count()).max().unwrap_or(0);
    let mut widths: Vec<usize> = headings.iter().map(|heading| longest(heading)).collect();
    for row in rows {
        let row: Vec<String> = row.into_iter().collect();
        widths.iter_mut().zip(&row).for_each(|(width, cell)| *width = longest(cell).max(*width));
        table.add_row(row);
    }
    for (i, column) in table.column_iter_mut().enumerate().filter(|(i, _)| right.contains(i)) {
        column.set_cell_alignment(CellAlignment::Right);
        let width = u16::try_from(widths[i]).unwrap_or(WIDTH) + PADDING;
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
    }
    table.to_string()
}

/// A share with its interval.
fn percent(e: Estimate) -> String {
    percent_of(e.value, e.ci)
}

/// The same of a value and the ends of its interval.
pub fn percent_of(value: f64, [low, high]: [f64; 2]) -> String {
    format!("{:.1} [{:.1}, {:.1}]", 100.0 * value, 100.0 * low, 100.0 * high)
}

/// Success rates, as fractions, of players who do not learn: the floor and the ceiling of a split; `None` where the environment has
/// no such player.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Baselines {
    /// Uniform over the admissible commands.
    pub random: Option<f64>,
    /// Follows the shortest plan, knowing everything.
    pub oracle: Option<f64>,
    /// The demonstrator of cold start.
    pub demonstrator: Option<f64>,
    /// Games played by each.
    pub games: u64,
}

/// Headings of [`baseline_cells`].
pub const BASELINE_HEADINGS: [&str; 4] = ["split", "random policy %", "demonstrator %", "oracle %"];

/// The cells under [`BASELINE_HEADINGS`], a row for each split.
pub fn baseline_cells(baselines: &BTreeMap<String, Baselines>) -> Vec<[String; 4]> {
    let percent = |rate: Option<f64>| rate.map_or("–".into(), |rate| format!("{:.1}", 100.0 * rate));
    baselines
        .iter()
        .map(|(split, b)| [split.clone(), percent(b.random), percent(b.demonstrator), percent(b.oracle)])
        .collect()
}

/// What stands beside every result, for a terminal or a log.
pub fn baseline_table(baselines: &BTreeMap<String, Baselines>) -> String {
    fitted(&BASELINE_HEADINGS, baseline_cells(baselines).into_iter(), &[1, 2, 3])
}

/// `summary.json`: what a run came to. A part that did not run is absent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Wall time of the run, resumed parts included.
    pub seconds: f64,
    /// Of it, the time of what was recorded, by phase and part, e.g. `grpo/rollout`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub phase_seconds: BTreeMap<String, f64>,
    /// Optimizer steps.
    pub train_steps: u64,
    /// Environment steps of all phases.
    pub env_steps: u64,
    /// Tokens sampled and trained on.
    pub tokens: u64,
    /// Success by stage and split.
    #[serde(default, skip_serializing_if = "EvalSummary::is_empty")]
    pub eval: EvalSummary,
    /// By split: players who do not learn, on the same games.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub baselines: BTreeMap<String, Baselines>,
    /// Mean gradient cosines at the last measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coupling: Option<CouplingSummary>,
    /// Flawed actions by their probability.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flawed: Vec<Flawed>,
    /// The curve that fits them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flawed_fit: Option<FlawedFit>,
    /// Share of held-out judgments that equal the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judgment_accuracy: Option<f64>,
    /// Where the run comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// Evaluations before and after GRPO, by split.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EvalSummary {
    /// After the cold start.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cold_start: BTreeMap<String, SplitSummary>,
    /// After the last iteration.
    #[serde(default, rename = "final", skip_serializing_if = "BTreeMap::is_empty")]
    pub last: BTreeMap<String, SplitSummary>,
    /// The last one again, without suggestions in the prompt.
    #[serde(default, rename = "final_without_suggestions", skip_serializing_if = "BTreeMap::is_empty")]
    pub without_suggestions: BTreeMap<String, SplitSummary>,
}

impl EvalSummary {
    fn is_empty(&self) -> bool {
        self.cold_start.is_empty() && self.last.is_empty()
    }
}

/// One split in `summary.json`; shares are fractions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitSummary {
    /// Share of episodes won.
    pub success: f64,
    /// Its 95 % interval.
    pub ci: [f64; 2],
    /// Number of episodes.
    pub games: u64,
    /// Share of turns that repeat.
    pub repeat_rate: f64,
    /// Share of turns in loops.
    pub loop_rate: f64,
    /// Mean turns of an episode.
    pub episode_length: f64,
}

/// Flawed actions of a tenth of probability in training. Intervals are of 95 %, groups of episodes as clusters; none with one group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Flawed {
    /// Their mean probability q when they were sampled.
    pub probability: f64,
    /// Their mean advantage A: the episode's return less the mean of the others in its group.
    pub advantage: f64,
    /// The interval of the advantage.
    pub advantage_ci: Option<[f64; 2]>,
    /// Mean of q A, which q r (q − 1) is of.
    pub contribution: f64,
    /// The interval of the contribution.
    pub contribution_ci: Option<[f64; 2]>,
    /// q r (q − 1) with the risk of [`FlawedFit`]; `None` without one.
    pub expected: Option<f64>,
    /// Number of actions.
    pub count: u64,
    /// Number of groups of episodes.
    pub groups: u64,
}

/// The curve q r (q − 1) that comes nearest to q A of flawed actions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FlawedFit {
    /// The fitted risk r.
    pub risk: f64,
    /// Its interval.
    pub ci: Option<[f64; 2]>,
    /// Share of Σ (q A)² that the curve takes away.
    pub explained: f64,
    /// Mean advantage of actions with q ≤ 1/2.
    pub unlikely: Option<ClusterMean>,
    /// Mean advantage of actions with q > 1/2.
    pub likely: Option<ClusterMean>,
}

/// A mean over actions, with groups of episodes as clusters.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClusterMean {
    /// The mean.
    pub mean: f64,
    /// Its 95 % interval.
    pub ci: Option<[f64; 2]>,
    /// Number of actions.
    pub count: u64,
    /// Number of groups.
    pub groups: u64,
}

impl ClusterMean {
    /// The wholes are counts.
    pub fn of(clusters: &Clusters) -> ClusterMean {
        ClusterMean {
            mean: clusters.value().unwrap_or_default(),
            ci: clusters.interval(),
            count: clusters.whole as u64,
            groups: clusters.count,
        }
    }
}

/// Mean gradient cosines of pairs: positive-positive, negative-negative, positive-negative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CouplingSummary {
    /// Both positive.
    pub pp: f64,
    /// Both negative.
    pub nn: f64,
    /// One of each.
    pub pn: f64,
}

/// An evaluation as `summary.json` has it.
pub fn summarise(evaluation: &Evaluation) -> BTreeMap<String, SplitSummary> {
    let summary = |episodes: &Vec<EvalEpisode>| {
        let t = SplitTable::new(episodes);
        SplitSummary {
            success: t.success.value,
            ci: t.success.ci,
            games: t.games,
            repeat_rate: t.repeat_rate.value,
            loop_rate: t.loop_rate.value,
            episode_length: t.episode_length.value,
        }
    };
    evaluation.iter().map(|(split, episodes)| (split.clone(), summary(episodes))).collect()
}
