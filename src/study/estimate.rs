//! What a study will take, before it is run: cells, time, memory, and the difference it can see.

use super::plan::{Expect, Study, StudyTask};
use super::statistics::Design;
use super::{StudyError, collect, measures, task};
use crate::config::{Config, GcdMode};
use crate::device::cpu;
use crate::model::params::Layout;
use crate::report::results::fitted;
use crate::report::stats;
use crate::train::memory::{self, Fit, Placement};
use crate::train::{TrainError, evaluate};
use serde::Serialize;

/// What is known of a study beforehand.
#[derive(Debug, Serialize)]
pub struct StudyEstimate {
    pub runs: Vec<Planned>,
    pub parts: Vec<PartTime>,
    /// Seconds of all that is not finished, one after another; `None` where a part is not known.
    pub seconds_left: Option<f64>,
    pub memory: Vec<MemoryEstimate>,
    pub power: Vec<Power>,
}

#[derive(Debug, Serialize)]
pub struct Planned {
    pub name: String,
    pub finished: bool,
}

/// Seconds of a run of one kind.
#[derive(Debug, Serialize)]
pub struct PartTime {
    pub what: String,
    pub runs: usize,
    pub left: usize,
    pub seconds: Option<f64>,
    /// `measured` here, `stated` in the study file, or `predicted` from its rates.
    pub source: Option<&'static str>,
}

#[derive(Debug, Serialize)]
pub struct MemoryEstimate {
    pub start: String,
    /// The variant that needs most.
    pub variant: String,
    #[serde(flatten)]
    pub fit: Fit,
}

/// The smallest difference between two variants that the study finds in four of five cases.
#[derive(Debug, Serialize)]
pub struct Power {
    pub start: String,
    pub split: String,
    #[serde(flatten)]
    pub design: Design,
    pub detectable: f64,
}

/// Estimates a study; `given` is the memory it is held against, where that is not this machine's.
pub fn estimate(study: &Study, given: Option<u64>) -> Result<StudyEstimate, StudyError> {
    let mut runs = Vec::new();
    for task in study.tasks() {
        runs.push(Planned { name: study.name_of(&task), finished: task::is_done(study, &task)? });
    }
    let parts = times(study, &runs)?;
    let left = parts.iter().filter(|part| part.left > 0);
    let seconds_left = left.map(|part| Some(part.left as f64 * part.seconds?)).sum::<Option<f64>>();
    let memory = (0..study.starts.len()).map(|start| needed(study, start, given)).collect::<Result<_, _>>()?;
    Ok(StudyEstimate { runs, parts, seconds_left, memory, power: power(study)? })
}

/// A task of a start and a variant, of its first seed.
fn example(study: &Study, start: usize, variant: Option<usize>) -> Option<StudyTask> {
    study.tasks().into_iter().find(|t| (t.start, t.variant) == (start, variant))
}

fn times(study: &Study, runs: &[Planned]) -> Result<Vec<PartTime>, StudyError> {
    let tasks = study.tasks();
    let collected = collect::collect(study)?;
    let mut parts = Vec::new();
    for start in 0..study.starts.len() {
        for variant in [None].into_iter().chain((0..study.variants.len()).map(Some)) {
            let Some(example) = example(study, start, variant) else { continue };
            let of: Vec<usize> =
                (0..tasks.len()).filter(|i| (tasks[*i].start, tasks[*i].variant) == (start, variant)).collect();
            let measured: Vec<f64> = match variant {
                None => collected.cold_start_seconds.clone(),
                Some(_) => {
                    let own = collected.cells.iter().filter(|c| (c.task.start, c.task.variant) == (start, variant));
                    own.map(|c| measures::seconds(&c.summary, &c.records)).collect()
                }
            };
            let (seconds, source) = seconds(study, &example, &measured)?;
            let name = study.name_of(&example);
            parts.push(PartTime {
                what: name.trim_end_matches(&format!("-seed-{}", example.seed)).into(),
                runs: of.len(),
                left: of.iter().filter(|i| !runs[**i].finished).count(),
                seconds,
                source,
            });
        }
    }
    Ok(parts)
}

/// The best that is known: measured here, else stated, else predicted.
fn seconds(
    study: &Study,
    task: &StudyTask,
    measured: &[f64],
) -> Result<(Option<f64>, Option<&'static str>), StudyError> {
    let Expect { cold_start_minutes, cell_minutes, .. } = study.expect;
    let stated = if task.variant.is_some() { cell_minutes } else { cold_start_minutes };
    if !measured.is_empty() {
        return Ok((Some(stats::mean(measured)), Some("measured")));
    }
    if stated > 0.0 {
        return Ok((Some(60.0 * stated), Some("stated")));
    }
    let config = study.config(task)?;
    let parameters = match memory::model_shape(&config) {
        Ok(shape) => Layout::new(&shape).len as f64,
        Err(e) => return Err(TrainError::from(e).into()),
    };
    let predicted = predicted(&study.expect, &config, parameters, task.variant.is_some());
    Ok((predicted, predicted.map(|_| "predicted")))
}

/// Two operations a parameter and token read, six a token trained on (eight where activations are recomputed), at the
/// stated rate; tokens written at the rate of decoding. Evaluations are played like training's episodes.
fn predicted(e: &Expect, config: &Config, parameters: f64, is_cell: bool) -> Option<f64> {
    let known = [e.turns, e.written_tokens, e.tflops, e.decode].iter().all(|x| *x > 0.0);
    if !known {
        return None;
    }
    let (read, written) = (e.turns * e.read_tokens, e.turns * e.written_tokens);
    let passes = if config.model.recompute { 8.0 } else { 6.0 };
    let rate = e.tflops * 1e12;
    let play = |episodes: f64| episodes * (written / e.decode + 2.0 * parameters * (read + written) / rate);
    let train = |tokens: f64| tokens * passes * parameters / rate;
    // What a panel holds is not known where all of it is played: 128 games stand for it.
    let panel = if config.eval.games == 0 { 128.0 } else { f64::from(config.eval.games) };
    let evaluation = play(3.0 * panel);
    if !is_cell {
        let demonstrations = f64::from(config.sft.steps) * f64::from(config.sft.batch);
        return Some(train(demonstrations * (read + written)) + evaluation);
    }
    let episodes = f64::from(config.rollout.groups) * f64::from(config.rollout.group_size);
    let judged = match config.gcd.mode {
        GcdMode::Generate => f64::from(config.gcd.pairs) * f64::from(config.gcd.judgments),
        _ => 0.0,
    };
    // A judgment writes half of what it may, and is trained on with the prompt it shares.
    let judgment = 0.5 * f64::from(config.gcd.max_tokens);
    let iteration = play(episodes)
        + f64::from(config.grpo.epochs) * train(episodes * (read + written))
        + judged * judgment / e.decode
        + train(judged * judgment);
    Some(f64::from(config.run.iterations) * iteration + evaluation)
}

/// The plan of the cell that needs most memory.
fn needed(study: &Study, start: usize, given: Option<u64>) -> Result<MemoryEstimate, StudyError> {
    let variants = [None].into_iter().chain((0..study.variants.len()).map(Some));
    let mut most: Option<MemoryEstimate> = None;
    for variant in variants {
        let Some(task) = example(study, start, variant) else { continue };
        let config = study.config(&task)?;
        if study.place() == Placement::Gpu {
            config.validate_for_gpu()?;
        }
        let shape = memory::model_shape(&config).map_err(TrainError::from)?;
        let here = match study.place() {
            Placement::Cpu => cpu::memory().map(|memory| memory.available),
            Placement::Gpu => None,
        };
        let fit = memory::fit(&memory::plan(&config, &shape, study.place()), given.or(here));
        let variant = variant.map_or("cold-start".into(), |v| study.variants[v].name.clone());
        let this = MemoryEstimate { start: study.starts[start].name.clone(), variant, fit };
        if most.as_ref().is_none_or(|most| this.fit.needed > most.fit.needed) {
            most = Some(this);
        }
    }
    most.ok_or_else(|| StudyError::Invalid {
        file: study.file.clone(),
        key: "start".into(),
        reason: "has no seed".into(),
    })
}

/// The power on each split. Where the games are not here, or all are played, the split's own number is not known and
/// 128 stand for it.
fn power(study: &Study) -> Result<Vec<Power>, StudyError> {
    let mut all = Vec::new();
    for (at, start) in study.starts.iter().enumerate() {
        let Some(task) = example(study, at, None).filter(|_| study.variants.len() > 1) else { continue };
        let config = study.config(&task)?;
        let seeds = if start.seeds.is_empty() { study.seeds.len() } else { start.seeds.len() };
        let games = if config.eval.games == 0 { 128 } else { config.eval.games as usize };
        for split in evaluate::SPLITS {
            let design = study.design(seeds, games);
            let detectable = design.detectable();
            all.push(Power { start: start.name.clone(), split: split.to_string(), design, detectable });
        }
    }
    Ok(all)
}

/// For a terminal or a log.
pub fn table(study: &Study, e: &StudyEstimate, bytes: fn(u64) -> String) -> String {
    let done = e.runs.iter().filter(|run| run.finished).count();
    let mut out = format!("{}: {} runs in {}, {done} finished\n", study.name, e.runs.len(), study.folder.display());
    let row = |p: &PartTime| {
        let each = p.seconds.map_or("not known".into(), span);
        [p.what.clone(), p.runs.to_string(), p.left.to_string(), each, p.source.unwrap_or("–").into()]
    };
    out += &fitted(&["runs", "of them", "left", "each", "time is"], e.parts.iter().map(row), &[1, 2, 3]);
    out += &match e.seconds_left {
        Some(seconds) => format!("\nleft, one after another: {}\n", span(seconds)),
        None => "\nleft: not known before a run of each kind is finished\n".into(),
    };
    for m in &e.memory {
        let name = if m.start.is_empty() { String::new() } else { format!("{}, ", m.start) };
        let verdict = match (m.fit.available, &m.fit.advice) {
            (Some(available), None) => format!("fits in {}", bytes(available)),
            (Some(available), Some(advice)) => format!("does not fit in {}: {advice}", bytes(available)),
            (None, _) => "how much there is is not known: say so by --memory, e.g. --memory 80GB".into(),
        };
        out += &format!("memory: {name}{} needs most, {}; {verdict}\n", m.variant, bytes(m.fit.needed));
    }
    if let Some(p) = e.power.first() {
        let Design { success, correlation, spread, .. } = p.design;
        out += &format!(
            "power, assuming success {:.0} %, correlation {correlation} of two variants in one game, and {:.0} points between seeds' \
             differences:\n",
            100.0 * success,
            100.0 * spread
        );
    }
    // The splits of a start are alike but for their names.
    for of_start in e.power.chunk_by(|a, b| a.start == b.start && a.design == b.design) {
        let Power { start, design: Design { seeds, games, .. }, detectable, .. } = &of_start[0];
        let name = if start.is_empty() { String::new() } else { format!("{start}, ") };
        let splits = of_start.iter().map(|p| &p.split[..]).collect::<Vec<_>>().join(", ");
        let plural = if *seeds == 1 { "" } else { "s" };
        out += &format!(
            "  {name}{splits}: {seeds} seed{plural} × {games} games see a difference of {:.0} points (80 % power, two-sided 5 %)\n",
            100.0 * detectable
        );
    }
    out.trim_end().into()
}

/// A time for people.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 600.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
