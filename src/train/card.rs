//! The model card of a checkpoint, `README.md`: what the model learnt from, how, with what result, and how it is prompted.
//!
//! It tells no time, no machine and no name of a run: what two runs computed is the same if their cards are. The results of the end
//! come when the checkpoint stands already, so that its manifest does not list the card.

use super::state::TrainingState;
use crate::config::{Config, Format, GcdMode, SuggestionMode};
use crate::files::{self, FileError};
use crate::report::provenance::{COMMIT, GameHashes};
use crate::report::results::{self, Evaluation, StageRow};
use std::path::Path;

pub(super) const FILE: &str = "README.md";
/// The sentences that the prompts of the model begin with.
pub(super) const SUGGESTIONS: &str = "suggestions.json";

/// What a run's cards have in common.
#[derive(Debug, Clone)]
pub(super) struct Card {
    config: Config,
    games: GameHashes,
    parameters: usize,
}

impl Card {
    pub fn new(config: &Config, games: &GameHashes, parameters: usize) -> Card {
        Card { config: config.clone(), games: games.clone(), parameters }
    }

    /// Writes the card of the checkpoint in `dir`, and its suggestions.
    pub fn fill(&self, dir: &Path, state: &TrainingState) -> Result<(), FileError> {
        let sentences = state.last_suggestions();
        if !sentences.is_empty() {
            let (file, json) = (dir.join(SUGGESTIONS), format!("{:#}\n", serde_json::json!(sentences)));
            std::fs::write(&file, json).map_err(|e| FileError::new("write", file, e))?;
        }
        let file = dir.join(FILE);
        std::fs::write(&file, self.text(state, &[])).map_err(|e| FileError::new("write", file, e))
    }

    /// Adds the results of the end to the card of a checkpoint that stands.
    pub fn finish(&self, dir: &Path, state: &TrainingState, last: &[(&str, &Evaluation)]) -> Result<(), FileError> {
        files::sweep(dir)?;
        files::write_file(&dir.join(FILE), |w| w.write_all(self.text(state, last).as_bytes()))
    }

    fn text(&self, state: &TrainingState, last: &[(&str, &Evaluation)]) -> String {
        let parts = [self.head(state), self.method(state), self.results(state, last), self.prompt(state)];
        parts.join("\n")
    }

    fn head(&self, state: &TrainingState) -> String {
        let base = match Path::new(&self.config.model.path).file_name() {
            Some(name) => format!("It began as the model `{}`", plain(&name.to_string_lossy())),
            None => "It began with random weights".into(),
        };
        let content =
            self.games.content.as_ref().map_or(String::new(), |hash| format!(", SHA-256 of its content `{hash}`"));
        let (library, adapter) = match self.config.lora.is_on() {
            true => ("peft", format!(" This is a LoRA adapter of rank {} beside its weights.", self.config.lora.rank)),
            false => ("transformers", String::new()),
        };
        format!(
            "---\nlibrary_name: {library}\npipeline_tag: text-generation\ntags:\n- agent\n- grpo\n- uncouple\n---\n\n\
             # An agent for {suite}\n\n\
             A language model that plays text games, trained by uncouple {version} (commit {commit}). {base}; it has {parameters} \
             parameters, and learnt from games of the suite `{suite}`{content}.{adapter}\n\n\
             Checkpoint {step}: {sft} steps of the cold start, {iterations} iterations of GRPO.\n",
            suite = plain(&self.games.suite),
            version = env!("CARGO_PKG_VERSION"),
            commit = COMMIT.unwrap_or("unknown"),
            parameters = self.parameters,
            step = state.step(),
            sft = state.sft_steps,
            iterations = state.iterations,
        )
    }

    fn method(&self, state: &TrainingState) -> String {
        let c = &self.config;
        let gcd = match c.gcd.mode {
            GcdMode::Off => "no GCD".to_string(),
            mode => format!("GCD {}, weight {}", word(&mode), c.gcd.lambda),
        };
        let suggestions = match c.suggestions.mode {
            SuggestionMode::Off => "no suggestions".to_string(),
            mode => format!("suggestions {}", word(&mode)),
        };
        let grpo = &c.grpo;
        let settings = [
            (
                "cold start",
                format!("{} steps of {} demonstrations, learning rate {}", state.sft_steps, c.sft.batch, c.sft.lr),
            ),
            (
                "groups",
                format!("{} of {} episodes, at most {} turns", c.rollout.groups, c.rollout.group_size, c.env.max_steps),
            ),
            ("sampling", format!("temperature {}", c.rollout.temperature)),
            ("optimizer", format!("AdamW, learning rate {}, KL weight {}", c.optim.lr, grpo.beta)),
            ("seed", c.run.seed.to_string()),
        ];
        let lines: Vec<String> = settings.iter().map(|(what, value)| format!("- {what}: {value}\n")).collect();
        format!(
            "## Method\n\nSupervised cold start on demonstrations, then GRPO with {gcd} and {suggestions}.\n\n{}",
            lines.concat()
        )
    }

    fn results(&self, state: &TrainingState, last: &[(&str, &Evaluation)]) -> String {
        let cold = state.cold_start.as_ref().map(|cold| ("cold start", cold));
        let stages: Vec<(&str, &Evaluation)> = cold.into_iter().chain(last.iter().copied()).collect();
        let rows = results::rows(&stages);
        if rows.is_empty() {
            return "## Results\n\nNone yet.\n".into();
        }
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let head = results::HEADINGS.map(String::from);
        let rule = line(&head.each_ref().map(|_| "---".to_string()));
        let rows: String = rows.iter().map(|row: &StageRow| line(&row.cells())).collect();
        format!(
            "## Results\n\nWith 95 % intervals, at temperature {}. L0: seen task types as in training; L1: unseen instances of them; L2: \
             unseen task types.\n\n{}{rule}{rows}",
            self.config.eval.temperature,
            line(&head)
        )
    }

    fn prompt(&self, state: &TrainingState) -> String {
        let p = &self.config.prompt;
        let answer = match p.format {
            Format::Compact | Format::Chat => "The answer is the command.",
            Format::Think => "The answer is `<think>…</think><action>command</action>`.",
        };
        let tags =
            if p.tags { " It begins with one of the tags planning, explore, reflection and monitor." } else { "" };
        let template = Path::new(&p.template).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let sentences = state.last_suggestions();
        let advice = match sentences.is_empty() {
            true => "No suggestions stand before the first observation.\n".to_string(),
            false => {
                let lines: String =
                    sentences.iter().map(|sentence| format!("    {}\n", sentence.replace(['\n', '\r'], " "))).collect();
                format!(
                    "The model was last trained with these suggestions before the first observation ({SUGGESTIONS}):\n\n{lines}"
                )
            }
        };
        format!(
            "## Prompts\n\nFormat `{}`, template `{}`, history `{}`. What the environment says is the user's message, what the agent \
             answers the assistant's; the chat template beside the weights writes both as in training. {answer}{tags}\n\n{advice}",
            word(&p.format),
            plain(&template),
            word(&p.history)
        )
    }
}

/// A value as the configuration writes it.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(plain)).unwrap_or_default()
}

/// Words of others, harmless in a line of Markdown.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || "`|<>[]".contains(c) { ' ' } else { c }).collect()
}
