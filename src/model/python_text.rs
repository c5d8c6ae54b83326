//! Values of templates as Python's `str` and `repr` write them: transformers renders its chat templates in Python.

use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use std::sync::Arc;

/// A tuple, which minijinja has no value for: a sequence, but for how it is written.
#[derive(Debug)]
struct Tuple(Vec<Value>);

impl Object for Tuple {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }
}

/// A tuple of these.
pub(super) fn tuple(items: impl IntoIterator<Item = Value>) -> Value {
    Value::from_object(Tuple(items.into_iter().collect()))
}

/// `str(value)`; nothing for an undefined value, as Jinja writes it.
pub(super) fn str(value: &Value) -> String {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => value.to_string(),
        _ => repr(value),
    }
}

fn repr(value: &Value) -> String {
    let items = |separator: &str| -> String {
        let items: Vec<String> = value.try_iter().into_iter().flatten().map(|item| repr(&item)).collect();
        items.join(separator)
    };
    match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool if value.is_true() => "True".into(),
        ValueKind::Bool => "False".into(),
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
        }
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq if value.downcast_object_ref::<Tuple>().is_some() => match value.len() {
            Some(1) => format!("({},)", items("")),
            _ => format!("({})", items(", ")),
        },
        ValueKind::Seq | ValueKind::Iterable => format!("[{}]", items(", ")),
        ValueKind::Map => {
            let entry = |key: Value| format!("{}: {}", repr(&key), repr(&value.get_item(&key).unwrap_or_default()));
            let entries: Vec<String> = value.try_iter().into_iter().flatten().map(entry).collect();
            format!("{{{}}}", entries.join(", "))
        }
        ValueKind::Undefined => "Undefined".into(),
        _ => value.to_string(),
    }
}

/// A text within quotes: single ones, unless only double ones need no escape.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// A float: like Rust's shortest form, but for the exponent's sign and its two digits.
pub(super) fn float(value: f64) -> String {
    let text = format!("{value:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, size) = exponent.strip_prefix('-').map_or(('+', exponent), |size| ('-', size));
            format!("{digits}e{sign}{size:0>2}")
        }
        None if value.is_infinite() || value.is_nan() => text.to_lowercase(),
        None => text,
    }
}
