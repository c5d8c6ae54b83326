//! What may reach a terminal. Task ids, names and errors come from environments, models and servers, and a terminal obeys what it is
//! shown: everything that is printed passes here.

use std::borrow::Cow;
use std::fmt::Write;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Whether a character does something else than to show itself: control characters, and what is invisible or turns the direction of
/// writing.
fn acts(c: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    // Most text is ASCII.
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    matches!(c.general_category(), Control | Format | LineSeparator | ParagraphSeparator)
}

/// A text with `escape` in place of each character that acts, those in `kept` excepted.
fn escaped<'a>(text: &'a str, kept: &[char], escape: impl Fn(char, &mut String)) -> Cow<'a, str> {
    let acts = |c: char| acts(c) && !kept.contains(&c);
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    text.chars().for_each(|c| if acts(c) { escape(c, &mut safe) } else { safe.push(c) });
    Cow::Owned(safe)
}

fn as_rust(c: char, out: &mut String) {
    out.extend(c.escape_default());
}

/// A text of several lines, e.g. a table: line breaks and tabs stay.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, &['\n', '\t'], as_rust)
}

/// A text that is one line, whatever it holds.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, &['\t'], as_rust)
}

/// JSON, which stays the same JSON: there only strings hold such characters, but for line breaks and tabs.
pub fn json(text: &str) -> Cow<'_, str> {
    let escape = |c: char, out: &mut String| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing into a text does not fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    };
    escaped(text, &['\n', '\t'], escape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_is_shown_as_its_escape() {
        assert_eq!(lines("a\n\tb"), "a\n\tb");
        assert_eq!(line("a\n\tb\r"), "a\\n\tb\\r");
        assert_eq!(line("\u{1b}[2J \u{7} \u{7f} \u{9b}"), "\\u{1b}[2J \\u{7} \\u{7f} \\u{9b}");
        // Bidirectional, invisible, separators, tags.
        for c in
            "\u{202e}\u{2066}\u{200f}\u{61c}\u{200b}\u{2060}\u{feff}\u{ad}\u{2028}\u{2029}\u{e0041}\u{85}\0".chars()
        {
            assert_eq!(lines(&format!("x{c}y")), format!("x{}y", c.escape_default()), "{c:?}");
        }
        // What shows itself stays, in every script.
        let plain = "Öl, 文字\u{3000}, हिन्दी, עברית, é e\u{301} → ✓ 🍎 | \\";
        assert!(matches!(lines(plain), Cow::Borrowed(text) if text == plain));
    }

    #[test]
    fn json_stays_what_it_is() {
        let value = serde_json::json!({ "a\u{202e}": ["\u{1b}\u{7f}\u{9b}\u{e0041}\n", 1] });
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let safe = json(&text);
            assert!(!safe.contains(|c| acts(c) && c != '\n'), "{safe}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
        }
    }
}
