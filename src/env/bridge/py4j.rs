//! A client of the Py4J gateway: calls of Java methods as text lines over a local connection.

use super::Fault;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longest reply, bytes.
const LONGEST: usize = 16 << 20;
/// How much of a Java error or value is told, characters.
const SHOWN: usize = 200;

/// An argument of a call.
#[derive(Debug, Clone, Copy)]
pub enum JavaArg<'a> {
    /// A text.
    Text(&'a str),
    /// A whole number.
    Int(i64),
    /// True or false.
    Bool(bool),
    /// An object of the other side, by its name.
    Ref(&'a str),
}

/// What a call returned.
#[derive(Debug, Clone, PartialEq)]
pub enum JavaValue {
    /// Nothing, or null.
    Nothing,
    /// A text.
    Text(String),
    /// A number.
    Number(f64),
    /// True or false.
    Bool(bool),
    /// Name of an object on the other side, of any class. It lives until [`Gateway::free`].
    Ref(String),
}

/// A connection to a gateway.
#[derive(Debug)]
pub struct Gateway {
    stream: BufReader<TcpStream>,
}

/// As much of a value as an error shows.
fn start(value: &JavaValue) -> String {
    format!("{value:?}").chars().take(SHOWN).collect()
}

fn broken(what: &str, e: &dyn std::fmt::Display) -> Fault {
    Fault::Broken(format!("{what}: {e}"))
}

impl Gateway {
    /// Connects to a gateway on this machine.
    ///
    /// # Errors
    /// If there is no connection by `deadline`.
    pub fn connect(port: u16, deadline: Instant) -> Result<Gateway, Fault> {
        let lost = |e| broken(&format!("no connection to its port {port}"), &e);
        let stream =
            TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), left(deadline)).map_err(lost)?;
        stream.set_nodelay(true).map_err(lost)?;
        Ok(Gateway { stream: BufReader::new(stream) })
    }

    /// A new object of a class, by its constructor without arguments.
    ///
    /// # Errors
    /// If the class or its constructor does not exist, or the connection fails.
    pub fn construct(&mut self, class: &str, deadline: Instant) -> Result<String, Fault> {
        match self.exchange(&format!("i\n{class}\ne\n"), deadline)? {
            JavaValue::Ref(object) => Ok(object),
            other => Err(broken("a constructor returned no object", &start(&other))),
        }
    }

    /// Calls a method of an object, or of a class as `z:NAME`. A Java exception is [`Fault::Refused`].
    ///
    /// # Errors
    /// If Java throws, the connection fails, or no answer comes by `deadline`.
    pub fn call(
        &mut self,
        object: &str,
        method: &str,
        args: &[JavaArg<'_>],
        deadline: Instant,
    ) -> Result<JavaValue, Fault> {
        let mut request = format!("c\n{object}\n{method}\n");
        for arg in args {
            match arg {
                JavaArg::Text(text) => request += &format!("s{}\n", escape(text)),
                JavaArg::Int(number) => request += &format!("i{number}\n"),
                JavaArg::Bool(value) => request += &format!("b{value}\n"),
                JavaArg::Ref(object) => request += &format!("r{object}\n"),
            }
        }
        self.exchange(&(request + "e\n"), deadline)
    }

    /// Calls a method that returns a text.
    ///
    /// # Errors
    /// As [`Gateway::call`], and if something else is returned.
    pub fn text(
        &mut self,
        object: &str,
        method: &str,
        args: &[JavaArg<'_>],
        deadline: Instant,
    ) -> Result<String, Fault> {
        match self.call(object, method, args, deadline)? {
            JavaValue::Text(text) => Ok(text),
            other => Err(broken(method, &format!("returned {}, not a text", start(&other)))),
        }
    }

    /// Calls a method that returns a number.
    ///
    /// # Errors
    /// As [`Gateway::call`], and if something else is returned.
    pub fn number(
        &mut self,
        object: &str,
        method: &str,
        args: &[JavaArg<'_>],
        deadline: Instant,
    ) -> Result<f64, Fault> {
        match self.call(object, method, args, deadline)? {
            JavaValue::Number(number) => Ok(number),
            other => Err(broken(method, &format!("returned {}, not a number", start(&other)))),
        }
    }

    /// Calls a method that returns a list of texts: it crosses in one piece, and is freed.
    ///
    /// # Errors
    /// As [`Gateway::call`], and if something else is returned.
    pub fn texts(&mut self, object: &str, method: &str, deadline: Instant) -> Result<Vec<String>, Fault> {
        let JavaValue::Ref(list) = self.call(object, method, &[], deadline)? else {
            return Err(broken(method, &"returned no list"));
        };
        let joined =
            self.text("z:java.lang.String", "join", &[JavaArg::Text("\u{1f}"), JavaArg::Ref(&list)], deadline)?;
        self.free(&list, deadline)?;
        Ok(if joined.is_empty() { Vec::new() } else { joined.split('\u{1f}').map(String::from).collect() })
    }

    /// Lets go of an object on the other side.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn free(&mut self, object: &str, deadline: Instant) -> Result<(), Fault> {
        self.exchange(&format!("m\nd\n{object}\ne\n"), deadline).map(drop)
    }

    fn exchange(&mut self, request: &str, deadline: Instant) -> Result<JavaValue, Fault> {
        self.send(request.as_bytes(), deadline)?;
        let line = self.line(deadline)?;
        let value = line.strip_prefix('!').and_then(|reply| {
            let (status, rest) = reply.split_at_checked(1)?;
            Some(if status == "y" { Ok(value(rest)?) } else { Err(rest) })
        });
        match value {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => {
                let words = unescape(error.trim_start_matches('s'));
                let first: String = words.lines().next().unwrap_or_default().chars().take(SHOWN).collect();
                Err(Fault::Refused(format!("Java says: {first}")))
            }
            None => {
                let start: String = line.chars().take(80).collect();
                Err(broken("the reply breaks the Py4J protocol", &format!("{start:?}")))
            }
        }
    }

    /// Sends all, in whatever pieces it is taken.
    fn send(&mut self, mut rest: &[u8], deadline: Instant) -> Result<(), Fault> {
        let stream = self.stream.get_mut();
        while !rest.is_empty() {
            if Instant::now() >= deadline {
                return Err(Fault::Broken("it did not read what it was sent in time".into()));
            }
            match stream.set_write_timeout(Some(left(deadline))).and_then(|()| stream.write(rest)) {
                Ok(count) => rest = &rest[count..],
                Err(e) if is_passing(&e) => {}
                Err(e) => return Err(broken("the connection broke", &e)),
            }
        }
        Ok(())
    }

    /// The next line, whatever pieces it comes in.
    fn line(&mut self, deadline: Instant) -> Result<String, Fault> {
        let patience = left(deadline);
        let mut bytes = Vec::new();
        loop {
            // Each piece may come in time, and the whole never.
            if Instant::now() >= deadline {
                return Err(Fault::Broken(format!("no answer within {:.1} s", patience.as_secs_f64())));
            }
            let wait = Some(left(deadline));
            let found = match self.stream.get_mut().set_read_timeout(wait).and_then(|()| self.stream.fill_buf()) {
                Ok([]) => return Err(broken("the connection broke", &"it was closed")),
                Ok(found) => found,
                Err(e) if is_passing(&e) => continue,
                Err(e) => return Err(broken("the connection broke", &e)),
            };
            let end = found.iter().position(|b| *b == b'\n');
            let count = end.map_or(found.len(), |at| at + 1);
            bytes.extend_from_slice(&found[..count]);
            self.stream.consume(count);
            if end.is_some() {
                bytes.pop();
                return Ok(String::from_utf8_lossy(&bytes).into_owned());
            }
            if bytes.len() > LONGEST {
                return Err(broken("the reply is too long", &format!("over {LONGEST} bytes")));
            }
        }
    }
}

/// Whether nothing is lost: it was interrupted, or its time is up.
fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Time left, and never the zero that would mean for ever.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

fn value(reply: &str) -> Option<JavaValue> {
    let (kind, rest) = reply.split_at_checked(1)?;
    match kind {
        "v" | "n" => Some(JavaValue::Nothing),
        "s" => Some(JavaValue::Text(unescape(rest))),
        "i" | "L" | "d" | "D" => rest.parse().ok().map(JavaValue::Number),
        "b" => rest.parse().ok().map(JavaValue::Bool),
        // Objects, lists, maps, sets, arrays and iterators differ in a letter only.
        "r" | "l" | "a" | "h" | "t" | "g" => Some(JavaValue::Ref(rest.into())),
        _ => None,
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r")
}

fn unescape(text: &str) -> String {
    let (mut plain, mut chars) = (String::with_capacity(text.len()), text.chars());
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => plain.push('\n'),
            ('\\', Some('r')) => plain.push('\r'),
            ('\\', Some(other)) => plain.push(other),
            (c, _) => plain.push(c),
        }
    }
    plain
}
