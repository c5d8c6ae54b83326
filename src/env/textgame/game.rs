//! A loaded game, its states, and what can be done in them.

use std::collections::HashMap;
use std::sync::Arc;

use super::facts::{EntityId, FactId, Key};
use super::grammar::{Expression, Grammar, Query, Symbol, TextPiece, VariableId};
use super::ground::GroundTask;
use super::limits::{Budget, MOST_GROUNDING};
use super::pddl::{Domain, Problem};
use super::syntax::GameError;

/// What variables stand for; the latest binding of a name counts.
pub type Context = Vec<(VariableId, EntityId)>;

/// Everything about a game that does not change while it is played: shared by all its episodes.
#[derive(Debug)]
pub struct Game {
    /// Types, predicates and actions.
    pub domain: Arc<Domain>,
    /// How things are told.
    pub grammar: Arc<Grammar>,
    /// The problem, grounded.
    pub task: GroundTask,
    /// Display name of every entity.
    pub names: Vec<String>,
    /// Spelled commands in order; a ground action whose spelling depends on the state has none here.
    pub commands: Vec<String>,
    pub(super) command_of: Vec<Option<u32>>,
    /// The operators to look at when a changing fact holds, by fact, and those to look at always.
    watching: Vec<Vec<u32>>,
    always: Vec<u32>,
}

/// The changing facts of a game: which hold, and which an action has deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GameState {
    fixed: FactId,
    holds: Box<[u64]>,
    deleted: Box<[u64]>,
}

impl GameState {
    /// Whether the fact is true.
    pub fn holds(&self, fact: FactId) -> bool {
        fact < self.fixed || bit(&self.holds, fact - self.fixed)
    }

    /// Whether the fact was true once and is no longer.
    pub fn deleted(&self, fact: FactId) -> bool {
        fact >= self.fixed && bit(&self.deleted, fact - self.fixed)
    }

    /// The changing facts that hold, as bits.
    pub fn bits(&self) -> &[u64] {
        &self.holds
    }

    fn set(&mut self, fact: FactId, value: bool) {
        let (word, mask) = ((fact - self.fixed) as usize / 64, 1 << ((fact - self.fixed) % 64));
        let (on, off) = if value { (&mut self.holds, &mut self.deleted) } else { (&mut self.deleted, &mut self.holds) };
        on[word] |= mask;
        off[word] &= !mask;
    }
}

fn bit(words: &[u64], index: FactId) -> bool {
    words[index as usize / 64] >> (index % 64) & 1 == 1
}

impl Game {
    /// Compiles a problem of `domain`, to be told with `grammar`.
    ///
    /// # Errors
    /// If the problem is not valid PDDL for `domain`, or grounds to more than is allowed.
    pub fn new(domain: Arc<Domain>, grammar: Arc<Grammar>, problem: &str) -> Result<Self, GameError> {
        let problem = Problem::parse(problem, &domain)?;
        let budget = Budget::new(MOST_GROUNDING);
        let task = GroundTask::new(&domain, &problem, &budget)?;
        let names = display_names(&task);
        let changing = task.facts.count() - task.fixed as usize;
        let mut game = Self {
            domain,
            grammar,
            names,
            commands: Vec::new(),
            command_of: Vec::new(),
            watching: vec![Vec::new(); changing],
            always: Vec::new(),
            task,
        };
        game.watch();
        game.spell(&budget)?;
        Ok(game)
    }

    /// The state in which the game begins.
    pub fn initial(&self) -> GameState {
        let words = self.watching.len().div_ceil(64);
        let mut state =
            GameState { fixed: self.task.fixed, holds: vec![0; words].into(), deleted: vec![0; words].into() };
        self.task.init.iter().for_each(|fact| state.set(*fact, true));
        state
    }

    /// Whether the goal holds.
    pub fn won(&self, state: &GameState) -> bool {
        self.task.goal.iter().any(|g| g.holds(&|f| state.holds(f)))
    }

    /// Calls `visit` with every ground action possible in `state` (more than once where there are several ways).
    pub fn possible(&self, state: &GameState, mut visit: impl FnMut(u32)) {
        let mut check = |operators: &[u32]| {
            for operator in operators {
                let operator = &self.task.operators[*operator as usize];
                if operator.when.holds(&|f| state.holds(f)) {
                    visit(operator.action);
                }
            }
        };
        check(&self.always);
        for (i, word) in state.bits().iter().enumerate() {
            let mut left = *word;
            while left != 0 {
                check(&self.watching[i * 64 + left.trailing_zeros() as usize]);
                left &= left - 1;
            }
        }
    }

    /// Does a ground action. Conditional effects look at the state before it; what is both added and deleted is added.
    pub fn apply(&self, state: &mut GameState, action: u32) {
        let action = &self.task.actions[action as usize];
        let fires = |(test, _, _): &&(super::ground::Test, FactId, bool)| test.holds(&|f| state.holds(f));
        let fired: Vec<(FactId, bool)> = action.conditional.iter().filter(fires).map(|(_, f, v)| (*f, *v)).collect();
        action.deletes.iter().for_each(|f| state.set(*f, false));
        fired.iter().filter(|(_, value)| !value).for_each(|(f, _)| state.set(*f, false));
        action.adds.iter().for_each(|f| state.set(*f, true));
        fired.iter().filter(|(_, value)| *value).for_each(|(f, _)| state.set(*f, true));
    }

    /// Whether a fact holds, given the display names of what it speaks of.
    pub fn holds(&self, state: &GameState, predicate: &str, names: &[&str]) -> bool {
        let entity = |name: &&str| self.names.iter().position(|n| n == name).map(|i| i as u16);
        let predicate = self.domain.predicate_named(predicate);
        let key = predicate.and_then(|p| Key::new(p, names.iter().map(entity)));
        let fact = key.and_then(|key| self.task.facts.find(key));
        fact.is_some_and(|f| state.holds(f))
    }

    /// A copy of `state` without the facts that `hidden` names (predicate, display names): what a player may believe.
    pub fn without(&self, state: &GameState, hidden: impl Fn(&str, &[&str]) -> bool) -> GameState {
        let mut believed = state.clone();
        let facts = &self.task.facts;
        for fact in self.task.fixed..facts.count() as FactId {
            let names: Vec<&str> = facts.args(fact).iter().map(|e| self.names[usize::from(*e)].as_str()).collect();
            if state.holds(fact) && hidden(&self.domain.predicates[usize::from(facts.predicate(fact))].name, &names) {
                believed.set(fact, false);
            }
        }
        believed
    }

    /// Index into [`Game::commands`] of a ground action, where its spelling does not depend on the state.
    pub fn command_index(&self, action: u32) -> Option<u32> {
        self.command_of[action as usize]
    }

    /// The parameters of a ground action as the grammar sees them.
    pub fn context(&self, action: u32) -> Context {
        let action = &self.task.actions[action as usize];
        let spelling = &self.grammar.spellings[usize::from(action.schema)];
        spelling.parameters.iter().copied().zip(action.arguments.iter().copied()).collect()
    }

    /// Each operator is looked at only while one of its facts holds: the one whose predicate is true of least at the start.
    fn watch(&mut self) {
        let facts = &self.task.facts;
        let mut common: HashMap<u16, usize> = HashMap::new();
        self.task.init.iter().for_each(|f| *common.entry(facts.predicate(*f)).or_default() += 1);
        for (i, operator) in self.task.operators.iter().enumerate() {
            let rarest = operator.when.positive.iter().min_by_key(|f| common.get(&facts.predicate(**f)));
            match rarest {
                Some(fact) => self.watching[(fact - self.task.fixed) as usize].push(i as u32),
                None => self.always.push(i as u32),
            }
        }
    }

    fn spell(&mut self, budget: &Budget) -> Result<(), GameError> {
        let state = self.initial();
        let fluent = |p: u16| self.domain.predicates[usize::from(p)].fluent;
        let steady: Vec<bool> =
            self.grammar.spellings.iter().map(|s| s.template.iter().all(|t| is_steady(t, &fluent))).collect();
        self.command_of = vec![None; self.task.actions.len()];
        let mut spelled: Vec<Option<String>> = Vec::new();
        for id in 0..self.task.actions.len() as u32 {
            let schema = usize::from(self.task.actions[id as usize].schema);
            let command = steady[schema].then(|| self.spelled(id, &state, budget)).transpose();
            spelled.push(command.map_err(|reason| GameError {
                part: "grammar",
                at: self.grammar.spellings[schema].at,
                expected: format!("a template that spells action '{}'", self.domain.actions[schema].name),
                found: format!("one that fails: {reason}"),
            })?);
        }
        self.commands = spelled.iter().flatten().cloned().collect();
        self.commands.sort();
        self.commands.dedup();
        let index = |c: &String| self.commands.binary_search(c).ok().map(|i| i as u32);
        self.command_of = spelled.iter().map(|c| c.as_ref().and_then(index)).collect();
        Ok(())
    }
}

/// Whether a symbol's text cannot change while the game is played.
fn is_steady(symbol: &Symbol, fluent: &impl Fn(u16) -> bool) -> bool {
    let fixed = |q: &Query| q.0.iter().all(|a| !fluent(a.predicate));
    match symbol {
        Symbol::Text(_) => true,
        Symbol::Value(Expression(sums)) => {
            sums.iter().flatten().all(|p| matches!(p, TextPiece::Literal(_) | TextPiece::Property(..)))
        }
        Symbol::Rule(_) => false,
        Symbol::Each(inner, query) | Symbol::List(inner, query) => fixed(query) && is_steady(inner, fluent),
    }
}

/// `shelf_bar_x` is called `shelf 2`: the entities of a class that some fact mentions are numbered from the last id down.
fn display_names(task: &GroundTask) -> Vec<String> {
    let mut mentioned = vec![false; task.entities.len()];
    let init = (0..task.fixed).chain(task.init.iter().copied());
    init.for_each(|fact| task.facts.args(fact).iter().for_each(|e| mentioned[usize::from(*e)] = true));
    let class = |id: &str| {
        let (class, _) = id.split_once("_bar_")?;
        Some(if id.contains("basin") { format!("{class}basin") } else { class.to_string() })
    };
    let mut numbers: HashMap<String, usize> = HashMap::new();
    let mut names: Vec<String> = Vec::with_capacity(task.entities.len());
    for ((id, _), mentioned) in task.entities.iter().zip(&mentioned).rev() {
        names.push(match class(id) {
            Some(class) if *mentioned => {
                let number = numbers.entry(class.clone()).or_default();
                *number += 1;
                format!("{class} {number}")
            }
            // The trailing space is the original's: it leaves room for a number that is not there.
            _ => format!("{id} "),
        });
    }
    names.reverse();
    names
}
