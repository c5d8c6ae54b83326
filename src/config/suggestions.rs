//! Suggestions: advice about the policy's own flawed actions, in its prompt.

use serde::{Deserialize, Serialize};

/// When suggestions are made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SuggestionMode {
    /// There are none.
    Off,
    /// Every `suggestions.every` iterations.
    Fixed,
    /// Once at first, then whenever the measured gradient similarity of good and bad actions has stopped falling.
    Adaptive,
}

/// Who puts them into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Author {
    /// A fixed sentence for each way in which an action is flawed.
    Template,
    /// The policy itself.
    Policy,
    /// The model behind `[judge]`.
    Judge,
}

/// What is suggested, when, by whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Suggestions {
    /// When suggestions are made anew.
    pub mode: SuggestionMode,
    /// Iterations from one set of suggestions to the next.
    pub every: u32,
    /// Who puts them into words.
    pub author: Author,
    /// Most suggestions at a time.
    pub most: u32,
    /// A flawed action above this probability is in the danger zone.
    pub threshold: f32,
    /// Flawed actions whose probability is measured by sampling again.
    pub candidates: u32,
    /// Samples of each.
    pub resamples: u32,
    /// Share of the cold start's demonstrations that are shown with suggestions, so that those of training are nothing new.
    pub cold_start: f32,
}

impl Default for Suggestions {
    fn default() -> Self {
        Suggestions {
            mode: SuggestionMode::Off,
            every: 20,
            author: Author::Template,
            most: 3,
            threshold: 0.5,
            candidates: 24,
            resamples: 8,
            cold_start: 0.3,
        }
    }
}
