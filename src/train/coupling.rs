//! The coupling of a run's probe set, during training and at its end.

use super::TrainError;
use super::iteration::Iteration;
use super::learner::Learner;
use crate::agent::Episode;
use crate::config::Config;
use crate::coupling::{self, Grams, Measurement, Probe, ProbeError, ProbeSample, Weights, measure};
use crate::gcd::{Asked, label};
use crate::grpo::Sample;
use crate::report::metrics::Record;
use std::path::Path;

/// The probe set of a run: the one it has, or else one chosen from this iteration and kept. `None` while no iteration had two
/// samples of each sign.
pub fn probe(run: &Path, config: &Config, done: &Iteration, index: u32) -> Result<Option<Probe>, TrainError> {
    match Probe::of(run) {
        Err(ProbeError::Missing(_)) => {}
        // One from a later iteration was left by a run that is resumed here, and is chosen again in its time.
        Ok(later) if later.iteration > index => {}
        found => return Ok(Some(found?)),
    }
    let played = done.episodes.iter().enumerate().filter(|(_, e)| !e.finish.is_failure());
    let candidates: Vec<ProbeSample> =
        played.zip(&done.samples).flat_map(|((i, e), sample)| turns(e, i, sample, config)).collect();
    let chosen = Probe::choose(index, &candidates, config.coupling.samples as usize);
    if let Some(probe) = &chosen {
        probe.write(run)?;
    }
    Ok(chosen)
}

/// Each turn as a state and its action.
fn turns(episode: &Episode, index: usize, sample: &Sample, config: &Config) -> Vec<ProbeSample> {
    let labels = label::labels(episode, index, &Asked::new(), &config.gcd);
    let of = |(turn, label): (&crate::agent::Turn, Option<label::Label>)| {
        let last = turn.tokens.clone().last()?;
        Some(ProbeSample {
            tokens: episode.acted(turn).to_vec(),
            action: episode.state(turn).len(),
            advantage: f64::from(*sample.advantage.get(last)?),
            label: match label {
                Some(label::Label::Good) => 1,
                Some(label::Label::Bad) => -1,
                None => 0,
            },
        })
    };
    episode.turns.iter().zip(labels).filter_map(of).collect()
}

/// Measures a probe set with A = 1, where the learner trains.
pub fn measured(learner: &Learner, probe: &Probe, seed: u64) -> Result<(Grams, Measurement), TrainError> {
    let grams = learner.grams(&probe.samples())?;
    let measurement = measure(&grams, &probe.advantages(), Weights::One, seed)?;
    Ok((grams, measurement))
}

/// Adds `coupling/pp`, `nn` and `pn`, of all parameters, of each kind and of the states.
pub fn recorded(record: Record, m: &Measurement) -> Record {
    let kinds = m.kinds.iter().map(|kind| (format!("coupling/{}/", kind.name), kind.cosine));
    let all = [("coupling/".to_string(), m.cosine), ("coupling/state/".into(), m.state)];
    let record = all.into_iter().chain(kinds).fold(record, |record, (prefix, means)| {
        let means = [("pp", means.pp), ("nn", means.nn), ("pn", means.pn)];
        means.into_iter().fold(record, |r, (name, spread)| r.with(&format!("{prefix}{name}"), spread.mean))
    });
    record.with("coupling/p_value", m.p_value).with("coupling/zero_gradients", m.zero as f64)
}

/// The run's last measurement, as files and for `summary.json`. `None` if it never had a probe set.
pub fn last(run: &Path, learner: &Learner, seed: u64) -> Result<Option<Measurement>, TrainError> {
    let probe = match Probe::of(run) {
        Err(ProbeError::Missing(_)) => return Ok(None),
        found => found?,
    };
    let (grams, measurement) = measured(learner, &probe, seed)?;
    coupling::write(&run.join(coupling::FOLDER), "final", "Gradient coupling at the end", &grams, &measurement)?;
    Ok(Some(measurement))
}
