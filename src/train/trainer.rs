//! A training run from its configuration to its report.

use super::card::Card;
use super::cold_start::{self, Demonstration};
use super::critic::Critic;
use super::engine::{self, Export};
use super::iteration::{self, Iteration, IterationInputs};
use super::learn::{Models, Reference};
use super::learner::Learner;
use super::record::Recorder;
use super::run::{BadBatch, CheckpointWeights, TrainingRun};
use super::run_folder::{Existing, RunFolder};
use super::start::{REFERENCE, Start, check_prompts, frozen_weights, reference, with_training_template};
use super::state::PolicyFolder;
use super::warnings::{self, Warnings};
use super::{TrainError, coupling, interrupt, manifest, report, suggest};
use crate::agent::Prompter;
use crate::config::{Author, Config, LabelSource, SuggestionMode};
use crate::device::Gpu;
use crate::env::Suite;
use crate::gcd::{Judge, Judged};
use crate::model::TokenIds;
use crate::model::params::Layout;
use crate::report::metrics::Record;
use crate::report::progress::{Progress, say};
use crate::report::results::{Evaluation, StageRow, Summary};
use crate::rollout::RolloutError;
use std::path::PathBuf;
use std::time::Instant;

/// What a finished run came to.
pub struct RunOutcome {
    /// The run's folder.
    pub folder: PathBuf,
    /// The final table.
    pub rows: Vec<StageRow>,
    /// What `summary.json` holds.
    pub summary: Summary,
}

/// Runs the whole training on the games of `suite`: cold start, evaluation, GRPO, evaluation, report; on the CPU.
///
/// ```
/// use uncouple::config::{Config, Override};
/// use uncouple::env::household::Household;
/// use uncouple::train::{run_folder::Existing, train};
///
/// let folder = tempfile::tempdir()?;
/// let set = [
///     "run.name=tiny", "run.iterations=1", "model.hidden_size=32", "model.num_hidden_layers=1",
///     "model.num_attention_heads=2", "model.num_key_value_heads=1", "model.intermediate_size=48", "model.vocab_size=300",
///     "sft.steps=2", "sft.games=4", "env.max_steps=3", "rollout.groups=2", "rollout.group_size=2", "eval.games=2",
///     "gcd.mode=off", "suggestions.mode=off",
/// ];
/// let mut config = Config::load(None, &set.iter().map(|text| Override::parse(text)).collect::<Result<Vec<_>, _>>()?)?;
/// config.run.dir = folder.path().display().to_string();
/// let outcome = train(config, &Household::new(0), Existing::Refuse)?;
/// assert!(outcome.summary.train_steps >= 2 && outcome.folder.join("report.html").exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`train_on`].
pub fn train(config: Config, suite: &dyn Suite, existing: Existing) -> Result<RunOutcome, TrainError> {
    train_on(None, config, suite, existing)
}

/// The same on a GPU, if one is given.
///
/// # Errors
/// If the configuration is refused, the run cannot be opened, or training cannot go on: the error says why and how to
/// resume.
pub fn train_on(
    gpu: Option<&Gpu>,
    mut config: Config,
    suite: &dyn Suite,
    existing: Existing,
) -> Result<RunOutcome, TrainError> {
    if gpu.is_some() {
        config.validate_for_gpu()?;
    }
    // Everything a user can get wrong about the model is found before a folder is made. A resumed run has its own.
    let advises = config.suggestions.mode != SuggestionMode::Off && config.suggestions.author == Author::Judge;
    let labels = config.needs_labels() && config.gcd.labels.contains(&LabelSource::Judge);
    let judge = (advises || labels).then(|| Judge::open(&config.judge)).transpose()?;
    let base = if existing == Existing::Resume { None } else { Start::base(&config)? };
    let folder = RunFolder::open(&mut config, existing)?;
    let path = folder.path().to_path_buf();
    let trainer = Trainer::open(Setting { config, suite, judge, gpu }, folder, base);
    let outcome = trainer.and_then(|mut trainer| trainer.run().map_err(|error| trainer.give_up(error)));
    outcome.map_err(|error| match error {
        TrainError::Rollout(RolloutError::Interrupted) => TrainError::Interrupted(path),
        other => other,
    })
}

/// What a run does not change.
pub(super) struct Setting<'a> {
    pub config: Config,
    pub suite: &'a dyn Suite,
    pub judge: Option<Judge>,
    /// Where it trains, if that is no CPU.
    pub gpu: Option<&'a Gpu>,
}

/// The loop, and all that it works on.
pub(super) struct Trainer<'a> {
    pub setting: Setting<'a>,
    pub run: TrainingRun,
    pub prompter: Prompter,
    pub learner: Learner,
    /// The value head, where one judges; its optimizer steps are its own.
    pub critic: Option<Critic>,
    /// What the KL term holds the policy to, once GRPO has begun.
    reference: Option<Reference>,
    /// The folder of the weights that are frozen, if any.
    base: String,
    ids: TokenIds,
    /// Empty when the cold start is over.
    demonstrations: Vec<Demonstration>,
    warnings: Warnings,
    card: Card,
}

impl<'a> Trainer<'a> {
    /// Builds or loads everything; a resumed run goes on from its last whole checkpoint, or from the beginning if it has none.
    fn open(setting: Setting<'a>, folder: RunFolder, base: Option<Start>) -> Result<Trainer<'a>, TrainError> {
        let began = Instant::now();
        let Setting { config, suite, gpu, .. } = &setting;
        let last = folder.load_checkpoint(|dir| Start::checkpoint(config, dir))?;
        let saved = last.as_ref().map(|start| start.state.timeless());
        let given = match last {
            None if base.is_none() => Start::base(config)?,
            None => base,
            last => last,
        };
        let to_learn = given.as_ref().map_or(0, |s| s.state.sft_steps) < config.sft.steps;
        let trajectories =
            if to_learn || given.is_none() { cold_start::trajectories(config, *suite)? } else { Vec::new() };
        let Start { mut learner, critic, state, tokenizer, mut ids } = match given {
            Some(start) => start,
            None => {
                warnings::untrained(config).iter().for_each(|line| say(line));
                Start::embedded(config, &trajectories)?
            }
        };
        let tokenizer = with_training_template(tokenizer, config.prompt.format)?;
        let width = learner.architecture().hidden_size;
        let critic = critic.or_else(|| config.gcd.mode.has_critic().then(|| Critic::new(width)));
        gpu.map_or(Ok(()), |gpu| learner.to_gpu(gpu, &config.optim, config.rollout.max_live as usize))?;
        let mut prompter = Prompter::new(tokenizer, &config.prompt)?;
        check_prompts(config, &prompter)?;
        ids.stop_at(prompter.end());
        let context = learner.architecture().max_position_embeddings;
        let taught = if to_learn { &trajectories[..] } else { &[] };
        let demonstrations = cold_start::demonstrations(config, &prompter, taught, context, &say)?;
        prompter.suggest(&state.last_suggestions());
        let reference = match config.grpo.beta > 0.0 && state.iterations > 0 {
            true => Some(reference((config, *gpu), &folder, &state, &learner)?),
            false => None,
        };
        let provenance = report::begin(&folder, config, *suite, gpu.map(Gpu::describe))?;
        let run = TrainingRun::open(folder, state, saved, (began, provenance))?;
        let card = Card::new(&setting.config, run.games(), Layout::new(learner.architecture()).len);
        let (base, warnings) = (frozen_weights(&setting.config)?, Warnings::default());
        Ok(Trainer { setting, run, prompter, learner, critic, reference, base, ids, demonstrations, warnings, card })
    }

    fn run(&mut self) -> Result<RunOutcome, TrainError> {
        self.cold_start()?;
        if self.run.state.cold_start.is_none() {
            self.run.state.cold_start = Some(self.evaluate("cold start", &say)?.0);
            self.checkpoint()?;
        }
        self.grpo()?;
        // Without GRPO there is nothing to set against the cold start.
        let (mut last, mut without, mut judgment_accuracy) = (Evaluation::new(), Evaluation::new(), None);
        if self.run.state.iterations > 0 {
            (last, judgment_accuracy) = self.evaluate("final", &say)?;
            without = self.evaluate_without_suggestions()?;
            self.finish_card(&last, &without)?;
        }
        self.report(last, without, judgment_accuracy)
    }

    /// The last checkpoint's card tells the results of the end.
    fn finish_card(&self, last: &Evaluation, without: &Evaluation) -> Result<(), TrainError> {
        let step = self.run.state.step();
        let stands = self.run.folder.checkpoints()?.pop().filter(|(number, _)| *number == step);
        let stages = [("final", last), ("final, no suggestions", without)];
        stands.map_or(Ok(()), |(_, dir)| Ok(self.card.finish(&dir, &self.run.state, &stages)?))
    }

    /// An error ended the run. Sampling and evaluating change nothing: where they ended it, every step so far is whole and saved.
    fn give_up(&mut self, error: TrainError) -> TrainError {
        match error {
            TrainError::Rollout(_) | TrainError::NoEpisodes(_) => self.checkpoint().err().unwrap_or(error),
            other => other,
        }
    }

    /// A step is whole: stop here if the user asked to.
    fn pause(&self) -> Result<(), TrainError> {
        if interrupt::interrupted() { Err(RolloutError::Interrupted.into()) } else { Ok(()) }
    }

    fn cold_start(&mut self) -> Result<(), TrainError> {
        let steps = self.setting.config.sft.steps;
        if self.run.state.sft_steps >= steps {
            return Ok(());
        }
        let mut progress = Progress::new("cold start", self.run.state.sft_steps.into(), steps.into());
        while self.run.state.sft_steps < steps {
            self.pause()?;
            let loss = self.cold_start_step(&|line| progress.note(line))?;
            progress.step(self.run.state.sft_steps.into(), format!("loss {loss:.3}"));
            let every = self.setting.config.sft.checkpoint_every;
            if every > 0 && self.run.state.sft_steps.is_multiple_of(every) {
                self.checkpoint()?;
            }
        }
        progress.finish();
        self.checkpoint()
    }

    /// One step on demonstrations; its loss.
    fn cold_start_step(&mut self, say: &dyn Fn(&str)) -> Result<f64, TrainError> {
        let (config, step, began) = (&self.setting.config, self.run.state.sft_steps, Instant::now());
        let batch = cold_start::batch(config, &self.demonstrations, step);
        let tokens: usize = batch.iter().map(|(tokens, _)| tokens.len()).sum();
        let loss = self.learner.cross_entropy(&batch)?;
        let lr = cold_start::learning_rate(config, step);
        let report = self.learner.step(&config.optim, lr)?;
        let at = u64::from(step) + 1;
        let bad = || BadBatch::new(format!("sft-{at}.json"), batch.iter().map(|(tokens, _)| *tokens));
        let bad = report.skipped.then(bad);
        let record = Record::new("sft", at, self.run.seconds());
        let record = record.with("loss", loss).with("grad_norm", report.grad_norm).with("learning_rate", lr);
        self.run.record(&record.with("seconds/train", began.elapsed().as_secs_f64()))?;
        self.run.state.sft_steps += 1;
        self.run.state.tokens += tokens as u64;
        self.count_step(bad, say)?;
        Ok(loss)
    }

    fn grpo(&mut self) -> Result<(), TrainError> {
        let iterations = self.setting.config.run.iterations;
        if self.run.state.iterations == 0 {
            // GRPO is another objective than the cold start: its moments start afresh.
            self.learner.reset_optimizer()?;
        }
        if self.setting.config.grpo.beta > 0.0 && self.reference.is_none() {
            self.freeze_reference()?;
        }
        let mut progress = Progress::new("grpo", self.run.state.iterations.into(), iterations.into());
        while self.run.state.iterations < iterations && !self.has_stepped_enough() {
            self.pause()?;
            let index = self.run.state.iterations;
            let say = |line: &str| progress.note(line);
            // Here and not after the iteration, so that a run resumed at this iteration comes by, too.
            let every = self.setting.config.eval.every;
            if every > 0 && index.is_multiple_of(every) && self.run.state.next_eval <= index {
                self.evaluate("during GRPO", &say)?;
            }
            let mut record = Record::new("grpo", u64::from(index) + 1, 0.0);
            let done = self.iteration(&mut record, &say)?;
            self.keep(&done, &mut record, &say)?;
            progress.step(self.run.state.iterations.into(), in_short(&record));
            let every = self.setting.config.run.checkpoint_every;
            if every > 0 && self.run.state.iterations.is_multiple_of(every) {
                self.checkpoint()?;
            }
        }
        progress.finish();
        self.checkpoint()
    }

    /// Whether the environment steps that the configuration grants are taken.
    fn has_stepped_enough(&self) -> bool {
        let granted = self.setting.config.run.env_steps;
        granted > 0 && self.run.state.env_steps >= granted
    }

    /// Keeps the policy as it is now, for the KL term.
    fn freeze_reference(&mut self) -> Result<(), TrainError> {
        let Trainer { setting, run, prompter, learner, ids, base, .. } = self;
        let (Export { params, .. }, step) = (learner.export()?, run.state.sft_steps.into());
        let place = PolicyFolder { base, ids, tokenizer: prompter.tokenizer() };
        run.folder.write_dir::<TrainError>(REFERENCE, |dir| {
            place.fill(dir, learner, &params)?;
            Ok(manifest::write(dir, step)?)
        })?;
        self.reference = Some(match learner.lora() {
            Some(_) => Reference::Adapter(params.into_owned()),
            None => Reference::Model(engine::frozen(learner.model()?.into_owned(), setting.gpu)?),
        });
        Ok(())
    }

    /// The next iteration.
    fn iteration(&mut self, record: &mut Record, say: &dyn Fn(&str)) -> Result<Iteration, TrainError> {
        let Setting { config, suite, judge, .. } = &self.setting;
        let state = &self.run.state;
        let index = state.iterations;
        self.prompter.suggest(&state.suggestions(index));
        let due = suggest::due(config, index + 1, &state.suggestion_updates, &state.similarity);
        let active = due.then(|| state.suggestion_updates.last().map_or(&[][..], |made| &made.suggestions));
        let (prompter, judge) = (&self.prompter, judge.as_ref());
        let inputs = IterationInputs { config, suite: *suite, prompter, judge, index, active, say };
        let (critic, reference) = (self.critic.as_mut(), self.reference.as_mut());
        let models = Models { learner: &mut self.learner, critic, reference };
        iteration::run(&inputs, models, record)
    }

    /// Keeps what an iteration did: its record, suggestions, trajectories, counts, and the batch of a step that had to be skipped.
    fn keep(&mut self, done: &Iteration, record: &mut Record, say: &dyn Fn(&str)) -> Result<(), TrainError> {
        self.warnings.after(&self.setting.config, record).iter().for_each(|line| say(line));
        self.couple(done, record)?;
        record.seconds = self.run.seconds();
        self.run.record(record)?;
        self.run.state.flawed.merge(&done.flawed);
        match &done.update {
            Some(Ok(update)) => {
                say(&update.line());
                self.run.add_suggestions(update)?;
            }
            Some(Err(why)) => say(&format!("no new suggestions: {why}")),
            None => {}
        }
        let nothing = Judged::default();
        let recorder = Recorder {
            config: &self.setting.config,
            prompter: &self.prompter,
            iteration: record.step,
            phase: "grpo",
            samples: &done.samples,
            judge_labels: &done.judge_labels,
            judged: done.judged.as_ref().unwrap_or(&nothing),
        };
        self.run.store(&recorder.episodes(&done.played)?)?;
        self.run.state.iterations += 1;
        self.run.state.env_steps += done.played.all().iter().map(|(_, e)| e.turns.len() as u64).sum::<u64>();
        self.run.state.tokens += done.tokens as u64;
        for step in &done.steps {
            let bad = || BadBatch::new(format!("grpo-{}.json", record.step), done.sequences().into_iter());
            self.count_step(step.skipped.then(bad), say)?;
        }
        Ok(())
    }

    /// Measures the coupling where it is due, after the iteration's step.
    fn couple(&mut self, done: &Iteration, record: &mut Record) -> Result<(), TrainError> {
        let (config, index) = (&self.setting.config, self.run.state.iterations);
        if config.coupling.every == 0 || !index.is_multiple_of(config.coupling.every) {
            return Ok(());
        }
        let began = Instant::now();
        let probe = coupling::probe(self.run.folder.path(), config, &self.prompter, done, index)?;
        if let Some(probe) = probe {
            let (_, measurement) = coupling::measured(&self.learner, &probe, config.coupling.tokens, config.run.seed)?;
            self.run.state.similarity.push(measurement.cosine.pn.mean);
            coupling::record(&measurement, record);
            record.set("seconds/coupling", began.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Counts an optimizer step; several skipped in a row end the run.
    fn count_step(&mut self, bad: Option<BadBatch>, say: &dyn Fn(&str)) -> Result<(), TrainError> {
        if !self.run.count_step(bad, self.setting.config.run.max_nonfinite_steps, say)? {
            return Ok(());
        }
        match self.checkpoint() {
            Ok(()) | Err(TrainError::BrokenWeights) => Err(self.run.not_finite()),
            other => other,
        }
    }

    fn checkpoint(&mut self) -> Result<(), TrainError> {
        let Trainer { setting, run, prompter, learner, critic, base, ids, card, .. } = self;
        let place = PolicyFolder { base, ids, tokenizer: prompter.tokenizer() };
        let weights = CheckpointWeights { learner, critic: critic.as_ref(), place, card };
        run.checkpoint(&setting.config.run, &weights)
    }
}

/// How an iteration went, for the progress bar.
fn in_short(record: &Record) -> String {
    let of = |name: &str| record.values.get(name).copied().unwrap_or_default();
    let (success, reward, length) = (of("success"), of("reward"), of("episode_length"));
    let paid = if reward == success { String::new() } else { format!(" reward {reward:.3}") };
    format!("success {:.0} %{paid} length {length:.1}", 100.0 * success)
}
