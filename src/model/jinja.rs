//! Renders templates that others wrote: such a template is a program, so its steps and its output are bounded.

use super::input::guarded;
use minijinja::{Environment, Error, ErrorKind, Value};
use std::io::{self, Write};

/// Longest template, in bytes.
pub const MAX_SOURCE: usize = 1 << 20;
/// Longest output of a rendering, in bytes.
pub const MAX_OUTPUT: usize = 1 << 26;
/// Most steps of a rendering. A conversation of hundreds of messages takes some ten thousand.
pub const MAX_STEPS: u64 = 10_000_000;

/// An environment whose renderings are bounded.
pub fn environment() -> Environment<'static> {
    let mut jinja = Environment::new();
    jinja.set_fuel(Some(MAX_STEPS));
    jinja
}

/// Parses `source` as the template `name` of an [`environment`].
pub fn add(jinja: &mut Environment<'static>, name: &str, source: String) -> Result<(), Error> {
    guarded(|| jinja.add_template_owned(name.to_string(), source)).map_err(panicked)?
}

/// The text of the template `name`.
pub fn render(jinja: &Environment<'_>, name: &str, context: Value) -> Result<String, Error> {
    let mut output = Bounded(Vec::new());
    guarded(|| jinja.get_template(name)?.render_captured_to(context, &mut output).map(|_| ())).map_err(panicked)??;
    String::from_utf8(output.0).map_err(|e| Error::new(ErrorKind::WriteFailure, e.to_string()))
}

fn panicked(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// Takes so much and no more.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
