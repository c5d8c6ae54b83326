//! The model behind a chat endpoint that labels actions and words suggestions.

use serde::{Deserialize, Serialize};

/// A judge behind an OpenAI-compatible chat endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JudgeConfig {
    /// Where the endpoint is: what comes before `/v1/chat/completions`. It is written down; a key belongs into `key_env`.
    pub url: String,
    /// The endpoint's name of the model.
    pub model: String,
    /// Environment variable that holds the key (empty: no key).
    pub key_env: String,
    /// Sampling temperature of the endpoint.
    pub temperature: f32,
    /// Times each pair is asked about.
    pub votes: u32,
    /// Votes that must agree for a label.
    pub agree: u32,
    /// Actions asked about in an iteration.
    pub pairs: u32,
    /// Most requests at once, at most 256.
    pub concurrency: u32,
    /// Tries after the first, on 429, 5xx and broken connections; at most 100.
    pub retries: u32,
    /// Wait before the first of them, in milliseconds; doubles each time.
    pub backoff_ms: u32,
    /// Seconds for one request.
    pub timeout: f32,
    /// Most calls of one process (0: no bound).
    pub max_calls: u64,
    /// Most tokens of one process, as the endpoint counts them (0: no bound).
    pub max_tokens: u64,
    /// SQLite file that keeps the votes, for all runs.
    pub cache: String,
}

impl Default for JudgeConfig {
    fn default() -> Self {
        JudgeConfig {
            url: String::new(),
            model: String::new(),
            key_env: String::new(),
            temperature: 1.0,
            votes: 5,
            agree: 5,
            pairs: 60,
            concurrency: 8,
            retries: 4,
            backoff_ms: 500,
            timeout: 60.0,
            max_calls: 0,
            max_tokens: 0,
            cache: "judge.sqlite".into(),
        }
    }
}
