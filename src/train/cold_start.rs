//! Cold start: supervised learning on demonstrations, played in training games only.

use super::{TrainError, interrupt};
use crate::agent::Prompter;
use crate::config::Config;
use crate::env::{EnvError, Observation, Split, Suite};
use crate::ops::philox;
use crate::rollout::RolloutError;
use rayon::prelude::*;

/// One demonstrated episode as tokens; `mask` marks what is taught: the commands and their end tokens.
pub struct Demonstration {
    pub tokens: Vec<u32>,
    pub mask: Vec<bool>,
}

/// One demonstrated episode as text.
pub struct Script {
    /// The task's id.
    task: String,
    /// Not empty.
    turns: Vec<Turn>,
}

struct Turn {
    observation: Observation,
    /// The command given in answer.
    command: String,
    /// A slip is played but not taught.
    slip: bool,
}

/// The demonstrations of `config.sft.games` training games, the first ones of the split.
pub fn scripts(config: &Config, suite: &dyn Suite) -> Result<Vec<Script>, TrainError> {
    let play = |index| -> Result<Script, TrainError> {
        if interrupt::interrupted() {
            return Err(RolloutError::Interrupted.into());
        }
        let task = suite.task(Split::Train, index)?;
        let mut env = suite.open_for_training(&task)?;
        let (mut observation, mut turns) = (env.reset()?, Vec::<Turn>::new());
        while turns.len() < config.env.max_steps as usize
            && !observation.done
            && let Some(command) = env.demonstrate()
        {
            let slip = slip(config, index, &turns, &observation);
            let turn = Turn { slip: slip.is_some(), command: slip.unwrap_or(command), observation };
            observation = env.step(&turn.command)?;
            turns.push(turn);
        }
        if turns.is_empty() {
            let reason = "it demonstrates nothing: set sft.steps = 0, or leave this task out".into();
            return Err(EnvError::Failed { name: task.id, reason }.into());
        }
        Ok(Script { task: task.id, turns })
    };
    (0..u64::from(config.sft.games)).into_par_iter().map(play).collect()
}

/// Now and then another command than the demonstrator's: the last one once more, or any that would do something. What the
/// demonstrator does next teaches how to recover; without slips a learner's first mistake leads where nothing was ever taught
/// (Laskey et al. 2017, noise injection).
fn slip(config: &Config, index: u64, turns: &[Turn], observation: &Observation) -> Option<String> {
    let [chance, kind, choice, _] =
        philox::block(config.run.seed, u64::from(SLIP_STREAM) << 32 | index, turns.len() as u64);
    if philox::uniform(chance) >= config.sft.slip {
        return None;
    }
    let any = &observation.admissible;
    match turns.last() {
        Some(last) if kind % 2 == 0 => Some(last.command.clone()),
        _ if any.is_empty() => None,
        _ => Some(any[choice as usize % any.len()].clone()),
    }
}

/// The texts of the demonstrations, to train a tokenizer on.
pub fn texts(scripts: &[Script]) -> Vec<String> {
    let turns = scripts.iter().flat_map(|script| &script.turns);
    turns.flat_map(|turn| [turn.observation.text.clone(), turn.command.clone()]).collect()
}

/// Lays a script out exactly as an episode of the same words would be; at most `context` tokens, the prompt must be shorter.
pub fn demonstration(prompter: &Prompter, script: &Script, context: usize) -> Result<Demonstration, TrainError> {
    let (mut tokens, mut mask) = (Vec::new(), Vec::new());
    for (turn, Turn { observation, command, slip }) in script.turns.iter().enumerate() {
        let shown = if turn == 0 { prompter.first(observation)? } else { prompter.next(observation)? };
        if turn == 0 && shown.len() >= context {
            let (task, tokens) = (script.task.clone(), shown.len());
            return Err(RolloutError::PromptTooLong { task, tokens, limit: context, what: "model's context" }.into());
        }
        let taught = prompter.teach(command)?;
        mask.extend(std::iter::repeat_n(false, shown.len()).chain(std::iter::repeat_n(!slip, taught.len())));
        tokens.extend(shown.into_iter().chain(taught));
    }
    tokens.truncate(context);
    mask.truncate(context);
    Ok(Demonstration { tokens, mask })
}

/// The demonstrations of step `step`: drawn with replacement, a function of the seed and the step alone.
pub fn batch<'a>(config: &Config, all: &'a [Demonstration], step: u32) -> Vec<(&'a [u32], &'a [bool])> {
    let draw = |i: u32| {
        let [word, ..] = philox::block(config.run.seed, u64::from(STREAM) << 32 | u64::from(step), u64::from(i));
        let demo = &all[word as usize % all.len()];
        (&demo.tokens[..], &demo.mask[..])
    };
    (0..config.sft.batch).map(draw).collect()
}

/// Philox streams of the slips and of the batches.
const SLIP_STREAM: u32 = 0x511;
const STREAM: u32 = 0x5f7;

/// Learning rate of step `step`: linear warm-up over a twentieth of the steps, then linear decay to a tenth.
pub fn learning_rate(config: &Config, step: u32) -> f32 {
    let (step, steps) = (step as f32 + 1.0, config.sft.steps as f32);
    let warmup = (steps / 20.0).max(1.0);
    let decay = 1.0 - 0.9 * ((step - warmup) / (steps - warmup).max(1.0)).clamp(0.0, 1.0);
    config.sft.lr * (step / warmup).min(1.0) * decay
}
