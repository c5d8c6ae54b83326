//! Chat templates: the Jinja that transformers' `apply_chat_template` runs, on minijinja.
//!
//! What minijinja spells otherwise is translated before it is parsed ([`super::chat_syntax`]); [`super::jinja`] bounds what it does.

use super::chat_syntax::{PERCENT, PERCENT_EACH, translate};
use super::input::guarded;
use super::jinja::{self, MAX_OUTPUT, MAX_STEPS};
use super::python_text;
use jiff::Zoned;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, FormatStyle, State, Value, format_filter};
use minijinja_contrib::pycompat;
use std::borrow::Cow;
use std::sync::Arc;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn of this role.
    pub fn new(role: &str, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// The only template of its environment.
const NAME: &str = "chat";

/// A model's chat template with the special tokens that it may name.
#[derive(Clone)]
pub struct ChatTemplate {
    source: Arc<str>,
    /// Or why it is no template: an error only for those who render it.
    jinja: Result<Arc<Environment<'static>>, String>,
    /// Name (`bos_token`) and text; absent ones are undefined.
    tokens: Arc<[(String, String)]>,
}

impl ChatTemplate {
    pub fn new(source: String, tokens: &[(String, String)]) -> ChatTemplate {
        let jinja = guarded(|| environment(&source)).and_then(|parsed| parsed.map_err(|e| e.to_string()));
        ChatTemplate { source: source.into(), jinja: jinja.map(Arc::new), tokens: tokens.into() }
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as text; with `add_generation_prompt` the assistant's turn is opened.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, String> {
        let environment = self.jinja.as_ref().map_err(String::clone)?;
        let known = [
            ("messages", Value::from_serialize(messages)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ];
        let tokens = self.tokens.iter().map(|(name, text)| (&name[..], Value::from(&text[..])));
        let context = known.into_iter().chain(tokens).collect::<Value>();
        jinja::render(environment, NAME, context).map_err(|e| reason(&e))
    }
}

fn reason(error: &Error) -> String {
    match error.kind() {
        ErrorKind::OutOfFuel => format!("it takes more than {MAX_STEPS} steps"),
        ErrorKind::WriteFailure => format!("it writes more than {MAX_OUTPUT} bytes"),
        _ => error.to_string(),
    }
}

/// What a chat template finds in transformers. `strftime_now` tells the time at which the template was loaded, so that every prompt
/// of a process tells the same.
fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut jinja = jinja::environment();
    jinja.set_auto_escape_callback(|_| AutoEscape::None);
    jinja.set_trim_blocks(true);
    jinja.set_lstrip_blocks(true);
    minijinja_contrib::add_to_environment(&mut jinja);
    jinja.set_unknown_method_callback(method);
    jinja.add_function("raise_exception", |reason: String| Err::<Value, _>(invalid(reason)));
    let now = Zoned::now();
    jinja.add_function("strftime_now", move |format: &str| {
        jiff::fmt::strtime::format(format, &now).map_err(|e| invalid(format!("strftime_now({format:?}): {e}")))
    });
    jinja.set_formatter(|out, _, value| {
        let text = value.as_str().map_or_else(|| Cow::Owned(python_text::str(value)), Cow::Borrowed);
        out.write_str(&text).map_err(|e| Error::new(ErrorKind::WriteFailure, e.to_string()))
    });
    jinja.add_filter("string", |value: &Value| python_text::str(value));
    jinja.add_filter("join", join);
    jinja.add_filter("tojson", to_json);
    jinja.add_filter("round", round);
    jinja.add_filter("items", |map: &Value| tuples(&minijinja::filters::items(map)?));
    jinja.add_filter("dictsort", |map: &Value, kwargs: Kwargs| tuples(&minijinja::filters::dictsort(map, kwargs)?));
    jinja.add_filter("wordcount", |text: &str| text.split_whitespace().count());
    jinja.add_filter(PERCENT, |left: Value, right: Value| percent(&left, &[right]));
    jinja.add_filter(PERCENT_EACH, |left: Value, right: Value| match right.kind() {
        ValueKind::Seq | ValueKind::Iterable => percent(&left, &right.try_iter()?.collect::<Vec<_>>()),
        _ => percent(&left, &[right]),
    });
    jinja.add_template_owned(NAME, translate(source))?;
    Ok(jinja)
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// Pairs as Python has them.
fn tuples(pairs: &Value) -> Result<Value, Error> {
    pairs.try_iter()?.map(|pair| Ok(python_text::tuple(pair.try_iter()?))).collect()
}

/// `join(d="", attribute=None)`: the texts of the items, or of an attribute of each.
fn join(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let argument =
        |i: usize, name: &str| args.get(i).cloned().map_or_else(|| kwargs.get::<Option<Value>>(name), |v| Ok(Some(v)));
    let (between, attribute) = (argument(0, "d")?, argument(1, "attribute")?);
    kwargs.assert_all_used()?;
    let text = |item: Value| match &attribute {
        Some(name) => item.get_item(name).map(|value| python_text::str(&value)),
        None => Ok(python_text::str(&item)),
    };
    let texts = value.try_iter()?.map(text).collect::<Result<Vec<_>, Error>>()?;
    Ok(texts.join(&between.map_or_else(String::new, |text| python_text::str(&text))))
}

/// `round(precision=0, method="common")`: as Python does it, halves go to the even neighbour and whole numbers stay what they are.
fn round(number: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let argument =
        |i: usize, name: &str| args.get(i).cloned().map_or_else(|| kwargs.get::<Option<Value>>(name), |v| Ok(Some(v)));
    let (precision, method) = (argument(0, "precision")?, argument(1, "method")?);
    kwargs.assert_all_used()?;
    let precision = precision.map_or(Ok(0), i32::try_from)?.clamp(-300, 300);
    let (value, scale) = (f64::try_from(number.clone())?, 10f64.powi(precision));
    let rounded = match method.as_ref().map_or(Some("common"), Value::as_str) {
        Some("common") if number.is_integer() && precision >= 0 => return Ok(number.clone()),
        // A decimal's nearest float is not always the float's nearest decimal.
        Some("common") if precision > 0 => {
            format!("{value:.0$}", precision as usize).parse().map_err(|_| invalid("round takes a number"))?
        }
        Some("common") => (value * scale).round_ties_even() / scale,
        Some("ceil") => (value * scale).ceil() / scale,
        Some("floor") => (value * scale).floor() / scale,
        _ => return Err(invalid("round: the method is common, ceil or floor")),
    };
    Ok(rounded.into())
}

/// What `%s` writes of it.
fn formatted(value: &Value) -> Value {
    if value.is_number() { value.clone() } else { python_text::str(value).into() }
}

/// Python's `%`: formats a string, or takes the remainder of numbers, which has the sign of the divisor.
fn percent(left: &Value, right: &[Value]) -> Result<Value, Error> {
    if let Some(text) = left.as_str() {
        let right: Vec<Value> = right.iter().map(formatted).collect();
        return format_filter(FormatStyle::Printf, text, &right).map(Value::from);
    }
    let [right] = right else { return Err(invalid("only a string can be formatted with %")) };
    if let (Some(a), Some(b)) = (left.as_i64(), right.as_i64()) {
        let rest = a.checked_rem(b).ok_or_else(|| invalid("modulo by zero"))?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }));
    }
    let number =
        |value: &Value| f64::try_from(value.clone()).map_err(|_| invalid("% takes numbers, or a string first"));
    let (a, b) = (number(left)?, number(right)?);
    Ok(Value::from(a - b * (a / b).floor()))
}

/// Methods of Python's strings and lists, beyond those of minijinja-contrib.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        let found = pycompat::unknown_method_callback(state, value, name, args)?;
        return if name == "items" { tuples(&found) } else { Ok(found) };
    };
    match (name, args.first().and_then(Value::as_str)) {
        ("removeprefix", Some(prefix)) => Ok(text.strip_prefix(prefix).unwrap_or(text).into()),
        ("removesuffix", Some(suffix)) => Ok(text.strip_suffix(suffix).unwrap_or(text).into()),
        ("partition", Some(separator)) if !separator.is_empty() => {
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            let found = if text.contains(separator) { separator } else { "" };
            Ok(python_text::tuple([before, found, after].map(Value::from)))
        }
        ("rpartition", Some(separator)) if !separator.is_empty() => {
            let (before, after) = text.rsplit_once(separator).unwrap_or(("", text));
            let found = if text.contains(separator) { separator } else { "" };
            Ok(python_text::tuple([before, found, after].map(Value::from)))
        }
        ("rsplit", Some(separator)) if !separator.is_empty() => {
            let most = args.get(1).and_then(Value::as_i64).filter(|n| *n >= 0);
            let pieces = most.map_or(usize::MAX, |n| n as usize + 1);
            let mut parts: Vec<&str> = text.rsplitn(pieces, separator).collect();
            parts.reverse();
            Ok(parts.into_iter().map(Value::from).collect())
        }
        // Empty text is in no class of characters, an empty separator splits nothing, and counting it would never end.
        ("islower" | "isupper" | "isspace" | "isdigit" | "isnumeric" | "isalnum" | "isalpha", _) if text.is_empty() => {
            Ok(false.into())
        }
        ("split" | "rsplit" | "partition" | "rpartition", Some("")) => Err(invalid("empty separator")),
        ("count", Some("")) => Ok(Value::from(text.chars().count() + 1)),
        // In Python their characters count, not their bytes.
        ("find" | "rfind", Some(what)) => {
            let at = if name == "find" { text.find(what) } else { text.rfind(what) };
            Ok(at.map_or(Value::from(-1), |at| Value::from(text[..at].chars().count())))
        }
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)` with Python's `json.dumps`; nothing is escaped for
/// HTML.
fn to_json(value: Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(invalid("tojson of an undefined value"));
    }
    let argument = |i: usize, name: &str| -> Result<Option<Value>, Error> {
        let named = if kwargs.has(name) { Some(kwargs.get::<Value>(name)?) } else { None };
        Ok(args.get(i).cloned().or(named).filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let ascii = argument(0, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent = argument(1, "indent")?.map(|v| match v.as_str() {
        Some(text) => text.to_string(),
        None => " ".repeat(v.as_i64().unwrap_or(0).clamp(0, 64) as usize),
    });
    let separators = match argument(2, "separators")? {
        Some(given) => given.try_iter()?.map(|v| v.to_string()).collect::<Vec<_>>(),
        None => Vec::new(),
    };
    let sorted = argument(3, "sort_keys")?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    let (item, colon) = match &separators[..] {
        [] => (if indent.is_some() { "," } else { ", " }, ": "),
        [item, colon] => (&item[..], &colon[..]),
        _ => return Err(invalid("tojson: separators are two texts")),
    };
    let value = serde_json::to_value(&value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let mut out = String::new();
    Json { ascii, indent: indent.as_deref(), item, colon, sorted }.write(&value, 0, &mut out);
    Ok(out)
}

/// The layout of `json.dumps`.
struct Json<'a> {
    ascii: bool,
    indent: Option<&'a str>,
    item: &'a str,
    colon: &'a str,
    sorted: bool,
}

impl Json<'_> {
    fn write(&self, value: &serde_json::Value, depth: usize, out: &mut String) {
        match value {
            serde_json::Value::Array(items) => {
                self.group("[]", items.iter(), depth, out, |item, out| self.write(item, depth + 1, out));
            }
            serde_json::Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sorted {
                    entries.sort_by(|a, b| a.0.cmp(b.0));
                }
                self.group("{}", entries.into_iter(), depth, out, |(key, item), out| {
                    self.text(key, out);
                    out.push_str(self.colon);
                    self.write(item, depth + 1, out);
                });
            }
            serde_json::Value::String(text) => self.text(text, out),
            serde_json::Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => out.push_str(&python_text::float(float)),
                None => out.push_str(&number.to_string()),
            },
            other => out.push_str(&other.to_string()),
        }
    }

    fn group<T>(
        &self,
        brackets: &str,
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(T, &mut String),
    ) {
        let (open, close) = brackets.split_at(1);
        out.push_str(open);
        let empty = items.len() == 0;
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = self.indent.filter(|_| !empty) {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        for (i, item) in items.enumerate() {
            if i > 0 {
                out.push_str(self.item);
            }
            line(depth + 1, out);
            write(item, out);
        }
        line(depth, out);
        out.push_str(close);
    }

    fn text(&self, text: &str, out: &mut String) {
        let quoted = serde_json::Value::from(text).to_string();
        for c in quoted.chars() {
            if self.ascii && !(' '..='~').contains(&c) {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            } else {
                out.push(c);
            }
        }
    }
}
