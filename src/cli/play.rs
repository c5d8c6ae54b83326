//! `uncouple play`: a game beside an agent.

use super::agent::{AgentArgs, Subject};
use super::{one_of, output};
use crate::agent::{Exchange, Memory, Next, Prompter, Tag};
use crate::config::{Config, GcdMode};
use crate::env::{Environment, Observation, Split};
use crate::gcd::judgment;
use crate::model::backend::cuda::CudaModel;
use crate::model::checkpoint;
use crate::model::policy::Policy;
use crate::ops::philox::Stream;
use crate::report::progress::say;
use crate::rollout::{Actor, Answer, RolloutSettings, too_long};
use crate::train::{evaluate, state, suite};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::io;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct PlayArgs {
    #[command(flatten)]
    pub agent: AgentArgs,
    /// Whose games
    #[arg(long, default_value = "L0", value_parser = one_of(&["train", "L0", "L1", "L2"]))]
    pub split: Split,
    /// Which game of the split, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub index: u64,
}

pub fn run(args: PlayArgs) -> Result<ExitCode> {
    let Subject { config, dir, .. } = Subject::of(&args.agent)?;
    let (model, tokenizer) = checkpoint::load_with_tokenizer(&dir)?;
    let model = model.with_dtype(config.model.dtype);
    let mut prompter = Prompter::new(tokenizer, &config.prompt)?;
    prompter.suggest(&state::suggestions(&dir)?);
    let (suite, split) = (suite(&config)?, args.split);
    if let Some(games) = suite.len(split) {
        let (index, name) = (args.index, suite.name());
        ensure!(index < games, "--index {index}: {name} has {games} games in {split}, counted from 0");
    }
    let task = suite.task(split, args.index)?;
    let mut game = suite.open(&task)?;
    let gpu = args.agent.device.open().context("play --device cuda")?;
    let on_gpu = gpu.as_ref().map(|gpu| CudaModel::new(gpu, &model, 2)).transpose()?;
    let policy: &dyn Policy = on_gpu.as_ref().map_or(&model, |model| model);
    let actor = evaluate::actor(&config, policy, &prompter);
    output::print(&format!("{split} game {}: {}", args.index, task.id))?;
    for sentence in prompter.suggestions() {
        output::print(&format!("suggestion: {sentence}"))?;
    }
    say("Enter lets the agent act; a command that you type is given in its place; the end of input ends the game");
    play(&mut Player::new(&config, &actor), game.as_mut(), &task.id)?;
    Ok(ExitCode::SUCCESS)
}

/// The game, to its end or to that of stdin.
fn play(player: &mut Player<'_>, game: &mut dyn Environment, task: &str) -> Result<()> {
    let (mut seen, mut lines) = (game.reset()?, io::stdin().lines());
    for turn in 1..=player.config.env.max_steps {
        output::print(&format!("\n{}", seen.text))?;
        let meant = player.act(&seen, task)?;
        output::print(&format!("[{turn}] agent: {}", meant.line()))?;
        let Some(line) = lines.next() else { return output::print("left") };
        let typed = line.context("stdin is not text")?.trim().to_string();
        let command = player.take(&seen, meant, &typed)?;
        seen = match command {
            Some(command) => {
                output::print(&format!("> {command}"))?;
                game.step(&command)?
            }
            None => {
                let (text, admissible) = ("Nothing happens.".into(), seen.admissible);
                Observation { text, admissible, ..Observation::default() }
            }
        };
        if seen.done {
            return output::print(&format!("\n{}\n{}", seen.text, if seen.won { "won" } else { "lost" }));
        }
    }
    output::print(&format!("\n{}\nover: env.max_steps = {} turns", seen.text, player.config.env.max_steps))
}

/// The agent in a game that somebody else may go on with.
struct Player<'a> {
    config: &'a Config,
    actor: &'a Actor<'a>,
    memory: Memory,
    /// What it has before it; the turn that followed; and the turns as a history tells them.
    sequence: Vec<u32>,
    written: Vec<u32>,
    past: Vec<(Observation, Option<String>)>,
}

/// What the agent would do.
struct Meant {
    /// The turn, its end token included.
    tokens: Vec<u32>,
    text: String,
    command: Option<String>,
    /// Probability with which it was sampled.
    q: f64,
    judgment: Option<&'static str>,
}

impl Meant {
    fn line(&self) -> String {
        let judged = self.judgment.map_or(String::new(), |judgment| format!(", judged {judgment}"));
        let said = match &self.command {
            Some(command) => command.clone(),
            None => format!("(no command) {}", self.text.trim()),
        };
        format!("{said}  (q {:.3}{judged})", self.q)
    }
}

impl<'a> Player<'a> {
    fn new(config: &'a Config, actor: &'a Actor<'a>) -> Player<'a> {
        let (memory, past) = (Memory::default(), Vec::new());
        Player { config, actor, memory, sequence: Vec::new(), written: Vec::new(), past }
    }

    /// Samples the agent's turn, and its judgment of that where GCD taught it to judge.
    fn act(&mut self, seen: &Observation, task: &str) -> Result<Meant> {
        let prompter = self.actor.prompter;
        let unreadable = || "(unreadable)".to_string();
        let exchange = |(seen, command): &'_ (Observation, Option<String>)| {
            (seen.text.clone(), command.clone().unwrap_or_else(unreadable))
        };
        let told: Vec<(String, String)> = self.past.iter().map(exchange).collect();
        let past: Vec<Exchange<'_>> =
            told.iter().map(|(observation, action)| Exchange { observation, action: action.clone() }).collect();
        match self.memory.show(&self.written, prompter.next(&past, seen)?) {
            Next::More(tokens) => self.sequence.extend(std::mem::take(&mut self.written).iter().chain(&tokens)),
            Next::Sequence(tokens) => self.sequence = tokens,
        }
        let Some(answer) = self.answer(self.sequence.clone(), self.config.rollout.max_turn_tokens as usize)? else {
            let context = self.actor.policy.config().max_position_embeddings;
            bail!(too_long(task, self.sequence.len(), context, "model's context"));
        };
        let (mut tokens, q) = (answer.tokens, answer.logprobs.iter().map(|&lp| f64::from(lp)).sum::<f64>().exp());
        let words = if answer.ended { &tokens[..tokens.len() - 1] } else { &tokens[..] };
        let action = prompter.read(words)?;
        if !answer.ended {
            tokens.push(prompter.end());
        }
        let command = action.command.ok().filter(|_| answer.ended);
        let judgment = self.judgment(&tokens)?;
        Ok(Meant { tokens, text: action.text, command, q, judgment })
    }

    /// What it says of its turn.
    fn judgment(&self, turn: &[u32]) -> Result<Option<&'static str>> {
        if self.config.gcd.mode != GcdMode::Generate {
            return Ok(None);
        }
        let question = judgment::ask(self.actor.prompter, self.config.prompt.format)?;
        // The question begins after the end of the turn.
        let prompt = [&self.sequence[..], turn, &question].concat();
        let Some(answer) = self.answer(prompt, self.config.gcd.max_tokens as usize)? else { return Ok(None) };
        let words = answer.tokens.split_last().filter(|_| answer.ended).map_or(&[][..], |(_, words)| words);
        let text = self.actor.prompter.tokenizer().decode(words, false)?;
        Ok(judgment::verdict(&text).map(|label| label.name()))
    }

    /// One answer of at most `most` tokens; `None` where the context has no room for it.
    fn answer(&self, prompt: Vec<u32>, most: usize) -> Result<Option<Answer>> {
        if prompt.len() + most > self.actor.policy.config().max_position_embeddings {
            return Ok(None);
        }
        // Each turn has random numbers of its own.
        let seed = self.actor.settings.seed.wrapping_add(self.past.len() as u64);
        let settings = RolloutSettings {
            max_turn_tokens: most,
            seed,
            stream: Stream::Continuation,
            ..self.actor.settings.clone()
        };
        let mut answers = self.actor.with(settings).answers(&[prompt], 1)?;
        Ok(answers.pop().and_then(|mut of| of.pop()))
    }

    /// Notes what is done: what the agent meant, or what was typed. The command, where there is one.
    fn take(&mut self, seen: &Observation, meant: Meant, typed: &str) -> Result<Option<String>> {
        let before: Vec<&str> = self.past.iter().map(|(_, command)| command.as_deref().unwrap_or_default()).collect();
        let (command, written) = match typed {
            "" => (meant.command, meant.tokens),
            typed => {
                let tag = Tag::taught(&before, seen.valid, typed);
                (Some(typed.to_string()), self.actor.prompter.encode_action(tag, typed)?)
            }
        };
        self.written = written;
        self.past.push((seen.clone(), command.clone()));
        Ok(command)
    }
}
