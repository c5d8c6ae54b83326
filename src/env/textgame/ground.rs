//! From a domain and a problem to numbered facts and ready-made actions.
//!
//! Conditions are brought to a disjunction of conjunctions; each conjunction is joined against the facts that can
//! become true when deletions are ignored, starting anew only from facts just found. So only actions that can ever be
//! possible are made.

use std::borrow::Cow;

use foldhash::HashMap;

use super::facts::{EntityId, FactId, Facts, Key};
use super::limits::{Budget, MOST_GROUNDING, TooMuch};
use super::pddl::{Atom, Condition, Domain, Effect, MOST_ARGUMENTS, Problem, Scoped, Term, TypeId};
use super::syntax::GameError;

/// A ground condition that is not a plain conjunction.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    Is(bool),
    Fact(FactId),
    Not(Box<Test>),
    All(Vec<Test>),
    Any(Vec<Test>),
}

impl Test {
    pub fn holds(&self, state: &impl Fn(FactId) -> bool) -> bool {
        match self {
            Test::Is(value) => *value,
            Test::Fact(fact) => state(*fact),
            Test::Not(inner) => !inner.holds(state),
            Test::All(parts) => parts.iter().all(|p| p.holds(state)),
            Test::Any(parts) => parts.iter().any(|p| p.holds(state)),
        }
    }
}

/// A ground conjunction: facts that must hold, facts that must not, and what is left.
#[derive(Debug, Clone, Default)]
pub struct Conjunction {
    pub positive: Box<[FactId]>,
    pub negative: Box<[FactId]>,
    pub rest: Option<Box<Test>>,
}

impl Conjunction {
    pub fn holds(&self, state: &impl Fn(FactId) -> bool) -> bool {
        self.positive.iter().all(|f| state(*f))
            && !self.negative.iter().any(|f| state(*f))
            && self.rest.as_ref().is_none_or(|t| t.holds(state))
    }
}

/// An action with its parameters filled in.
#[derive(Debug)]
pub struct GroundAction {
    /// Index into the domain's actions.
    pub schema: u16,
    pub arguments: Box<[EntityId]>,
    pub adds: Box<[FactId]>,
    pub deletes: Box<[FactId]>,
    /// Effects with a condition of their own: condition, fact, new value.
    pub conditional: Box<[(Test, FactId, bool)]>,
}

/// A ground action with one of the conjunctions under which it is possible.
#[derive(Debug)]
pub struct Operator {
    pub action: u32,
    pub when: Conjunction,
}

/// A grounded game.
#[derive(Debug)]
pub struct GroundTask {
    /// Object names in order, with their types.
    pub entities: Vec<(String, TypeId)>,
    pub facts: Facts,
    /// Facts below this number never change.
    pub fixed: FactId,
    /// The changing facts that hold at the start.
    pub init: Vec<FactId>,
    pub actions: Vec<GroundAction>,
    pub operators: Vec<Operator>,
    /// The goal is reached when one of these holds.
    pub goal: Vec<Conjunction>,
}

/// A conjunction before grounding.
#[derive(Debug, Clone, Default)]
struct Pattern {
    /// Slots to fill beside the parameters.
    slots: Vec<u16>,
    positive: Vec<Atom>,
    negative: Vec<Atom>,
    equal: Vec<(Term, Term, bool)>,
    /// `forall` parts with the truth value wanted of them.
    rest: Vec<Condition>,
}

/// By predicate the patterns, and the atom in each, that a new fact may match; and the patterns that wait for none.
fn triggers(domain: &Domain, all: &[(usize, Pattern)]) -> (Vec<Vec<(usize, usize)>>, Vec<usize>) {
    let is_fluent = |a: &Atom| domain.predicates[usize::from(a.predicate)].fluent;
    let (mut triggered, mut idle) = (vec![Vec::new(); domain.predicates.len()], Vec::new());
    for (index, (_, pattern)) in all.iter().enumerate() {
        for (i, atom) in pattern.positive.iter().enumerate().filter(|(_, a)| is_fluent(a)) {
            triggered[usize::from(atom.predicate)].push((index, i));
        }
        if !pattern.positive.iter().any(is_fluent) {
            idle.push(index);
        }
    }
    (triggered, idle)
}

fn patterns(condition: &Condition, wanted: bool) -> Vec<Pattern> {
    match condition {
        Condition::And(parts) | Condition::Or(parts) => {
            if matches!(condition, Condition::And(_)) != wanted {
                return parts.iter().flat_map(|p| patterns(p, wanted)).collect();
            }
            parts.iter().fold(vec![Pattern::default()], |left, part| {
                let right = patterns(part, wanted);
                let pairs = left.iter().flat_map(|l| right.iter().map(move |r| l.joined(r)));
                pairs.collect()
            })
        }
        Condition::Not(inner) => patterns(inner, !wanted),
        Condition::Exists(slots, body) | Condition::Forall(slots, body) => {
            if matches!(condition, Condition::Exists(..)) == wanted {
                let mut found = patterns(body, wanted);
                found.iter_mut().for_each(|p| p.slots.extend(slots));
                found
            } else {
                let part = if wanted { condition.clone() } else { Condition::Not(Box::new(condition.clone())) };
                vec![Pattern { rest: vec![part], ..Pattern::default() }]
            }
        }
        Condition::Equal(a, b) => {
            vec![Pattern { equal: vec![(a.clone(), b.clone(), wanted)], ..Pattern::default() }]
        }
        Condition::Atom(atom) if wanted => vec![Pattern { positive: vec![atom.clone()], ..Pattern::default() }],
        Condition::Atom(atom) => vec![Pattern { negative: vec![atom.clone()], ..Pattern::default() }],
    }
}

impl Pattern {
    fn joined(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.slots.extend(&other.slots);
        both.positive.extend_from_slice(&other.positive);
        both.negative.extend_from_slice(&other.negative);
        both.equal.extend_from_slice(&other.equal);
        both.rest.extend_from_slice(&other.rest);
        both
    }
}

/// A search for the bindings of a pattern.
#[derive(Clone, Copy)]
struct Join<'a> {
    pattern: &'a Pattern,
    types: &'a [TypeId],
    parameters: usize,
    /// Atoms not yet matched, as bits.
    todo: u64,
    /// The fact that set off the search and the atom that it matches: all else is older, so nothing is found twice.
    newest: Option<(FactId, usize)>,
}

impl Join<'_> {
    fn allows(&self, atom: usize, fact: FactId) -> bool {
        self.newest.is_none_or(|(newest, at)| fact < newest || (fact == newest && atom > at))
    }
}

/// What the slots stand for.
type Binding = Vec<Option<EntityId>>;

struct Grounder<'a> {
    domain: &'a Domain,
    budget: &'a Budget,
    entities: Vec<(String, TypeId)>,
    by_name: HashMap<String, EntityId>,
    facts: Facts,
    fixed: FactId,
}

/// What a kept fact or filled-in action counts beside its values.
const KEPT: usize = 16;

impl GroundTask {
    /// Fills in the actions of `domain`; an error where there are more ways to do so than `budget` allows.
    pub fn new(domain: &Domain, problem: &Problem, budget: &Budget) -> Result<Self, GameError> {
        let mut entities = problem.objects.clone();
        entities.sort();
        entities.dedup_by(|a, b| a.0 == b.0);
        let by_name = entities.iter().enumerate().map(|(i, (name, _))| (name.clone(), i as EntityId)).collect();
        let facts = Facts::new(domain.predicates.len());
        let mut g = Grounder { domain, budget, entities, by_name, facts, fixed: 0 };
        let is_fluent = |p: u16| domain.predicates[usize::from(p)].fluent;
        let mut init = Vec::new();
        for fluent in [false, true] {
            for (predicate, args) in problem.init.iter().filter(|(p, _)| is_fluent(*p) == fluent) {
                let Some(key) = Key::new(*predicate, args.iter().map(|a| g.by_name.get(a).copied())) else { continue };
                let (fact, new) = g.facts.insert(key, args.len());
                if fluent && new {
                    init.push(fact);
                }
            }
            if !fluent {
                g.fixed = g.facts.count() as FactId;
            }
        }
        let (actions, operators) = g.actions()?;
        let goal =
            g.conjunctions(&problem.goal).map_err(|TooMuch| too_much("pddl_problem", &problem.goal, "the goal"))?;
        g.facts.sort();
        Ok(Self { entities: g.entities, facts: g.facts, fixed: g.fixed, init, actions, operators, goal })
    }
}

/// The error of a game that is too large: `scoped` is where its budget ended.
fn too_much(part: &'static str, scoped: &Scoped, what: &str) -> GameError {
    let expected = format!("a game whose actions can be filled in within {MOST_GROUNDING} steps");
    GameError { part, at: scoped.at, expected, found: format!("more of them, the last for {what}") }
}

impl Grounder<'_> {
    fn value(&self, term: &Term, binding: &Binding) -> Option<EntityId> {
        match term {
            Term::SequenceId(slot) => binding[usize::from(*slot)],
            Term::Object(name) => self.by_name.get(name).copied(),
        }
    }

    /// An atom with every slot filled; `None` when it names an object that the problem lacks.
    fn key(&self, atom: &Atom, binding: &Binding) -> Option<Key> {
        Key::new(atom.predicate, atom.terms.iter().map(|t| self.value(t, binding)))
    }

    fn find(&self, atom: &Atom, binding: &Binding) -> Option<FactId> {
        self.facts.find(self.key(atom, binding)?)
    }

    fn members(&self, kind: TypeId) -> impl Iterator<Item = EntityId> {
        let fits = move |(i, (_, t)): (usize, &(String, TypeId))| self.domain.is_a(*t, kind).then_some(i as EntityId);
        self.entities.iter().enumerate().filter_map(fits)
    }

    /// Tries to make `atom` the fact; on success the slots that it filled are pushed to `trail`.
    fn unify(&self, atom: &Atom, fact: FactId, types: &[TypeId], b: &mut Binding, trail: &mut Vec<u16>) -> bool {
        for (term, arg) in atom.terms.iter().zip(self.facts.args(fact)) {
            match (term, self.value(term, b)) {
                (_, Some(known)) if known == *arg => {}
                (Term::SequenceId(slot), None) => {
                    let kind = self.entities[usize::from(*arg)].1;
                    if !self.domain.is_a(kind, types[usize::from(*slot)]) {
                        return false;
                    }
                    b[usize::from(*slot)] = Some(*arg);
                    trail.push(*slot);
                }
                _ => return false,
            }
        }
        true
    }

    /// Fills what `join.todo` and the pattern's slots leave open, in every possible way.
    fn join(&self, join: Join, binding: &mut Binding, found: &mut Vec<Binding>) -> Result<(), TooMuch> {
        let Join { pattern, types, parameters, todo, .. } = join;
        let open = (0..pattern.positive.len()).filter(|i| todo >> i & 1 == 1);
        let cheapest = open
            .map(|i| {
                let atom = &pattern.positive[i];
                let mut args = [None; MOST_ARGUMENTS];
                let args = &mut args[..atom.terms.len()];
                args.iter_mut().zip(&atom.terms).for_each(|(a, t)| *a = self.value(t, binding));
                let lost = atom.terms.iter().zip(&*args).any(|(t, a)| a.is_none() && matches!(t, Term::Object(_)));
                (i, if lost { &[][..] } else { self.facts.candidates(atom.predicate, args) })
            })
            .min_by_key(|(_, list)| list.len());
        if let Some((i, candidates)) = cheapest {
            self.budget.spend(candidates.len())?;
            let mut trail = Vec::new();
            for fact in candidates.iter().filter(|f| join.allows(i, **f)) {
                if self.unify(&pattern.positive[i], *fact, types, binding, &mut trail) {
                    self.join(Join { todo: todo & !(1 << i), ..join }, binding, found)?;
                }
                trail.drain(..).for_each(|slot| binding[usize::from(slot)] = None);
            }
            return Ok(());
        }
        let needed = (0..parameters as u16).chain(pattern.slots.iter().copied());
        if let Some(slot) = needed.into_iter().find(|s| binding[usize::from(*s)].is_none()) {
            self.budget.spend(self.entities.len())?;
            for entity in self.members(types[usize::from(slot)]) {
                binding[usize::from(slot)] = Some(entity);
                self.join(join, binding, found)?;
            }
            binding[usize::from(slot)] = None;
            return Ok(());
        }
        let equal = |(a, b, wanted): &(Term, Term, bool)| {
            let (a, b) = (self.value(a, binding), self.value(b, binding));
            (a.is_some() && a == b) == *wanted
        };
        let fixed_but_true = |atom: &Atom| self.find(atom, binding).is_some_and(|f| f < self.fixed);
        if pattern.equal.iter().all(equal) && !pattern.negative.iter().any(fixed_but_true) {
            self.budget.spend(KEPT + binding.len())?;
            found.push(binding.clone());
        }
        Ok(())
    }

    fn actions(&mut self) -> Result<(Vec<GroundAction>, Vec<Operator>), GameError> {
        let domain = self.domain;
        let mut all: Vec<(usize, Pattern)> = Vec::new();
        for (schema, action) in domain.actions.iter().enumerate() {
            let condition = &action.precondition.condition;
            self.budget.spend(KEPT * condition.expanded()).map_err(|TooMuch| self.too_much(schema))?;
            all.extend(patterns(condition, true).into_iter().map(|pattern| (schema, pattern)));
        }
        let (triggered, idle) = triggers(domain, &all);
        let mut order: Vec<(usize, Binding)> = Vec::new();
        let mut found = Vec::new();
        let start = |index: usize| {
            let (schema, pattern): &(usize, Pattern) = &all[index];
            let action = &domain.actions[*schema];
            let types = action.precondition.slot_types.as_slice();
            let todo = (1u64 << pattern.positive.len()) - 1;
            Join { pattern, types, parameters: action.parameters.len(), todo, newest: None }
        };
        for index in idle {
            let mut binding = vec![None; start(index).types.len()];
            let joined = self.join(start(index), &mut binding, &mut found);
            joined
                .and_then(|()| self.reach(&all, index, &mut found, &mut order))
                .map_err(|TooMuch| self.too_much(all[index].0))?;
        }
        let mut next = self.fixed;
        while (next as usize) < self.facts.count() {
            for (index, i) in &triggered[usize::from(self.facts.predicate(next))] {
                let join = start(*index);
                self.budget.spend(1 + join.types.len()).map_err(|TooMuch| self.too_much(all[*index].0))?;
                let mut binding = vec![None; join.types.len()];
                if self.unify(&join.pattern.positive[*i], next, join.types, &mut binding, &mut Vec::new()) {
                    let join = Join { todo: join.todo & !(1 << i), newest: Some((next, *i)), ..join };
                    let joined = self.join(join, &mut binding, &mut found);
                    joined
                        .and_then(|()| self.reach(&all, *index, &mut found, &mut order))
                        .map_err(|TooMuch| self.too_much(all[*index].0))?;
                }
            }
            next += 1;
        }
        self.finish(&all, order)
    }

    /// Notes what was found possible, and that what it makes true can become true.
    fn reach(
        &mut self,
        all: &[(usize, Pattern)],
        index: usize,
        found: &mut Vec<Binding>,
        order: &mut Vec<(usize, Binding)>,
    ) -> Result<(), TooMuch> {
        let action = &self.domain.actions[all[index].0];
        for binding in found.drain(..) {
            for effect in action.effects.iter().filter(|e| e.value) {
                for filled in self.fillings(&effect.slots, &action.precondition.slot_types, &binding)?.iter() {
                    if let Some(key) = self.key(&effect.atom, filled) {
                        let (_, new) = self.facts.insert(key, effect.atom.terms.len());
                        self.budget.spend(if new { KEPT } else { 1 })?;
                    }
                }
            }
            order.push((index, binding));
        }
        Ok(())
    }

    /// The binding with `slots` filled in every possible way.
    fn fillings<'b>(
        &self,
        slots: &[u16],
        types: &[TypeId],
        binding: &'b Binding,
    ) -> Result<Cow<'b, [Binding]>, TooMuch> {
        if slots.is_empty() {
            return Ok(Cow::Borrowed(std::slice::from_ref(binding)));
        }
        let counts = slots.iter().map(|slot| {
            self.budget.spend(self.entities.len())?;
            Ok(self.members(types[usize::from(*slot)]).count())
        });
        // The lists on the way are made too: none is longer than the product of the counts that are not 0.
        let most = counts.collect::<Result<Vec<_>, _>>()?.into_iter().fold(1usize, |n, m| n.saturating_mul(m.max(1)));
        self.budget.spend(most.saturating_mul(slots.len() + binding.len()))?;
        let all: Vec<Binding> = slots.iter().fold(vec![binding.clone()], |partial, slot| {
            let fill = |b: Binding| {
                self.members(types[usize::from(*slot)]).map(move |e| {
                    let mut b = b.clone();
                    b[usize::from(*slot)] = Some(e);
                    b
                })
            };
            partial.into_iter().flat_map(fill).collect()
        });
        Ok(Cow::Owned(all))
    }

    /// Once all reachable facts are known: the actions' effects and the remaining conditions.
    fn finish(
        &self,
        all: &[(usize, Pattern)],
        order: Vec<(usize, Binding)>,
    ) -> Result<(Vec<GroundAction>, Vec<Operator>), GameError> {
        let mut actions: Vec<GroundAction> = Vec::new();
        let mut operators = Vec::new();
        let mut known: HashMap<(usize, Box<[EntityId]>), u32> = HashMap::default();
        for (index, binding) in order {
            let (schema, pattern) = &all[index];
            let action = &self.domain.actions[*schema];
            let types = &action.precondition.slot_types;
            let too_much = |TooMuch| self.too_much(*schema);
            let Some(when) = self.conjunction(pattern, types, &binding).map_err(too_much)? else { continue };
            let arguments: Box<[EntityId]> = binding[..action.parameters.len()].iter().flatten().copied().collect();
            let id = match known.get(&(*schema, arguments.clone())) {
                Some(id) => *id,
                None => {
                    let (id, key) = (actions.len() as u32, (*schema, arguments.clone()));
                    let made = self.ground_action(*schema as u16, &action.effects, types, &binding, arguments);
                    actions.push(made.map_err(too_much)?);
                    known.insert(key, id);
                    id
                }
            };
            let ground = &actions[id as usize];
            // What changes nothing wherever it is possible is no action (going to where one is, say).
            let idle = ground.conditional.is_empty()
                && ground.adds.iter().all(|f| when.positive.contains(f))
                && ground.deletes.iter().all(|f| when.negative.contains(f));
            if !idle {
                operators.push(Operator { action: id, when });
            }
        }
        Ok((actions, operators))
    }

    /// The error of a game that is too large, which was found with this action.
    fn too_much(&self, schema: usize) -> GameError {
        let action = &self.domain.actions[schema];
        too_much("pddl_domain", &action.precondition, &format!("action '{}'", action.name))
    }

    fn ground_action(
        &self,
        schema: u16,
        effects: &[Effect],
        types: &[TypeId],
        binding: &Binding,
        arguments: Box<[EntityId]>,
    ) -> Result<GroundAction, TooMuch> {
        let (mut adds, mut deletes, mut conditional) = (Vec::new(), Vec::new(), Vec::new());
        for effect in effects {
            for filled in self.fillings(&effect.slots, types, binding)?.iter() {
                self.budget.spend(1)?;
                let Some(fact) = self.find(&effect.atom, filled) else { continue };
                let tests = effect.conditions.iter().map(|c| self.test(c, types, filled)).collect::<Result<_, _>>()?;
                match (simplified(tests, true), effect.value) {
                    (Test::Is(false), _) => {}
                    (Test::Is(true), true) => adds.push(fact),
                    (Test::Is(true), false) => deletes.push(fact),
                    (test, value) => conditional.push((test, fact, value)),
                }
            }
        }
        self.budget.spend(adds.len() * deletes.len())?;
        deletes.retain(|f| !adds.contains(f));
        let (adds, deletes, conditional) = (adds.into(), deletes.into(), conditional.into());
        Ok(GroundAction { schema, arguments, adds, deletes, conditional })
    }

    /// `None` when it can never hold.
    fn conjunction(
        &self,
        pattern: &Pattern,
        types: &[TypeId],
        binding: &Binding,
    ) -> Result<Option<Conjunction>, TooMuch> {
        let fluent = |fact: &FactId| *fact >= self.fixed;
        let mut positive = Vec::new();
        for atom in &pattern.positive {
            match self.find(atom, binding) {
                Some(fact) => positive.push(fact),
                None => return Ok(None),
            }
        }
        positive.retain(fluent);
        let negative = pattern.negative.iter().filter_map(|a| self.find(a, binding)).filter(fluent).collect();
        let rest = pattern.rest.iter().map(|c| self.test(c, types, binding)).collect::<Result<_, _>>()?;
        let rest = match simplified(rest, true) {
            Test::Is(false) => return Ok(None),
            Test::Is(true) => None,
            test => Some(Box::new(test)),
        };
        Ok(Some(Conjunction { positive: positive.into(), negative, rest }))
    }

    fn conjunctions(&self, goal: &Scoped) -> Result<Vec<Conjunction>, TooMuch> {
        let mut all = Vec::new();
        self.budget.spend(KEPT * goal.condition.expanded())?;
        for pattern in patterns(&goal.condition, true) {
            let mut found = Vec::new();
            let todo = (1u64 << pattern.positive.len()) - 1;
            let mut binding = vec![None; goal.slot_types.len()];
            let join = Join { pattern: &pattern, types: &goal.slot_types, parameters: 0, todo, newest: None };
            self.join(join, &mut binding, &mut found)?;
            for binding in &found {
                all.extend(self.conjunction(&pattern, &goal.slot_types, binding)?);
            }
        }
        Ok(all)
    }

    fn test(&self, condition: &Condition, types: &[TypeId], binding: &Binding) -> Result<Test, TooMuch> {
        self.budget.spend(1)?;
        Ok(match condition {
            Condition::And(parts) | Condition::Or(parts) => {
                let parts = parts.iter().map(|p| self.test(p, types, binding)).collect::<Result<_, _>>()?;
                simplified(parts, matches!(condition, Condition::And(_)))
            }
            Condition::Not(inner) => match self.test(inner, types, binding)? {
                Test::Is(value) => Test::Is(!value),
                test => Test::Not(Box::new(test)),
            },
            Condition::Exists(slots, body) | Condition::Forall(slots, body) => {
                let filled = self.fillings(slots, types, binding)?;
                let parts = filled.iter().map(|b| self.test(body, types, b)).collect::<Result<_, _>>()?;
                simplified(parts, matches!(condition, Condition::Forall(..)))
            }
            Condition::Equal(a, b) => {
                let (a, b) = (self.value(a, binding), self.value(b, binding));
                Test::Is(a.is_some() && a == b)
            }
            Condition::Atom(atom) => match self.find(atom, binding) {
                None => Test::Is(false),
                Some(fact) if fact < self.fixed => Test::Is(true),
                Some(fact) => Test::Fact(fact),
            },
        })
    }
}

/// A conjunction (`all`) or disjunction without the parts that are known.
fn simplified(mut parts: Vec<Test>, all: bool) -> Test {
    if parts.contains(&Test::Is(!all)) {
        return Test::Is(!all);
    }
    parts.retain(|p| *p != Test::Is(all));
    match parts.len() {
        0 => Test::Is(all),
        1 => parts.remove(0),
        _ if all => Test::All(parts),
        _ => Test::Any(parts),
    }
}
