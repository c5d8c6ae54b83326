//! A session with any OpenEnv server, as a worker of a pool.

use crate::config::secret_in;
use crate::env::bridge::{Fault, Hints, Worker, no_json};
use crate::env::{EnvError, Observation};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::select;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{timeout, timeout_at};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

/// Longest message of a server, bytes.
const LONGEST: usize = 4 << 20;
/// Messages read ahead; a server never owes more than one.
const READ_AHEAD: usize = 4;
/// How much of a nonsensical message an error shows, characters.
const SHOWN: usize = 80;
/// Longest chain of references in a schema.
const DEEPEST: usize = 8;
/// Time to say goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Base of its HTTP routes, without a slash at the end.
    pub http: String,
    /// Of its sessions.
    pub socket: String,
}

impl Address {
    /// From `http(s)://…`, `ws(s)://…` or `HOST:PORT`.
    ///
    /// # Errors
    /// If the scheme is another, the host is missing, or the address holds a password.
    pub fn parse(url: &str) -> Result<Address, EnvError> {
        let bad =
            |reason: &str| EnvError::BadGame { file: format!("env.openenv.url = {url:?}"), reason: reason.into() };
        if let Some(reason) = secret_in(url) {
            return Err(EnvError::BadGame { file: "env.openenv.url".into(), reason: reason.into() });
        }
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let rest = rest.trim_end_matches('/');
        if rest.is_empty() {
            return Err(bad("must be the address of an OpenEnv server, e.g. \"http://127.0.0.1:8000\""));
        }
        let (http, socket) = match scheme {
            "http" | "ws" => ("http", "ws"),
            "https" | "wss" => ("https", "wss"),
            _ => return Err(bad("must begin with http://, https://, ws:// or wss://")),
        };
        Ok(Address { http: format!("{http}://{rest}"), socket: format!("{socket}://{rest}/ws") })
    }
}

/// Which fields of a server's actions and observations are the agent's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageLayout {
    /// The field of an action that takes the command.
    pub action: String,
    /// The field of an observation that is shown; `None`: the whole observation, as JSON.
    pub text: Option<String>,
    /// Observations have an `expert`: then that and `distance` are hints, which the agent is not shown.
    pub hints: bool,
}

impl MessageLayout {
    /// From the answer of `/schema`; `action` is the field to use, empty: the only one that takes text.
    ///
    /// # Errors
    /// If the schema has no such field, or no single field that takes text.
    pub fn read(schema: &Value, action: &str) -> Result<MessageLayout, String> {
        let own = |name: &str| !["metadata", "reward", "done", "expert"].contains(&name);
        let part = |name: &str| Schema { whole: schema, part: &schema[name], at: &schema[name] }.resolved();
        let texts = |part: Schema<'_>| -> Vec<String> {
            let fields = part.at["properties"].as_object().into_iter().flatten();
            let text = |field| Schema { at: field, ..part }.is_text(DEEPEST);
            fields.filter(|(name, field)| own(name) && text(field)).map(|(name, _)| name.clone()).collect()
        };
        let only = |names: &[String]| if let [name] = names { Some(name.clone()) } else { None };
        let (takes, shows) = (texts(part("action")), texts(part("observation")));
        let required: Vec<String> = takes
            .iter()
            .filter(|n| part("action").at["required"].as_array().is_some_and(|r| r.contains(&json!(n))))
            .cloned()
            .collect();
        let chosen = if action.is_empty() { only(&required).or_else(|| only(&takes)) } else { Some(action.into()) };
        let action = chosen.ok_or_else(|| match takes.is_empty() {
            true => "its actions have no field that takes text, so that an agent of words cannot act".to_string(),
            false => {
                format!("its actions have several text fields: set env.openenv.action to one of {}", takes.join(", "))
            }
        })?;
        let text = shows.iter().find(|name| *name == "text").cloned().or_else(|| only(&shows));
        let hints = part("observation").at["properties"].get("expert").is_some();
        Ok(MessageLayout { action, text, hints })
    }

    fn observation(&self, data: Value) -> Result<(Observation, Hints), String> {
        #[derive(Deserialize)]
        struct Shown {
            observation: Map<String, Value>,
            #[serde(default)]
            reward: Value,
            #[serde(default)]
            done: bool,
        }
        let Shown { mut observation, reward, done } = Shown::deserialize(data).map_err(|e| e.to_string())?;
        let hints = if self.hints { hints(&mut observation)? } else { Hints::default() };
        let won = observation.remove("won").and_then(|won| won.as_bool());
        let number = |yes: bool| f64::from(u8::from(yes));
        let reward = match reward {
            Value::Bool(yes) => number(yes),
            // A server that tells success and pays nothing: success pays 1.
            Value::Null => number(won.unwrap_or_default()),
            paid => paid.as_f64().ok_or("its reward is no number")?,
        };
        let valid = observation.remove("valid").and_then(|valid| valid.as_bool()).unwrap_or(true);
        let admissible = observation.remove("admissible").map(Vec::<String>::deserialize);
        let mut admissible = admissible.transpose().map_err(|e| format!("admissible: {e}"))?.unwrap_or_default();
        admissible.sort_unstable();
        admissible.dedup();
        let text = match &self.text {
            None => Value::Object(observation).to_string(),
            Some(field) => match observation.remove(field) {
                Some(Value::String(text)) => text,
                Some(Value::Null) => String::new(),
                _ => return Err(format!("its observation has no text in {field:?}")),
            },
        };
        // A server that does not tell success from an end: a full reward at the end.
        let won = won.unwrap_or(done && reward >= 1.0);
        Ok((Observation { text, admissible, reward: reward as f32, done: done || won, won, valid }, hints))
    }
}

/// Takes the hints out of an observation.
fn hints(observation: &mut Map<String, Value>) -> Result<Hints, String> {
    let told = ["expert", "distance"].into_iter().filter_map(|name| observation.remove_entry(name));
    Hints::deserialize(Value::Object(told.collect())).map_err(|e| e.to_string())
}

/// A place in the JSON schemas of a server.
#[derive(Clone, Copy)]
struct Schema<'a> {
    /// What `/schema` answered.
    whole: &'a Value,
    /// The schema of the actions or of the observations; its references begin at its root, or at that of the whole.
    part: &'a Value,
    at: &'a Value,
}

impl<'a> Schema<'a> {
    /// The place that this one refers to, by `$ref` or as the only one of `allOf`.
    fn resolved(self) -> Schema<'a> {
        let mut place = self;
        for _ in 0..DEEPEST {
            let target = match (place.at["$ref"].as_str(), place.at["allOf"].as_array().map(Vec::as_slice)) {
                (Some(reference), _) => {
                    let pointer = reference.strip_prefix('#');
                    pointer.and_then(|p| self.part.pointer(p).or_else(|| self.whole.pointer(p)))
                }
                (None, Some([only])) => Some(only),
                _ => None,
            };
            match target {
                Some(at) => place.at = at,
                None => break,
            }
        }
        place
    }

    /// Whether it lets a field be text.
    fn is_text(self, depth: usize) -> bool {
        let place = self.resolved();
        let kind = &place.at["type"];
        let any = |of: &Value| {
            let of = of.as_array().map_or(&[][..], Vec::as_slice);
            depth > 0 && of.iter().any(|at| Schema { at, ..place }.is_text(depth - 1))
        };
        kind == "string"
            || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "string"))
            || any(&place.at["anyOf"])
            || any(&place.at["oneOf"])
    }
}

/// One session.
pub struct Connection {
    layout: Arc<MessageLayout>,
    /// To the task that carries messages; closing it ends the session.
    requests: UnboundedSender<String>,
    answers: Receiver<Received>,
    carrier: JoinHandle<()>,
    /// Those of the last observation.
    hints: Hints,
    broken: bool,
}

/// A message, or why there are no more.
type Received = Result<String, String>;

/// Carries the messages of all sessions, and answers pings while nobody waits for one.
fn runtime() -> Result<&'static Runtime, Fault> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    let build = || Builder::new_multi_thread().worker_threads(1).thread_name("openenv").enable_all().build().ok();
    RUNTIME.get_or_init(build).as_ref().ok_or_else(|| Fault::Refused("there is no thread to carry its messages".into()))
}

impl Connection {
    /// Opens a session.
    ///
    /// # Errors
    /// If no session is open by `deadline`.
    pub fn open(address: &Address, layout: Arc<MessageLayout>, deadline: Instant) -> Result<Connection, Fault> {
        let runtime = runtime()?;
        let lost = |e: &dyn std::fmt::Display| Fault::Broken(format!("no session at {}: {e}", address.socket));
        let config = WebSocketConfig::default().max_message_size(Some(LONGEST)).max_frame_size(Some(LONGEST));
        let connect =
            async { timeout_at(deadline.into(), connect_async_with_config(&address.socket, Some(config), true)).await };
        let (socket, _) =
            runtime.block_on(connect).map_err(|_| lost(&"it did not answer in time"))?.map_err(|e| lost(&e))?;
        let (requests, outbox) = unbounded_channel();
        let (inbox, answers) = sync_channel(READ_AHEAD);
        let carrier = runtime.spawn(carry(socket, outbox, inbox));
        Ok(Connection { layout, requests, answers, carrier, hints: Hints::default(), broken: false })
    }

    fn call(&mut self, request: Value, deadline: Instant) -> Result<Observation, Fault> {
        let answer = self.exchange(request.to_string(), deadline);
        let result = answer.map(|(seen, hints)| {
            self.hints = hints;
            seen
        });
        self.broken |= matches!(result, Err(Fault::Broken(_)));
        let name = request["type"].as_str().unwrap_or_default();
        result.map_err(|fault| match fault {
            Fault::Broken(reason) => Fault::Broken(format!("OpenEnv server, {name}: {reason}")),
            Fault::Refused(reason) => Fault::Refused(format!("OpenEnv server, {name}: {reason}")),
        })
    }

    fn exchange(&mut self, request: String, deadline: Instant) -> Result<(Observation, Hints), Fault> {
        let gone = || Fault::Broken("the connection is gone".into());
        // What came unasked says why the server will not serve, or is nonsense.
        match self.answers.try_recv() {
            Ok(early) => {
                self.read(early)?;
                return Err(Fault::Broken("it spoke before it was asked".into()));
            }
            Err(TryRecvError::Disconnected) => return Err(gone()),
            Err(TryRecvError::Empty) => {}
        }
        self.requests.send(request).map_err(|_| gone())?;
        let patience = deadline.saturating_duration_since(Instant::now());
        let answer = self.answers.recv_timeout(patience).map_err(|e| match e {
            RecvTimeoutError::Timeout => Fault::Broken(format!("no answer within {:.1} s", patience.as_secs_f64())),
            RecvTimeoutError::Disconnected => gone(),
        })?;
        self.read(answer)
    }

    fn read(&self, received: Received) -> Result<(Observation, Hints), Fault> {
        #[derive(Deserialize)]
        struct Reply {
            #[serde(rename = "type")]
            kind: String,
            #[serde(default)]
            data: Value,
        }
        let text = received.map_err(Fault::Broken)?;
        let nonsense = |why: &dyn std::fmt::Display| {
            let start: String = text.chars().take(SHOWN).collect();
            Fault::Broken(format!("the answer breaks the protocol ({why}): {start:?}"))
        };
        let reply: Reply = serde_json::from_str(&text).map_err(|e| nonsense(&no_json(&e, &text)))?;
        match &reply.kind[..] {
            "observation" => self.layout.observation(reply.data).map_err(|e| nonsense(&e)),
            "error" => Err(refusal(&reply.data)),
            _ => Err(nonsense(&"it is no observation")),
        }
    }
}

/// An error of the protocol. Some servers say in `errors` what was invalid.
fn refusal(data: &Value) -> Fault {
    let (code, message) = (data["code"].as_str().unwrap_or_default(), data["message"].as_str().unwrap_or_default());
    let errors = if data["errors"].is_null() { String::new() } else { format!(" {}", data["errors"]) };
    let words: String = format!("{message}{errors} ({code})").chars().take(4 * SHOWN).collect();
    match code {
        "CAPACITY_REACHED" => Fault::Broken(format!("{words}; lower env.workers to the sessions that it allows")),
        "FACTORY_ERROR" | "SESSION_ERROR" => Fault::Broken(words),
        _ => Fault::Refused(words),
    }
}

impl Worker for Connection {
    fn reset(&mut self, task: &str, deadline: Instant) -> Result<Observation, Fault> {
        self.call(json!({ "type": "reset", "data": super::suite::reset_of(task) }), deadline)
    }

    fn step(&mut self, command: &str, deadline: Instant) -> Result<Observation, Fault> {
        let action = Map::from_iter([(self.layout.action.clone(), command.into())]);
        self.call(json!({ "type": "step", "data": action }), deadline)
    }

    fn hints(&self) -> Hints {
        self.hints.clone()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A server that is as it should be gets a goodbye, when `requests` closes.
        if self.broken {
            self.carrier.abort();
        }
    }
}

/// Carries requests out and messages in until either side ends.
async fn carry(
    mut socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    mut outbox: UnboundedReceiver<String>,
    inbox: SyncSender<Received>,
) {
    let why = |e: tungstenite::Error| format!("the connection broke: {e}");
    loop {
        let received = select! {
            request = outbox.recv() => match request {
                Some(text) => match socket.send(Message::text(text)).await {
                    Ok(()) => continue,
                    Err(e) => Err(why(e)),
                },
                None => {
                    let goodbye = async {
                        socket.send(Message::text(r#"{"type":"close"}"#)).await?;
                        socket.close(None).await
                    };
                    let _ = timeout(GOODBYE, goodbye).await;
                    return;
                }
            },
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => Ok(text.to_string()),
                Some(Ok(Message::Binary(_))) => Err("it sent bytes instead of text".into()),
                Some(Ok(Message::Close(frame))) => Err(match frame.filter(|f| !f.reason.is_empty()) {
                    Some(frame) => format!("it closed the connection: {}", frame.reason),
                    None => "it closed the connection".into(),
                }),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Err(e)) => Err(why(e)),
                None => Err("it closed the connection".into()),
            },
        };
        let over = received.is_err();
        // One that says more than it is asked is not waited for.
        if inbox.try_send(received).is_err() || over {
            return;
        }
    }
}
