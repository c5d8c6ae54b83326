//! Evaluations of a run: success and behaviour on the panels, and with GCD the accuracy of judgments there.

use super::TrainError;
use super::evaluate::{self, SPLITS};
use super::measure::{self, Consistency};
use super::record::Recorder;
use super::run::WITHOUT_SUGGESTIONS;
use super::trainer::Trainer;
use crate::agent::Episode;
use crate::config::Config;
use crate::gcd::judgment::verdict_rate;
use crate::gcd::{Accuracy, JudgeLabels, Judged};
use crate::report::metrics::Record;
use crate::report::progress::say;
use crate::report::results::{self, Evaluation};
use crate::rollout::Played;
use std::time::Instant;

impl Trainer<'_> {
    /// Plays the panels, and judges and samples again what was played there; nothing is learnt. The results by split, and the share of
    /// judgments that were right.
    pub fn evaluate(&mut self, stage: &str, say: &dyn Fn(&str)) -> Result<(Evaluation, Option<f64>), TrainError> {
        let mut record = Record::new("eval", self.run.state.iterations.into(), 0.0);
        let (played, evaluation, mut line) = self.play_panels(stage, &mut record, say)?;
        let mut times = vec![format!("games {:.1} s", record.values["seconds/games"])];
        let e = self.setting.config.eval.clone();
        let (mut accuracy, mut judged) = (None, Judged::default());
        if evaluate::judges(&self.setting.config) {
            let clock = Clock::begin(say, stage, &format!("judging at most {} actions (eval.judgments)", e.judgments));
            (accuracy, judged) = self.judge_panels(&played.episodes, &mut record)?;
            times.push(clock.end("judgments", &mut record));
        }
        if e.consistency_states > 0 {
            let (states, samples) = (e.consistency_states, e.consistency_samples);
            let what = format!("sampling at most {states} states {samples} times (eval.consistency_states, _samples)");
            let clock = Clock::begin(say, stage, &what);
            let actor = evaluate::actor(&self.setting.config, self.learner.sampler(), &self.prompter);
            let measured = measure::consistency(&self.setting.config, &actor, &played.episodes)?;
            if let Some(Consistency { high, mean }) = measured {
                record.set("consistency/high", high);
                record.set("consistency/mean", mean);
            }
            times.push(clock.end("consistency", &mut record));
        }
        if let Some(all) = accuracy {
            line += &format!(" judgments {:.1} %", 100.0 * all);
        }
        say(&format!("{line} ({})", times.join(", ")));
        self.keep_evaluation(record, &played, &judged)?;
        self.run.state.next_eval = self.run.state.iterations + 1;
        Ok((evaluation, accuracy))
    }

    /// The final panels once more without suggestions in the prompt, if there are any: has the policy learnt, or does it read?
    pub fn evaluate_without_suggestions(&mut self) -> Result<Evaluation, TrainError> {
        let sentences = self.run.state.last_suggestions();
        if sentences.is_empty() {
            return Ok(Evaluation::new());
        }
        self.prompter.suggest(&[]);
        let mut record = Record::new(WITHOUT_SUGGESTIONS, self.run.state.iterations.into(), 0.0);
        let done = self.play_panels("without suggestions", &mut record, &say).and_then(|(played, evaluation, line)| {
            say(&format!("{line} (games {:.1} s)", record.values["seconds/games"]));
            self.keep_evaluation(record, &played, &Judged::default())?;
            Ok(evaluation)
        });
        self.prompter.suggest(&sentences);
        done
    }

    /// Plays one episode of each game, and records what came of them; also in one line.
    fn play_panels(
        &self,
        stage: &str,
        record: &mut Record,
        say: &dyn Fn(&str),
    ) -> Result<(Played, Evaluation, String), TrainError> {
        let (config, suite) = (&self.setting.config, self.setting.suite);
        let games = evaluate::panel(config, suite, &SPLITS)?.len();
        let clock = Clock::begin(say, stage, &format!("playing {games} games"));
        let actor = evaluate::actor(config, self.learner.sampler(), &self.prompter);
        let played = evaluate::evaluate(config, suite, &actor, &SPLITS)?;
        clock.end("games", record);
        if let Some(line) = evaluate::failures(&played) {
            say(&line);
        }
        let evaluation = evaluate::count(&played.episodes);
        let splits = record_splits(&evaluation, record);
        record_details(config, &played.episodes, record);
        Ok((played, evaluation, format!("{stage}:{splits}")))
    }

    /// The share of judgments that are right, where there are any, and the judgments.
    fn judge_panels(&mut self, episodes: &[Episode], record: &mut Record) -> Result<(Option<f64>, Judged), TrainError> {
        let (config, critic) = (&self.setting.config, self.critic.as_ref());
        let done = evaluate::judgments(config, &mut self.learner, critic, &self.prompter, episodes)?;
        let Some((Accuracy { all, good, bad, .. }, judged)) = done else { return Ok((None, Judged::default())) };
        let values = [("judgment_accuracy", all), ("judgment_accuracy/good", good), ("judgment_accuracy/bad", bad)];
        record.set_known(values);
        Ok((all, judged))
    }

    fn keep_evaluation(&mut self, mut record: Record, played: &Played, judged: &Judged) -> Result<(), TrainError> {
        record.seconds = self.run.seconds();
        self.run.record(&record)?;
        let recorder = Recorder {
            config: &self.setting.config,
            prompter: &self.prompter,
            iteration: record.step,
            phase: &record.phase,
            samples: &[],
            judge_labels: &JudgeLabels::new(),
            judged,
        };
        self.run.store(&recorder.episodes(played)?)
    }
}

/// Times a part of an evaluation, whose beginning it tells.
struct Clock(Instant);

impl Clock {
    fn begin(say: &dyn Fn(&str), stage: &str, what: &str) -> Clock {
        say(&format!("evaluation, {stage}: {what}"));
        Clock(Instant::now())
    }

    /// Records the time since; also in words.
    fn end(self, part: &str, record: &mut Record) -> String {
        let seconds = self.0.elapsed().as_secs_f64();
        record.set(&format!("seconds/{part}"), seconds);
        format!("{part} {seconds:.1} s")
    }
}

/// Adds for each split its mean return and the share of turns that could not be read, by why; success by task type; and how often a
/// turn holds a verdict.
fn record_details(config: &Config, episodes: &[Episode], record: &mut Record) {
    record.set("verdict_rate", verdict_rate(episodes));
    for (split, mean) in evaluate::returns(config, episodes) {
        record.set(&format!("{split}/reward"), mean);
    }
    for (split, unreadable) in evaluate::unreadable(episodes) {
        record.set(&format!("{split}/unreadable"), unreadable.rate.value);
        for (why, count) in &unreadable.reasons {
            let share = *count as f64 / unreadable.turns.max(1) as f64;
            record.set(&format!("{split}/unreadable/{why}"), share);
        }
    }
    for t in evaluate::types(episodes) {
        record.set(&format!("{}/success/{}", t.split, t.kind), t.success.value);
    }
}

/// Adds the results of each split; also one line of successes.
fn record_splits(evaluation: &Evaluation, record: &mut Record) -> String {
    let mut line = String::new();
    for (split, episodes) in evaluation {
        let t = results::SplitTable::new(episodes);
        line += &format!(" {split} {:.1} %", 100.0 * t.success.value);
        record.set(&format!("{split}/success"), t.success.value);
        record.set(&format!("{split}/repeat_rate"), t.repeat_rate.value);
        record.set(&format!("{split}/loop_rate"), t.loop_rate.value);
        record.set(&format!("{split}/episode_length"), t.episode_length.value);
        for (name, won) in [("won", true), ("lost", false)] {
            let of: Vec<_> = episodes.iter().filter(|e| e.success == won).copied().collect();
            if !of.is_empty() {
                let t = results::SplitTable::new(&of);
                record.set(&format!("{split}/repeat_rate/{name}"), t.repeat_rate.value);
                record.set(&format!("{split}/loop_rate/{name}"), t.loop_rate.value);
            }
        }
    }
    line
}
