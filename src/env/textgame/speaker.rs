//! Texts of a grammar in a state.

use super::game::{Context, Game, GameState};
use super::grammar::{Expression, Property, Query, RuleId, Symbol, TextPiece, VariableId};
use super::limits::{Budget, MOST_SPEECH, TooMuch};
use super::pddl::MOST_ARGUMENTS;

/// Rules nested deeper than this are taken for a circle.
const DEEPEST: usize = 64;

/// Speaks of one state.
pub struct Speaker<'a> {
    pub game: &'a Game,
    pub state: &'a GameState,
    /// What its texts, and finding what they are about, may take.
    pub budget: &'a Budget,
}

impl Speaker<'_> {
    fn spend(&self, work: usize) -> Result<(), String> {
        self.budget.spend(work).map_err(|TooMuch| {
            "the grammar has too much to say of one state: shorten its texts, or the conditions that they list by"
                .into()
        })
    }

    /// Appends the text of `symbols` to `out`; the error says which rule could not be followed.
    pub fn say(&self, symbols: &[Symbol], context: &Context, out: &mut String) -> Result<(), String> {
        symbols.iter().try_for_each(|s| self.symbol(s, context, out, 0))
    }

    pub fn say_rule(&self, rule: RuleId, context: &Context, out: &mut String) -> Result<(), String> {
        self.rule(rule, context, out, 0)
    }

    fn rule(&self, rule: RuleId, context: &Context, out: &mut String, depth: usize) -> Result<(), String> {
        let grammar = &self.game.grammar;
        if depth > DEEPEST {
            return Err(format!("rule '{}' of the grammar comes back to itself", grammar.rule_name(rule)));
        }
        for alternative in &grammar.rules[rule] {
            let condition = &alternative.condition;
            if condition.0.is_empty() || !self.answers(condition, context, true)?.is_empty() {
                return alternative.text.iter().try_for_each(|s| self.symbol(s, context, out, depth + 1));
            }
        }
        Err(format!("no alternative of the grammar's rule '{}' applies", grammar.rule_name(rule)))
    }

    fn symbol(&self, symbol: &Symbol, context: &Context, out: &mut String, depth: usize) -> Result<(), String> {
        self.spend(1)?;
        match symbol {
            Symbol::Text(text) => self.push(text, out)?,
            Symbol::Rule(rule) => self.rule(*rule, context, out, depth)?,
            Symbol::Value(expression) => self.value(expression, context, out)?,
            Symbol::Each(inner, query) => {
                for context in self.answers(query, context, false)? {
                    self.symbol(inner, &context, out, depth)?;
                }
            }
            Symbol::List(inner, query) => {
                let grammar = &self.game.grammar;
                let answers = self.answers(query, context, false)?;
                let count = answers.len();
                let between = |rule: Option<RuleId>, out: &mut String| match rule {
                    Some(rule) => self.rule(rule, context, out, depth),
                    None => {
                        Err("the grammar lists something but lacks list_empty, list_separator or list_last_separator"
                            .into())
                    }
                };
                if count == 0 {
                    between(grammar.list_empty, out)?;
                }
                for (i, answer) in answers.into_iter().enumerate() {
                    if i > 0 && i + 1 == count {
                        between(grammar.list_last_separator, out)?;
                    } else if i > 0 {
                        between(grammar.list_separator, out)?;
                    }
                    self.symbol(inner, &answer, out, depth)?;
                }
            }
        }
        Ok(())
    }

    fn push(&self, text: &str, out: &mut String) -> Result<(), String> {
        self.spend(text.len())?;
        out.push_str(text);
        Ok(())
    }

    fn value(&self, expression: &Expression, context: &Context, out: &mut String) -> Result<(), String> {
        let start = out.len();
        for alternative in &expression.0 {
            for piece in alternative {
                match piece {
                    TextPiece::Literal(text) => self.push(text, out)?,
                    TextPiece::Property(name, property) => self.push(self.property(name, *property, context)?, out)?,
                }
            }
            if out.len() > start {
                break;
            }
        }
        Ok(())
    }

    fn property(&self, name: &str, property: Property, context: &Context) -> Result<&str, String> {
        let variables = &self.game.grammar.variables;
        let bound = context.iter().rev().find(|(v, _)| variables[usize::from(*v)].0 == name);
        let (_, entity) =
            bound.ok_or_else(|| format!("the grammar speaks of '{name}', which stands for nothing here"))?;
        let (id, kind) = &self.game.task.entities[usize::from(*entity)];
        Ok(match property {
            Property::Name => &self.game.names[usize::from(*entity)],
            Property::Id => id,
            Property::Kind => &self.game.domain.types[usize::from(*kind)].name,
            Property::Definite => "the",
            Property::Indefinite => "a",
        })
    }

    /// All ways to answer a query, in the order of the facts' arguments; distinct variables stand for distinct things.
    fn answers(&self, query: &Query, context: &Context, first: bool) -> Result<Vec<Context>, String> {
        let mut found = Vec::new();
        self.search(query, 0, &mut context.clone(), first, &mut found)?;
        Ok(found)
    }

    fn search(
        &self,
        query: &Query,
        depth: usize,
        context: &mut Context,
        first: bool,
        found: &mut Vec<Context>,
    ) -> Result<(), String> {
        let Some(atom) = query.0.get(depth) else {
            self.spend(context.len())?;
            found.push(context.clone());
            return Ok(());
        };
        let lookup = |context: &Context, v: VariableId| context.iter().find(|(w, _)| *w == v).map(|(_, e)| *e);
        let mut args = [None; MOST_ARGUMENTS];
        let known = &mut args[..atom.variables.len()];
        for (arg, variable) in known.iter_mut().zip(&atom.variables) {
            *arg = lookup(context, *variable);
        }
        let task = &self.game.task;
        let bound = context.len();
        for fact in task.facts.candidates(atom.predicate, known) {
            self.spend(1)?;
            let there = if atom.deleted { self.state.deleted(*fact) } else { self.state.holds(*fact) };
            let fits = there
                && atom.variables.iter().zip(task.facts.args(*fact)).all(|(variable, arg)| {
                    match lookup(context, *variable) {
                        Some(known) => known == *arg,
                        None => {
                            let wanted = self.game.grammar.variables[usize::from(*variable)].1;
                            let kind = task.entities[usize::from(*arg)].1;
                            let free = self.game.domain.is_a(kind, wanted) && context.iter().all(|(_, e)| e != arg);
                            if free {
                                context.push((*variable, *arg));
                            }
                            free
                        }
                    }
                });
            if fits {
                self.search(query, depth + 1, context, first, found)?;
            }
            context.truncate(bound);
            if first && !found.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

impl Game {
    /// How a ground action is spelled in `state`.
    ///
    /// # Errors
    /// If the grammar spells it with more symbols than is allowed.
    pub fn command(&self, action: u32, state: &GameState) -> Result<String, String> {
        self.spelled(action, state, &Budget::new(MOST_SPEECH))
    }

    /// [`Game::command`], as one of several that share a budget.
    pub(super) fn spelled(&self, action: u32, state: &GameState, budget: &Budget) -> Result<String, String> {
        if let Some(command) = self.command_of[action as usize] {
            return Ok(self.commands[command as usize].clone());
        }
        let mut out = String::new();
        let spelling = &self.grammar.spellings[usize::from(self.task.actions[action as usize].schema)];
        Speaker { game: self, state, budget }.say(&spelling.template, &self.context(action), &mut out)?;
        Ok(out)
    }
}
