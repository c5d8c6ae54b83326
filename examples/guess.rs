//! A game of your own in Rust, trained by the library: guess a number by hints, as examples/guess.py has it behind a pipe.
//!
//! [`Environment`] is one game, [`Suite`] lists the games of each split. `expert` demonstrates for the cold start, `distance` lets the
//! oracle label actions for GCD. `cargo run --release --example guess` trains in runs/ (another folder: `-- DIR`), and prints success
//! by split.

use uncouple::config::{Config, GcdMode, SuggestionMode};
use uncouple::env::{EnvError, Environment, Observation, Split, Suite, Task};
use uncouple::train::run_folder::Existing;
use uncouple::train::train;

const COMMANDS: [&str; 9] = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];

/// A number from `range`, and what the hints have left of it.
struct Game {
    range: (usize, usize),
    left: (usize, usize),
    number: usize,
}

impl Game {
    fn show(&self, text: String, valid: bool) -> Observation {
        let mut admissible = COMMANDS.map(String::from).to_vec();
        admissible.sort();
        Observation { text, admissible, valid, ..Observation::default() }
    }
}

impl Environment for Game {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        self.left = self.range;
        let (low, high) = self.range;
        Ok(self.show(format!("Guess my number, {} to {}.", COMMANDS[low - 1], COMMANDS[high - 1]), true))
    }

    fn step(&mut self, command: &str) -> Result<Observation, EnvError> {
        let Some(guess) = COMMANDS.iter().position(|word| *word == command).map(|at| at + 1) else {
            return Ok(self.show("Say a number.".into(), false));
        };
        if guess == self.number {
            let seen = self.show("Right!".into(), true);
            return Ok(Observation { reward: 1.0, won: true, done: true, ..seen });
        }
        let hint = if guess < self.number { "higher" } else { "lower" };
        match guess < self.number {
            true => self.left.0 = self.left.0.max(guess + 1),
            false => self.left.1 = self.left.1.min(guess - 1),
        }
        Ok(self.show(format!("{command} is wrong: {hint}."), true))
    }

    /// Halves what is left.
    fn expert(&mut self) -> Option<String> {
        Some(COMMANDS[(self.left.0 + self.left.1) / 2 - 1].into())
    }

    /// How many guesses that takes at most.
    fn distance(&mut self) -> Option<u32> {
        Some((self.left.1 - self.left.0 + 1).ilog2() + 1)
    }
}

/// Training knows two ranges and L0 asks in them again; L1 asks in another one. There is no L2.
struct Guess;

impl Suite for Guess {
    fn name(&self) -> &str {
        "guess"
    }

    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        let low = if split == Split::L1 { 3 } else { 1 + index / 7 % 2 };
        let number = low + index % 7;
        Ok(Task { id: format!("{split}/{low}/{number}"), kind: "guess".into(), split })
    }

    fn len(&self, split: Split) -> Option<u64> {
        match split {
            Split::Train => None,
            Split::L0 => Some(14),
            Split::L1 => Some(7),
            Split::L2 => Some(0),
        }
    }

    fn open_for_training(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        match task.split {
            Split::Train => self.open(task),
            other => Err(EnvError::HeldOut { id: task.id.clone(), reason: format!("it belongs to {other}") }),
        }
    }

    fn open(&self, task: &Task) -> Result<Box<dyn Environment>, EnvError> {
        let parts: Vec<usize> = task.id.split('/').skip(1).filter_map(|part| part.parse().ok()).collect();
        match parts[..] {
            [low @ 1..=3, number] if (low..low + 7).contains(&number) => {
                let range = (low, low + 6);
                Ok(Box::new(Game { range, left: range, number }))
            }
            _ => Err(EnvError::BadGame { file: task.id.clone(), reason: "it is not SPLIT/LOW/NUMBER".into() }),
        }
    }
}

/// A small model from scratch: under a minute on two cores.
fn config() -> Config {
    let mut config = Config::default();
    config.run.name = "guess-rust".into();
    config.run.iterations = 40;
    (config.model.hidden_size, config.model.intermediate_size, config.model.vocab_size) = (64, 128, 320);
    config.model.num_key_value_heads = 4;
    (config.sft.steps, config.sft.batch, config.sft.games, config.sft.lr) = (40, 8, 64, 0.005);
    (config.rollout.groups, config.rollout.temperature, config.rollout.max_turn_tokens) = (14, 0.8, 12);
    config.grpo.epochs = 1;
    config.optim.lr = 1e-3;
    (config.gcd.mode, config.suggestions.mode) = (GcdMode::Off, SuggestionMode::Off);
    config.env.max_steps = 4;
    config
}

fn main() -> anyhow::Result<()> {
    let mut config = config();
    if let Some(dir) = std::env::args().nth(1) {
        config.run.dir = dir;
    }
    let outcome = train(config, &Guess, Existing::Overwrite)?;
    for row in outcome.rows {
        println!("{:?}", row.cells());
    }
    println!("{}", outcome.folder.display());
    Ok(())
}
