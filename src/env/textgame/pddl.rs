//! The PDDL subset: typing, `and or not imply exists forall =`, `when` and `forall` effects. Costs are read and ignored.

use std::collections::HashSet;

use super::facts::MOST_ARGUMENTS;
use super::syntax::{GameError, Node, Position, read};

/// Index into [`Domain::types`].
pub type TypeId = u16;
/// Index into [`Domain::predicates`].
pub type PredicateId = u16;

/// A variable (its slot in the action, parameters first) or a named object.
#[derive(Debug, Clone, PartialEq)]
pub enum Term {
    Slot(u16),
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
    /// How many conjunctions the condition expands to, and the most atoms in one.
    fn size(&self, wanted: bool) -> (usize, usize) {
        match self {
            Condition::And(parts) | Condition::Or(parts) => {
                let sizes = parts.iter().map(|p| p.size(wanted));
                if matches!(self, Condition::And(_)) == wanted {
                    sizes.fold((1, 0), |(n, atoms), (m, more)| (n.saturating_mul(m), atoms.saturating_add(more)))
                } else {
                    sizes.fold((0, 0), |(n, atoms), (m, more)| (n.saturating_add(m), atoms.max(more)))
                }
            }
            Condition::Not(inner) => inner.size(!wanted),
            Condition::Exists(_, body) | Condition::Forall(_, body) => body.size(wanted),
            Condition::Equal(..) | Condition::Atom(_) => (1, 1),
        }
    }
}

/// One elementary effect: for every filling of `slots`, when all of `conditions` held before, `atom` becomes `value`.
#[derive(Debug, Clone)]
pub struct Effect {
    pub slots: Vec<u16>,
    pub conditions: Vec<Condition>,
    pub atom: Atom,
    pub value: bool,
}

/// A condition with the types of its variables.
#[derive(Debug, Clone)]
pub struct Scoped {
    pub condition: Condition,
    /// Type of every slot: parameters first, then the quantified variables.
    pub slot_types: Vec<TypeId>,
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
#[derive(Debug, Clone)]
pub struct Domain {
    pub types: Vec<Type>,
    pub predicates: Vec<Predicate>,
    pub constants: Vec<(String, TypeId)>,
    pub actions: Vec<Action>,
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
    pub fn parse(text: &str) -> Result<Self, GameError> {
        let reader = Reader { part: "pddl_domain" };
        let root = read(reader.part, text)?;
        let object = Type { name: "object".into(), parent: None };
        let mut domain =
            Domain { types: vec![object], predicates: Vec::new(), constants: Vec::new(), actions: Vec::new() };
        let sections = reader.define(&root, "domain")?;
        for section in sections {
            let (head, items) = reader.headed(section)?;
            match head {
                ":requirements" | ":functions" => {}
                ":types" => {
                    for (name, parent, _) in reader.typed(items)? {
                        let parent = domain.type_or_new(&parent);
                        let id = domain.type_or_new(&name);
                        if id != 0 {
                            domain.types[usize::from(id)].parent = Some(parent);
                        }
                    }
                }
                ":constants" => domain.constants.extend(reader.objects(items, &domain)?),
                ":predicates" => {
                    for item in items {
                        let (name, args) = reader.headed(item)?;
                        let arity = reader.typed(args)?.len();
                        if arity > MOST_ARGUMENTS {
                            let expected = format!("at most {MOST_ARGUMENTS} arguments of '{name}'");
                            return Err(reader.fail(item.at(), &expected, arity.to_string()));
                        }
                        domain.predicates.push(Predicate { name: name.into(), arity, fluent: false });
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
        Ok(domain)
    }

    /// Whether every `kind` is also a `wanted`.
    pub fn is_a(&self, kind: TypeId, wanted: TypeId) -> bool {
        let mut now = Some(kind);
        // The chain of parents is at most as long as there are types, even in a text that makes a circle of them.
        for _ in 0..=self.types.len() {
            match now {
                Some(t) if t == wanted => return true,
                Some(t) => now = self.types[usize::from(t)].parent,
                None => return false,
            }
        }
        false
    }

    pub fn type_named(&self, name: &str) -> Option<TypeId> {
        self.types.iter().position(|t| t.name == name).map(|i| i as TypeId)
    }

    pub fn predicate_named(&self, name: &str) -> Option<PredicateId> {
        self.predicates.iter().position(|p| p.name == name).map(|i| i as PredicateId)
    }

    /// A type that no text declares has no members: a variable of such a type can never be bound, as in the planner
    /// that the original games are played with.
    fn type_or_new(&mut self, name: &str) -> TypeId {
        self.type_named(name).unwrap_or_else(|| {
            self.types.push(Type { name: name.into(), parent: Some(0) });
            (self.types.len() - 1) as TypeId
        })
    }
}

impl Problem {
    /// Reads a `(define (problem …) …)` text of `domain`.
    pub fn parse(text: &str, domain: &Domain) -> Result<Self, GameError> {
        let reader = Reader { part: "pddl_problem" };
        let root = read(reader.part, text)?;
        let mut objects = domain.constants.clone();
        let mut init = Vec::new();
        let mut goal = None;
        // The goal may name types that nothing declares; they stay local to it.
        let (types, predicates) = (domain.types.clone(), domain.predicates.clone());
        let mut local = Domain { types, predicates, constants: Vec::new(), actions: Vec::new() };
        for section in reader.define(&root, "problem")? {
            let (head, items) = reader.headed(section)?;
            match head {
                ":domain" | ":metric" | ":requirements" => {}
                ":objects" => objects.extend(reader.objects(items, domain)?),
                ":init" => {
                    for item in items {
                        let (name, args) = reader.headed(item)?;
                        if name != "=" {
                            let predicate = reader.predicate(domain, name, args.len(), item.at())?;
                            let words = args.iter().map(|a| Ok(reader.word(a, "an object")?.to_string()));
                            init.push((predicate, words.collect::<Result<Vec<_>, GameError>>()?, item.at()));
                        }
                    }
                }
                ":goal" => {
                    let [body] = items else {
                        return Err(reader.fail(section.at(), "one condition", format!("{} items", items.len())));
                    };
                    let mut scope = Scope::default();
                    let condition = reader.whole_condition(body, &mut local, &mut scope)?;
                    goal = Some(Scoped { condition, slot_types: scope.types });
                }
                other => {
                    let expected = ":domain, :objects, :init, :goal or :metric";
                    return Err(reader.fail(section.at(), expected, format!("'{other}'")));
                }
            }
        }
        if objects.len() > usize::from(u16::MAX) {
            return Err(reader.fail(root.at(), "at most 65535 objects", objects.len().to_string()));
        }
        let known: HashSet<&str> = objects.iter().map(|(name, _)| name.as_str()).collect();
        for (_, args, at) in &init {
            if let Some(stranger) = args.iter().find(|a| !known.contains(a.as_str())) {
                return Err(reader.fail(*at, "objects that :objects declares", format!("'{stranger}'")));
            }
        }
        let init = init.into_iter().map(|(predicate, args, _)| (predicate, args)).collect();
        let goal = goal.ok_or_else(|| reader.fail(root.at(), "a (:goal …)", "none".into()))?;
        Ok(Self { objects, init, goal })
    }
}

/// Variables in scope: the latest of a name wins.
#[derive(Default)]
struct Scope {
    names: Vec<(String, u16)>,
    types: Vec<TypeId>,
}

impl Scope {
    fn declare(&mut self, name: &str, kind: TypeId) -> u16 {
        let slot = self.types.len() as u16;
        self.types.push(kind);
        self.names.push((name.into(), slot));
        slot
    }
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

    fn word<'a>(&self, node: &'a Node, expected: &str) -> Result<&'a str, GameError> {
        match node {
            Node::Word { text, .. } => Ok(text),
            Node::List { at, .. } => Err(self.fail(*at, expected, node.to_string())),
        }
    }

    fn list<'a>(&self, node: &'a Node, expected: &str) -> Result<&'a [Node], GameError> {
        match node {
            Node::List { items, .. } => Ok(items),
            Node::Word { at, .. } => Err(self.fail(*at, expected, node.to_string())),
        }
    }

    /// A list that starts with a word: the word and the rest.
    fn headed<'a>(&self, node: &'a Node) -> Result<(&'a str, &'a [Node]), GameError> {
        let items = self.list(node, "'('")?;
        let (head, rest) = items.split_first().ok_or_else(|| self.fail(node.at(), "a word after '('", "')'".into()))?;
        Ok((self.word(head, "a word after '('")?, rest))
    }

    /// The sections of `(define (KIND name) section…)`.
    fn define<'a>(&self, root: &'a Node, kind: &str) -> Result<&'a [Node], GameError> {
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
    fn typed(&self, items: &[Node]) -> Result<Vec<TypedName>, GameError> {
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

    fn objects(&self, items: &[Node], domain: &Domain) -> Result<Vec<(String, TypeId)>, GameError> {
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

    fn action(&self, items: &[Node], at: Position, domain: &mut Domain) -> Result<(), GameError> {
        let (name, fields) = items.split_first().ok_or_else(|| self.fail(at, "the action's name", "')'".into()))?;
        let name = self.word(name, "the action's name")?.to_string();
        let mut scope = Scope::default();
        let mut parameters = Vec::new();
        let mut precondition = Condition::And(Vec::new());
        let mut effects = Vec::new();
        for pair in fields.chunks(2) {
            let key = self.word(&pair[0], ":parameters, :precondition or :effect")?;
            let value =
                pair.get(1).ok_or_else(|| self.fail(pair[0].at(), &format!("a list after '{key}'"), "')'".into()))?;
            match key {
                ":parameters" => {
                    for (variable, kind, _) in self.typed(self.list(value, "a list of parameters")?)? {
                        let kind = domain.type_or_new(&kind);
                        scope.declare(&variable, kind);
                        parameters.push(variable.trim_start_matches('?').to_string());
                    }
                }
                ":precondition" => precondition = self.whole_condition(value, domain, &mut scope)?,
                ":effect" => self.effect(value, domain, &mut scope, &[], &[], &mut effects)?,
                other => {
                    let expected = ":parameters, :precondition or :effect";
                    return Err(self.fail(pair[0].at(), expected, format!("'{other}'")));
                }
            }
        }
        let precondition = Scoped { condition: precondition, slot_types: scope.types };
        domain.actions.push(Action { name, parameters, precondition, effects });
        Ok(())
    }

    fn term(&self, node: &Node, scope: &Scope) -> Result<Term, GameError> {
        let text = self.word(node, "a variable or an object")?;
        if !text.starts_with('?') {
            return Ok(Term::Object(text.into()));
        }
        let found = scope.names.iter().rev().find(|(name, _)| name == text);
        let (_, slot) = found.ok_or_else(|| self.fail(node.at(), "a variable in scope", format!("'{text}'")))?;
        Ok(Term::Slot(*slot))
    }

    fn atom(&self, node: &Node, domain: &Domain, scope: &Scope) -> Result<Atom, GameError> {
        let (name, args) = self.headed(node)?;
        let predicate = self.predicate(domain, name, args.len(), node.at())?;
        let terms = args.iter().map(|a| self.term(a, scope)).collect::<Result<_, _>>()?;
        Ok(Atom { predicate, terms })
    }

    fn declare(&self, node: &Node, domain: &mut Domain, scope: &mut Scope) -> Result<Vec<u16>, GameError> {
        let names = self.typed(self.list(node, "a list of variables")?)?;
        Ok(names.iter().map(|(name, kind, _)| scope.declare(name, domain.type_or_new(kind))).collect())
    }

    /// A precondition or goal: small enough to be expanded.
    fn whole_condition(&self, node: &Node, domain: &mut Domain, scope: &mut Scope) -> Result<Condition, GameError> {
        let condition = self.condition(node, domain, scope)?;
        let (conjunctions, atoms) = condition.size(true);
        if conjunctions > MOST_CONJUNCTIONS || atoms > MOST_ATOMS {
            let expected = format!("at most {MOST_CONJUNCTIONS} alternatives of at most {MOST_ATOMS} atoms");
            return Err(self.fail(node.at(), &expected, format!("{conjunctions} of up to {atoms}")));
        }
        Ok(condition)
    }

    fn condition(&self, node: &Node, domain: &mut Domain, scope: &mut Scope) -> Result<Condition, GameError> {
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
        node: &Node,
        domain: &mut Domain,
        scope: &mut Scope,
        slots: &[u16],
        conditions: &[Condition],
        out: &mut Vec<Effect>,
    ) -> Result<(), GameError> {
        if self.list(node, "an effect")?.is_empty() {
            return Ok(());
        }
        let (head, items) = self.headed(node)?;
        match (head, items) {
            ("and", parts) => {
                for part in parts {
                    self.effect(part, domain, scope, slots, conditions, out)?;
                }
            }
            ("increase", _) => {}
            ("when", [condition, then]) => {
                let mut conditions = conditions.to_vec();
                conditions.push(self.condition(condition, domain, scope)?);
                self.effect(then, domain, scope, slots, &conditions, out)?;
            }
            ("forall", [variables, then]) => {
                let outer = scope.names.len();
                let mut slots = slots.to_vec();
                slots.extend(self.declare(variables, domain, scope)?);
                self.effect(then, domain, scope, &slots, conditions, out)?;
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
                out.push(Effect { slots: slots.to_vec(), conditions: conditions.to_vec(), atom, value });
            }
        }
        Ok(())
    }
}
