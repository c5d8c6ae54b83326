//! The frame of a page: policy, styles, words, data and scripts, in this order.

use super::PageError;
use super::embed::{Assets, packed};
use crate::report::escape;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value, context, escape_formatter};
use serde::Serialize;

/// A page of `template`, which shows `words`, with data for the scripts and further packed texts that they unpack one by one.
pub fn page(template: &str, words: Value, data: &impl Serialize, texts: &[String]) -> Result<String, PageError> {
    let mut templates = Environment::new();
    templates.set_auto_escape_callback(|_| AutoEscape::Html);
    templates.set_formatter(escaped);
    templates.add_template("frame", include_str!("../assets/frame.html"))?;
    templates.add_template("page", template)?;
    let Assets { policy, styles, scripts } = Assets::of_the_page();
    // Base64 has no character that HTML knows.
    let text = |(i, text): (usize, &String)| format!("<script type=\"text/plain\" id=\"text-{i}\">{text}</script>\n");
    let texts: String = texts.iter().enumerate().map(text).collect();
    let frame = context! { policy, styles, scripts, texts, data => packed(data)? };
    Ok(templates.get_template("page")?.render(context! { ..words, ..frame })?)
}

/// As minijinja escapes, and control characters as well.
fn escaped(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) if !value.is_safe() => {
            out.write_str(&escape::html(text)).map_err(|_| ErrorKind::WriteFailure.into())
        }
        _ => escape_formatter(out, state, value),
    }
}
