//! A native interpreter of text games that are given as a PDDL domain, a PDDL problem and a text grammar: the three
//! texts of ALFWorld's `game.tw-pddl` files. Nothing about any game is built in.
//!
//! [`Game`] is compiled once (facts numbered, actions filled in, commands spelled) and shared by its episodes; a
//! [`TextGame`] is one episode: a few words of bits.

mod facts;
mod game;
mod grammar;
mod ground;
mod limits;
mod pddl;
mod planner;
mod speaker;
mod syntax;

use std::path::Path;
use std::sync::Arc;

pub use game::{Game, GameState};
pub use grammar::Grammar;
pub use limits::MOST_FILE;
pub use pddl::Domain;
pub use planner::Planner;
pub use syntax::{GameError, Position};

use super::{EnvError, Environment, Observation};
use crate::files;
use limits::{Budget, MOST_SPEECH};
use speaker::Speaker;

/// The three texts of a game, as a `game.tw-pddl` file holds them.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize)]
pub struct GameFile {
    /// The domain, in PDDL.
    pub pddl_domain: String,
    /// The grammar, in TextWorld's form.
    pub grammar: String,
    /// The problem, in PDDL.
    pub pddl_problem: String,
}

impl GameFile {
    /// Reads a `game.tw-pddl` file.
    ///
    /// # Errors
    /// If the file cannot be read, or is not a game file.
    pub fn read(path: &Path) -> Result<Self, EnvError> {
        let bad = |reason: String| EnvError::BadGame { file: path.display().to_string(), reason };
        let text = files::read(path, MOST_FILE).map_err(|e| bad(format!("cannot be read: {e}")))?;
        Self::parse(&text)
            .map_err(|e| bad(format!("is not a game file (JSON with pddl_domain, grammar and pddl_problem): {e}")))
    }

    /// The texts in a file's content.
    ///
    /// # Errors
    /// If the content is not JSON with these three texts.
    pub fn parse(content: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(content)
    }

    /// Compiles the game. Games in a row that share a domain or a grammar share it in memory through `shared`.
    ///
    /// # Errors
    /// If one of the texts is invalid.
    pub fn compile(&self, shared: &mut Shared) -> Result<Game, GameError> {
        let (domain, grammar) = shared.rules(&self.pddl_domain, &self.grammar)?;
        Game::new(domain, grammar, &self.pddl_problem)
    }
}

/// The domain and grammar parsed last.
#[derive(Debug, Default)]
pub struct Shared {
    domain: Option<(String, Arc<Domain>)>,
    grammar: Option<(String, Arc<Grammar>)>,
}

impl Shared {
    /// The parsed domain and grammar of these texts.
    ///
    /// # Errors
    /// If one of the texts is invalid.
    pub fn rules(&mut self, domain: &str, grammar: &str) -> Result<(Arc<Domain>, Arc<Grammar>), GameError> {
        let domain = match &self.domain {
            Some((text, parsed)) if text == domain => parsed.clone(),
            _ => {
                let parsed = Arc::new(Domain::parse(domain)?);
                *self = Self { domain: Some((domain.into(), parsed.clone())), grammar: None };
                parsed
            }
        };
        let grammar = match &self.grammar {
            Some((text, parsed)) if text == grammar => parsed.clone(),
            _ => {
                let parsed = Arc::new(Grammar::parse(grammar, &domain)?);
                self.grammar = Some((grammar.into(), parsed.clone()));
                parsed
            }
        };
        Ok((domain, grammar))
    }
}

/// One episode of a game.
pub struct TextGame {
    name: String,
    game: Arc<Game>,
    state: GameState,
    won: bool,
    /// What is possible now, in the order of the admissible commands.
    legal: Vec<(u32, String)>,
    planner: Planner,
}

impl TextGame {
    /// `name` is used in messages.
    pub fn new(name: &str, game: Arc<Game>) -> Self {
        let state = game.initial();
        Self { name: name.into(), planner: Planner::default(), state, won: false, legal: Vec::new(), game }
    }

    /// The game that is played.
    pub fn game(&self) -> &Game {
        &self.game
    }

    /// Its state now.
    pub fn state(&self) -> &GameState {
        &self.state
    }

    /// The ground action that a command stands for now (index into the game's actions).
    pub fn action(&self, command: &str) -> Option<u32> {
        let found = self.legal.binary_search_by(|(_, c)| c.as_str().cmp(command));
        found.ok().map(|i| self.legal[i].0)
    }

    fn failed(&self, reason: String) -> EnvError {
        EnvError::Failed { name: self.name.clone(), reason }
    }

    /// Finds what is possible now; duplicates of a command lead to the same and are dropped.
    fn look_around(&mut self) -> Result<(), EnvError> {
        let (mut fixed, mut spoken) = (Vec::new(), Vec::new());
        self.game.possible(&self.state, |action| match self.game.command_index(action) {
            Some(command) => fixed.push((command, action)),
            None => spoken.push(action),
        });
        fixed.sort_unstable();
        fixed.dedup_by_key(|(command, _)| *command);
        self.legal.clear();
        self.legal
            .extend(fixed.iter().map(|(command, action)| (*action, self.game.commands[*command as usize].clone())));
        if !spoken.is_empty() {
            let budget = Budget::new(MOST_SPEECH);
            for action in spoken {
                let command = self.game.spelled(action, &self.state, &budget).map_err(|e| self.failed(e))?;
                self.legal.push((action, command));
            }
            self.legal.sort_by(|a, b| a.1.cmp(&b.1));
            self.legal.dedup_by(|a, b| a.1 == b.1);
        }
        Ok(())
    }

    fn observe(&mut self, text: String, valid: bool) -> Result<Observation, EnvError> {
        self.look_around()?;
        let before = self.won;
        self.won = self.game.won(&self.state);
        let admissible = self.legal.iter().map(|(_, command)| command.clone()).collect();
        let reward = if self.won && !before { 1.0 } else { 0.0 };
        Ok(Observation { text, admissible, reward, done: self.won, won: self.won, valid })
    }
}

impl Environment for TextGame {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        self.state = self.game.initial();
        self.won = false;
        let mut text = String::new();
        let speaker = Speaker { game: &self.game, state: &self.state, budget: &Budget::new(MOST_SPEECH) };
        speaker.say_rule(self.game.grammar.intro, &Vec::new(), &mut text).map_err(|e| self.failed(e))?;
        let observation = self.observe(text, true)?;
        Ok(Observation { reward: 0.0, ..observation })
    }

    fn step(&mut self, command: &str) -> Result<Observation, EnvError> {
        let mut text = String::new();
        let action = self.action(command.trim());
        let (game, budget) = (self.game.clone(), Budget::new(MOST_SPEECH));
        match (action, game.grammar.unknown) {
            (Some(action), _) => {
                game.apply(&mut self.state, action);
                let spelling = &game.grammar.spellings[usize::from(game.task.actions[action as usize].schema)];
                let speaker = Speaker { game: &game, state: &self.state, budget: &budget };
                speaker.say(&spelling.feedback, &game.context(action), &mut text).map_err(|e| self.failed(e))?;
            }
            (None, Some(rule)) => {
                let speaker = Speaker { game: &game, state: &self.state, budget: &budget };
                speaker.say_rule(rule, &Vec::new(), &mut text).map_err(|e| self.failed(e))?;
            }
            (None, None) => text.push_str("Nothing happens."),
        }
        self.observe(text, action.is_some())
    }

    fn distance(&mut self) -> Option<u32> {
        self.planner.distance(&self.game, &self.state)
    }

    fn expert(&mut self) -> Option<String> {
        let action = self.planner.next(&self.game, &self.state)?;
        self.game.command(action, &self.state).ok()
    }
}
