//! The probe set: the samples that a run's coupling is measured on, fixed so that its curve compares with itself and with others'.
//!
//! It holds each (state, action) once: what was sampled twice with the same tokens is one sample, whose class is that of its
//! mean advantage, or of its label. Their cosine of 1 would say nothing.

use super::gram::StateAction;
use super::strata::Traits;
use crate::config::ActionTokens;
use crate::files::{self, FileError};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why a probe set cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum ProbeError {
    #[error("there is no {}: a run has one when it has measured its coupling (coupling.every > 0, and a group that differed in reward)", .0.display())]
    Missing(PathBuf),
    #[error("{}: not a probe set ({reason})", .file.display())]
    Corrupt { file: PathBuf, reason: String },
    #[error(transparent)]
    File(#[from] FileError),
}

/// A state, the action taken in it, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeSample {
    /// The state's tokens, then the action's.
    pub tokens: Vec<u32>,
    /// Where the action begins: the tokens before it are the state.
    pub action: usize,
    /// `None` in samples of the user's own that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<ProbeCommand>,
    /// Mean over the times that the action was taken.
    pub advantage: f64,
    /// 1 good, −1 bad, 0 unknown.
    pub label: i8,
    /// Times that it was taken.
    #[serde(default = "once")]
    pub count: u32,
}

fn once() -> u32 {
    1
}

/// What an action told the environment to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeCommand {
    /// The command as the environment got it.
    pub text: String,
    /// Where in the sample's tokens it stands.
    pub tokens: Range<usize>,
}

/// What makes a sample positive or negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The sign of the advantage.
    Advantage,
    /// The label, good or bad.
    Label,
}

/// A run's `coupling/probe.json`, or samples of the user's own in the same form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// The iteration (from 0) that the samples were taken from.
    pub iteration: u32,
    /// The samples, each (state, action) once.
    pub samples: Vec<ProbeSample>,
}

const FILE: &str = "probe.json";
/// Share of a sum's terms below which it is rounding: advantages are f32, and those of a whole group cancel.
const ROUNDING: f64 = 1e-6;

impl Probe {
    /// Half of `count` with positive and half with negative mean advantage, each (state, action) once; positive first. States in which
    /// both were taken come first, since only they show coupling within a state; the rest and what is taken of them is spread
    /// evenly over `candidates`. `None` when there are not two of each.
    pub fn choose(iteration: u32, candidates: Vec<ProbeSample>, count: usize) -> Option<Probe> {
        let candidates = merged(candidates);
        let of = |class: &[usize], side: fn(f64) -> bool| -> Vec<usize> {
            class.iter().copied().filter(|i| side(candidates[*i].advantage)).collect()
        };
        let sides: [fn(f64) -> bool; 2] = [|a| a > 0.0, |a| a < 0.0];
        let pairs: Vec<[usize; 2]> = states(&candidates)
            .into_iter()
            .filter_map(|members| {
                let [positive, negative] = sides.map(|side| of(&members, side).first().copied());
                Some([positive?, negative?])
            })
            .collect();
        let all: Vec<usize> = (0..candidates.len()).collect();
        let pairs = spread(&pairs, count / 2);
        let chosen = [0, 1].map(|side| {
            let mut chosen: Vec<usize> = pairs.iter().map(|pair| pair[side]).collect();
            let rest: Vec<usize> = of(&all, sides[side]).into_iter().filter(|i| !chosen.contains(i)).collect();
            chosen.extend(spread(&rest, count / 2 - chosen.len()));
            chosen
        });
        let samples = chosen.concat().into_iter().map(|i| candidates[i].clone()).collect();
        Some(Probe { iteration, samples }).filter(Probe::has_pairs)
    }

    /// Two samples of each side at least, by advantage.
    pub fn has_pairs(&self) -> bool {
        let of = |side: fn(f64) -> bool| self.samples.iter().filter(|s| side(s.advantage)).count();
        of(|a| a > 0.0) >= 2 && of(|a| a < 0.0) >= 2
    }

    /// A run's own.
    ///
    /// # Errors
    /// If the run has no probe set, or one that cannot be read.
    pub fn of(run: &Path) -> Result<Probe, ProbeError> {
        Probe::read(run.join(super::FOLDER).join(FILE))
    }

    /// What the file holds more than once is one sample.
    ///
    /// # Errors
    /// If the file is missing, cannot be read, or is not a probe set.
    pub fn read(file: PathBuf) -> Result<Probe, ProbeError> {
        let text = match files::read_text(&file, files::MOST_KEPT) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(ProbeError::Missing(file)),
            Err(e) => return Err(FileError::new("read", file, e).into()),
        };
        let Probe { iteration, samples } = match serde_json::from_str(&text) {
            Ok(probe) => probe,
            Err(e) => return Err(ProbeError::Corrupt { file, reason: e.to_string() }),
        };
        match samples.iter().enumerate().find_map(|(i, sample)| Some((i, sample.fault()?))) {
            Some((i, fault)) => Err(ProbeError::Corrupt { file, reason: format!("sample {i}: {fault}") }),
            None => Ok(Probe { iteration, samples: merged(samples) }),
        }
    }

    /// Writes the probe set into the run folder `run`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, run: &Path) -> Result<(), FileError> {
        let folder = run.join(super::FOLDER);
        std::fs::create_dir_all(&folder).map_err(|e| FileError::new("create", &folder, e))?;
        let json = serde_json::json!(self).to_string();
        files::write_file(&folder.join(FILE), |w| w.write_all(json.as_bytes()))
    }

    /// What gradients are taken of: the mean log-prob of the counted tokens. What follows a command has no part in it.
    pub fn samples(&self, counted: ActionTokens) -> Vec<StateAction> {
        let of = |s: &ProbeSample| match (&s.command, counted) {
            (Some(command), ActionTokens::Action) => {
                StateAction { tokens: s.tokens[..command.tokens.end].to_vec(), action: command.tokens.start }
            }
            _ => StateAction { tokens: s.tokens.clone(), action: s.action },
        };
        self.samples.iter().map(of).collect()
    }

    /// The samples' sides, and which of them share their state or their verb.
    pub fn traits(&self, side: Side) -> Vec<Traits> {
        let (mut states, mut verbs) = (HashMap::new(), HashMap::new());
        let mut traits = Vec::with_capacity(self.samples.len());
        for s in &self.samples {
            let (new_state, new_verb) = (states.len(), verbs.len());
            traits.push(Traits {
                side: match side {
                    Side::Advantage => s.advantage,
                    Side::Label => f64::from(s.label),
                },
                state: *states.entry(s.state()).or_insert(new_state),
                verb: *verbs.entry(s.verb()).or_insert(new_verb),
            });
        }
        traits
    }
}

impl ProbeSample {
    /// The tokens before the action.
    pub fn state(&self) -> &[u32] {
        &self.tokens[..self.action]
    }

    /// The command's first word.
    pub fn verb(&self) -> &str {
        let command = self.command.as_ref().map_or("", |command| &command.text);
        command.split_whitespace().next().unwrap_or_default()
    }

    /// What is wrong with it.
    fn fault(&self) -> Option<String> {
        let tokens = self.tokens.len();
        if self.action > tokens {
            return Some(format!("its action begins at token {}, but it has {tokens}", self.action));
        }
        let Range { start, end } = self.command.as_ref()?.tokens;
        let inside = self.action <= start && start <= end && end <= tokens;
        (!inside)
            .then(|| format!("its command's tokens {start}..{end} are not of its action {}..{tokens}", self.action))
    }
}

/// Each (state, action) once, in the order of first appearance: means of the advantages, and the label that most of them have.
fn merged(samples: Vec<ProbeSample>) -> Vec<ProbeSample> {
    /// Sums over the times that an action was taken.
    struct Sums {
        first: ProbeSample,
        count: u32,
        advantage: f64,
        size: f64,
        label: i64,
    }
    let (mut all, mut places) = (Vec::<Sums>::new(), HashMap::new());
    for sample in samples {
        let place = *places.entry((sample.tokens.clone(), sample.action)).or_insert(all.len());
        if place == all.len() {
            all.push(Sums { first: sample.clone(), count: 0, advantage: 0.0, size: 0.0, label: 0 });
        }
        let (sums, times) = (&mut all[place], sample.count.max(1));
        sums.count += times;
        sums.advantage += sample.advantage * f64::from(times);
        sums.size += sample.advantage.abs() * f64::from(times);
        sums.label += i64::from(sample.label.signum()) * i64::from(times);
        sums.first.command = sums.first.command.take().or(sample.command);
    }
    let mean = |sums: Sums| {
        let cancels = sums.advantage.abs() <= ROUNDING * sums.size;
        ProbeSample {
            advantage: if cancels { 0.0 } else { sums.advantage / f64::from(sums.count) },
            label: sums.label.signum() as i8,
            count: sums.count,
            ..sums.first
        }
    };
    all.into_iter().map(mean).collect()
}

/// The samples of each state, by first appearance.
fn states(samples: &[ProbeSample]) -> Vec<Vec<usize>> {
    let (mut states, mut places): (Vec<Vec<usize>>, HashMap<&[u32], usize>) = (Vec::new(), HashMap::new());
    for (i, sample) in samples.iter().enumerate() {
        let place = *places.entry(sample.state()).or_insert(states.len());
        if place == states.len() {
            states.push(Vec::new());
        }
        states[place].push(i);
    }
    states
}

/// At most `count` of `all`, evenly spread.
fn spread<T: Copy>(all: &[T], count: usize) -> Vec<T> {
    let n = count.min(all.len());
    (0..n).map(|i| all[i * all.len() / n]).collect()
}
