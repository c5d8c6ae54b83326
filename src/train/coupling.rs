//! The coupling of a run's probe set, during training and at its end.

use super::TrainError;
use super::iteration::Iteration;
use super::learner::Learner;
use crate::agent::{Prompter, Turn, command_tokens, guessed_command};
use crate::config::{ActionTokens, Config, Prompt};
use crate::coupling::{
    self, Grams, Means, Measurement, Probe, ProbeCommand, ProbeError, ProbeSample, SampleWeights, Side, Spread, measure,
};
use crate::gcd::{Labelled, label};
use crate::grpo::Sample;
use crate::model::tokenizer::TokenizerError;
use crate::report::metrics::Record;
use std::path::Path;

/// The probe set of a run: the one it has, or else one chosen from this iteration and kept. `None` while no iteration had two
/// samples of each sign.
pub fn probe(
    run: &Path,
    config: &Config,
    prompter: &Prompter,
    done: &Iteration,
    index: u32,
) -> Result<Option<Probe>, TrainError> {
    match Probe::of(run) {
        Err(ProbeError::Missing(_)) => {}
        // One from a later iteration was left by a run that is resumed here, and is chosen again in its time.
        Ok(later) if later.iteration > index => {}
        // An earlier version held samples twice.
        Ok(few) if !few.has_pairs() => {}
        found => return Ok(Some(found?)),
    }
    let probe = choose(config, prompter, done.labelled(), &done.samples, index)?;
    probe.iter().try_for_each(|probe| probe.write(run))?;
    Ok(probe)
}

/// A probe set of an iteration's turns. `None` where there are not two samples of each sign.
pub fn choose(
    config: &Config,
    prompter: &Prompter,
    of: Labelled<'_>,
    samples: &[Sample],
    index: u32,
) -> Result<Option<Probe>, TrainError> {
    let candidates: Vec<ProbeSample> = samples.iter().flat_map(|sample| turns(of, sample, config)).collect();
    let Some(mut probe) = Probe::choose(index, candidates, config.coupling.samples as usize) else { return Ok(None) };
    for sample in &mut probe.samples {
        locate(sample, prompter, Some(&config.prompt))?;
    }
    Ok(Some(probe))
}

/// Each turn as a state and its action. Where in the action the command lies is found for those that are chosen.
fn turns(of: Labelled<'_>, sample: &Sample, config: &Config) -> Vec<ProbeSample> {
    let episode = &of.episodes[sample.episode];
    let labels = label::labels(episode, sample.episode, of.judge_labels, &config.gcd);
    let of = |(turn, label): (&Turn, Option<label::Label>)| {
        let last = turn.tokens.clone().last()?;
        let (tokens, action) = (episode.acted(turn).to_vec(), episode.state(turn).len());
        let command = ProbeCommand { text: turn.command().into(), tokens: action..tokens.len() };
        Some(ProbeSample {
            tokens,
            action,
            command: Some(command),
            advantage: f64::from(*sample.advantage.get(last)?),
            label: match label {
                Some(label::Label::Good) => 1,
                Some(label::Label::Bad) => -1,
                None => 0,
            },
            count: 1,
        })
    };
    episode.turns.iter().zip(labels).filter_map(of).collect()
}

/// Finds the tokens of a sample's command; without `prompt`, which says where it begins, also the command.
fn locate(sample: &mut ProbeSample, prompter: &Prompter, prompt: Option<&Prompt>) -> Result<(), TokenizerError> {
    let (tokenizer, action) = (prompter.tokenizer(), &sample.tokens[sample.action..]);
    let turn = match action.split_last() {
        Some((last, turn)) if prompter.ends_turn(*last) => turn,
        _ => action,
    };
    let whole = tokenizer.decode(turn, false)?;
    let (guessed, written) = guessed_command(&whole);
    let text = sample.command.take().map_or_else(|| written.to_owned(), |command| command.text);
    let within = command_tokens(tokenizer, prompt.unwrap_or(&guessed), turn, &text)?;
    sample.command = Some(ProbeCommand { text, tokens: sample.action + within.start..sample.action + within.end });
    Ok(())
}

/// Finds the commands that a user's own samples do not tell.
pub fn complete(probe: &mut Probe, prompter: &Prompter) -> Result<(), TrainError> {
    for sample in probe.samples.iter_mut().filter(|s| s.command.is_none()) {
        locate(sample, prompter, None)?;
    }
    Ok(())
}

/// Measures a probe set with A = 1, where the learner trains.
pub fn measured(
    learner: &Learner,
    probe: &Probe,
    counted: ActionTokens,
    seed: u64,
) -> Result<(Grams, Measurement), TrainError> {
    let grams = learner.grams(&probe.samples(counted))?;
    let measurement = measure(&grams, &probe.traits(Side::Advantage), SampleWeights::One, seed)?;
    Ok((grams, measurement))
}

/// Adds the means of cosines, `coupling/pp`, `nn` and `pn`, of all parameters, of each kind and layer, and of the states; those of each stratum
/// with its pairs; the standard errors of the three means; of projections also `np`; and the sums.
pub fn record(m: &Measurement, record: &mut Record) {
    let kinds = m.kinds.iter().map(|kind| (format!("coupling/{}/", kind.name), kind.cosine));
    let layers = m.layers.iter().filter_map(|layer| {
        let number = layer.name.strip_prefix("layer ")?;
        Some((format!("coupling/layer_{number}/"), layer.cosine))
    });
    let all = [("coupling/".to_string(), m.cosine), ("coupling/state/".into(), m.state)];
    all.into_iter().chain(kinds).chain(layers).for_each(|(prefix, means)| record_means(&prefix, means, record));
    record_means("coupling/projection/", m.projection, record);
    record.set("coupling/projection/np", m.projection.np.mean);
    for (name, _, stratum) in m.strata.named() {
        let prefix = format!("coupling/{name}/");
        record_means(&prefix, stratum.cosine, record);
        for (class, spread) in classes(stratum.cosine) {
            record.set(&format!("{prefix}{class}_pairs"), spread.pairs as f64);
        }
    }
    let errors = coupling::errors(&m.cosine_matrix, m.samples, &m.positive, &m.negative);
    for (name, error) in ["pp", "nn", "pn"].into_iter().zip(errors).filter(|(_, error)| error.is_finite()) {
        record.set(&format!("coupling/{name}_error"), error);
    }
    record.set_known([
        ("coupling/sum/signed", Some(m.sums.signed).filter(|sum| sum.is_finite())),
        ("coupling/sum/unsigned", Some(m.sums.unsigned).filter(|sum| sum.is_finite())),
        ("coupling/p_value", m.p_value),
        ("coupling/zero_gradients", Some(m.zero as f64)),
    ]);
}

/// Adds the means of the classes that have pairs.
fn record_means(prefix: &str, means: Means, record: &mut Record) {
    let filled = classes(means).into_iter().filter(|(_, spread)| spread.pairs > 0);
    filled.for_each(|(class, spread)| record.set(&format!("{prefix}{class}"), spread.mean));
}

fn classes(means: Means) -> [(&'static str, Spread); 3] {
    [("pp", means.pp), ("nn", means.nn), ("pn", means.pn)]
}

/// The run's last measurement, as files and for `summary.json`. `None` if it never had a probe set.
pub fn last(run: &Path, config: &Config, learner: &Learner) -> Result<Option<Measurement>, TrainError> {
    let probe = match Probe::of(run) {
        Err(ProbeError::Missing(_)) => return Ok(None),
        Ok(few) if !few.has_pairs() => return Ok(None),
        found => found?,
    };
    let (grams, measurement) = measured(learner, &probe, config.coupling.tokens, config.run.seed)?;
    coupling::write(&run.join(coupling::FOLDER), "final", "Gradient coupling at the end", &grams, &measurement)?;
    Ok(Some(measurement))
}
