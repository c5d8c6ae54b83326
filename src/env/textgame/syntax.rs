//! Positions, errors and the reader of parenthesised PDDL text.

use std::fmt;

/// A place in a text, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl Position {
    /// The place of byte `offset` in `text`.
    pub fn of(text: &str, offset: usize) -> Self {
        let before = &text[..offset.min(text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Self { line, column }
    }
}

/// Why one of a game's three texts cannot be used: which text, where, and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part}, line {}, column {}: expected {expected}, found {found}", .at.line, .at.column)]
pub struct GameError {
    /// `pddl_domain`, `pddl_problem` or `grammar`.
    pub part: &'static str,
    /// Where it is.
    pub at: Position,
    /// What was expected.
    pub expected: String,
    /// What was found.
    pub found: String,
}

/// One word or one bracketed list. Words are lower case: PDDL does not tell cases apart.
#[derive(Debug, Clone)]
pub enum SyntaxNode {
    Word { text: String, at: Position },
    List { items: Vec<SyntaxNode>, at: Position },
}

impl SyntaxNode {
    pub fn at(&self) -> Position {
        match self {
            SyntaxNode::Word { at, .. } | SyntaxNode::List { at, .. } => *at,
        }
    }
}

impl fmt::Display for SyntaxNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SyntaxNode::Word { text, .. } => write!(f, "'{text}'"),
            SyntaxNode::List { items, .. } => match items.first() {
                Some(SyntaxNode::Word { text, .. }) => write!(f, "'({text} …)'"),
                _ => f.write_str("'(…)'"),
            },
        }
    }
}

/// Brackets nested deeper than this are refused, so that reading them cannot exhaust the stack.
const DEEPEST: usize = 200;

/// Reads the single bracketed list that a PDDL text is; `;` starts a comment.
pub fn read(part: &'static str, text: &str) -> Result<SyntaxNode, GameError> {
    let fail = |at, expected: &str, found: &str| GameError { part, at, expected: expected.into(), found: found.into() };
    let mut open: Vec<(Vec<SyntaxNode>, Position)> = Vec::new();
    let mut whole = None;
    let (mut line, mut column) = (1, 0);
    let mut word = String::new();
    let mut word_at = Position { line, column };
    let mut comment = false;
    for c in text.chars().chain([' ']) {
        column += 1;
        let at = Position { line, column };
        let ends_word = c.is_whitespace() || matches!(c, '(' | ')' | ';');
        if ends_word && !word.is_empty() {
            let node = SyntaxNode::Word { text: std::mem::take(&mut word), at: word_at };
            match open.last_mut() {
                Some((items, _)) => items.push(node),
                None => return Err(fail(node.at(), "'('", &node.to_string())),
            }
        }
        if c == '\n' {
            (line, column, comment) = (line + 1, 0, false);
        }
        match c {
            _ if comment => {}
            ';' => comment = true,
            '(' if whole.is_some() => return Err(fail(at, "the end of the text", "'('")),
            '(' if open.len() == DEEPEST => return Err(fail(at, &format!("at most {DEEPEST} nested brackets"), "'('")),
            '(' => open.push((Vec::new(), at)),
            ')' => {
                let (items, start) = open.pop().ok_or_else(|| fail(at, "'(' or the end of the text", "')'"))?;
                let list = SyntaxNode::List { items, at: start };
                match open.last_mut() {
                    Some((outer, _)) => outer.push(list),
                    None => whole = Some(list),
                }
            }
            c if !c.is_whitespace() => {
                if word.is_empty() {
                    word_at = at;
                }
                word.extend(c.to_lowercase());
            }
            _ => {}
        }
    }
    let end = Position { line, column };
    if let Some((_, start)) = open.last() {
        let expected = format!("')' for the '(' of line {}, column {}", start.line, start.column);
        return Err(fail(end, &expected, "the end of the text"));
    }
    whole.ok_or_else(|| fail(end, "'(define …)'", "the end of the text"))
}
