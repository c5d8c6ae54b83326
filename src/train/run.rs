//! A run on disk: where it stands, what it has recorded, and how it goes on after a stop.

use super::card::Card;
use super::critic::Critic;
use super::learner::Learner;
use super::record::suggested;
use super::run_folder::RunFolder;
use super::state::{self, PolicyFolder, TrainingState};
use super::suggest::SuggestionUpdate;
use super::{TrainError, report};
use crate::config;
use crate::files::FileError;
use crate::report::metrics::{Metrics, Record};
use crate::report::progress::say;
use crate::report::provenance::{GameHashes, Provenance};
use crate::report::trajectories::{self, Trajectories};
use std::time::Instant;

/// The phase of the evaluation without suggestions.
pub(super) const WITHOUT_SUGGESTIONS: &str = "eval-no-suggestions";
/// Batches whose gradient was not finite.
const BAD_BATCHES: &str = "bad_batches";
/// All suggestions of the run, with their evidence.
const SUGGESTIONS: &str = "suggestions.json";

/// A run in progress.
pub(super) struct TrainingRun {
    pub folder: RunFolder,
    pub state: TrainingState,
    pub trajectories: Trajectories,
    metrics: Metrics,
    /// The state that the checkpoint of its step has, where that stands; without the wall time.
    saved: Option<TrainingState>,
    /// The processes that worked on it, this one last.
    provenance: Provenance,
    /// When this process began; the run's earlier wall time is in `earlier`.
    began: Instant,
    earlier: f64,
}

/// What a checkpoint holds besides the state.
pub(super) struct CheckpointWeights<'a> {
    pub learner: &'a Learner,
    pub critic: Option<&'a Critic>,
    pub place: PolicyFolder<'a>,
    pub card: &'a Card,
}

/// The batch of a step that was skipped, as it is kept for a look: its token sequences.
pub(super) struct BadBatch {
    file: String,
    json: String,
}

impl BadBatch {
    pub fn new<'b>(file: String, sequences: impl Iterator<Item = &'b [u32]>) -> BadBatch {
        BadBatch { file, json: serde_json::json!({ "sequences": sequences.collect::<Vec<_>>() }).to_string() }
    }
}

impl TrainingRun {
    /// Goes on at `state`: what an earlier process recorded after that comes again.
    pub fn open(
        folder: RunFolder,
        state: TrainingState,
        saved: Option<TrainingState>,
        (began, provenance): (Instant, Provenance),
    ) -> Result<TrainingRun, TrainError> {
        let metrics = Metrics::open(folder.path(), |r: &Record| match r.phase.as_str() {
            "sft" => r.step <= u64::from(state.sft_steps),
            "grpo" => r.step <= u64::from(state.iterations),
            _ => r.step < u64::from(state.next_eval),
        })?;
        let eval = u64::from(state.next_eval);
        let next = [("grpo", u64::from(state.iterations) + 1), ("eval", eval), (WITHOUT_SUGGESTIONS, eval)];
        let trajectories = Trajectories::open(folder.path(), &next)?;
        let earlier = state.seconds;
        let run = TrainingRun { folder, state, trajectories, metrics, saved, provenance, began, earlier };
        if run.folder.resumed() {
            run.keep_suggestions()?;
        }
        Ok(run)
    }

    /// Wall time of the run so far.
    pub fn seconds(&self) -> f64 {
        self.earlier + self.began.elapsed().as_secs_f64()
    }

    /// Where the run comes from, as of now.
    pub fn note(&mut self) -> Result<Provenance, TrainError> {
        report::note(&self.folder, &mut self.provenance)?;
        Ok(self.provenance.clone())
    }

    /// What is played.
    pub fn games(&self) -> &GameHashes {
        &self.provenance.games
    }

    pub fn record(&mut self, record: &Record) -> Result<(), TrainError> {
        Ok(self.metrics.append(record)?)
    }

    pub fn store(&mut self, episodes: &[trajectories::EpisodeRecord]) -> Result<(), TrainError> {
        Ok(self.trajectories.append(episodes)?)
    }

    /// Keeps new suggestions, for the prompts of later iterations, with the evidence they rest on.
    pub fn add_suggestions(&mut self, update: &SuggestionUpdate) -> Result<(), TrainError> {
        self.trajectories.suggest(update.iterations.into(), &suggested(update))?;
        self.state.suggestion_updates.push(update.clone());
        Ok(self.keep_suggestions()?)
    }

    /// Writes `suggestions.json`; there is none before any were made.
    fn keep_suggestions(&self) -> Result<(), FileError> {
        let updates = &self.state.suggestion_updates;
        let json = format!("{:#}\n", serde_json::json!(updates));
        match updates.is_empty() {
            true => self.folder.remove(SUGGESTIONS),
            false => self.folder.write(SUGGESTIONS, json.as_bytes()),
        }
    }

    /// Counts an optimizer step; a skipped one keeps its batch. Whether too many in a row were skipped.
    pub fn count_step(&mut self, bad: Option<BadBatch>, limit: u32, say: &dyn Fn(&str)) -> Result<bool, TrainError> {
        let Some(BadBatch { file, json }) = bad else {
            self.state.train_steps += 1;
            self.state.nonfinite_steps = 0;
            return Ok(false);
        };
        let folder = self.folder.path().join(BAD_BATCHES);
        std::fs::create_dir_all(&folder).map_err(|e| FileError::new("create", &folder, e))?;
        self.folder.write(&format!("{BAD_BATCHES}/{file}"), json.as_bytes())?;
        let file = folder.join(file);
        say(&format!("the gradient is not finite: step skipped, its batch is kept in {}", file.display()));
        self.state.nonfinite_steps += 1;
        Ok(self.state.nonfinite_steps >= limit)
    }

    /// Why a run ends whose gradients are not finite.
    pub fn not_finite(&self) -> TrainError {
        let folder = self.folder.path().join(BAD_BATCHES);
        TrainError::NotFinite { count: self.state.nonfinite_steps, folder }
    }

    /// Saves all that resuming needs. Broken weights are never saved, while gradients are bad no older checkpoint goes, and a step
    /// that stands as it would be written is not written again.
    pub fn checkpoint(&mut self, config: &config::Run, weights: &CheckpointWeights<'_>) -> Result<(), TrainError> {
        let CheckpointWeights { learner, critic, ref place, card } = *weights;
        self.state.optimizer_steps = learner.steps;
        self.state.critic_steps = critic.map_or(0, |critic| critic.steps);
        let keep = if self.state.nonfinite_steps == 0 { config.keep_checkpoints } else { u32::MAX };
        let state = self.state.timeless();
        if self.saved.as_ref() == Some(&state) {
            return Ok(self.folder.keep_checkpoints(keep)?);
        }
        let export = learner.export()?;
        let head = critic.iter().flat_map(|critic| &critic.params().flat);
        if !export.params.flat.iter().chain(head).all(|p| p.is_finite()) {
            return Err(TrainError::BrokenWeights);
        }
        self.state.seconds = self.seconds();
        // What a checkpoint follows from is on disk before it.
        self.metrics.sync()?;
        self.trajectories.sync()?;
        self.folder.write_checkpoint(self.state.step(), keep, |dir| {
            card.fill(dir, &self.state)?;
            state::save(dir, learner, &export, critic, &self.state, place)
        })?;
        self.saved = Some(state);
        self.note()?;
        // The run does not depend on its page.
        if let Err(why) = report::write(self.folder.path()) {
            say(&format!("report.html is not up to date: {why}"));
        }
        Ok(())
    }
}
