//! The syntax that chat templates use and minijinja lacks, in minijinja's words: `{% generation %}` is a block with a scope, and
//! Python's `%` between values a filter; what `~` joins is made a string as Python makes one.

/// The filter that stands for `%` with one value on its right side.
pub(super) const PERCENT: &str = "python_percent";
/// The same with a tuple of values.
pub(super) const PERCENT_EACH: &str = "python_percent_each";

/// Translates the tags and expressions of `source`; text, comments and raw blocks stay as they are.
pub(super) fn translate(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (taken, written) = match rest.as_bytes().get(1) {
            Some(b'#') => {
                let end = rest.find("#}").map_or(rest.len(), |at| at + 2);
                (end, rest[..end].to_string())
            }
            Some(b'{') => expression(rest),
            Some(b'%') => tag(rest),
            _ => (1, "{".to_string()),
        };
        out.push_str(&written);
        rest = &rest[taken..];
    }
    out + rest
}

/// Length and translation of the expression that `text` begins with.
fn expression(text: &str) -> (usize, String) {
    match end_of(&text[2..], "}}") {
        Some(end) => (end + 4, format!("{{{{{}}}}}", in_python(&text[2..2 + end]))),
        None => (text.len(), text.to_string()),
    }
}

/// Length and translation of the tag that `text` begins with; of a raw block all up to its end.
fn tag(text: &str) -> (usize, String) {
    let Some(end) = end_of(&text[2..], "%}") else { return (text.len(), text.to_string()) };
    let (body, whole) = (&text[2..2 + end], end + 4);
    match body.trim_matches(['-', '+']).trim() {
        "raw" => {
            let raw = text[whole..].find("endraw").map_or(text.len(), |at| whole + at);
            (raw, text[..raw].to_string())
        }
        "generation" => (whole, format!("{{%{}%}}", body.replace("generation", "with"))),
        "endgeneration" => (whole, format!("{{%{}%}}", body.replace("endgeneration", "endwith"))),
        _ => (whole, format!("{{%{}%}}", in_python(body))),
    }
}

/// Where `close` stands outside of strings and brackets.
fn end_of(text: &str, close: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0usize, None, false);
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if depth == 0 && text[at..].starts_with(close) => return Some(at),
            None => match c {
                '\'' | '"' => quote = Some(c),
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            },
        }
    }
    None
}

#[derive(Clone, Copy, PartialEq)]
enum TokenKind {
    Text,
    Number,
    Name,
    Open,
    Close,
    Operator,
}

/// A word of an expression, and where it begins.
struct Word<'a> {
    kind: TokenKind,
    text: &'a str,
    at: usize,
}

fn words(body: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(c) = body[at..].chars().next() {
        let rest = &body[at..];
        let while_in = |f: fn(char) -> bool| rest.find(|c| !f(c)).unwrap_or(rest.len());
        let (kind, length) = match c {
            c if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '\'' | '"' => (TokenKind::Text, text_length(rest, c)),
            '0'..='9' => (TokenKind::Number, while_in(|c| c.is_alphanumeric() || c == '_')),
            c if c.is_alphabetic() || c == '_' => (TokenKind::Name, while_in(|c| c.is_alphanumeric() || c == '_')),
            '(' | '[' | '{' => (TokenKind::Open, 1),
            ')' | ']' | '}' => (TokenKind::Close, 1),
            _ if rest.starts_with("**") || rest.starts_with("//") => (TokenKind::Operator, 2),
            c => (TokenKind::Operator, c.len_utf8()),
        };
        words.push(Word { kind, text: &rest[..length], at });
        at += length;
    }
    words
}

/// Length of the string that `rest` begins with, quotes included.
fn text_length(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The text between two delimiters; what controls white space at its ends is no sign of a number.
fn in_python(body: &str) -> String {
    let control = |c: Option<char>| usize::from(c.is_some_and(|c| c == '-' || c == '+'));
    let (ahead, behind) = (control(body.chars().next()), control(body.chars().last().filter(|_| body.len() > 1)));
    let inner = &body[ahead..body.len() - behind];
    let (first, last) = (&body[..ahead], &body[body.len() - behind..]);
    format!("{first}{}{last}", with_percent(&with_strings(inner)))
}

/// Writes what `~` joins as `value | string`, unless it is a number or part of a product: minijinja has words of its own for what is
/// no string.
fn with_strings(body: &str) -> String {
    let words = words(body);
    let of_product =
        |i: Option<usize>| i.and_then(|i| words.get(i)).is_some_and(|w| ["*", "/", "//", "%", "**"].contains(&w.text));
    let mut ends = std::collections::BTreeSet::new();
    for (i, _) in words.iter().enumerate().filter(|(_, word)| word.text == "~" && word.kind == TokenKind::Operator) {
        if let Some(first) = operand_before(&words, i).filter(|first| !of_product(first.checked_sub(1))) {
            ends.extend((words[first].kind != TokenKind::Number).then_some(i));
        }
        if let Some(end) = operand_after(&words, i + 1).filter(|end| !of_product(Some(*end))) {
            ends.extend((!matches!(words[i + 1].kind, TokenKind::Number | TokenKind::Operator)).then_some(end));
        }
    }
    let (mut out, mut done) = (String::new(), 0);
    for last in ends.into_iter().map(|end| &words[end - 1]) {
        let end = last.at + last.text.len();
        out.push_str(&body[done..end]);
        out.push_str(" | string");
        done = end;
    }
    out + &body[done..]
}

/// Writes `left % right` as `left | filter(right)` wherever the left side may be a string: a filter binds as tightly to its left.
/// minijinja itself has only the remainder of numbers, which plain numbers on the right side are left to.
fn with_percent(body: &str) -> String {
    let words = words(body);
    let mut edits: Vec<(usize, usize, String)> = Vec::new();
    let mut replaced = Vec::new();
    for (i, word) in words.iter().enumerate().filter(|(_, word)| word.text == "%" && word.kind == TokenKind::Operator) {
        let (Some(left), Some(right)) = (operand_before(&words, i), operand_after(&words, i + 1)) else { continue };
        let formats = words[i - 1].kind == TokenKind::Text || words[i + 1].kind != TokenKind::Number;
        let before = left.checked_sub(1).map(|b| (b, &words[b]));
        let apart = before.is_none_or(|(b, word)| match word.text {
            "*" | "/" | "//" | "**" => false,
            "%" => replaced.contains(&b),
            "-" | "+" => b > 0 && ends_operand(&words[b - 1]),
            _ => true,
        });
        if !formats || !apart || words.get(right).is_some_and(|next| next.text == "**") {
            continue;
        }
        let tuple = words[i + 1].text == "(" && matching(&words, i + 1).is_some_and(|close| close + 1 == right);
        let filter = if tuple { PERCENT_EACH } else { PERCENT };
        let last = &words[right - 1];
        edits.push((word.at, word.at + 1, format!("| {filter}(")));
        edits.push((last.at + last.text.len(), last.at + last.text.len(), ")".into()));
        replaced.push(i);
    }
    edits.sort_by_key(|(at, ..)| *at);
    let (mut out, mut done) = (String::new(), 0);
    for (from, to, text) in edits {
        out.push_str(&body[done..from]);
        out.push_str(&text);
        done = to;
    }
    out + &body[done..]
}

fn is_keyword(word: &Word) -> bool {
    word.kind == TokenKind::Name && ["and", "or", "not", "in", "is", "if", "elif", "else", "set"].contains(&word.text)
}

fn ends_operand(word: &Word) -> bool {
    matches!(word.kind, TokenKind::Text | TokenKind::Number | TokenKind::Name | TokenKind::Close) && !is_keyword(word)
}

/// The first word of the operand that ends before word `i`: a value with its calls, subscripts, attributes and filters.
fn operand_before(words: &[Word], i: usize) -> Option<usize> {
    let mut first = i.checked_sub(1)?;
    loop {
        if !ends_operand(&words[first]) {
            return None;
        }
        if words[first].kind == TokenKind::Close {
            first = opening(words, first)?;
            if first > 0 && words[first].text != "{" && ends_operand(&words[first - 1]) {
                first -= 1;
                continue;
            }
        }
        match first.checked_sub(2) {
            Some(before) if [".", "|"].contains(&words[first - 1].text) => first = before,
            _ => return Some(first),
        }
    }
}

/// The word after the operand that begins with word `i`.
fn operand_after(words: &[Word], mut i: usize) -> Option<usize> {
    while words.get(i).is_some_and(|word| ["-", "+"].contains(&word.text)) {
        i += 1;
    }
    let value = words.get(i)?;
    i = match value.kind {
        TokenKind::Open => matching(words, i)? + 1,
        TokenKind::Text | TokenKind::Number | TokenKind::Name if !is_keyword(value) => i + 1,
        _ => return None,
    };
    while let Some(word) = words.get(i) {
        i = match word.text {
            "." | "|" => i + 2,
            "(" | "[" if word.kind == TokenKind::Open => matching(words, i)? + 1,
            _ => break,
        };
    }
    (i <= words.len()).then_some(i)
}

/// The bracket that closes the one at word `i`.
fn matching(words: &[Word], i: usize) -> Option<usize> {
    let mut depth = 0usize;
    (i..words.len()).find(|&j| {
        match words[j].kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}

/// The bracket that opens the one at word `i`.
fn opening(words: &[Word], i: usize) -> Option<usize> {
    let mut depth = 0usize;
    (0..=i).rev().find(|&j| {
        match words[j].kind {
            TokenKind::Close => depth += 1,
            TokenKind::Open => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}
