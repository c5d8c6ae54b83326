//! The words around an observation: templates in Jinja's language, built in or the user's own.

use super::error::PromptError;
use crate::files;
use crate::model::jinja::{self, MAX_SOURCE};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use serde::Serialize;
use std::path::Path;

/// The built-in templates by name. `default` says least; the others explain their game.
const BUILT_IN: [(&str, &str); 3] = [
    ("default", include_str!("templates/default.jinja")),
    ("alfworld", include_str!("templates/alfworld.jinja")),
    ("scienceworld", include_str!("templates/scienceworld.jinja")),
];

/// Whether the program brings a template of this name.
pub fn is_built_in(name: &str) -> bool {
    BUILT_IN.iter().any(|(known, _)| *known == name)
}

/// A command, and what the agent had been shown when it gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exchange<'a> {
    /// What the environment had said.
    pub observation: &'a str,
    /// `(unreadable)` where no command could be read.
    pub action: String,
}

/// What a template can speak of.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Scene<'a> {
    /// How to answer; empty in the compact format.
    pub instruction: &'a str,
    /// The prompt begins a sequence: the agent has read nothing before it.
    pub opening: bool,
    /// `prompt.history` is a window: every prompt is an opening, and the agent sees of the past only what the prompt says.
    pub windowed: bool,
    pub suggestions: &'a [String],
    /// Commands given so far.
    pub step: usize,
    /// The first observation, which states the task.
    pub first: &'a str,
    /// The window's exchanges, oldest first; none with the full history, which the agent has before it.
    pub history: &'a [Exchange<'a>],
    /// All commands so far.
    pub actions: Vec<&'a str>,
    pub observation: &'a str,
    /// Empty unless `prompt.admissible` is on.
    pub admissible: &'a [String],
}

/// A parsed template.
pub(super) struct Template {
    jinja: Environment<'static>,
    name: String,
}

impl Template {
    /// A built-in one by its name, or a file. It is tried out, so that a fault shows before an episode is played.
    pub fn load(name: &str) -> Result<Template, PromptError> {
        let text = match BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            Some((_, text)) => text.to_string(),
            None => files::read_text(Path::new(name), MAX_SOURCE as u64).map_err(|source| PromptError::NoTemplate {
                name: name.into(),
                built_in: BUILT_IN.map(|(name, _)| name).join(", "),
                source,
            })?,
        };
        let mut jinja = jinja::environment();
        jinja.set_auto_escape_callback(|_| AutoEscape::None);
        jinja.set_undefined_behavior(UndefinedBehavior::Strict);
        jinja::add(&mut jinja, name, text)?;
        let template = Template { jinja, name: name.into() };
        let (words, commands) = (["a".to_string()], [Exchange { observation: "a", action: "b".into() }]);
        for (opening, windowed, step) in [(true, false, 0), (false, false, 1), (true, true, 0), (true, true, 1)] {
            template.render(&Scene {
                instruction: "a",
                opening,
                windowed,
                suggestions: &words,
                step,
                first: "a",
                history: if windowed { &commands[..step] } else { &[] },
                actions: vec!["b"; step],
                observation: "a",
                admissible: &words,
            })?;
        }
        Ok(template)
    }

    pub fn render(&self, scene: &Scene<'_>) -> Result<String, PromptError> {
        Ok(jinja::render(&self.jinja, &self.name, Value::from_serialize(scene))?)
    }
}
