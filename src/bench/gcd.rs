//! What GCD adds to the time of a training step, with the judgments' prompts shared and without.
//!
//! The embedded default after its cold start, with 30 actions judged 8 times and with the default's numbers. The gradient of each
//! iteration is formed of the episodes alone, with judgments that share their prompts, and with the same judgments unshared, all with
//! the same weights. Unshared, each reads its prompt for itself, and begins with a token of its own when it is learnt from, so that
//! the forest finds nothing in common.

use crate::agent::{Episode, Prompter};
use crate::config::{Config, Gcd, GcdMode};
use crate::files::FileError;
use crate::gcd::{self, JudgeLabels, Judged, Labelled, Pair};
use crate::grpo::{Sample, samples};
use crate::model::checkpoint::{self, CheckpointError};
use crate::model::tokenizer::TokenizerError;
use crate::ops::philox::Stream;
use crate::rollout::{Actor, PrefixCache, RolloutError, RolloutSettings};
use crate::train::batch::MicroBatches;
use crate::train::iteration::{play, prefix_cache};
use crate::train::learn::TrainingRows;
use crate::train::learner::Learner;
use crate::train::run_folder::{Existing, RunFolder};
use crate::train::{TrainError, interrupt, suite, train};
use serde::Serialize;
use std::collections::HashSet;
use std::time::Instant;

/// Iterations measured.
const ITERATIONS: u32 = 3;

/// Actions an iteration and judgments of each at which costs are compared, whatever the default.
const FIXED: [u32; 2] = [30, 8];

/// Why there is nothing to report.
#[derive(Debug, thiserror::Error)]
pub enum GcdBenchError {
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    #[error("the cold start left no checkpoint")]
    NoCheckpoint,
}

/// Times of all iterations together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GcdReport {
    pub iterations: u32,
    pub rollout_seconds: f64,
    /// Gradient of the trajectories alone.
    pub train_seconds: f64,
    pub sizes: Vec<Size>,
}

/// The costs of so many judgments.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Size {
    /// Judged actions, and judgments of each.
    pub pairs: u32,
    pub judgments: u32,
    pub shared: Cost,
    pub unshared: Cost,
}

/// What judging costs on top of GRPO.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Cost {
    /// Writing the judgments.
    pub judge_seconds: f64,
    /// Gradient of trajectories and judgments.
    pub train_seconds: f64,
    /// Tokens of that gradient, packed.
    pub unique_tokens: usize,
    /// What is added to the time of rollout and gradient, as a share of it.
    pub added: f64,
}

/// Trains the cold start in a folder of its own, and measures.
pub fn run() -> Result<GcdReport, GcdBenchError> {
    let mut config = Config::default();
    config.gcd.mode = GcdMode::Generate;
    let scratch = std::env::temp_dir().join(format!("uncouple-bench-{}", std::process::id()));
    let report = in_folder(Config {
        run: crate::config::Run { dir: scratch.display().to_string(), name: "gcd".into(), iterations: 0, ..config.run },
        eval: crate::config::Eval { games: 1, ..config.eval },
        ..config
    });
    // What cannot be removed stays in the system's folder for such things.
    let _ = std::fs::remove_dir_all(&scratch);
    report
}

fn in_folder(config: Config) -> Result<GcdReport, GcdBenchError> {
    let suite = suite(&config)?;
    let folder = train(config.clone(), &*suite, Existing::Overwrite)?.folder;
    let (_, dir) = RunFolder::finished_checkpoints(&folder)?.pop().ok_or(GcdBenchError::NoCheckpoint)?;
    let (model, tokenizer) = checkpoint::load_with_tokenizer(&dir)?;
    let prompter = Prompter::new(tokenizer, &config.prompt).map_err(TrainError::from)?;
    let mut learner = Learner::new(model, config.model.recompute);
    let size =
        |[pairs, judgments]: [u32; 2]| Size { pairs, judgments, shared: Cost::default(), unshared: Cost::default() };
    let sizes = [FIXED, [config.gcd.pairs, config.gcd.judgments]].map(size).to_vec();
    let nothing = GcdReport { iterations: ITERATIONS, rollout_seconds: 0.0, train_seconds: 0.0, sizes };
    let mut report = nothing.clone();
    // The first one warms up.
    for index in 0..=ITERATIONS {
        if index == 1 {
            report = nothing.clone();
        }
        let model = learner.model().map_err(TrainError::from)?.into_owned();
        let began = Instant::now();
        let mut cache = prefix_cache(&config, &model)?;
        let settings = RolloutSettings::training(&config, Stream::Rollout(index));
        let actor = Actor::new(&model, &prompter, settings, &interrupt::interrupted);
        let episodes = play(&config, &*suite, &actor, &mut cache, index)?.episodes;
        report.rollout_seconds += began.elapsed().as_secs_f64();
        let rows = samples(&episodes, &config);
        report.train_seconds += gradient(&config, &mut learner, &rows).0;
        for size in &mut report.sizes {
            let gcd = Gcd { pairs: size.pairs, judgments: size.judgments, ..config.gcd.clone() };
            let config = Config { gcd, ..config.clone() };
            let actor = actor.with(RolloutSettings::training(&config, Stream::Judgments(index)));
            size.measure(&config, &mut learner, &mut cache, &actor, (&episodes, &rows))?;
        }
    }
    let alone = report.rollout_seconds + report.train_seconds;
    for cost in report.sizes.iter_mut().flat_map(|size| [&mut size.shared, &mut size.unshared]) {
        cost.added = (cost.judge_seconds + cost.train_seconds - report.train_seconds) / alone;
    }
    Ok(report)
}

impl Size {
    /// Adds the times of an iteration, whose episodes are the samples `rows` and left their sequences in `cache`. The actor is that of
    /// its judgments.
    fn measure(
        &mut self,
        config: &Config,
        learner: &mut Learner,
        cache: &mut PrefixCache<'_>,
        actor: &Actor<'_>,
        (episodes, rows): (&[Episode], &[Sample]),
    ) -> Result<(), RolloutError> {
        let began = Instant::now();
        let size = [config.gcd.pairs as usize, config.gcd.judgments as usize];
        let of = Labelled { episodes, judge_labels: &JudgeLabels::new() };
        let judged = gcd::judge(config, actor, cache, of, size)?;
        self.shared.judge_seconds += began.elapsed().as_secs_f64();
        let began = Instant::now();
        judge_apart(config, actor, &judged)?;
        self.unshared.judge_seconds += began.elapsed().as_secs_f64();
        let mut rows = TrainingRows::beside(episodes, rows.to_vec(), judged.samples(config));
        for (shares, cost) in [(true, &mut self.shared), (false, &mut self.unshared)] {
            if !shares {
                set_apart(&mut rows);
            }
            let (seconds, packed) = gradient(config, learner, &rows);
            (cost.train_seconds, cost.unique_tokens) = (cost.train_seconds + seconds, cost.unique_tokens + packed);
        }
        Ok(())
    }
}

/// The same judgments again, each with a prompt of its own: it begins with a token that no other begins with.
fn judge_apart(config: &Config, actor: &Actor<'_>, judged: &Judged) -> Result<(), RolloutError> {
    let max_turn_tokens = config.gcd.max_tokens as usize;
    let actor = actor.with(RolloutSettings { max_turn_tokens, ..actor.settings.clone() });
    let of = |pair: &Pair| std::iter::repeat_n(pair.prompt.clone(), config.gcd.judgments as usize);
    let mut prompts: Vec<Vec<u32>> = judged.pairs.iter().flat_map(of).collect();
    prompts.iter_mut().zip(0..).for_each(|(prompt, first)| prompt[0] = first);
    actor.answers(&prompts, 1)?;
    Ok(())
}

/// Gives each judgment a first token that no other row begins with.
fn set_apart(rows: &mut [Sample]) {
    let taken: HashSet<u32> = rows.iter().filter_map(|s| s.tokens.first().copied()).collect();
    let free = (0..).filter(|token| !taken.contains(token));
    for (row, token) in rows.iter_mut().filter(|s| s.judgment).zip(free) {
        row.tokens[0] = token;
    }
}

/// Seconds of the gradient of `rows`, and its packed tokens. Nothing is learnt from it.
fn gradient(config: &Config, learner: &mut Learner, rows: &[Sample]) -> (f64, usize) {
    let began = Instant::now();
    let passes = MicroBatches::new(config, rows).accumulate(config, learner, &mut |_, _| {}).expect(super::ON_CPU);
    let seconds = began.elapsed().as_secs_f64();
    learner.take_grads().expect(super::ON_CPU);
    (seconds, passes.unique_tokens)
}
