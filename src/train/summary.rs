//! The end of a run: its summary and its report.

use super::trainer::{RunOutcome, Trainer};
use super::{TrainError, coupling, evaluate, report};
use crate::report::metrics;
use crate::report::results::{self, EvalSummary, Evaluation, Summary};
use std::time::Instant;

impl Trainer<'_> {
    /// Measures what is left to measure, and writes summary.json and report.html. `last` is the final evaluation, `without` the same without
    /// suggestions.
    pub fn report(
        &mut self,
        last: Evaluation,
        without: Evaluation,
        judgment_accuracy: Option<f64>,
    ) -> Result<RunOutcome, TrainError> {
        let provenance = self.run.note()?;
        let (state, folder, config) = (&self.run.state, &self.run.folder, &self.setting.config);
        let first = state.cold_start.clone().unwrap_or_default();
        let records = metrics::read(folder.path())?;
        let mut phase_seconds = metrics::phase_seconds(&records);
        let mut timed = |name: &str, began: Instant| phase_seconds.insert(name.into(), began.elapsed().as_secs_f64());
        let began = Instant::now();
        let coupling = match config.coupling.every == 0 || state.iterations == 0 {
            true => None,
            false => coupling::last(folder.path(), config, &self.learner)?,
        };
        timed("final/coupling", began);
        let began = Instant::now();
        let baselines = evaluate::baselines(config, self.setting.suite, &evaluate::SPLITS)?;
        timed("final/baselines", began);
        let summary = Summary {
            phase_seconds,
            coupling: coupling.map(|measurement| measurement.summary()),
            seconds: self.run.seconds(),
            train_steps: state.train_steps,
            env_steps: state.env_steps,
            tokens: state.tokens,
            eval: EvalSummary {
                cold_start: results::summarise(&first),
                last: results::summarise(&last),
                without_suggestions: results::summarise(&without),
            },
            flawed: state.flawed.points(),
            flawed_fit: state.flawed.fit(),
            baselines,
            judgment_accuracy,
            provenance: Some(provenance),
        };
        let rows = results::rows(&[("cold start", &first), ("final", &last), ("final, no suggestions", &without)]);
        let json = format!("{:#}\n", serde_json::json!(summary));
        folder.write("summary.json", json.as_bytes())?;
        report::write(folder.path())?;
        Ok(RunOutcome { folder: folder.path().into(), rows, summary })
    }
}
