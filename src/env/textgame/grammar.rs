//! The text grammar: what is said about a state, and how actions are spelled.
//!
//! A file holds `grammar :: """{ "rule": [{"condition": …, "rhs": …}, …], … }""";` blocks and
//! `action NAME { template :: "…"; feedback :: "…"; grammar :: """…"""; }` blocks. In a text, `#rule#` is replaced by
//! the first alternative whose condition holds, `{o.name}` by a property of what `o` stands for, `{x | query}` by x once
//! for every answer of the query, and `[{x | query}]` by the same as a list with separators.

use std::collections::HashMap;

use super::limits::MOST_DECLARED;
use super::pddl::{Domain, PredicateId, TypeId};
use super::syntax::{GameError, Position};

/// Index into [`Grammar::rules`].
pub type RuleId = usize;
/// Index into [`Grammar::variables`].
pub type VariableId = u16;

/// One piece of a text.
#[derive(Debug, Clone)]
pub enum Symbol {
    Text(String),
    Rule(RuleId),
    Value(Expression),
    /// `{symbol | query}`.
    Each(Box<Symbol>, Query),
    /// `[{symbol | query}]`.
    List(Box<Symbol>, Query),
}

/// `a.name or b.id`: the first alternative that is not empty; each is a sum of terms.
#[derive(Debug, Clone)]
pub struct Expression(pub Vec<Vec<TextPiece>>);

#[derive(Debug, Clone)]
pub enum TextPiece {
    Literal(String),
    /// A property of what the variable of this name stands for.
    Property(String, Property),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Property {
    Name,
    Id,
    Kind,
    Definite,
    Indefinite,
}

/// `p(a:t, b:u) & not_q(b:u)`: a conjunction over the facts. `not_q` holds where an action has deleted q.
#[derive(Debug, Clone, Default)]
pub struct Query(pub Vec<QueryAtom>);

#[derive(Debug, Clone)]
pub struct QueryAtom {
    pub predicate: PredicateId,
    pub deleted: bool,
    pub variables: Vec<VariableId>,
}

/// One alternative of a rule.
#[derive(Debug, Clone)]
pub struct Alternative {
    pub condition: Query,
    pub text: Vec<Symbol>,
}

/// How an action is spelled and what is said after it.
#[derive(Debug, Clone)]
pub struct Spelling {
    pub template: Vec<Symbol>,
    pub feedback: Vec<Symbol>,
    /// The action's parameters as the grammar's variables.
    pub parameters: Vec<VariableId>,
    /// Where its block is.
    pub at: Position,
}

/// The rules by which a game is told.
#[derive(Debug, Clone)]
pub struct Grammar {
    /// The alternatives of each rule, by `RuleId`.
    pub rules: Vec<Vec<Alternative>>,
    names: HashMap<String, RuleId>,
    /// Name and type of every variable.
    pub variables: Vec<(String, TypeId)>,
    /// By the domain's action index.
    pub spellings: Vec<Spelling>,
    /// The rule of an empty list.
    pub list_empty: Option<RuleId>,
    /// The rule between two elements of a list.
    pub list_separator: Option<RuleId>,
    /// The rule before the last element of a list.
    pub list_last_separator: Option<RuleId>,
    /// The text shown at the start.
    pub intro: RuleId,
    /// What is said when a command is not understood (ours; the original says `Nothing happens.`).
    pub unknown: Option<RuleId>,
}

impl Grammar {
    /// Reads a grammar for `domain`.
    ///
    /// # Errors
    /// If the text is not a grammar, or names what `domain` does not have.
    pub fn parse(text: &str, domain: &Domain) -> Result<Self, GameError> {
        let mut file = File { text, at: 0, passed: (0, Position { line: 1, column: 1 }) };
        let (rules, actions) = file.blocks()?;
        let mut names = HashMap::new();
        for rule in &rules {
            let next = names.len();
            names.entry(rule.name.clone()).or_insert(next);
        }
        let mut builder = Builder { domain, names: &names, variables: Vec::new(), known: HashMap::new() };
        let mut alternatives = vec![Vec::new(); names.len()];
        for rule in &rules {
            let built = rule.alternatives.iter().map(|(condition, text)| {
                let condition = builder.query(condition, rule.place())?;
                Ok(Alternative { condition, text: builder.symbols(text, rule.place())? })
            });
            // A later block replaces a rule of the same name.
            alternatives[names[&rule.name]] = built.collect::<Result<Vec<_>, GameError>>()?;
        }
        // A later block replaces one of the same name.
        let blocks: HashMap<&str, &RawAction> = actions.iter().map(|block| (block.name.as_str(), block)).collect();
        let mut spellings = Vec::new();
        for action in &domain.actions {
            let block = blocks.get(action.name.as_str()).ok_or_else(|| {
                file.fail(text.len(), &format!("an 'action' block for '{}'", action.name), "none".into())
            })?;
            let place = TextPlace { at: block.at, rule: None };
            let typed = action.parameters.iter().zip(&action.precondition.slot_types);
            let parameters =
                typed.map(|(name, kind)| builder.variable(name, *kind, place)).collect::<Result<_, _>>()?;
            let template = builder.symbols(&block.template, place)?;
            let feedback = builder.symbols(&block.feedback, place)?;
            spellings.push(Spelling { template, feedback, parameters, at: block.at });
        }
        let variables = builder.variables;
        let rule = |name: &str| names.get(name).copied();
        let intro = rule("intro").ok_or_else(|| file.fail(text.len(), "a rule 'intro'", "none".into()))?;
        Ok(Self {
            list_empty: rule("list_empty"),
            list_separator: rule("list_separator"),
            list_last_separator: rule("list_last_separator"),
            unknown: rule("unknown_command"),
            intro,
            rules: alternatives,
            variables,
            spellings,
            names,
        })
    }

    /// The name of a rule, for messages.
    pub fn rule_name(&self, rule: RuleId) -> &str {
        self.names.iter().find(|(_, id)| **id == rule).map_or("?", |(name, _)| name)
    }
}

/// A rule as it stands in the file.
struct RawRule<'a> {
    name: String,
    /// The block that holds it, and where that begins.
    block: &'a str,
    start: Position,
    /// Condition and text.
    alternatives: Vec<(String, String)>,
}

impl RawRule<'_> {
    fn place(&self) -> TextPlace<'_> {
        TextPlace { at: self.start, rule: Some((self.block, &self.name)) }
    }
}

/// Where something is, as far as it is known without searching the text: only an error needs the position.
#[derive(Clone, Copy)]
struct TextPlace<'a> {
    at: Position,
    /// A block of rules that begins there, and the name of one.
    rule: Option<(&'a str, &'a str)>,
}

impl TextPlace<'_> {
    fn position(self) -> Position {
        let Some((block, name)) = self.rule else { return self.at };
        let json = without_comments(block);
        let inner = Position::of(&json, json.find(&format!("\"{name}\"")).unwrap_or(0));
        within(self.at, inner)
    }
}

/// A block's JSON: lines that start with # are comments; blanking them keeps the places of what follows.
fn without_comments(block: &str) -> String {
    let lines = block.split('\n').map(|l| if l.trim_start().starts_with('#') { "" } else { l });
    lines.collect::<Vec<_>>().join("\n")
}

/// A position in a block that starts at `start`, as one in the file.
fn within(start: Position, inner: Position) -> Position {
    let column = if inner.line <= 1 { start.column + inner.column.max(1) - 1 } else { inner.column };
    Position { line: start.line + inner.line.max(1) - 1, column }
}

struct RawAction {
    name: String,
    at: Position,
    template: String,
    feedback: String,
}

/// A cursor over the file.
struct File<'a> {
    text: &'a str,
    at: usize,
    /// The last offset whose position was computed, and that position.
    passed: (usize, Position),
}

impl<'a> File<'a> {
    fn fail(&self, at: usize, expected: &str, found: String) -> GameError {
        GameError { part: "grammar", at: Position::of(self.text, at), expected: expected.into(), found }
    }

    /// The position of an offset, which is behind the last one.
    fn position(&mut self, offset: usize) -> Position {
        let (from, start) = self.passed;
        let position = within(start, Position::of(&self.text[from..], offset - from));
        self.passed = (offset, position);
        position
    }

    fn skip(&mut self) {
        loop {
            let rest = &self.text[self.at..];
            self.at += rest.len() - rest.trim_start().len();
            let rest = &self.text[self.at..];
            if !rest.starts_with('#') {
                return;
            }
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
    }

    fn found(&self) -> String {
        match self.text[self.at..].split_whitespace().next() {
            Some(word) => format!("'{}'", word.chars().take(20).collect::<String>()),
            None => "the end of the text".into(),
        }
    }

    fn take(&mut self, mark: &str) -> Result<(), GameError> {
        self.skip();
        if !self.text[self.at..].starts_with(mark) {
            return Err(self.fail(self.at, &format!("'{mark}'"), self.found()));
        }
        self.at += mark.len();
        Ok(())
    }

    fn peek(&mut self, mark: &str) -> bool {
        self.skip();
        self.text[self.at..].starts_with(mark)
    }

    fn word(&mut self, expected: &str) -> Result<&'a str, GameError> {
        self.skip();
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '/'))).unwrap_or(rest.len());
        if end == 0 {
            return Err(self.fail(self.at, expected, self.found()));
        }
        self.at += end;
        Ok(&rest[..end])
    }

    /// A string between `quote`s, and where it starts.
    fn string(&mut self, quote: &str) -> Result<(&'a str, usize), GameError> {
        self.take(quote)?;
        let start = self.at;
        let Some(end) = self.text[start..].find(quote) else {
            return Err(self.fail(start, &format!("a closing {quote}"), "the end of the text".into()));
        };
        self.at = start + end + quote.len();
        Ok((&self.text[start..start + end], start))
    }

    fn blocks(&mut self) -> Result<(Vec<RawRule<'a>>, Vec<RawAction>), GameError> {
        let (mut rules, mut actions) = (Vec::new(), Vec::new());
        loop {
            self.skip();
            if self.at == self.text.len() {
                return Ok((rules, actions));
            }
            match self.word("'grammar' or 'action'")? {
                "grammar" => self.grammar(&mut rules)?,
                "action" => actions.push(self.action(&mut rules)?),
                other => {
                    let at = self.at - other.len();
                    return Err(self.fail(at, "'grammar' or 'action'", format!("'{other}'")));
                }
            }
        }
    }

    fn action(&mut self, rules: &mut Vec<RawRule<'a>>) -> Result<RawAction, GameError> {
        let name = self.word("the action's name")?;
        let at = self.position(self.at - name.len());
        let (mut template, mut feedback) = (None, None);
        self.take("{")?;
        while !self.peek("}") {
            let field = self.word("'template', 'feedback', 'grammar' or '}'")?;
            match field {
                "grammar" => {
                    self.grammar(rules)?;
                    continue;
                }
                "template" | "feedback" => {}
                other => {
                    let expected = "'template', 'feedback', 'grammar' or '}'";
                    return Err(self.fail(self.at - other.len(), expected, format!("'{other}'")));
                }
            }
            self.take("::")?;
            let (value, _) = self.string("\"")?;
            self.take(";")?;
            *(if field == "template" { &mut template } else { &mut feedback }) = Some(value.to_string());
        }
        let end = self.at;
        self.take("}")?;
        let missing = |field: &str| self.fail(end, &format!("'{field} :: …' before '}}'"), "'}'".into());
        Ok(RawAction {
            name: name.to_lowercase(),
            at,
            template: template.ok_or_else(|| missing("template"))?,
            feedback: feedback.ok_or_else(|| missing("feedback"))?,
        })
    }

    fn grammar(&mut self, rules: &mut Vec<RawRule<'a>>) -> Result<(), GameError> {
        self.take("::")?;
        let (block, start) = self.string("\"\"\"")?;
        self.take(";")?;
        let start = self.position(start);
        let json = without_comments(block);
        let value: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&json).map_err(|e| GameError {
            part: "grammar",
            at: within(start, Position { line: e.line(), column: e.column() }),
            expected: "JSON rules".into(),
            found: e.to_string(),
        })?;
        for (name, alternatives) in value {
            let wrong = |found: &serde_json::Value| GameError {
                part: "grammar",
                at: TextPlace { at: start, rule: Some((block, &name)) }.position(),
                expected: format!("a list of {{\"condition\": text, \"rhs\": text}} for rule '{name}'"),
                found: found.to_string().chars().take(40).collect(),
            };
            let list = alternatives.as_array().ok_or_else(|| wrong(&alternatives))?;
            let read = list.iter().map(|alternative| {
                let text = alternative.get("rhs").and_then(|v| v.as_str()).ok_or_else(|| wrong(alternative))?;
                let condition = alternative.get("condition").and_then(|v| v.as_str()).unwrap_or("");
                Ok((condition.to_string(), text.to_string()))
            });
            let alternatives = read.collect::<Result<Vec<_>, GameError>>()?;
            rules.push(RawRule { name, block, start, alternatives });
        }
        Ok(())
    }
}

/// Turns strings into symbols, with names resolved.
struct Builder<'a> {
    domain: &'a Domain,
    names: &'a HashMap<String, RuleId>,
    variables: Vec<(String, TypeId)>,
    /// The variables of a name.
    known: HashMap<String, Vec<VariableId>>,
}

impl Builder<'_> {
    fn fail(&self, at: TextPlace, expected: &str, found: &str) -> GameError {
        GameError { part: "grammar", at: at.position(), expected: expected.into(), found: format!("'{found}'") }
    }

    fn variable(&mut self, name: &str, kind: TypeId, at: TextPlace) -> Result<VariableId, GameError> {
        let of_name = self.known.get(name).map_or(&[][..], Vec::as_slice);
        if let Some(known) = of_name.iter().find(|id| self.variables[usize::from(**id)].1 == kind) {
            return Ok(*known);
        }
        if self.variables.len() == MOST_DECLARED {
            return Err(self.fail(at, &format!("at most {MOST_DECLARED} variables"), name));
        }
        let id = self.variables.len() as VariableId;
        self.variables.push((name.into(), kind));
        self.known.entry(name.into()).or_default().push(id);
        Ok(id)
    }

    fn query(&mut self, text: &str, at: TextPlace) -> Result<Query, GameError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Query::default());
        }
        let atoms = text.split('&').map(|atom| {
            let atom = atom.trim();
            let (name, rest) =
                atom.split_once('(').ok_or_else(|| self.fail(at, "a condition 'name(variable:type, …)'", atom))?;
            let args =
                rest.trim_end().strip_suffix(')').ok_or_else(|| self.fail(at, "a closing ')' in a condition", atom))?;
            let name = name.trim();
            let (deleted, name) = name.strip_prefix("not_").map_or((false, name), |n| (true, n));
            let predicate = self
                .domain
                .predicate_named(name)
                .ok_or_else(|| self.fail(at, "a predicate of the domain in a condition", name))?;
            let args = args.split(',').map(str::trim).filter(|a| !a.is_empty());
            let variables = args.map(|arg| {
                let (name, kind) = arg.split_once(':').unwrap_or((arg, arg.trim_end_matches('\'')));
                let kind = kind.trim();
                let id = self
                    .domain
                    .type_named(kind)
                    .ok_or_else(|| self.fail(at, "a type of the domain in a condition", kind))?;
                self.variable(name.trim(), id, at)
            });
            let variables = variables.collect::<Result<Vec<_>, GameError>>()?;
            let arity = self.domain.predicates[usize::from(predicate)].arity;
            if variables.len() != arity {
                return Err(self.fail(at, &format!("{arity} variables in a condition"), atom));
            }
            Ok(QueryAtom { predicate, deleted, variables })
        });
        Ok(Query(atoms.collect::<Result<_, _>>()?))
    }

    fn symbols(&mut self, text: &str, at: TextPlace) -> Result<Vec<Symbol>, GameError> {
        let text = text.replace("\\n", "\n");
        // The original reader skips white space where a text begins.
        let mut rest = text.trim_start();
        let mut out = Vec::new();
        while let Some(first) = rest.chars().next() {
            let closed = |mark: char| {
                rest[1..].find(mark).ok_or_else(|| self.fail(at, &format!("a closing '{mark}' in a text"), rest))
            };
            match first {
                '#' => {
                    let end = closed('#')?;
                    out.push(Symbol::Rule(self.rule(&rest[1..=end], at)?));
                    rest = &rest[end + 2..];
                }
                '{' => {
                    let end = closed('}')?;
                    let (symbol, query) = self.braced(&rest[1..=end], at)?;
                    out.push(match query {
                        Some(query) => Symbol::Each(Box::new(symbol), query),
                        None => symbol,
                    });
                    rest = &rest[end + 2..];
                }
                '[' => {
                    let end = closed(']')?;
                    let inside = rest[1..=end].trim().strip_prefix('{').and_then(|t| t.strip_suffix('}'));
                    let inside = inside.ok_or_else(|| self.fail(at, "'[{symbol | condition}]'", rest))?;
                    let (symbol, query) = self.braced(inside, at)?;
                    out.push(Symbol::List(Box::new(symbol), query.unwrap_or_default()));
                    rest = &rest[end + 2..];
                }
                // The original reader stops at a stray mark and drops what follows.
                '}' | ']' | '<' | '>' | '|' | ';' | '"' => break,
                _ => {
                    let end = rest.find(['#', '{', '}', '[', ']', '<', '>', '|', ';', '"']).unwrap_or(rest.len());
                    out.push(Symbol::Text(rest[..end].into()));
                    rest = &rest[end..];
                }
            }
        }
        Ok(out)
    }

    fn rule(&self, name: &str, at: TextPlace) -> Result<RuleId, GameError> {
        self.names.get(name).copied().ok_or_else(|| self.fail(at, "the name of a rule between '#'", name))
    }

    fn braced(&mut self, text: &str, at: TextPlace) -> Result<(Symbol, Option<Query>), GameError> {
        let (symbol, query) = match text.split_once('|') {
            Some((symbol, query)) => (symbol.trim(), Some(self.query(query, at)?)),
            None => (text.trim(), None),
        };
        let symbol = match symbol.strip_prefix('#').and_then(|s| s.strip_suffix('#')) {
            Some(name) => Symbol::Rule(self.rule(name, at)?),
            None => Symbol::Value(self.expression(symbol, at)?),
        };
        Ok((symbol, query))
    }

    fn expression(&self, text: &str, at: TextPlace) -> Result<Expression, GameError> {
        let piece = |term: &str| {
            let term = term.trim();
            if let Some(literal) = term.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')) {
                return Ok(TextPiece::Literal(literal.into()));
            }
            let (variable, property) = term.split_once('.').unwrap_or((term, "name"));
            let property = match property {
                "name" => Property::Name,
                "id" => Property::Id,
                "type" => Property::Kind,
                "definite" => Property::Definite,
                "indefinite" => Property::Indefinite,
                other => return Err(self.fail(at, "name, id, type, definite or indefinite", other)),
            };
            let plain = |c: char| c.is_alphanumeric() || c == '_';
            if variable.is_empty() || !variable.chars().all(plain) {
                return Err(self.fail(at, "a variable or a quoted text between braces", term));
            }
            Ok(TextPiece::Property(variable.into(), property))
        };
        let sum = |part: &str| part.split('+').map(piece).collect::<Result<Vec<_>, GameError>>();
        Ok(Expression(text.split(" or ").map(sum).collect::<Result<_, _>>()?))
    }
}
