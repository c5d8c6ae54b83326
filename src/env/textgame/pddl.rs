//! The PDDL subset: typing, `and or not imply exists forall =`, `when` and `forall` effects. Costs are read and ignored.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::limits::{MOST_DECLARED, MOST_OBJECTS, MOST_TYPES, MOST_VARIABLES};
use super::syntax::{GameError, Position, SyntaxNode, read};

/// Index into [`Domain::types`].
pub type TypeId = u16;
/// Index into [`Domain::predicates`].
pub type PredicateId = u16;

/// Most arguments of a predicate: a fact's predicate and arguments are one 128-bit key.
pub const MOST_ARGUMENTS: usize = 7;

/// A variable (its slot in the action, parameters first) or a named object.
#[derive(Debug, Clone, PartialEq)]
pub enum Term {
    SequenceId(u16),
    Object(String),
}

/// A predicate over terms.
#[derive(Debug, Clone, PartialEq)]
pub struct Atom {
    pub predicate: PredicateId,
    pub terms: Vec<Term>,
}

/// When an action may be done, or what is wanted.
#[derive(Debug, Clone)]
pub enum Condition {
    And(Vec<Condition>),
    Or(Vec<Condition>),
    Not(Box<Condition>),
    Exists(Vec<u16>, Box<Condition>),
    Forall(Vec<u16>, Box<Condition>),
    Equal(Term, Term),
    Atom(Atom),
}

/// Larger conditions are refused: conjunctions after expansion, and atoms in one of them.
const MOST_CONJUNCTIONS: usize = 4096;
const MOST_ATOMS: usize = 60;

impl Condition {
    /// The parts that [`Task`](super::ground::GroundTask) will expand it to.
    pub fn expanded(&self) -> usize {
        let (conjunctions, atoms) = self.size(true);
        conjunctions.saturating_mul(atoms)
    }

    /// How many conjunctions the condition expands to, and the most atoms in one; an empty part counts as one of either, since
    /// it is there while the others are expanded.
    fn size(&self, wanted: bool) -> (usize, usize) {
        let (conjunctions, atoms) = match self {
            Condition::And(parts) | Condition::Or(parts) => {
                let sizes = parts.iter().map(|p| p.size(wanted));
                if matches!(self, Condition::And(_)) == wanted {
                    sizes.fold((1usize, 0usize), |(n, atoms), (m, more)| {
                        (n.saturating_mul(m), atoms.saturating_add(more))
                    })
                } else {
                    sizes.fold((0usize, 0usize), |(n, atoms), (m, more)| (n.saturating_add(m), atoms.max(more)))
                }
            }
            Condition::Not(inner) => inner.size(!wanted),
            Condition::Exists(_, body) | Condition::Forall(_, body) => body.size(wanted),
            Condition::Equal(..) | Condition::Atom(_) => (1, 1),
        };
        (conjunctions.max(1), atoms.max(1))
    }
}

/// One elementary effect: for every filling of `slots`, when all of `conditions` held before, `atom` becomes `value`.
#[derive(Debug, Clone)]
pub struct Effect {
    pub slots: Arc<[u16]>,
    /// Shared by the effects of one `when`.
    pub conditions: Arc<[Arc<Condition>]>,
    pub atom: Atom,
    pub value: bool,
}

/// A condition with the types of its variables.
#[derive(Debug, Clone)]
pub struct Scoped {
    pub condition: Condition,
    /// Type of every slot: parameters first, then the quantified variables.
    pub slot_types: Vec<TypeId>,
    /// Where it, or the action that has none, is written.
    pub at: Position,
}

#[derive(Debug, Clone)]
pub struct Action {
    pub name: String,
    /// Parameter names without the question mark; their types are the first slots'.
    pub parameters: Vec<String>,
    pub precondition: Scoped,
    pub effects: Vec<Effect>,
}

#[derive(Debug, Clone)]
pub struct Type {
    pub name: String,
    /// `None` for the root, `object`.
    pub parent: Option<TypeId>,
}

#[derive(Debug, Clone)]
pub struct Predicate {
    pub name: String,
    pub arity: usize,
    /// Some action changes it.
    pub fluent: bool,
}

/// The rules of a family of games.
#[derive(Debug, Clone, Default)]
pub struct Domain {
    /// Types, by `TypeId`.
    pub types: Vec<Type>,
    /// Predicates, by `PredicateId`.
    pub predicates: Vec<Predicate>,
    /// Constants, with their types.
    pub constants: Vec<(String, TypeId)>,
    /// Actions.
    pub actions: Vec<Action>,
    /// By type, the types that all of its kind are also of, as bits.
    lineages: Vec<u128>,
    /// Objects that actions name and that are no constants: each problem has to declare them.
    wanted: Vec<(String, Position)>,
}

/// One game of a domain.
#[derive(Debug, Clone)]
pub struct Problem {
    pub objects: Vec<(String, TypeId)>,
    pub init: Vec<(PredicateId, Vec<String>)>,
    pub goal: Scoped,
}

impl Domain {
    /// Reads a `(define (domain …) …)` text.
    ///
    /// # Errors
    /// If the text is not PDDL, or uses what is not supported; the error says where.
    pub fn parse(text: &str) -> Result<Self, GameError> {
        let reader = Reader { part: "pddl_domain" };
        let root = read(reader.part, text)?;
        let object = Type { name: "object".into(), parent: None };
        let mut domain = Domain { types: vec![object], ..Domain::default() };
        let sections = reader.define(&root, "domain")?;
        for section in sections {
            let (head, items) = reader.headed(section)?;
            match head {
                ":requirements" | ":functions" => {}
                ":types" => {
                    for (name, parent, at) in reader.typed(items)? {
                        let parent = reader.type_or_new(&mut domain, &parent, at)?;
                        let id = reader.type_or_new(&mut domain, &name, at)?;
                        if id != 0 {
                            domain.types[usize::from(id)].parent = Some(parent);
                        }
                    }
                }
                ":constants" => domain.constants.extend(reader.objects(items, &domain)?),
                ":predicates" => {
                    for item in items {
                        reader.declare_predicate(item, &mut domain)?;
                    }
                }
                ":action" => reader.action(items, section.at(), &mut domain)?,
                other => {
                    let expected = ":requirements, :types, :constants, :predicates, :functions or :action";
                    return Err(reader.fail(section.at(), expected, format!("'{other}'")));
                }
            }
        }
        for action in &domain.actions {
            for effect in &action.effects {
                domain.predicates[usize::from(effect.atom.predicate)].fluent = true;
            }
        }
        domain.lineages = (0..domain.types.len()).map(|kind| domain.lineage(kind)).collect();
        let constants: HashSet<&str> = domain.constants.iter().map(|(name, _)| name.as_str()).collect();
        domain.wanted.retain(|(name, _)| !constants.contains(name.as_str()));
        Ok(domain)
    }

    /// Whether every `kind` is also a `wanted`.
    pub fn is_a(&self, kind: TypeId, wanted: TypeId) -> bool {
        self.lineages.get(usize::from(kind)).is_some_and(|types| types >> wanted & 1 == 1)
    }

    /// The type and all above it, as bits; a text may make a circle of them.
    fn lineage(&self, kind: usize) -> u128 {
        let (mut types, mut now) = (0, Some(kind));
        while let Some(t) = now.filter(|t| types >> t & 1 == 0) {
            types |= 1 << t;
            now = self.types[t].parent.map(usize::from);
        }
        types
    }

    /// The type of this name.
    pub fn type_named(&self, name: &str) -> Option<TypeId> {
        self.types.iter().position(|t| t.name == name).map(|i| i as TypeId)
    }

    /// The predicate of this name.
    pub fn predicate_named(&self, name: &str) -> Option<PredicateId> {
        self.predicates.iter().position(|p| p.name == name).map(|i| i as PredicateId)
    }
}

impl Problem {
    /// Reads a `(define (problem …) …)` text of `domain`.
    pub fn parse(text: &str, domain: &Domain) -> Result<Self, GameError> {
        let reader = Reader { part: "pddl_problem" };
        let root = read(reader.part, text)?;
        let mut objects = domain.constants.clone();
        let mut init = Init::default();
        let mut goal = None;
        // The goal may name types that nothing declares; they stay local to it.
        let (types, predicates) = (domain.types.clone(), domain.predicates.clone());
        let mut local = Domain { types, predicates, ..Domain::default() };
        for section in reader.define(&root, "problem")? {
            let (head, items) = reader.headed(section)?;
            match head {
                ":domain" | ":metric" | ":requirements" => {}
                ":objects" => objects.extend(reader.objects(items, domain)?),
                ":init" => {
                    for item in items {
                        reader.fact(item, domain, &mut init)?;
                    }
                }
                ":goal" => {
                    let [body] = items else {
                        return Err(reader.fail(section.at(), "one condition", format!("{} items", items.len())));
                    };
                    let mut scope = Scope::default();
                    let condition = reader.whole_condition(body, &mut local, &mut scope)?;
                    init.named.append(&mut scope.objects);
                    goal = Some(Scoped { condition, slot_types: scope.types, at: body.at() });
                }
                other => {
                    let expected = ":domain, :objects, :init, :goal or :metric";
                    return Err(reader.fail(section.at(), expected, format!("'{other}'")));
                }
            }
        }
        let goal = goal.ok_or_else(|| reader.fail(root.at(), "a (:goal …)", "none".into()))?;
        let known = reader.distinct(&objects, domain, root.at())?;
        for (reader, named) in [(&reader, &init.named), (&Reader { part: "pddl_domain" }, &domain.wanted)] {
            if let Some((stranger, at)) = named.iter().find(|(name, _)| !known.contains_key(name.as_str())) {
                return Err(reader.fail(*at, "objects that :objects or :constants declares", format!("'{stranger}'")));
            }
        }
        let init = init.consistent(&reader, domain)?;
        Ok(Self { objects, init, goal })
    }
}

/// What `:init` says, as it is read.
#[derive(Default)]
struct Init {
    /// Fact, its truth and its place.
    facts: Vec<(Fact, bool, Position)>,
    /// Objects that are named.
    named: Vec<(String, Position)>,
}

/// A predicate and the objects that it speaks of.
type Fact = (PredicateId, Vec<String>);

impl Init {
    /// The facts that hold. What is not said does not hold, so `(not …)` adds nothing; it must not contradict.
    fn consistent(self, reader: &Reader, domain: &Domain) -> Result<Vec<Fact>, GameError> {
        let denied: HashSet<&Fact> = self.facts.iter().filter(|(_, holds, _)| !holds).map(|(fact, ..)| fact).collect();
        let both = self.facts.iter().find(|(fact, holds, _)| *holds && denied.contains(fact));
        if let Some(((predicate, args), _, at)) = both {
            let fact = format!("({} {})", domain.predicates[usize::from(*predicate)].name, args.join(" "));
            return Err(reader.fail(*at, "a fact to be either true or false", format!("'{fact}' and '(not {fact})'")));
        }
        Ok(self.facts.into_iter().filter(|(_, holds, _)| *holds).map(|(fact, ..)| fact).collect())
    }
}

/// Variables in scope: the latest of a name wins.
#[derive(Default)]
struct Scope {
    names: Vec<(String, u16)>,
    types: Vec<TypeId>,
    /// Objects that are named.
    objects: Vec<(String, Position)>,
}

struct Reader {
    part: &'static str,
}

/// Name, type name and place of one entry of a typed list.
type TypedName = (String, String, Position);

impl Reader {
    fn fail(&self, at: Position, expected: &str, found: String) -> GameError {
        GameError { part: self.part, at, expected: expected.into(), found }
    }

    fn word<'a>(&self, node: &'a SyntaxNode, expected: &str) -> Result<&'a str, GameError> {
        match node {
            SyntaxNode::Word { text, .. } => Ok(text),
            SyntaxNode::List { at, .. } => Err(self.fail(*at, expected, node.to_string())),
        }
    }

    fn list<'a>(&self, node: &'a SyntaxNode, expected: &str) -> Result<&'a [SyntaxNode], GameError> {
        match node {
            SyntaxNode::List { items, .. } => Ok(items),
            SyntaxNode::Word { at, .. } => Err(self.fail(*at, expected, node.to_string())),
        }
    }

    /// A list that starts with a word: the word and the rest.
    fn headed<'a>(&self, node: &'a SyntaxNode) -> Result<(&'a str, &'a [SyntaxNode]), GameError> {
        let items = self.list(node, "'('")?;
        let (head, rest) = items.split_first().ok_or_else(|| self.fail(node.at(), "a word after '('", "')'".into()))?;
        Ok((self.word(head, "a word after '('")?, rest))
    }

    /// The sections of `(define (KIND name) section…)`.
    fn define<'a>(&self, root: &'a SyntaxNode, kind: &str) -> Result<&'a [SyntaxNode], GameError> {
        let (head, items) = self.headed(root)?;
        if head != "define" {
            return Err(self.fail(root.at(), "'(define …)'", format!("'({head} …)'")));
        }
        let (title, sections) =
            items.split_first().ok_or_else(|| self.fail(root.at(), &format!("'({kind} NAME)'"), "')'".into()))?;
        match self.headed(title)? {
            (word, [_]) if word == kind => Ok(sections),
            _ => Err(self.fail(title.at(), &format!("'({kind} NAME)'"), title.to_string())),
        }
    }

    /// `a b - t c`: a and b are of type t, c of type object.
    fn typed(&self, items: &[SyntaxNode]) -> Result<Vec<TypedName>, GameError> {
        let mut out: Vec<TypedName> = Vec::new();
        let mut untyped = 0;
        let mut items = items.iter();
        while let Some(node) = items.next() {
            let text = self.word(node, "a name")?;
            if text != "-" {
                out.push((text.to_string(), "object".into(), node.at()));
                continue;
            }
            let kind = items.next().ok_or_else(|| self.fail(node.at(), "a type after '-'", "')'".into()))?;
            let kind = self.word(kind, "a type")?;
            out[untyped..].iter_mut().for_each(|(_, t, _)| *t = kind.to_string());
            untyped = out.len();
        }
        Ok(out)
    }

    /// A type that no text declares has no members: a variable of such a type can never be bound, as in the planner
    /// that the original games are played with.
    fn type_or_new(&self, domain: &mut Domain, name: &str, at: Position) -> Result<TypeId, GameError> {
        if let Some(known) = domain.type_named(name) {
            return Ok(known);
        }
        if domain.types.len() == MOST_TYPES {
            return Err(self.fail(at, &format!("at most {MOST_TYPES} types"), format!("'{name}'")));
        }
        domain.types.push(Type { name: name.into(), parent: Some(0) });
        Ok((domain.types.len() - 1) as TypeId)
    }

    fn declare_predicate(&self, item: &SyntaxNode, domain: &mut Domain) -> Result<(), GameError> {
        let (name, args) = self.headed(item)?;
        let arity = self.typed(args)?.len();
        if arity > MOST_ARGUMENTS {
            let expected = format!("at most {MOST_ARGUMENTS} arguments of '{name}'");
            return Err(self.fail(item.at(), &expected, arity.to_string()));
        }
        if let Some(known) = domain.predicate_named(name).map(|id| domain.predicates[usize::from(id)].arity) {
            let found = format!("{arity} here and {known} before");
            let again = || self.fail(item.at(), &format!("one number of arguments of '{name}'"), found);
            return if known == arity { Ok(()) } else { Err(again()) };
        }
        if domain.predicates.len() == MOST_DECLARED {
            return Err(self.fail(item.at(), &format!("at most {MOST_DECLARED} predicates"), format!("'{name}'")));
        }
        domain.predicates.push(Predicate { name: name.into(), arity, fluent: false });
        Ok(())
    }

    /// The type of every object by its name; an object may be declared twice, but not as two things.
    fn distinct<'a>(
        &self,
        objects: &'a [(String, TypeId)],
        domain: &Domain,
        at: Position,
    ) -> Result<HashMap<&'a str, TypeId>, GameError> {
        if objects.len() > MOST_OBJECTS {
            return Err(self.fail(at, &format!("at most {MOST_OBJECTS} objects"), objects.len().to_string()));
        }
        let mut known = HashMap::new();
        for (name, kind) in objects {
            let first = *known.entry(name.as_str()).or_insert(*kind);
            if first != *kind {
                let [first, second] = [first, *kind].map(|kind| &domain.types[usize::from(kind)].name);
                let found = format!("'{name}' as {first} and as {second}");
                return Err(self.fail(at, "one type of each object", found));
            }
        }
        Ok(known)
    }

    /// One entry of `:init`: a fact, the denial of one, or a cost, which is ignored.
    fn fact(&self, item: &SyntaxNode, domain: &Domain, init: &mut Init) -> Result<(), GameError> {
        let (name, args) = self.headed(item)?;
        if name == "=" {
            let costs = args.iter().filter(|arg| matches!(arg, SyntaxNode::List { .. }));
            return costs.map(|cost| self.headed(cost)).try_for_each(|cost| self.named(cost?.1, init).map(|_| ()));
        }
        let (holds, name, args) = match (name, args) {
            ("not", [denied]) => {
                let (name, args) = self.headed(denied)?;
                (false, name, args)
            }
            _ => (true, name, args),
        };
        let predicate = self.predicate(domain, name, args.len(), item.at())?;
        let args = self.named(args, init)?;
        init.facts.push(((predicate, args), holds, item.at()));
        Ok(())
    }

    /// The objects that `items` name.
    fn named(&self, items: &[SyntaxNode], init: &mut Init) -> Result<Vec<String>, GameError> {
        let words = items.iter().map(|item| {
            let name = self.word(item, "an object")?.to_string();
            init.named.push((name.clone(), item.at()));
            Ok(name)
        });
        words.collect()
    }

    fn objects(&self, items: &[SyntaxNode], domain: &Domain) -> Result<Vec<(String, TypeId)>, GameError> {
        let objects = self.typed(items)?.into_iter().map(|(name, kind, at)| match domain.type_named(&kind) {
            Some(kind) => Ok((name, kind)),
            None => Err(self.fail(at, "a type that :types declares", format!("'{name} - {kind}'"))),
        });
        objects.collect()
    }

    fn predicate(&self, domain: &Domain, name: &str, arity: usize, at: Position) -> Result<PredicateId, GameError> {
        let id = domain
            .predicate_named(name)
            .ok_or_else(|| self.fail(at, "a predicate that :predicates declares", format!("'{name}'")))?;
        let wanted = domain.predicates[usize::from(id)].arity;
        if wanted != arity {
            return Err(self.fail(at, &format!("{wanted} arguments of '{name}'"), arity.to_string()));
        }
        Ok(id)
    }

    fn action(&self, items: &[SyntaxNode], at: Position, domain: &mut Domain) -> Result<(), GameError> {
        let (name, fields) = items.split_first().ok_or_else(|| self.fail(at, "the action's name", "')'".into()))?;
        let name = self.word(name, "the action's name")?.to_string();
        let mut scope = Scope::default();
        let mut parameters = Vec::new();
        let mut precondition = (Condition::And(Vec::new()), at);
        let mut effects = Vec::new();
        for pair in fields.chunks(2) {
            let key = self.word(&pair[0], ":parameters, :precondition or :effect")?;
            let value =
                pair.get(1).ok_or_else(|| self.fail(pair[0].at(), &format!("a list after '{key}'"), "')'".into()))?;
            match key {
                ":parameters" => {
                    for (name, ..) in self.typed(self.list(value, "a list of parameters")?)? {
                        parameters.push(name.trim_start_matches('?').to_string());
                    }
                    self.declare(value, domain, &mut scope)?;
                }
                ":precondition" => precondition = (self.whole_condition(value, domain, &mut scope)?, value.at()),
                ":effect" => {
                    let all = Sharing { slots: Arc::new([]), conditions: Arc::new([]) };
                    self.effect(value, domain, &mut scope, &all, &mut effects)?;
                }
                other => {
                    let expected = ":parameters, :precondition or :effect";
                    return Err(self.fail(pair[0].at(), expected, format!("'{other}'")));
                }
            }
        }
        domain.wanted.append(&mut scope.objects);
        let precondition = Scoped { condition: precondition.0, slot_types: scope.types, at: precondition.1 };
        if domain.actions.len() == MOST_DECLARED {
            return Err(self.fail(at, &format!("at most {MOST_DECLARED} actions"), format!("'{name}'")));
        }
        domain.actions.push(Action { name, parameters, precondition, effects });
        Ok(())
    }

    fn term(&self, node: &SyntaxNode, scope: &mut Scope) -> Result<Term, GameError> {
        let text = self.word(node, "a variable or an object")?;
        if !text.starts_with('?') {
            scope.objects.push((text.into(), node.at()));
            return Ok(Term::Object(text.into()));
        }
        let found = scope.names.iter().rev().find(|(name, _)| name == text);
        let (_, slot) = found.ok_or_else(|| self.fail(node.at(), "a variable in scope", format!("'{text}'")))?;
        Ok(Term::SequenceId(*slot))
    }

    fn atom(&self, node: &SyntaxNode, domain: &Domain, scope: &mut Scope) -> Result<Atom, GameError> {
        let (name, args) = self.headed(node)?;
        let predicate = self.predicate(domain, name, args.len(), node.at())?;
        let terms = args.iter().map(|a| self.term(a, scope)).collect::<Result<_, _>>()?;
        Ok(Atom { predicate, terms })
    }

    fn declare(&self, node: &SyntaxNode, domain: &mut Domain, scope: &mut Scope) -> Result<Vec<u16>, GameError> {
        let names = self.typed(self.list(node, "a list of variables")?)?.into_iter();
        let slots = names.map(|(name, kind, at)| {
            let slot = scope.types.len() as u16;
            if scope.types.len() == MOST_VARIABLES {
                return Err(self.fail(at, &format!("at most {MOST_VARIABLES} variables"), format!("'{name}'")));
            }
            scope.types.push(self.type_or_new(domain, &kind, at)?);
            scope.names.push((name, slot));
            Ok(slot)
        });
        slots.collect()
    }

    /// A precondition or goal: small enough to be expanded.
    fn whole_condition(
        &self,
        node: &SyntaxNode,
        domain: &mut Domain,
        scope: &mut Scope,
    ) -> Result<Condition, GameError> {
        let condition = self.condition(node, domain, scope)?;
        let (conjunctions, atoms) = condition.size(true);
        if conjunctions > MOST_CONJUNCTIONS || atoms > MOST_ATOMS {
            let expected = format!("at most {MOST_CONJUNCTIONS} alternatives of at most {MOST_ATOMS} atoms");
            return Err(self.fail(node.at(), &expected, format!("{conjunctions} of up to {atoms}")));
        }
        Ok(condition)
    }

    fn condition(&self, node: &SyntaxNode, domain: &mut Domain, scope: &mut Scope) -> Result<Condition, GameError> {
        if self.list(node, "a condition")?.is_empty() {
            return Ok(Condition::And(Vec::new()));
        }
        let (head, items) = self.headed(node)?;
        let count = |n: usize| {
            if items.len() == n {
                Ok(())
            } else {
                Err(self.fail(node.at(), &format!("{n} items after '{head}'"), items.len().to_string()))
            }
        };
        Ok(match head {
            "and" | "or" => {
                let parts =
                    items.iter().map(|i| self.condition(i, domain, scope)).collect::<Result<Vec<_>, GameError>>()?;
                if head == "and" { Condition::And(parts) } else { Condition::Or(parts) }
            }
            "not" => {
                count(1)?;
                Condition::Not(Box::new(self.condition(&items[0], domain, scope)?))
            }
            "imply" => {
                count(2)?;
                let premise = Condition::Not(Box::new(self.condition(&items[0], domain, scope)?));
                Condition::Or(vec![premise, self.condition(&items[1], domain, scope)?])
            }
            "exists" | "forall" => {
                count(2)?;
                let outer = scope.names.len();
                let slots = self.declare(&items[0], domain, scope)?;
                let body = Box::new(self.condition(&items[1], domain, scope)?);
                scope.names.truncate(outer);
                if head == "exists" { Condition::Exists(slots, body) } else { Condition::Forall(slots, body) }
            }
            "=" => {
                count(2)?;
                Condition::Equal(self.term(&items[0], scope)?, self.term(&items[1], scope)?)
            }
            _ => Condition::Atom(self.atom(node, domain, scope)?),
        })
    }

    fn effect(
        &self,
        node: &SyntaxNode,
        domain: &mut Domain,
        scope: &mut Scope,
        within: &Sharing,
        out: &mut Vec<Effect>,
    ) -> Result<(), GameError> {
        if self.list(node, "an effect")?.is_empty() {
            return Ok(());
        }
        let (head, items) = self.headed(node)?;
        match (head, items) {
            ("and", parts) => {
                for part in parts {
                    self.effect(part, domain, scope, within, out)?;
                }
            }
            ("increase", costs) => {
                for cost in costs.iter().filter(|cost| matches!(cost, SyntaxNode::List { .. })) {
                    self.headed(cost)?.1.iter().try_for_each(|of| self.term(of, scope).map(|_| ()))?;
                }
            }
            ("when", [condition, then]) => {
                let condition = Arc::new(self.condition(condition, domain, scope)?);
                let conditions = within.conditions.iter().cloned().chain([condition]).collect();
                self.effect(then, domain, scope, &Sharing { conditions, ..within.clone() }, out)?;
            }
            ("forall", [variables, then]) => {
                let outer = scope.names.len();
                let more = self.declare(variables, domain, scope)?;
                let slots = within.slots.iter().copied().chain(more).collect();
                self.effect(then, domain, scope, &Sharing { slots, ..within.clone() }, out)?;
                scope.names.truncate(outer);
            }
            ("when" | "forall", _) => {
                return Err(self.fail(node.at(), &format!("2 items after '{head}'"), items.len().to_string()));
            }
            _ => {
                let (value, atom) = match (head, items) {
                    ("not", [inner]) => (false, inner),
                    _ => (true, node),
                };
                let atom = self.atom(atom, domain, scope)?;
                let Sharing { slots, conditions } = within.clone();
                out.push(Effect { slots, conditions, atom, value });
            }
        }
        Ok(())
    }
}

/// What the effects inside a `forall` or `when` share.
#[derive(Clone)]
struct Sharing {
    slots: Arc<[u16]>,
    conditions: Arc<[Arc<Condition>]>,
}
