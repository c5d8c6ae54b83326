//! The inputs of a golden set: the fields of golden.json that no implementation computes.

use super::ReferenceError;
use crate::model::Architecture;
use crate::ops::advantage::Scale;
use serde::Deserialize;

/// Tokens that every generation of a golden set has.
pub(super) const NEW_TOKENS: usize = 24;

/// What `golden.json` says to compute. Every other field of the file is ignored.
#[derive(Debug, Deserialize)]
pub struct Inputs {
    pub forward: InputBatch,
    pub adamw: AdamWInputs,
    pub persample: PerSample,
    pub generate: Generate,
    pub grpo: GrpoInputs,
}

/// Sequences of token ids; completion tokens are those from `prompt_lens[i]` on.
#[derive(Debug, Deserialize)]
pub struct InputBatch {
    pub sequences: Vec<Vec<u32>>,
    pub prompt_lens: Vec<usize>,
    #[serde(default)]
    pub pad_id: u32,
    #[serde(default)]
    pub logits_sequence: usize,
}

#[derive(Debug, Deserialize)]
pub struct AdamWInputs {
    pub lr: f32,
    pub betas: [f32; 2],
    pub eps: f32,
    pub weight_decay: f32,
    pub clip: f32,
    pub batches: Vec<InputBatch>,
}

#[derive(Debug, Deserialize)]
pub struct PerSample {
    #[serde(flatten)]
    pub batch: InputBatch,
    pub advantages: Vec<f32>,
}

#[derive(Debug, Deserialize)]
pub struct Generate {
    pub prompts: Vec<Vec<u32>>,
    pub eos_ids_for_stop_case: Vec<u32>,
    pub sampling_prompt: usize,
    pub sampling_cases: Vec<SamplingCase>,
}

#[derive(Debug, Deserialize)]
pub struct SamplingCase {
    pub temperature: f32,
    #[serde(default)]
    pub top_k: usize,
    #[serde(default = "one")]
    pub top_p: f32,
    #[serde(default)]
    pub min_p: f32,
}

fn one() -> f32 {
    1.0
}

#[derive(Debug, Deserialize)]
pub struct GrpoInputs {
    pub group_size: usize,
    pub rewards: Vec<f64>,
    pub advantage_eps: f64,
    pub max_completion_length: u32,
    pub pad_id: u32,
    pub prompts: Vec<Vec<u32>>,
    pub completions: Vec<Vec<u32>>,
    pub empty_row_index: usize,
    /// The advantages that the losses are fed; computed from the rewards when the file has none.
    pub advantages: Option<Advantages>,
    pub cases: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Advantages {
    pub group: Vec<f32>,
    pub none: Vec<f32>,
    pub batch: Vec<f32>,
}

/// The parameters of one GRPO case, as TRL names them.
#[derive(Debug, Deserialize)]
pub struct GrpoCase {
    pub loss: LossType,
    pub scale: Scale,
    pub beta: f32,
    pub lo: f32,
    pub hi: f32,
    /// Multiply the KL by the ratio.
    pub bc: bool,
    pub level: Level,
    /// Use the stored old log-probs; else the policy's own, detached.
    pub old: bool,
    pub temp: f32,
    /// Apply the tool mask.
    pub tool: bool,
    /// Empty the mask of row `empty_row_index`.
    pub empty: bool,
    /// Micro-batches.
    pub micro: usize,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    Dapo,
    Bnpo,
    Grpo,
    DrGrpo,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Token,
    Sequence,
}

impl Inputs {
    /// Refuses numbers that would index outside of a table.
    pub fn check(&self, model: &Architecture) -> Result<(), ReferenceError> {
        let (vocab, context) = (model.vocab_size, model.max_position_embeddings);
        let bad = |what: String| Err(ReferenceError::Inputs { what });
        let g = &self.grpo;
        let batches = [("forward", &self.forward), ("persample", &self.persample.batch)];
        for (name, batch) in batches.into_iter().chain(self.adamw.batches.iter().map(|b| ("adamw", b))) {
            if batch.sequences.len() != batch.prompt_lens.len() {
                return bad(format!(
                    "{name}: {} sequences, {} prompt_lens",
                    batch.sequences.len(),
                    batch.prompt_lens.len()
                ));
            }
            if batch.sequences.iter().any(Vec::is_empty) {
                return bad(format!("{name}: a sequence is empty"));
            }
        }
        let sequences = batches.iter().flat_map(|(_, b)| &b.sequences);
        let prompts = self.generate.prompts.iter().chain(&g.prompts).chain(&g.completions);
        let trained = self.adamw.batches.iter().flat_map(|b| &b.sequences);
        let largest = sequences.chain(prompts).chain(trained).flatten().max();
        if let Some(id) = largest.filter(|id| **id as usize >= vocab) {
            return bad(format!("token id {id} is outside the vocabulary of {vocab}"));
        }
        if self.forward.logits_sequence >= self.forward.sequences.len() {
            return bad(format!("forward.logits_sequence {} is no sequence", self.forward.logits_sequence));
        }
        if self.persample.advantages.len() != self.persample.batch.sequences.len() {
            return bad("persample: not one advantage for each sequence".into());
        }
        let rows = g.prompts.len() * g.group_size;
        if g.completions.len() != rows || g.rewards.len() != rows || g.empty_row_index >= rows {
            return bad(format!("grpo: expected {rows} completions and rewards (prompts × group_size)"));
        }
        if g.prompts.iter().chain(&g.completions).chain(&self.generate.prompts).any(Vec::is_empty) {
            return bad("a prompt or completion is empty".into());
        }
        let completed = g.completions.iter().enumerate().map(|(i, c)| g.prompts[i / g.group_size].len() + c.len());
        let generated = self.generate.prompts.iter().map(|p| p.len() + NEW_TOKENS);
        let sequences = batches.iter().map(|(_, b)| *b).chain(&self.adamw.batches).flat_map(|b| &b.sequences);
        let longest = sequences.map(Vec::len).chain(completed).chain(generated).max();
        if let Some(tokens) = longest.filter(|tokens| *tokens > context) {
            return bad(format!(
                "a sequence takes {tokens} tokens, but the model has {context} positions (max_position_embeddings of its \
                 config.json); shorten the sequences, or raise it if the model was trained for more"
            ));
        }
        if self.generate.sampling_prompt >= self.generate.prompts.len() {
            return bad(format!("generate.sampling_prompt {} is no prompt", self.generate.sampling_prompt));
        }
        Ok(())
    }
}
