//! One validated, typed configuration. Every field has a default; `uncouple train --dry-run` prints them resolved.
//!
//! A new field needs only its place here, its doc comment and its default: loading, overrides, spelling hints, the printed form and
//! `uncouple config` follow (`uncouple config --markdown > docs/configuration.md` renews the page).
//! Fields are never `Option`s (an absent value has no TOML form to compare with): zero or an empty string means "off".

mod address;
pub(crate) mod bounds;
mod coupling;
mod decouple;
mod env;
mod gcd;
mod given_model;
mod judge;
pub mod keys;
mod load;
mod lora;
pub mod recipes;
mod suggestions;
mod validate;

pub use address::secret_in;
pub use coupling::{ActionTokens, Coupling};
pub use decouple::{Decouple, DecoupleMethod};
pub use env::{Alfworld, Env, OpenEnv, Reward, ScienceWorld, TrainTypes, Worker};
pub use gcd::{Baseline, Disagreement, Gcd, GcdMode, LabelSource};
pub use judge::JudgeConfig;
pub use load::{ConfigError, Override};
pub use lora::{LORA_TARGETS, Lora};
pub use suggestions::{Author, SuggestionMode, Suggestions};

use crate::device::Dtype;
use crate::ops::advantage::Scale;
use serde::{Deserialize, Serialize};

/// The whole configuration of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where and how the run is kept.
    pub run: Run,
    /// The model to train. With `path` empty a small random model is built from the other fields.
    pub model: Model,
    /// Low-rank adapters (LoRA) beside frozen weights.
    pub lora: Lora,
    /// Which tasks.
    pub env: Env,
    /// What the agent is shown.
    pub prompt: Prompt,
    /// Supervised cold start on expert trajectories.
    pub sft: Sft,
    /// How episodes are sampled.
    pub rollout: Rollout,
    /// Advantages and the policy loss.
    pub grpo: Grpo,
    /// Labels, judgments, and their term of the loss.
    pub gcd: Gcd,
    /// A judge behind an OpenAI-compatible chat endpoint.
    pub judge: JudgeConfig,
    /// What is suggested, when, by whom.
    pub suggestions: Suggestions,
    /// Decoupling by other means than GCD.
    pub decouple: Decouple,
    /// The coupling of a fixed set of samples, measured now and then during GRPO and at its end.
    pub coupling: Coupling,
    /// AdamW.
    pub optim: Optim,
    /// Evaluation before and after GRPO.
    pub eval: Eval,
}

impl Config {
    /// Whether training needs labels of the actions it sees.
    pub fn needs_labels(&self) -> bool {
        self.gcd.mode != GcdMode::Off || self.suggestions.mode != SuggestionMode::Off || self.decouple.method.is_loss()
    }
}

/// Where and how the run is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Folder that holds the run folders.
    pub dir: String,
    /// Name of the run's folder.
    pub name: String,
    /// Seed of every random number.
    pub seed: u64,
    /// GRPO iterations.
    pub iterations: u32,
    /// End GRPO after the iteration in which so many environment steps have been taken (0: `iterations` alone ends it).
    pub env_steps: u64,
    /// Save a checkpoint every this many iterations (0: only at the end).
    pub checkpoint_every: u32,
    /// Keep at most this many step checkpoints.
    pub keep_checkpoints: u32,
    /// Stop after this many training steps in a row were skipped for NaN or infinite gradients.
    pub max_nonfinite_steps: u32,
}

/// The model to train. With `path` empty a small random model is built from the other fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// A Hugging Face model directory (Qwen2, Qwen3, Llama); empty: the embedded small model.
    pub path: String,
    /// Tokens of the embedded model's tokenizer, special ones included; it is built from the demonstrations.
    pub vocab_size: usize,
    /// Width of the embedded model.
    pub hidden_size: usize,
    /// Layers of the embedded model.
    pub num_hidden_layers: usize,
    /// Query heads of a layer; 3 with `--device cuda`, whose kernels have code for heads of 64 and 128.
    pub num_attention_heads: usize,
    /// Key and value heads of a layer (grouped-query attention); 1 with `--device cuda`.
    pub num_key_value_heads: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Context of the embedded model, in tokens.
    pub max_position_embeddings: usize,
    /// Recompute layers' activations in the backward pass: less memory, more time. A GPU recomputes only those that do not fit its memory.
    pub recompute: bool,
    /// What weights, activations and keys are rounded to where they are multiplied; sums are in f32, and so are the weights that the
    /// optimizer updates. On a CPU with AMX, or AMD's from Zen 4 on, bf16 trains real models faster: `uncouple doctor` measures it. A GPU always
    /// takes bf16.
    pub dtype: Dtype,
}

/// How a turn of the agent is laid out in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Observation, `<|im_start|>`, command, `<|im_end|>`, observation, ... : the fewest tokens.
    Compact,
    /// The model's chat template; the answer is the command.
    Chat,
    /// The model's chat template; the answer is `<think>…</think><action>command</action>`.
    Think,
}

/// What the agent is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prompt {
    /// How a turn of the agent is laid out in tokens.
    pub format: Format,
    /// List the admissible commands of the current turn; those of earlier turns are not kept in what the agent reads.
    pub admissible: bool,
    /// Each turn must begin with `<planning>`, `<explore>`, `<reflection>` or `<monitor>` (RLVMR); one without is invalid.
    pub tags: bool,
    /// Words around the observation: `default`, `alfworld`, `scienceworld`, or a file in Jinja's language.
    pub template: String,
    /// `full`: the episode is one growing conversation; `window:K`: each turn is a prompt of its own, which tells the last K
    /// commands and observations.
    pub history: History,
    /// A command is the first line, in lower case, without a full stop at its end; what is trained on stays as it was sampled.
    pub normalize: Normalize,
}

/// Whether commands are normalized before the environment gets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalize {
    /// In the formats `chat` and `think`, whose models write as people do.
    Auto,
    /// Case and spaces are made even.
    On,
    /// Commands pass as written.
    Off,
}

/// What the agent sees of the turns before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum History {
    /// All earlier turns.
    Full,
    /// So many of the last turns.
    Window(usize),
}

impl TryFrom<String> for History {
    type Error = &'static str;

    fn try_from(text: String) -> Result<History, Self::Error> {
        let window = text.strip_prefix("window:").and_then(|k| k.parse().ok()).filter(|k| *k <= bounds::MAX_WINDOW);
        match window {
            _ if text == "full" => Ok(History::Full),
            Some(turns) => Ok(History::Window(turns)),
            None => Err("must be \"full\", or e.g. \"window:3\", at most \"window:100000\""),
        }
    }
}

impl From<History> for String {
    fn from(history: History) -> String {
        match history {
            History::Full => "full".into(),
            History::Window(turns) => format!("window:{turns}"),
        }
    }
}

/// Supervised cold start on expert trajectories.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sft {
    /// Optimizer steps (0: no cold start).
    pub steps: u32,
    /// Trajectories in a step.
    pub batch: u32,
    /// Learning rate of the cold start.
    pub lr: f32,
    /// Different demonstrations to learn from.
    pub games: u32,
    /// Chance that a turn of a demonstration is a mistake, which is shown but not taught, so that recovering from it is: the last command
    /// again, one of the demonstration out of its turn, or any that would do something.
    pub noise_action: f32,
    /// Save a checkpoint every this many steps (0: only after the last).
    pub checkpoint_every: u32,
}

/// How episodes are sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rollout {
    /// Task instances in an iteration.
    pub groups: u32,
    /// Episodes of the same instance.
    pub group_size: u32,
    /// Temperature of sampling.
    pub temperature: f32,
    /// Keep only the k likeliest tokens (0: off).
    pub top_k: u32,
    /// Keep only the likeliest tokens that hold this much probability (1: off).
    pub top_p: f32,
    /// Keep only tokens at least this share as likely as the likeliest (0: off).
    pub min_p: f32,
    /// Penalty on the logits of tokens that the sequence has already, as transformers applies it (1: off).
    pub repetition_penalty: f32,
    /// Most tokens the agent may write in a turn.
    pub max_turn_tokens: u32,
    /// Most tokens in an episode (with a windowed history: in a turn), prompt included (0: the model's context).
    pub max_episode_tokens: u32,
    /// Most episodes alive at once; bounds the KV cache.
    pub max_live: u32,
    /// Reward of a turn that could not be read or that the environment did not understand; counts in the return.
    /// 0 by default: on the embedded games, fines credited to such turns made commands safer and success rarer.
    pub invalid_reward: f32,
}

/// How token losses become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregation {
    /// Mean over all loss tokens of the generation batch, micro-batches included (TRL: `dapo`).
    TokenMean,
    /// Mean over the loss tokens of a micro-batch (TRL: `bnpo`).
    MicroTokenMean,
    /// Mean over sequences of each sequence's mean (TRL: `grpo`).
    SequenceMean,
    /// Sum over tokens / (sequences × `constant_length`) (TRL: `dr_grpo`).
    Constant,
}

/// Whether the importance ratio is per token or one per sequence (GSPO).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RatioLevel {
    /// One ratio for each token.
    Token,
    /// One ratio for each sequence, the geometric mean of its tokens'.
    Sequence,
}

/// What is added to the advantage of a single turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepAdvantage {
    /// Nothing.
    None,
    /// That of its discounted return among the group's turns at the same observation (GiGPO).
    Gigpo,
    /// That of the reward for being what its tag says among the group's turns of that tag (RLVMR); needs `prompt.tags`.
    Tags,
}

/// Advantages and the policy loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grpo {
    /// Which standard deviation divides the centred returns of a group.
    pub advantage: Scale,
    /// Added to the standard deviation.
    pub advantage_eps: f32,
    /// What is added to the advantage of a single turn.
    pub step_advantage: StepAdvantage,
    /// Weight of the step advantage.
    pub step_weight: f32,
    /// Discount of a turn's return (GiGPO).
    pub step_discount: f32,
    /// How token losses become one number.
    pub aggregation: Aggregation,
    /// Divisor of `constant` aggregation, tokens per sequence.
    pub constant_length: u32,
    /// The ratio is clipped below at 1 - this.
    pub epsilon_low: f32,
    /// The ratio is clipped above at 1 + this.
    pub epsilon_high: f32,
    /// Dual clip bound c for negative advantages (0: off).
    pub dual_clip: f32,
    /// Weight of the k3 KL to the frozen reference (0: no reference is kept).
    pub beta: f32,
    /// Multiply the KL by the (differentiated) ratio.
    pub kl_ratio: bool,
    /// Weight of the entropy bonus.
    pub entropy_coef: f32,
    /// Whether the importance ratio is per token or one per sequence (GSPO).
    pub ratio: RatioLevel,
    /// Optimizer steps per generation batch.
    pub epochs: u32,
    /// Packed tokens in a micro-batch.
    pub micro_tokens: u32,
}

/// What AdamW's moments are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MomentDtype {
    /// f32.
    F32,
    /// 8 bits with a dynamic exponent and a scale for each 256 elements, as bitsandbytes has them: a quarter of the memory.
    Dynamic8,
}

/// AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optim {
    /// Learning rate of GRPO.
    pub lr: f32,
    /// Share of it that the last iteration has, after a linear decay (1: constant).
    pub lr_end: f32,
    /// Iterations over which the learning rate rises to `lr`.
    pub warmup: u32,
    /// Decay of AdamW's first moment.
    pub beta1: f32,
    /// Decay of AdamW's second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Largest global gradient norm.
    pub clip: f32,
    /// What AdamW's moments are kept in.
    pub moments: MomentDtype,
    /// Keep the weights that are trained in bf16 alone, rounded up or down at random, without a copy in f32; needs 8-bit moments.
    pub stochastic_rounding: bool,
}

/// Evaluation before and after GRPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// Games per split (0: the whole panel).
    pub games: u32,
    /// Temperature of sampling in evaluations.
    pub temperature: f32,
    /// Also evaluate every this many iterations (0: only before and after).
    pub every: u32,
    /// With GCD: most actions of the panels that are judged, once each (0: none).
    pub judgments: u32,
    /// States of the panels in which the policy is sampled again, to see whether it does the same (0: none).
    pub consistency_states: u32,
    /// Samples in each of them.
    pub consistency_samples: u32,
}

impl Default for Run {
    fn default() -> Self {
        Run {
            dir: "runs".into(),
            name: String::new(),
            seed: 0,
            iterations: 280,
            env_steps: 0,
            checkpoint_every: 25,
            keep_checkpoints: 2,
            max_nonfinite_steps: 5,
        }
    }
}
impl Default for Model {
    fn default() -> Self {
        Model {
            path: String::new(),
            vocab_size: 512,
            hidden_size: 192,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            intermediate_size: 448,
            max_position_embeddings: 1024,
            recompute: false,
            dtype: Dtype::F32,
        }
    }
}
impl Default for Prompt {
    fn default() -> Self {
        Prompt {
            format: Format::Compact,
            admissible: false,
            tags: false,
            template: "default".into(),
            history: History::Full,
            normalize: Normalize::Auto,
        }
    }
}
impl Default for Sft {
    fn default() -> Self {
        Sft { steps: 320, batch: 16, lr: 1e-3, games: 3000, noise_action: 0.15, checkpoint_every: 100 }
    }
}
impl Default for Rollout {
    fn default() -> Self {
        Rollout {
            groups: 16,
            group_size: 8,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_turn_tokens: 24,
            max_episode_tokens: 0,
            max_live: 128,
            invalid_reward: 0.0,
        }
    }
}
impl Default for Grpo {
    fn default() -> Self {
        Grpo {
            advantage: Scale::None,
            advantage_eps: 1e-4,
            step_advantage: StepAdvantage::None,
            step_weight: 1.0,
            step_discount: 0.95,
            aggregation: Aggregation::SequenceMean,
            constant_length: 256,
            epsilon_low: 0.2,
            epsilon_high: 0.28,
            dual_clip: 0.0,
            beta: 0.0,
            kl_ratio: false,
            entropy_coef: 0.0,
            ratio: RatioLevel::Token,
            epochs: 2,
            micro_tokens: 16384,
        }
    }
}
impl Default for Optim {
    fn default() -> Self {
        Optim {
            lr: 2e-4,
            lr_end: 0.2,
            warmup: 3,
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-8,
            weight_decay: 0.1,
            clip: 1.0,
            moments: MomentDtype::F32,
            stochastic_rounding: false,
        }
    }
}
impl Default for Eval {
    fn default() -> Self {
        Eval { games: 0, temperature: 0.4, every: 0, judgments: 1024, consistency_states: 48, consistency_samples: 10 }
    }
}
