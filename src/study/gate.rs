//! The gate: what the methods would begin with, measured in minutes. Where nothing is coupled, or nothing is won, hours
//! of training compare nothing.

use super::StudyError;
use super::plan::{Study, StudyTask};
use super::probed::{self, Class, PairStratum, Probed, Sum};
use super::statistics::Interval;
use crate::config::Config;
use crate::coupling::{self, FOLDER};
use crate::device::Gpu;
use crate::env::Suite;
use crate::files::{self, FileError};
use crate::report::results::{SplitSummary, fitted};
use crate::report::stats;
use crate::train::gate::{self as on_policy, OnPolicy};
use crate::train::report::Loaded;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

const FILE: &str = "gate.json";
/// Name of the measurement in the cold start's coupling/.
pub const STEM: &str = "gate";
/// A mean cosine of good and bad actions in other states below this is as good as none: five steps of supervised
/// learning bring it there.
const UNCOUPLED: f64 = 0.05;
/// Below this share of groups with different returns, an iteration teaches next to nothing.
const FEW_MIXED: f64 = 0.1;

/// What `gate.json` keeps of the rollout; the coupling is in the run's coupling/.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    episodes: u64,
    groups: u64,
    mixed_groups: u64,
    success: f64,
    /// Groups as clusters.
    success_ci: [f64; 2],
    p_value: Option<f64>,
    has_probe: bool,
    seconds: f64,
}

/// A gate as reports tell it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gate {
    pub run: String,
    pub start: String,
    pub seed: u64,
    /// Episodes of the first iteration, as training samples them.
    pub episodes: u64,
    pub groups: u64,
    pub mixed_groups: u64,
    pub success: Interval,
    /// The evaluation after the cold start, by split.
    pub evaluation: BTreeMap<String, SplitSummary>,
    pub samples: usize,
    pub cosines: Vec<Cosine>,
    pub signed: Option<f64>,
    pub unsigned: Option<f64>,
    pub p_value: Option<f64>,
    pub seconds: f64,
    pub verdict: Vec<String>,
}

/// The mean cosine of a class of pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cosine {
    pub stratum: PairStratum,
    pub class: Class,
    #[serde(flatten)]
    pub cosine: Interval,
    pub pairs: usize,
}

fn file(study: &Study, task: &StudyTask) -> PathBuf {
    study.run_folder(task).join(FILE)
}

pub fn is_measured(study: &Study, task: &StudyTask) -> bool {
    file(study, task).exists()
}

/// Measures what follows the finished cold start `task`, and keeps it in its run folder; `gate.json` comes last.
pub fn measure(
    study: &Study,
    task: &StudyTask,
    config: &Config,
    suite: &dyn Suite,
    gpu: Option<&Gpu>,
) -> Result<(), StudyError> {
    let (run, began) = (study.run_folder(task), Instant::now());
    let OnPolicy { groups, mixed, measured } = on_policy::on_policy(config, suite, gpu, &run)?;
    if let Some((probe, grams, measurement)) = &measured {
        probe.write(&run)?;
        let title = format!("Gradient coupling that {} begins with", study.name);
        coupling::write(&run.join(FOLDER), STEM, &title, grams, measurement)?;
    }
    let won: Vec<f64> = groups.iter().map(|g| g.iter().filter(|won| **won).count() as f64).collect();
    let episodes: Vec<f64> = groups.iter().map(|g| g.len() as f64).collect();
    let (success, success_ci) = stats::ratio(&won, &episodes);
    let kept = Kept {
        episodes: episodes.iter().sum::<f64>() as u64,
        groups: groups.len() as u64,
        mixed_groups: mixed as u64,
        success,
        success_ci,
        p_value: measured.as_ref().and_then(|(_, _, measurement)| measurement.p_value),
        has_probe: measured.is_some(),
        seconds: began.elapsed().as_secs_f64(),
    };
    let json = format!("{:#}\n", serde_json::json!(kept));
    Ok(files::write_file(&file(study, task), |w| w.write_all(json.as_bytes()))?)
}

/// The gates that have been measured.
pub fn all(study: &Study) -> Result<Vec<Gate>, StudyError> {
    let tasks = study.tasks();
    tasks.iter().filter(|task| study.is_gated(task) && is_measured(study, task)).map(|task| read(study, task)).collect()
}

fn read(study: &Study, task: &StudyTask) -> Result<Gate, StudyError> {
    let (file, run) = (file(study, task), study.run_folder(task));
    let bytes = files::read(&file, files::MOST_KEPT).map_err(|e| FileError::new("read", &file, e))?;
    let kept: Kept = serde_json::from_slice(&bytes)
        .map_err(|e| StudyError::Corrupt { file: file.clone(), reason: e.to_string() })?;
    let probed = if kept.has_probe { Probed::read(&run, STEM)? } else { None };
    let probes: Vec<&Probed> = probed.iter().collect();
    let mut cosines = Vec::new();
    for stratum in PairStratum::ALL {
        for class in Class::ALL {
            let pairs = probes.iter().map(|p| p.count(class, stratum)).sum();
            let cosine = probed::cosine(&probes, class, stratum);
            cosines.extend(cosine.map(|cosine| Cosine { stratum, class, cosine, pairs }));
        }
    }
    let sum = |of| probed::sums(&probes, of).map(|interval| interval.value);
    let mut gate = Gate {
        run: study.name_of(task),
        start: study.starts[task.start].name.clone(),
        seed: task.seed,
        episodes: kept.episodes,
        groups: kept.groups,
        mixed_groups: kept.mixed_groups,
        success: Interval { value: kept.success, ci: Some(kept.success_ci) },
        evaluation: Loaded::open(&run)?.summary.eval.cold_start,
        samples: probed.as_ref().map_or(0, Probed::samples),
        cosines,
        signed: sum(Sum::Signed),
        unsigned: sum(Sum::Unsigned),
        p_value: kept.p_value,
        seconds: kept.seconds,
        verdict: Vec::new(),
    };
    gate.verdict = gate.judge();
    Ok(gate)
}

/// What the gate of a task says, if it has one.
pub fn verdict_of(study: &Study, task: &StudyTask) -> Result<Vec<String>, StudyError> {
    if !study.is_gated(task) || !is_measured(study, task) {
        return Ok(Vec::new());
    }
    Ok(read(study, task)?.verdict)
}

impl Gate {
    /// The mean cosine of a class in a stratum.
    pub fn of(&self, class: Class, stratum: PairStratum) -> Option<Interval> {
        self.cosines.iter().find(|c| (c.class, c.stratum) == (class, stratum)).map(|c| c.cosine)
    }

    fn judge(&self) -> Vec<String> {
        let percent = |x: f64| format!("{:.0} %", 100.0 * x);
        let mixed = self.mixed_groups as f64 / self.groups.max(1) as f64;
        let success = format!(
            "gate: the first iteration wins {} of {} episodes; returns differ in {} of {} groups",
            percent(self.success.value),
            self.episodes,
            self.mixed_groups,
            self.groups
        );
        let learn = match mixed {
            m if m < FEW_MIXED && self.success.value < 0.5 => {
                ": next to nothing can be learnt: begin with easier games or a longer cold start"
            }
            m if m < FEW_MIXED => ": next to nothing is left to learn: begin with harder games or a shorter cold start",
            _ => "",
        };
        let coupling = match self.of(Class::Pn, PairStratum::OtherState) {
            None => "gate: no coupling can be measured: there are not two good and two bad actions of different states"
                .into(),
            Some(pn) => format!("gate: pn of other states is {}: {}", told(&pn), coupled(&pn)),
        };
        vec![success + learn, coupling]
    }
}

/// What a mean cosine of good and bad actions in other states means for a study of decoupling.
fn coupled(pn: &Interval) -> &'static str {
    match pn.ci {
        _ if pn.value < UNCOUPLED => {
            "near 0, so that nothing is coupled that a method could decouple; begin with fewer sft.steps before hours are spent"
        }
        Some([low, _]) if low <= 0.0 => {
            "its interval holds 0, so that coupling is not shown; take more coupling.samples"
        }
        _ => "good and bad actions are coupled: methods can be told apart here",
    }
}

/// An interval in words.
pub fn told(interval: &Interval) -> String {
    match interval.ci {
        Some([low, high]) => format!("{:.3} [{low:.3}, {high:.3}]", interval.value),
        None => format!("{:.3}", interval.value),
    }
}

/// For a terminal or a log.
pub fn table(gates: &[Gate]) -> String {
    let mut text = String::new();
    for gate in gates {
        let row = |stratum: PairStratum| {
            let of = |class| gate.cosines.iter().find(|c| (c.class, c.stratum) == (class, stratum));
            let mean = |class| of(class).map_or("–".into(), |c| format!("{:.3}", c.cosine.value));
            let pn = of(Class::Pn).map_or("–".into(), |c| told(&c.cosine));
            let pairs = Class::ALL.map(|class| of(class).map_or(0, |c| c.pairs).to_string()).join(", ");
            [stratum.name().to_string(), mean(Class::Pp), mean(Class::Nn), pn, pairs]
        };
        let rows = PairStratum::ALL.into_iter().map(row);
        text += &format!("{}\n{}\n", gate.run, fitted(&["cosine", "pp", "nn", "pn", "pairs"], rows, &[1, 2, 3]));
        if let (Some(signed), Some(unsigned)) = (gate.signed, gate.unsigned) {
            text += &format!(
                "|Σ ±g|² / Σ |g|² = {signed:.2} signed, {unsigned:.2} unsigned, of {} samples\n",
                gate.samples
            );
        }
        let eval = |(split, s): (&String, &SplitSummary)| format!("{split} {:.1} %", 100.0 * s.success);
        let evaluation: Vec<String> = gate.evaluation.iter().map(eval).collect();
        if !evaluation.is_empty() {
            text += &format!("evaluation after the cold start: {}\n", evaluation.join(", "));
        }
        gate.verdict.iter().for_each(|line| text += &format!("{line}\n"));
    }
    text + "[95 % intervals: bootstrap over samples; of success: groups as clusters]"
}
