//! A training run from its configuration to its report.

use super::cold_start::{self, Demonstration};
use super::iteration::{self, Iteration};
use super::learner::Learner;
use super::record::stored;
use super::run_folder::{Existing, RunFolder};
use super::state::{self, State};
use super::{TrainError, evaluate, interrupt, memory, suite};
use crate::agent::Prompter;
use crate::config::Config;
use crate::env::Suite;
use crate::model::checkpoint::{self, SaveDtype};
use crate::model::tokenizer::{END_OF_TEXT, TURN_END, Tokenizer};
use crate::model::{Model, Params, TokenIds};
use crate::report::html::{self, Page};
use crate::report::metrics::{self, Metrics, Record};
use crate::report::progress::Progress;
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
/// Episodes shown in report.html.
const EXAMPLES: u32 = 6;

/// Runs the whole training: cold start, evaluation, GRPO, evaluation, report.
pub fn train(mut config: Config, existing: Existing) -> Result<Outcome, TrainError> {
    let suite = suite(&config)?;
    // Everything a user can get wrong about the model is found before a folder is made.
    let base = (!config.model.path.is_empty()).then(|| load_base(&config)).transpose()?;
    let folder = RunFolder::open(&mut config, existing)?;
    let mut session = Session::open(config, folder, &*suite, base)?;
    match session.run() {
        // Whatever the phase, nothing was changed since the last whole step: save it and say how to go on.
        Err(TrainError::Rollout(RolloutError::Interrupted)) => {
            session.checkpoint()?;
            Err(TrainError::Interrupted(session.folder.path().into()))
        }
        other => other,
    }
}

/// The user's model directory.
fn load_base(config: &Config) -> Result<(Model, Tokenizer, TokenIds), TrainError> {
    let dir = Path::new(&config.model.path);
    let model = checkpoint::load(dir)?;
    let ids = TokenIds::read(dir).map_err(checkpoint::CheckpointError::from)?;
    Ok((model, Tokenizer::load(dir)?, ids))
}

struct Session<'a> {
    config: Config,
    folder: RunFolder,
    suite: &'a dyn Suite,
    prompter: Prompter,
    ids: TokenIds,
    learner: Learner,
    reference: Option<Model>,
    demonstrations: Vec<Demonstration>,
    state: State,
    metrics: Metrics,
    trajectories: Trajectories,
    /// When this process began, less the run's earlier wall time.
    began: Instant,
    earlier: f64,
}

impl<'a> Session<'a> {
    /// Builds or loads everything; a resumed run goes on from its last checkpoint, or from the beginning if it has none.
    fn open(
        config: Config,
        folder: RunFolder,
        suite: &'a dyn Suite,
        base: Option<(Model, Tokenizer, TokenIds)>,
    ) -> Result<Session<'a>, TrainError> {
        let began = Instant::now();
        let scripts = cold_start::scripts(&config, suite)?;
        let last = folder.checkpoints()?.pop();
        let (learner, state, tokenizer, ids) = match (last, base) {
            (Some((_, dir)), _) => {
                let (learner, state) = state::load(&dir, config.model.recompute)?;
                let ids = TokenIds::read(&dir).map_err(checkpoint::CheckpointError::from)?;
                (learner, state, Tokenizer::load(&dir)?, ids)
            }
            (None, Some((model, tokenizer, ids))) => {
                (Learner::new(model, config.model.recompute), State::default(), tokenizer, ids)
            }
            (None, None) => {
                let shape = memory::model_shape(&config).map_err(checkpoint::CheckpointError::from)?;
                let tokenizer = Tokenizer::train(&cold_start::texts(&scripts), shape.vocab_size)?;
                let model = Model::new(shape.clone(), Params::random(&shape, config.run.seed));
                let ids = TokenIds {
                    bos: None,
                    eos: tokenizer.id(TURN_END).into_iter().collect(),
                    pad: tokenizer.id(END_OF_TEXT),
                };
                (Learner::new(model, config.model.recompute), State::default(), tokenizer, ids)
            }
        };
        let prompter = Prompter::new(tokenizer, &config.prompt)?;
        let context = learner.model.config.max_position_embeddings;
        let demonstrations = scripts
            .iter()
            .map(|script| cold_start::demonstration(&prompter, script, context))
            .collect::<Result<_, _>>()?;
        let done = state.clone();
        let metrics = Metrics::open(folder.path(), |r: &Record| match r.phase.as_str() {
            "sft" => r.step <= u64::from(done.sft_steps),
            "grpo" => r.step <= u64::from(done.iterations),
            _ => {
                done.cold_start.is_some()
                    && r.step <= u64::from(done.iterations)
                    && r.step < u64::from(config.run.iterations)
            }
        })?;
        let trajectories = Trajectories::open(folder.path(), u64::from(state.iterations) + 1)?;
        let reference = folder.path().join(REFERENCE);
        let reference =
            if state.iterations > 0 && reference.exists() { Some(checkpoint::load(&reference)?) } else { None };
        let earlier = state.seconds;
        Ok(Session {
            config,
            folder,
            suite,
            prompter,
            ids,
            learner,
            reference,
            demonstrations,
            state,
            metrics,
            trajectories,
            began,
            earlier,
        })
    }

    fn run(&mut self) -> Result<Outcome, TrainError> {
        self.cold_start()?;
        if self.state.cold_start.is_none() {
            self.state.cold_start = Some(self.evaluate("cold start")?);
            self.checkpoint()?;
        }
        self.grpo()?;
        let last = self.evaluate("final")?;
        self.report(last)
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
            let batch = cold_start::batch(&self.config, &self.demonstrations, step);
            let tokens: usize = batch.iter().map(|(tokens, _)| tokens.len()).sum();
            let loss = self.learner.cross_entropy(&batch);
            let lr = cold_start::learning_rate(&self.config, step);
            let report = self.learner.step(&self.config.optim, lr);
            self.state.sft_steps += 1;
            self.state.tokens += tokens as u64;
            let kept = || batch_json(batch.iter().map(|(tokens, _)| *tokens));
            let file = format!("sft-{}.json", step + 1);
            let bad = if report.skipped { Some((file, kept())) } else { None };
            self.count_step(bad)?;
            let record = Record::new("sft", u64::from(step) + 1, self.seconds());
            let record = record.with("loss", loss).with("grad_norm", report.grad_norm).with("learning_rate", lr);
            self.metrics.append(&record)?;
            progress.step(u64::from(step) + 1, format!("loss {loss:.3}"));
        }
        progress.finish();
        // GRPO is another objective: its moments start afresh.
        self.learner.moments.iter_mut().for_each(|m| m.flat.fill(0.0));
        self.learner.steps = 0;
        Ok(())
    }

    fn grpo(&mut self) -> Result<(), TrainError> {
        let iterations = self.config.run.iterations;
        if self.config.grpo.beta > 0.0 && self.reference.is_none() {
            let dir = self.folder.path().join(REFERENCE);
            checkpoint::save(&dir, &self.learner.model, &self.ids, self.prompter.tokenizer().files(), SaveDtype::F32)?;
            self.reference = Some(self.learner.model.clone());
        }
        let mut progress = Progress::new("grpo", self.state.iterations.into(), iterations.into());
        while self.state.iterations < iterations {
            self.pause()?;
            let index = self.state.iterations;
            let (learner, reference) = (&mut self.learner, self.reference.as_ref());
            let done = iteration::run(&self.config, self.suite, learner, reference, &self.prompter, index)?;
            self.state.iterations += 1;
            let statistics = Statistics::of(&done.episodes);
            self.keep(&done, &statistics)?;
            progress.step(
                self.state.iterations.into(),
                format!("success {:.0} % length {:.1}", 100.0 * statistics.success, statistics.all.episode_length),
            );
            let every = self.config.run.checkpoint_every;
            if every > 0 && self.state.iterations % every == 0 {
                self.checkpoint()?;
            }
            if self.config.eval.every > 0
                && self.state.iterations % self.config.eval.every == 0
                && index + 1 < iterations
            {
                self.evaluate("during GRPO")?;
            }
        }
        progress.finish();
        self.checkpoint()
    }

    /// Records an iteration: counters, metrics, trajectories, and the batch if its step had to be skipped.
    fn keep(&mut self, done: &Iteration, statistics: &Statistics) -> Result<(), TrainError> {
        let at = u64::from(self.state.iterations);
        let sampled: usize = done.episodes.iter().map(|e| e.tokens.len()).sum();
        self.state.env_steps += done.episodes.iter().map(|e| e.turns.len() as u64).sum::<u64>();
        self.state.tokens += (sampled + done.packed_tokens) as u64;
        for step in &done.steps {
            let batch = || batch_json(done.samples.iter().map(|s| &s.tokens[..]));
            let bad = step.skipped.then(|| (format!("grpo-{at}.json"), batch()));
            self.count_step(bad)?;
        }
        let (s, loss) = (statistics, &done.loss);
        let returns: Vec<f64> = done.episodes.iter().map(|e| f64::from(u8::from(e.success))).collect();
        let mut record = Record::new("grpo", at, self.seconds())
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
            .with("reward", crate::report::stats::mean(&returns))
            .with("reward_std", crate::report::stats::std(&returns))
            .with("frac_reward_zero_std", done.constant_groups)
            .with("success", s.success)
            .with("episode_length", s.all.episode_length)
            .with("completions/mean_length", s.all.episode_tokens)
            .with("repeat_rate", s.all.repeat_rate)
            .with("loop_rate", s.all.loop_rate)
            .with("invalid_rate", s.all.invalid_rate)
            .with("repeat_rate/won", s.won.repeat_rate)
            .with("repeat_rate/lost", s.lost.repeat_rate)
            .with("env_failed", s.env_failed as f64)
            .with(
                "tokens_per_second",
                (sampled + done.packed_tokens) as f64 / (done.rollout_seconds + done.train_seconds),
            )
            .with("seconds/rollout", done.rollout_seconds)
            .with("seconds/train", done.train_seconds)
            .with("sharing", done.shared_tokens as f64 / done.packed_tokens.max(1) as f64);
        if let Some(step) = done.steps.last() {
            record = record.with("grad_norm", step.grad_norm);
        }
        self.metrics.append(&record)?;
        let kept: Vec<_> = done
            .episodes
            .iter()
            .scan(done.samples.iter(), |samples, e| {
                let sample = if e.finish.is_failure() { None } else { samples.next() };
                Some(stored(e, at, "grpo", sample.map(|s| &s.advantage[..])))
            })
            .collect();
        Ok(self.trajectories.append(&kept)?)
    }

    /// Counts an optimiser step; a skipped one keeps its batch, and several in a row end the run.
    fn count_step(&mut self, bad: Option<(String, Vec<u8>)>) -> Result<(), TrainError> {
        let Some((file, batch)) = bad else {
            self.state.train_steps += 1;
            self.state.bad_steps = 0;
            return Ok(());
        };
        let folder = self.folder.path().join(BAD_BATCHES);
        std::fs::create_dir_all(&folder).map_err(|e| crate::report::files::FileError::new("create", &folder, e))?;
        self.folder.write(&format!("{BAD_BATCHES}/{file}"), &batch)?;
        eprintln!("the gradient is not finite: step skipped, its batch is kept in {}", folder.join(file).display());
        self.state.bad_steps += 1;
        if self.state.bad_steps >= self.config.run.max_bad_steps {
            self.checkpoint()?;
            return Err(TrainError::NotFinite { count: self.state.bad_steps, folder });
        }
        Ok(())
    }

    fn evaluate(&mut self, stage: &str) -> Result<Evaluation, TrainError> {
        let model = &self.learner.model;
        let episodes = evaluate::evaluate(&self.config, self.suite, model, &self.prompter, &evaluate::SPLITS)?;
        let at = u64::from(self.state.iterations);
        let evaluation = evaluate::count(&episodes);
        let mut record = Record::new("eval", at, self.seconds());
        let mut line = format!("{stage}:");
        for (split, episodes) in &evaluation {
            let t = results::SplitTable::new(episodes);
            line += &format!(" {split} {:.1} %", 100.0 * t.success.value);
            record = record
                .with(&format!("{split}/success"), t.success.value)
                .with(&format!("{split}/repeat_rate"), t.repeat_rate.value)
                .with(&format!("{split}/episode_length"), t.episode_length.value);
        }
        eprintln!("{line}");
        self.metrics.append(&record)?;
        let kept: Vec<_> = episodes.iter().map(|e| stored(e, at, "eval", None)).collect();
        self.trajectories.append(&kept)?;
        Ok(evaluation)
    }

    fn checkpoint(&mut self) -> Result<(), TrainError> {
        self.state.seconds = self.seconds();
        self.state.optimizer_steps = self.learner.steps;
        let tokenizer = self.prompter.tokenizer();
        self.folder.write_checkpoint(self.state.step(), self.config.run.keep_checkpoints, |dir| {
            state::save(dir, &self.learner, &self.state, &self.ids, tokenizer)
        })?;
        Ok(())
    }

    fn report(&mut self, last: Evaluation) -> Result<Outcome, TrainError> {
        let first = self.state.cold_start.clone().unwrap_or_default();
        let rows = results::rows(&[("cold start", &first), ("final", &last)]);
        let summary = Summary {
            seconds: self.seconds(),
            train_steps: self.state.train_steps,
            env_steps: self.state.env_steps,
            tokens: self.state.tokens,
            eval: EvalSummary { cold_start: results::summarise(&first), last: results::summarise(&last) },
            ..Summary::default()
        };
        let page = html::render(&Page {
            name: &self.folder.name(),
            config: &self.config.to_toml(),
            summary: &summary,
            rows: &rows,
            records: &metrics::read(self.folder.path())?,
            episodes: &self.trajectories.examples("eval", EXAMPLES)?,
        })?;
        self.folder.write("report.html", page.as_bytes())?;
        let json = format!("{:#}\n", serde_json::json!(summary));
        self.folder.write("summary.json", json.as_bytes())?;
        Ok(Outcome { folder: self.folder.path().into(), rows, summary })
    }
}

/// A batch as it is kept for a look: its token sequences.
fn batch_json<'b>(sequences: impl Iterator<Item = &'b [u32]>) -> Vec<u8> {
    serde_json::json!({ "sequences": sequences.collect::<Vec<_>>() }).to_string().into_bytes()
}
