//! Generative Classification Disentanglement: the policy judges its own actions.

use serde::{Deserialize, Serialize};

/// What GCD adds to GRPO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GcdMode {
    /// Nothing.
    Off,
    /// Judgments written by the policy itself.
    Generate,
    /// A linear classifier of the policy's hidden states in place of written judgments; its gradient flows on into the policy.
    ValueHead,
    /// The same classifier, but nothing flows into the policy.
    Isolated,
}

impl GcdMode {
    /// Whether a value head judges.
    pub fn has_critic(self) -> bool {
        matches!(self, GcdMode::ValueHead | GcdMode::Isolated)
    }
}

/// Who says whether an action was good or bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelSource {
    /// Bad when the action repeats, comes back, changes nothing or is not understood.
    Loop,
    /// Good when the environment's own shortest plan gets shorter, else bad.
    Oracle,
    /// What a model behind a chat endpoint says (`gcd.judge`).
    Judge,
}

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

/// What becomes of an action about which the sources disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disagreement {
    /// Its label is unknown.
    Unknown,
    /// The first source that has a label is believed.
    First,
}

/// What the reward of a judgment is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Baseline {
    /// The mean of the same pair's judgments. Where these agree they teach nothing: a policy that has come to say one thing of
    /// everything says it for ever.
    Pair,
    /// The mean of all judgments of the iteration, half of which are of bad actions where the labels allow.
    Batch,
}

/// Labels, judgments, and their term of the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gcd {
    /// What GCD adds to GRPO.
    pub mode: GcdMode,
    /// Labelled actions judged in an iteration, as many good ones as bad ones where the labels allow.
    pub pairs: u32,
    /// Judgments of each.
    pub judgments: u32,
    /// Weight of the judgments' term of the loss. At 1 its gradient drowns the policy's on the embedded games.
    pub lambda: f32,
    /// What the reward of a judgment is compared with.
    pub baseline: Baseline,
    /// Sources of labels, in their order.
    pub labels: Vec<LabelSource>,
    /// What becomes of an action about which the sources disagree.
    pub disagreement: Disagreement,
    /// Longest cycle, in turns, that `loop` looks for.
    pub cycle: u32,
    /// Most tokens of a judgment.
    pub max_tokens: u32,
    /// Judgments of its actions taught with each demonstration of the cold start, good and bad by turns (0: none).
    pub cold_start: u32,
    /// The endpoint that judges actions, where `gcd.labels` has `judge`.
    pub judge: JudgeConfig,
}

impl Default for Gcd {
    fn default() -> Self {
        Gcd {
            mode: GcdMode::Generate,
            pairs: 60,
            judgments: 4,
            lambda: 0.4,
            baseline: Baseline::Batch,
            labels: vec![LabelSource::Loop, LabelSource::Oracle],
            disagreement: Disagreement::First,
            cycle: 4,
            max_tokens: 32,
            cold_start: 2,
            judge: JudgeConfig::default(),
        }
    }
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
