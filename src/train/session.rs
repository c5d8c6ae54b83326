//! A training run from its configuration to its report.

use super::cold_start::{self, Demonstration, Script};
use super::critic::Critic;
use super::engine::{self, Export, Scorer};
use super::iteration::{self, Gcd, Iteration};
use super::learner::Learner;
use super::measure::Consistency;
use super::record::{Recorder, evaluated, suggested};
use super::run_folder::{Existing, RunFolder};
use super::state::{self, State};
use super::suggest::{self, Renewal};
use super::warnings::Warnings;
use super::{TrainError, coupling, evaluate, interrupt, manifest, measure, memory, report};
use crate::agent::{Episode, Prompter};
use crate::config::{Author, Config, GcdMode, LabelSource, SuggestionMode};
use crate::device::Gpu;
use crate::env::Suite;
use crate::files::FileError;
use crate::gcd::judge::Verdicts;
use crate::gcd::judgment::{self, verdict_rate};
use crate::gcd::{Accuracy, Asked, Judge, Judged};
use crate::model::checkpoint::{self, CheckpointError, SaveDtype};
use crate::model::tokenizer::{END_OF_TEXT, TURN_END, Tokenizer};
use crate::model::{Model, Params, TokenIds};
use crate::report::metrics::{self, Metrics, Record};
use crate::report::progress::{Progress, say};
use crate::report::provenance::Provenance;
use crate::report::results::{self, EvalSummary, Evaluation, Row, Summary};
use crate::report::trajectories::Trajectories;
use crate::rollout::{RolloutError, Statistics};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a finished run came to.
pub struct Outcome {
    pub folder: PathBuf,
    pub rows: Vec<Row>,
    pub summary: Summary,
}

const REFERENCE: &str = "reference";
const BAD_BATCHES: &str = "bad_batches";
/// The phase of the evaluation without suggestions.
const BARE: &str = "eval-no-suggestions";
/// All suggestions of the run, with their evidence.
const SUGGESTIONS: &str = "suggestions.json";

/// Runs the whole training on the games of `suite`: cold start, evaluation, GRPO, evaluation, report; on the CPU.
pub fn train(config: Config, suite: &dyn Suite, existing: Existing) -> Result<Outcome, TrainError> {
    train_on(None, config, suite, existing)
}

/// The same on a GPU, if one is given.
pub fn train_on(
    gpu: Option<&Gpu>,
    mut config: Config,
    suite: &dyn Suite,
    existing: Existing,
) -> Result<Outcome, TrainError> {
    if gpu.is_some() {
        config.validate_for_gpu()?;
    }
    // Everything a user can get wrong about the model is found before a folder is made. A resumed run has its own.
    let advises = config.suggestions.mode != SuggestionMode::Off && config.suggestions.author == Author::Judge;
    let asks = advises || config.needs_labels() && config.gcd.labels.contains(&LabelSource::Judge);
    let judge = asks.then(|| Judge::open(&config.gcd.judge)).transpose()?;
    let base = if existing == Existing::Resume { None } else { load_base(&config)? };
    let folder = RunFolder::open(&mut config, existing)?;
    let path = folder.path().to_path_buf();
    let outcome = Session::open(config, folder, suite, base, judge, gpu)
        .and_then(|mut session| session.run().map_err(|error| session.give_up(error)));
    outcome.map_err(|error| match error {
        TrainError::Rollout(RolloutError::Interrupted) => TrainError::Interrupted(path),
        other => other,
    })
}

/// What training begins with, or goes on with.
struct Start {
    learner: Learner,
    state: State,
    tokenizer: Tokenizer,
    ids: TokenIds,
}

impl Start {
    fn new(config: &Config, model: Model, tokenizer: Tokenizer, ids: TokenIds) -> Start {
        Start { learner: Learner::new(model, config.model.recompute), state: State::default(), tokenizer, ids }
    }
}

/// The user's model directory, if the configuration names one.
fn load_base(config: &Config) -> Result<Option<Start>, TrainError> {
    let dir = Path::new(&config.model.path);
    if config.model.path.is_empty() {
        return Ok(None);
    }
    let (model, tokenizer) = checkpoint::load_with_tokenizer(dir)?;
    check_prompts(config, &Prompter::new(tokenizer.clone(), &config.prompt)?)?;
    let ids = TokenIds::read(dir).map_err(CheckpointError::from)?;
    Ok(Some(Start::new(config, model, tokenizer, ids)))
}

/// Refuses a chat template under which the policy could not be asked to judge its turns, where it will be.
fn check_prompts(config: &Config, prompter: &Prompter) -> Result<(), TrainError> {
    if config.gcd.mode == GcdMode::Generate {
        judgment::ask(prompter, config.prompt.format)?;
    }
    Ok(())
}

/// The embedded model: random weights, and a tokenizer made for the demonstrations.
fn embedded(config: &Config, scripts: &[Script]) -> Result<Start, TrainError> {
    let shape = memory::model_shape(config).map_err(CheckpointError::from)?;
    let tokenizer = Tokenizer::train(&cold_start::texts(config, scripts), shape.vocab_size)?;
    let model = Model::new(shape.clone(), Params::random(&shape, config.run.seed));
    let eos = tokenizer.id(TURN_END).into_iter().collect();
    let ids = TokenIds { bos: None, eos, pad: tokenizer.id(END_OF_TEXT) };
    Ok(Start::new(config, model, tokenizer, ids))
}

/// A run's checkpoint.
fn load_checkpoint(config: &Config, dir: &Path) -> Result<Start, TrainError> {
    let (learner, state) = state::load(dir, config.model.recompute)?;
    let ids = TokenIds::read(dir).map_err(CheckpointError::from)?;
    let tokenizer = Tokenizer::load(dir)?;
    tokenizer.check_fits(learner.architecture())?;
    Ok(Start { learner, state, tokenizer, ids })
}

/// The frozen model of the KL term, as it was when GRPO began.
fn load_reference(folder: &RunFolder, state: &State) -> Result<Model, TrainError> {
    let dir = folder.path().join(REFERENCE);
    match manifest::check(&dir, state.sft_steps.into(), |_| true) {
        Ok(_) => Ok(checkpoint::load(&dir)?),
        Err(reason) => Err(TrainError::Reference { dir, reason: reason.to_string() }),
    }
}

/// Writes `suggestions.json`; there is none before any were made.
fn keep_suggestions(folder: &RunFolder, renewals: &[Renewal]) -> Result<(), FileError> {
    let json = format!("{:#}\n", serde_json::json!(renewals));
    if renewals.is_empty() { folder.remove(SUGGESTIONS) } else { folder.write(SUGGESTIONS, json.as_bytes()) }
}

struct Session<'a> {
    config: Config,
    folder: RunFolder,
    suite: &'a dyn Suite,
    prompter: Prompter,
    ids: TokenIds,
    learner: Learner,
    /// The frozen model of the KL term, once GRPO has begun.
    reference: Option<Box<dyn Scorer>>,
    /// Where it trains, if that is no CPU.
    gpu: Option<Gpu>,
    /// Empty when the cold start is over.
    demonstrations: Vec<Demonstration>,
    state: State,
    /// As the checkpoint of its step has it, where that stands; without the wall time.
    saved: Option<State>,
    judge: Option<Judge>,
    metrics: Metrics,
    trajectories: Trajectories,
    warnings: Warnings,
    provenance: Provenance,
    /// When this process began; the run's earlier wall time is in `earlier`.
    began: Instant,
    earlier: f64,
}

impl<'a> Session<'a> {
    /// Builds or loads everything; a resumed run goes on from its last whole checkpoint, or from the beginning if it has none.
    fn open(
        config: Config,
        folder: RunFolder,
        suite: &'a dyn Suite,
        base: Option<Start>,
        judge: Option<Judge>,
        gpu: Option<&Gpu>,
    ) -> Result<Session<'a>, TrainError> {
        let began = Instant::now();
        let last = folder.load_checkpoint(|dir| load_checkpoint(&config, dir))?;
        let saved = last.as_ref().map(|start| start.state.timeless());
        let given = match last {
            None if base.is_none() => load_base(&config)?,
            None => base,
            last => last,
        };
        let to_learn = given.as_ref().map_or(0, |s| s.state.sft_steps) < config.sft.steps;
        let scripts = if to_learn || given.is_none() { cold_start::scripts(&config, suite)? } else { Vec::new() };
        let Start { mut learner, state, tokenizer, mut ids } = match given {
            Some(start) => start,
            None => embedded(&config, &scripts)?,
        };
        if config.gcd.mode.has_critic() && learner.critic.is_none() {
            learner.critic = Some(Critic::new(learner.architecture().hidden_size));
        }
        gpu.map_or(Ok(()), |gpu| learner.to_gpu(gpu, config.rollout.max_live as usize))?;
        let mut prompter = Prompter::new(tokenizer, &config.prompt)?;
        check_prompts(&config, &prompter)?;
        ids.stop_at(prompter.end());
        let context = learner.architecture().max_position_embeddings;
        let taught = if to_learn { &scripts[..] } else { &[] };
        let demonstrations = cold_start::demonstrations(&config, &prompter, taught, context, &say)?;
        prompter.suggest(&state.last_suggestions());
        // What an earlier process recorded after the checkpoint comes again.
        let metrics = Metrics::open(folder.path(), |r: &Record| match r.phase.as_str() {
            "sft" => r.step <= u64::from(state.sft_steps),
            "grpo" => r.step <= u64::from(state.iterations),
            _ => r.step < u64::from(state.next_eval),
        })?;
        let eval = u64::from(state.next_eval);
        let next = [("grpo", u64::from(state.iterations) + 1), ("eval", eval), (BARE, eval)];
        let trajectories = Trajectories::open(folder.path(), &next)?;
        if folder.resumed() {
            keep_suggestions(&folder, &state.renewals)?;
        }
        let frozen = config.grpo.beta > 0.0 && state.iterations > 0;
        let reference = match frozen {
            true => Some(engine::frozen(load_reference(&folder, &state)?, gpu)?),
            false => None,
        };
        let earlier = state.seconds;
        let provenance = report::begin(&folder, &config, suite, gpu.map(Gpu::describe))?;
        Ok(Session {
            config,
            folder,
            suite,
            prompter,
            ids,
            learner,
            reference,
            gpu: gpu.cloned(),
            demonstrations,
            state,
            saved,
            judge,
            metrics,
            trajectories,
            warnings: Warnings::default(),
            provenance,
            began,
            earlier,
        })
    }

    fn run(&mut self) -> Result<Outcome, TrainError> {
        self.cold_start()?;
        if self.state.cold_start.is_none() {
            self.state.cold_start = Some(self.evaluate("cold start", &say)?.0);
            self.checkpoint()?;
        }
        self.grpo()?;
        // Without GRPO there is nothing to set against the cold start.
        let (mut last, mut bare, mut judgment_accuracy) = (Evaluation::new(), Evaluation::new(), None);
        if self.state.iterations > 0 {
            (last, judgment_accuracy) = self.evaluate("final", &say)?;
            bare = self.evaluate_bare()?;
        }
        self.report(last, bare, judgment_accuracy)
    }

    /// An error ended the run. Sampling and evaluating change nothing: where they ended it, every step so far is whole and saved.
    fn give_up(&mut self, error: TrainError) -> TrainError {
        match error {
            TrainError::Rollout(_) | TrainError::NoEpisodes(_) => self.checkpoint().err().unwrap_or(error),
            other => other,
        }
    }

    fn seconds(&self) -> f64 {
        self.earlier + self.began.elapsed().as_secs_f64()
    }

    /// A step is whole: stop here if the user asked to.
    fn pause(&self) -> Result<(), TrainError> {
        if interrupt::interrupted() { Err(RolloutError::Interrupted.into()) } else { Ok(()) }
    }

    fn cold_start(&mut self) -> Result<(), TrainError> {
        let steps = self.config.sft.steps;
        if self.state.sft_steps >= steps {
            return Ok(());
        }
        let mut progress = Progress::new("cold start", self.state.sft_steps.into(), steps.into());
        while self.state.sft_steps < steps {
            self.pause()?;
            let step = self.state.sft_steps;
            let began = Instant::now();
            let batch = cold_start::batch(&self.config, &self.demonstrations, step);
            let tokens: usize = batch.iter().map(|(tokens, _)| tokens.len()).sum();
            let loss = self.learner.cross_entropy(&batch)?;
            let lr = cold_start::learning_rate(&self.config, step);
            let report = self.learner.step(&self.config.optim, lr)?;
            let at = u64::from(step) + 1;
            let bad =
                report.skipped.then(|| Bad::new(format!("sft-{at}.json"), batch.iter().map(|(tokens, _)| *tokens)));
            let record = Record::new("sft", at, self.seconds());
            let record = record.with("loss", loss).with("grad_norm", report.grad_norm).with("learning_rate", lr);
            let record = record.with("seconds/train", began.elapsed().as_secs_f64());
            self.metrics.append(&record)?;
            self.state.sft_steps += 1;
            self.state.tokens += tokens as u64;
            self.count_step(bad, &|line| progress.note(line))?;
            progress.step(at, format!("loss {loss:.3}"));
            let every = self.config.sft.checkpoint_every;
            if every > 0 && self.state.sft_steps.is_multiple_of(every) {
                self.checkpoint()?;
            }
        }
        progress.finish();
        self.checkpoint()
    }

    fn grpo(&mut self) -> Result<(), TrainError> {
        let iterations = self.config.run.iterations;
        if self.state.iterations == 0 {
            // GRPO is another objective than the cold start: its moments start afresh.
            self.learner.restart()?;
        }
        if self.config.grpo.beta > 0.0 && self.reference.is_none() {
            let (Export { model, .. }, tokenizer) = (self.learner.export()?, self.prompter.tokenizer());
            self.folder.write_dir::<TrainError>(REFERENCE, |dir| {
                checkpoint::fill(dir, &model, &self.ids, tokenizer.files(), SaveDtype::F32)?;
                Ok(manifest::write(dir, self.state.sft_steps.into())?)
            })?;
            self.reference = Some(engine::frozen(model.into_owned(), self.gpu.as_ref())?);
        }
        let mut progress = Progress::new("grpo", self.state.iterations.into(), iterations.into());
        while self.state.iterations < iterations {
            self.pause()?;
            let index = self.state.iterations;
            // Here and not after the iteration, so that a run resumed at this iteration comes by, too.
            let every = self.config.eval.every;
            if every > 0 && index.is_multiple_of(every) && self.state.next_eval <= index {
                self.evaluate("during GRPO", &|line| progress.note(line))?;
            }
            let learner = &mut self.learner;
            let reference = self.reference.as_mut().map(|of| &mut **of as &mut dyn Scorer);
            let judge = self.judge.as_ref();
            self.prompter.suggest(&self.state.suggestions(index));
            let due = suggest::due(&self.config, index + 1, &self.state.renewals, &self.state.similarity);
            let suggest = due.then(|| self.state.renewals.last().map_or(&[][..], |made| &made.suggestions));
            let (config, suite) = (&self.config, self.suite);
            let done = iteration::run(config, suite, learner, reference, &self.prompter, judge, index, suggest)?;
            let statistics = Statistics::of(&done.played);
            self.keep(&done, &statistics, &|line| progress.note(line))?;
            let (success, length, reward) = (statistics.success, statistics.all.episode_length, done.returns.mean);
            let paid = if reward == success { String::new() } else { format!(" reward {reward:.3}") };
            progress.step(
                self.state.iterations.into(),
                format!("success {:.0} %{paid} length {length:.1}", 100.0 * success),
            );
            let every = self.config.run.checkpoint_every;
            if every > 0 && self.state.iterations.is_multiple_of(every) {
                self.checkpoint()?;
            }
        }
        progress.finish();
        self.checkpoint()
    }

    /// Records an iteration: metrics, trajectories, counters, and the batch if its step had to be skipped.
    fn keep(&mut self, done: &Iteration, statistics: &Statistics, say: &dyn Fn(&str)) -> Result<(), TrainError> {
        if let Some(line) = evaluate::failures(&done.played) {
            say(&line);
        }
        self.warnings.after(&self.config, done).iter().for_each(|line| say(line));
        let at = u64::from(self.state.iterations) + 1;
        let sampled: usize = done.played.all().iter().map(|(_, e)| e.tokens.len()).sum();
        let (s, returns) = (statistics, &done.returns);
        let judged = done.gcd.as_ref().map_or(0, |g| g.judged.tokens());
        let gcd_seconds = done.gcd.as_ref().map_or(0.0, |g| g.seconds);
        let seconds = done.rollout_seconds + gcd_seconds + done.train_seconds;
        let probed = done.gcd.as_ref().map_or(0, |g| g.probed.packed_tokens);
        let tokens = sampled + judged + done.packed_tokens + probed;
        let mut record = Record::new("grpo", at, self.seconds())
            .with("reward", returns.mean)
            .with("reward_std", returns.std)
            .with("frac_reward_zero_std", returns.constant_groups)
            .with("success", s.success)
            .with("episode_length", s.all.episode_length)
            .with("completions/mean_length", s.all.episode_tokens)
            .with("repeat_rate", s.all.repeat_rate)
            .with("loop_rate", s.all.loop_rate)
            .with("invalid_rate", s.all.invalid_rate)
            .with("repeat_rate/won", s.won.repeat_rate)
            .with("repeat_rate/lost", s.lost.repeat_rate)
            .with("verdict_rate", verdict_rate(&done.played.episodes))
            .with("env_failed", s.env_failed as f64)
            .with("tokens_per_second", tokens as f64 / seconds)
            .with("seconds/rollout", done.rollout_seconds)
            .with("seconds/train", done.train_seconds);
        if let (Some(loss), Some(step)) = (&done.loss, done.steps.last()) {
            record = record
                .with("loss", loss.loss)
                .with("kl", loss.kl)
                .with("entropy", loss.entropy)
                .with("clip_ratio/low_mean", loss.clip_ratio_low_mean)
                .with("clip_ratio/high_mean", loss.clip_ratio_high_mean)
                .with("clip_ratio/region_mean", loss.clip_ratio_region_mean)
                .with("clip_ratio/low_min", loss.clip_ratio_low_min)
                .with("clip_ratio/high_max", loss.clip_ratio_high_max)
                .with("sampling/sampling_logp_difference/mean", done.logprob_difference.0)
                .with("sampling/sampling_logp_difference/max", done.logprob_difference.1)
                .with("sharing", done.shared_tokens as f64 / done.packed_tokens.max(1) as f64)
                .with("grad_norm", step.grad_norm);
        }
        record = s.refusals.iter().fold(record, |r, (why, count)| r.with(&format!("refused/{why}"), *count as f64));
        record = done.cosine.into_iter().fold(record, |r, cosine| r.with("decouple/cosine", cosine));
        if let Some(gcd) = &done.gcd {
            if let Some((_, Verdicts { missing, reason: Some(reason), .. })) = &gcd.judge {
                say(&format!("the judge left {missing} actions without a label: {reason}"));
            }
            record = with_gcd(record, gcd, done.train_seconds, seconds);
        }
        if let Some((q, advantage)) = done.flawed.mean() {
            record = record.with("flawed/probability", q).with("flawed/advantage", advantage);
        }
        record = self.couple(done, record)?;
        self.metrics.append(&record)?;
        self.state.flawed.merge(&done.flawed);
        match &done.renewal {
            Some(Ok(renewal)) => self.suggest(renewal, say)?,
            Some(Err(why)) => say(&format!("no new suggestions: {why}")),
            None => {}
        }
        let none = (Asked::new(), Judged::default());
        let (asked, judged) = done.gcd.as_ref().map_or((&none.0, &none.1), |gcd| (&gcd.asked, &gcd.judged));
        let (config, prompter, samples) = (&self.config, &self.prompter, &done.samples[..]);
        let recorder = Recorder { config, prompter, iteration: at, phase: "grpo", samples, asked, judged };
        self.trajectories.append(&recorder.episodes(&done.played)?)?;
        self.state.iterations += 1;
        self.state.env_steps += done.played.all().iter().map(|(_, e)| e.turns.len() as u64).sum::<u64>();
        self.state.tokens += tokens as u64;
        for step in &done.steps {
            let sequences =
                || done.played.episodes.iter().flat_map(|e| e.sequences().into_iter().map(|range| &e.tokens[range]));
            self.count_step(step.skipped.then(|| Bad::new(format!("grpo-{at}.json"), sequences())), say)?;
        }
        Ok(())
    }

    /// Keeps new suggestions, for the prompts of later iterations, with the evidence they rest on.
    fn suggest(&mut self, renewal: &Renewal, say: &dyn Fn(&str)) -> Result<(), TrainError> {
        self.state.renewals.push(renewal.clone());
        let sentences: Vec<&str> = renewal.suggestions.iter().map(|s| &s.text[..]).collect();
        say(&match sentences.is_empty() {
            true => "suggestions: none, no flawed action is in the danger zone".into(),
            false => format!("suggestions: {}", sentences.join(" ")),
        });
        self.trajectories.suggest(renewal.iterations.into(), &suggested(renewal))?;
        Ok(keep_suggestions(&self.folder, &self.state.renewals)?)
    }

    /// Measures the coupling where it is due, after the iteration's step.
    fn couple(&mut self, done: &Iteration, record: Record) -> Result<Record, TrainError> {
        let every = self.config.coupling.every;
        if every == 0 || !self.state.iterations.is_multiple_of(every) {
            return Ok(record);
        }
        let began = Instant::now();
        let (run, config) = (self.folder.path(), &self.config);
        let Some(probe) = coupling::probe(run, config, &self.prompter, done, self.state.iterations)? else {
            return Ok(record);
        };
        let (_, measurement) = coupling::measured(&self.learner, &probe, config.coupling.tokens, config.run.seed)?;
        self.state.similarity.push(measurement.cosine.pn.mean);
        Ok(coupling::recorded(record, &measurement).with("seconds/coupling", began.elapsed().as_secs_f64()))
    }

    /// Counts an optimiser step; a skipped one keeps its batch, and several in a row end the run.
    fn count_step(&mut self, bad: Option<Bad>, say: &dyn Fn(&str)) -> Result<(), TrainError> {
        let Some(Bad { file, json }) = bad else {
            self.state.train_steps += 1;
            self.state.bad_steps = 0;
            return Ok(());
        };
        let folder = self.folder.path().join(BAD_BATCHES);
        std::fs::create_dir_all(&folder).map_err(|e| FileError::new("create", &folder, e))?;
        self.folder.write(&format!("{BAD_BATCHES}/{file}"), json.as_bytes())?;
        let file = folder.join(file);
        say(&format!("the gradient is not finite: step skipped, its batch is kept in {}", file.display()));
        self.state.bad_steps += 1;
        if self.state.bad_steps < self.config.run.max_bad_steps {
            return Ok(());
        }
        match self.checkpoint() {
            Ok(()) | Err(TrainError::BrokenWeights) => {
                Err(TrainError::NotFinite { count: self.state.bad_steps, folder })
            }
            other => other,
        }
    }

    /// Success and behaviour on the panels, and with GCD the accuracy of judgments there.
    fn evaluate(&mut self, stage: &str, say: &dyn Fn(&str)) -> Result<(Evaluation, Option<f64>), TrainError> {
        let config = &self.config;
        let games = evaluate::panel(config, self.suite, &evaluate::SPLITS)?.len();
        let clock = Clock::begin(say, stage, &format!("playing {games} games"));
        let played = evaluate::evaluate(config, self.suite, self.learner.sampler(), &self.prompter, &evaluate::SPLITS)?;
        let (games, episodes) = (clock.seconds(), &played.episodes);
        if let Some(line) = evaluate::failures(&played) {
            say(&line);
        }
        let at = self.state.iterations;
        let evaluation = evaluate::count(episodes);
        let (record, splits) = with_splits(Record::new("eval", at.into(), self.seconds()), &evaluation);
        let record = with_details(with_returns(record, config, episodes), episodes);
        let mut record = record.with("verdict_rate", verdict_rate(episodes)).with("seconds/games", games);
        let (mut line, mut times) = (format!("{stage}:{splits}"), format!("games {games:.1} s"));
        let e = &config.eval;
        let (mut accuracy, mut judged) = (None, Judged::default());
        if evaluate::judges(config) {
            let clock = Clock::begin(say, stage, &format!("judging at most {} actions (eval.judgments)", e.judgments));
            if let Some(done) = evaluate::judgments(config, &mut self.learner, &self.prompter, episodes)? {
                (accuracy, judged) = (Some(done.0), done.1);
            }
            times += &format!(", judgments {:.1} s", clock.seconds());
            record = record.with("seconds/judgments", clock.seconds());
        }
        if e.consistency_states > 0 {
            let (states, samples) = (e.consistency_states, e.consistency_samples);
            let what = format!("sampling at most {states} states {samples} times (eval.consistency_states, _samples)");
            let clock = Clock::begin(say, stage, &what);
            if let Some(Consistency { high, mean }) =
                measure::consistency(config, self.learner.sampler(), &self.prompter, episodes)?
            {
                record = record.with("consistency/high", high).with("consistency/mean", mean);
            }
            times += &format!(", consistency {:.1} s", clock.seconds());
            record = record.with("seconds/consistency", clock.seconds());
        }
        if let Some(Accuracy { all: Some(all), good, bad, .. }) = accuracy {
            line += &format!(" judgments {:.1} %", 100.0 * all);
            record = record.with("judgment_accuracy", all);
            for (name, share) in [("good", good), ("bad", bad)] {
                record = share.into_iter().fold(record, |r, share| r.with(&format!("judgment_accuracy/{name}"), share));
            }
        }
        say(&format!("{line} ({times})"));
        self.metrics.append(&record)?;
        let (config, prompter, iteration) = (&self.config, &self.prompter, at.into());
        let none = Asked::new();
        let recorder =
            Recorder { config, prompter, iteration, phase: "eval", samples: &[], asked: &none, judged: &judged };
        self.trajectories.append(&recorder.episodes(&played)?)?;
        self.state.next_eval = at + 1;
        Ok((evaluation, accuracy.and_then(|a| a.all)))
    }

    /// The final panels once more without suggestions in the prompt, if there are any: has the policy learnt, or does it read?
    fn evaluate_bare(&mut self) -> Result<Evaluation, TrainError> {
        let sentences = self.state.last_suggestions();
        if sentences.is_empty() {
            return Ok(Evaluation::new());
        }
        self.prompter.suggest(&[]);
        let policy = self.learner.sampler();
        let clock = Clock::begin(&say, "without suggestions", "playing the same games");
        let played = evaluate::evaluate(&self.config, self.suite, policy, &self.prompter, &evaluate::SPLITS)?;
        let (seconds, episodes) = (clock.seconds(), &played.episodes);
        let (evaluation, at) = (evaluate::count(episodes), self.state.iterations);
        let record = Record::new(BARE, at.into(), self.seconds());
        let (record, line) = with_splits(record, &evaluation);
        let record = with_details(with_returns(record, &self.config, episodes), episodes);
        say(&format!("without suggestions:{line} (games {seconds:.1} s)"));
        self.metrics.append(&record.with("seconds/games", seconds))?;
        self.trajectories.append(&evaluated(&self.config, &self.prompter, &played, at.into(), BARE)?)?;
        self.prompter.suggest(&sentences);
        Ok(evaluation)
    }

    /// Saves all that resuming needs. Broken weights are never saved, while gradients are bad no older checkpoint goes, and a step
    /// that stands as it would be written is not written again.
    fn checkpoint(&mut self) -> Result<(), TrainError> {
        self.state.optimizer_steps = self.learner.steps;
        self.state.critic_steps = self.learner.critic.as_ref().map_or(0, |critic| critic.steps);
        let keep = if self.state.bad_steps == 0 { self.config.run.keep_checkpoints } else { u32::MAX };
        let state = self.state.timeless();
        if self.saved.as_ref() == Some(&state) {
            return Ok(self.folder.keep_checkpoints(keep)?);
        }
        let export = self.learner.export()?;
        let critic = self.learner.critic.iter().flat_map(|critic| &critic.params().flat);
        if !export.model.params.flat.iter().chain(critic).all(|p| p.is_finite()) {
            return Err(TrainError::BrokenWeights);
        }
        self.state.seconds = self.seconds();
        // What a checkpoint follows from is on disk before it.
        self.metrics.sync()?;
        self.trajectories.sync()?;
        let tokenizer = self.prompter.tokenizer();
        self.folder.write_checkpoint(self.state.step(), keep, |dir| {
            state::save(dir, &export, self.learner.critic.as_ref(), &self.state, &self.ids, tokenizer)
        })?;
        self.saved = Some(state);
        report::note(&self.folder, &mut self.provenance)?;
        // The run does not depend on its page.
        if let Err(why) = report::write(self.folder.path()) {
            say(&format!("report.html is not up to date: {why}"));
        }
        Ok(())
    }

    fn report(
        &mut self,
        last: Evaluation,
        bare: Evaluation,
        judgment_accuracy: Option<f64>,
    ) -> Result<Outcome, TrainError> {
        let first = self.state.cold_start.clone().unwrap_or_default();
        let rows = results::rows(&[("cold start", &first), ("final", &last), ("final, no suggestions", &bare)]);
        let records = metrics::read(self.folder.path())?;
        let mut phase_seconds = metrics::phase_seconds(&records);
        let mut timed = |name: &str, began: Instant| phase_seconds.insert(name.into(), began.elapsed().as_secs_f64());
        let off = self.config.coupling.every == 0 || self.state.iterations == 0;
        let began = Instant::now();
        let coupling = match off {
            true => None,
            false => coupling::last(self.folder.path(), &self.config, &self.learner)?,
        };
        timed("final/coupling", began);
        let began = Instant::now();
        let baselines = evaluate::baselines(&self.config, self.suite, &evaluate::SPLITS)?;
        timed("final/baselines", began);
        report::note(&self.folder, &mut self.provenance)?;
        let summary = Summary {
            phase_seconds,
            coupling: coupling.map(|measurement| measurement.summary()),
            seconds: self.seconds(),
            train_steps: self.state.train_steps,
            env_steps: self.state.env_steps,
            tokens: self.state.tokens,
            eval: EvalSummary {
                cold_start: results::summarise(&first),
                last: results::summarise(&last),
                bare: results::summarise(&bare),
            },
            flawed: self.state.flawed.points(),
            flawed_fit: self.state.flawed.fit(),
            baselines,
            judgment_accuracy,
            provenance: Some(self.provenance.clone()),
        };
        let json = format!("{:#}\n", serde_json::json!(summary));
        self.folder.write("summary.json", json.as_bytes())?;
        report::write(self.folder.path())?;
        Ok(Outcome { folder: self.folder.path().into(), rows, summary })
    }
}

/// Times a part of an evaluation, whose beginning it tells.
struct Clock(Instant);

impl Clock {
    fn begin(say: &dyn Fn(&str), stage: &str, what: &str) -> Clock {
        say(&format!("evaluation, {stage}: {what}"));
        Clock(Instant::now())
    }

    fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// Adds for each split the share of turns that could not be read, by why, and success by task type.
fn with_details(mut record: Record, episodes: &[Episode]) -> Record {
    for (split, unreadable) in evaluate::unreadable(episodes) {
        record = record.with(&format!("{split}/unreadable"), unreadable.rate.value);
        for (why, count) in &unreadable.reasons {
            let share = *count as f64 / unreadable.turns.max(1) as f64;
            record = record.with(&format!("{split}/unreadable/{why}"), share);
        }
    }
    let types = evaluate::types(episodes);
    types.iter().fold(record, |r, t| r.with(&format!("{}/success/{}", t.split, t.kind), t.success.value))
}

/// Adds the results of each split; also one line of successes.
fn with_splits(mut record: Record, evaluation: &Evaluation) -> (Record, String) {
    let mut line = String::new();
    for (split, episodes) in evaluation {
        let t = results::SplitTable::new(episodes);
        line += &format!(" {split} {:.1} %", 100.0 * t.success.value);
        record = record
            .with(&format!("{split}/success"), t.success.value)
            .with(&format!("{split}/repeat_rate"), t.repeat_rate.value)
            .with(&format!("{split}/loop_rate"), t.loop_rate.value)
            .with(&format!("{split}/episode_length"), t.episode_length.value);
        for (name, won) in [("won", true), ("lost", false)] {
            let of: Vec<_> = episodes.iter().filter(|e| e.success == won).copied().collect();
            if !of.is_empty() {
                let t = results::SplitTable::new(&of);
                record = record
                    .with(&format!("{split}/repeat_rate/{name}"), t.repeat_rate.value)
                    .with(&format!("{split}/loop_rate/{name}"), t.loop_rate.value);
            }
        }
    }
    (record, line)
}

/// Adds the mean return of each split.
fn with_returns(record: Record, config: &Config, episodes: &[Episode]) -> Record {
    let returns = evaluate::returns(config, episodes);
    returns.into_iter().fold(record, |record, (split, mean)| record.with(&format!("{split}/reward"), mean))
}

/// Adds what judging came to, in an iteration of `seconds`. Learning is shared: GCD's part of it is that of its tokens.
fn with_gcd(mut record: Record, gcd: &Gcd, train_seconds: f64, seconds: f64) -> Record {
    let (accuracy, counts) = (gcd.accuracy, &gcd.judged.counts);
    let judge = gcd.judge.as_ref();
    let shares = [
        ("gcd/judge_precision", judge.and_then(|(agreement, _)| agreement.precision())),
        ("gcd/judge_recall", judge.and_then(|(agreement, _)| agreement.recall())),
        ("gcd/judge_missing", judge.map(|(_, verdicts)| verdicts.missing as f64)),
        ("gcd/accuracy", accuracy.all),
        ("gcd/accuracy/good", accuracy.good),
        ("gcd/accuracy/bad", accuracy.bad),
        ("gcd/unparsable", accuracy.unparsable),
        ("gcd/critic_loss", gcd.probed.critic.map(|(loss, _)| loss)),
        ("decouple/contrastive_loss", gcd.probed.contrast),
        ("gcd/loop_precision", gcd.agreement.precision()),
        ("gcd/loop_recall", gcd.agreement.recall()),
    ];
    for (name, value) in shares.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        record = record.with(name, value);
    }
    record
        .with("gcd/pairs", gcd.judged.pairs.len() as f64)
        .with("gcd/labels/good", counts.good as f64)
        .with("gcd/labels/bad", counts.bad as f64)
        .with("gcd/labels/unknown", counts.unknown as f64)
        .with("seconds/gcd", gcd.seconds)
        .with("seconds/gcd_share", (gcd.seconds + gcd.packed_share * train_seconds) / seconds)
}

/// The batch of a step that was skipped, as it is kept for a look: its token sequences.
struct Bad {
    file: String,
    json: String,
}

impl Bad {
    fn new<'b>(file: String, sequences: impl Iterator<Item = &'b [u32]>) -> Bad {
        Bad { file, json: serde_json::json!({ "sequences": sequences.collect::<Vec<_>>() }).to_string() }
    }
}
