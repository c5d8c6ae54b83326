//! The server: sessions at `/ws`, and over HTTP what there is to play.

use super::access::{self, Names};
use super::listen::{self, Bounds, GRACE, LONGEST};
use super::session::{Games, Refusal, Session};
use crate::env::{Split, Suite, Task};
use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Json, Path, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::block_in_place;
use tokio::time::timeout;

/// Most tasks that are listed of an endless split.
const PREVIEW: u64 = 100;
/// What is said to be the number of tasks where there is no end of them.
const ENDLESS: u64 = i32::MAX as u64;

/// Why a server could not be set up.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum ServeError {
    #[error("cannot listen on {address}: {source}; choose another --host or --port")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("the server cannot run: {0}")]
    Run(#[from] std::io::Error),
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    names: Names,
    stop: watch::Sender<bool>,
}

struct Shared {
    games: Arc<Games>,
    seats: Arc<Semaphore>,
    bounds: Bounds,
    stop: watch::Receiver<bool>,
}

/// Ends a server that runs.
#[derive(Debug, Clone)]
pub struct Stop(watch::Sender<bool>);

impl Stop {
    /// Asks it to end: no more connections, and a parting word to every session.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Server {
    /// Listens on an address; port 0 is any free one.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn bind(suite: Box<dyn Suite>, address: SocketAddr, bounds: Bounds) -> Result<Server, ServeError> {
        let listener = TcpListener::bind(address).map_err(|source| ServeError::Bind { address, source })?;
        listener.set_nonblocking(true)?;
        let seats = Arc::new(Semaphore::new(bounds.sessions));
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared { games: Arc::new(Games::new(suite)), seats, bounds, stop: stopped });
        let names = Names { bound: address.ip(), more: Vec::new() };
        Ok(Server { address: listener.local_addr()?, listener, shared, names, stop })
    }

    /// Lets requests name the server by these hosts, too, beside its address and the names of this machine for itself.
    pub fn allow_hosts(mut self, hosts: Vec<String>) -> Server {
        self.names.more = hosts;
        self
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What ends it while it runs.
    pub fn stop(&self) -> Stop {
        Stop(self.stop.clone())
    }

    /// Serves until it is stopped.
    ///
    /// # Errors
    /// If the runtime cannot be started.
    pub fn run(self) -> Result<(), ServeError> {
        let Server { listener, shared, names, stop: _stop, .. } = self;
        let sessions = shared.bounds.sessions;
        // Each session may play on a thread of its own.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.enable_all().max_blocking_threads(sessions.max(1) + 16).build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let routes = routes(shared.clone(), names);
            listen::serve(listener, routes, shared.bounds, shared.stop.clone()).await;
            // All seats are free when all sessions have ended.
            let seats = u32::try_from(sessions).unwrap_or(u32::MAX);
            let _ = timeout(GRACE, shared.seats.acquire_many(seats)).await;
            Ok::<(), std::io::Error>(())
        })?;
        runtime.shutdown_timeout(GRACE);
        Ok(())
    }
}

fn routes(shared: Arc<Shared>, names: Names) -> Router {
    let patience = shared.bounds.request;
    Router::new()
        .route("/ws", get(upgrade))
        .route("/health", get(async || Json(json!({ "status": "healthy" }))))
        .route("/metadata", get(metadata))
        .route("/schema", get(async || Json(schema())))
        .route("/openapi.json", get(async || Json(openapi())))
        .route("/state", get(async || Json(json!({ "episode_id": null, "step_count": 0 }))))
        .route("/reset", post(reset))
        .route("/step", post(step))
        .route("/mcp", post(no_tools))
        .route("/list_environments", get(environments))
        .route("/{name}/splits", get(splits))
        .route("/{name}/tasks", post(tasks))
        .route("/{name}/num_tasks", post(count))
        .route("/{name}/task", post(task))
        .route("/{name}/task_range", post(task_range))
        .with_state(shared)
        .layer(from_fn_with_state(patience, listen::whole))
        .layer(from_fn_with_state(Arc::new(names), access::check))
}

async fn upgrade(socket: WebSocketUpgrade, State(shared): State<Arc<Shared>>) -> Response {
    socket.max_message_size(LONGEST).max_frame_size(LONGEST).on_upgrade(move |socket| converse(socket, shared))
}

/// One session, until either side has had enough.
async fn converse(mut socket: WebSocket, shared: Arc<Shared>) {
    let Some(_seat) = shared.seat() else {
        let (sessions, message) = (shared.bounds.sessions, shared.full());
        let data = json!({
            "message": message, "code": "CAPACITY_REACHED", "active_sessions": sessions, "max_sessions": sessions
        });
        let _ = socket.send(Message::text(json!({ "type": "error", "data": data }).to_string())).await;
        let _ = socket.send(Message::Close(None)).await;
        return;
    };
    let mut session = Session::new(shared.games.clone());
    let mut stop = shared.stop.clone();
    loop {
        let received = select! {
            received = timeout(shared.bounds.idle, socket.recv()) => received,
            () = listen::stopped(&mut stop) => {
                let frame = CloseFrame { code: close_code::AWAY, reason: "the server is shutting down".into() };
                let _ = timeout(GRACE, socket.send(Message::Close(Some(frame)))).await;
                return;
            }
        };
        let Ok(Some(Ok(message))) = received else { break };
        let text = match &message {
            Message::Text(text) => text.as_str(),
            Message::Binary(bytes) => str::from_utf8(bytes).unwrap_or_default(),
            // The library answers them.
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        // A game may take its time, when it is played in another process.
        let Some(answer) = block_in_place(|| session.answer(text)) else { break };
        let sent = timeout(shared.bounds.idle, socket.send(Message::text(answer.to_string()))).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
    let _ = socket.send(Message::Close(None)).await;
}

impl Shared {
    /// The right to play.
    fn seat(&self) -> Option<OwnedSemaphorePermit> {
        self.seats.clone().try_acquire_owned().ok()
    }

    /// What one is told for whom there is no seat.
    fn full(&self) -> String {
        format!("Server at capacity: {} sessions are open", self.bounds.sessions)
    }

    /// Plays for an HTTP route, which keeps no session.
    fn play(&self, play: impl FnOnce(&mut Session) -> Result<Value, Refusal>) -> JsonAnswer {
        let _seat = self.seat().ok_or_else(|| refused(StatusCode::SERVICE_UNAVAILABLE, self.full()))?;
        let played = block_in_place(|| play(&mut Session::new(self.games.clone())));
        played.map(Json).map_err(|e| {
            let invalid = e.code == "VALIDATION_ERROR";
            refused(if invalid { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST }, e)
        })
    }
}

/// An answer of an HTTP route, or its refusal.
type JsonAnswer = Result<Json<Value>, (StatusCode, Json<Value>)>;

fn refused(status: StatusCode, detail: impl ToString) -> (StatusCode, Json<Value>) {
    (status, Json(json!({ "detail": detail.to_string() })))
}

async fn metadata(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let name = shared.games.suite().name();
    Json(json!({
        "name": name,
        "description": format!("Text games of {name}: read the observation's text, answer with one command"),
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

/// The beginning of a task.
async fn reset(State(shared): State<Arc<Shared>>, body: Bytes) -> JsonAnswer {
    let bad = |e| refused(StatusCode::UNPROCESSABLE_ENTITY, e);
    let data = if body.is_empty() { json!({}) } else { serde_json::from_slice(&body).map_err(bad)? };
    shared.play(|session| session.reset(data))
}

#[derive(Deserialize)]
struct StepRequest {
    action: Value,
}

/// One step in the first training task.
async fn step(State(shared): State<Arc<Shared>>, Json(StepRequest { action }): Json<StepRequest>) -> JsonAnswer {
    shared.play(|session| {
        session.reset(json!({ "seed": 0 }))?;
        session.step(action)
    })
}

/// There are no tools to call: the answer of JSON-RPC to a method that does not exist.
async fn no_tools() -> impl IntoResponse {
    Json(json!({ "jsonrpc": "2.0", "id": null, "error": { "code": -32601, "message": "Method not found" } }))
}

async fn environments(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!([shared.games.suite().name()]))
}

fn known<'a>(shared: &'a Shared, name: &str) -> Result<&'a dyn Suite, (StatusCode, Json<Value>)> {
    let suite = shared.games.suite();
    let known = suite.name().eq_ignore_ascii_case(name);
    known.then_some(suite).ok_or_else(|| refused(StatusCode::NOT_FOUND, format!("unknown environment {name:?}")))
}

async fn splits(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> JsonAnswer {
    let suite = known(&shared, &name)?;
    let splits = [(Split::Train, "train"), (Split::L0, "validation"), (Split::L1, "test"), (Split::L2, "test")];
    let there = splits.iter().filter(|(split, _)| suite.len(*split) != Some(0));
    Ok(Json(there.map(|(split, kind)| json!({ "name": split, "type": kind })).collect()))
}

#[derive(Deserialize)]
struct Asked {
    split: Split,
    #[serde(default)]
    index: u64,
    start: Option<u64>,
    stop: Option<u64>,
}

fn described(suite: &dyn Suite, split: Split, index: u64) -> Result<Value, (StatusCode, Json<Value>)> {
    let Task { id, kind, .. } = suite.task(split, index).map_err(|e| refused(StatusCode::BAD_REQUEST, e))?;
    Ok(json!({ "id": id, "kind": kind, "split": split, "index": index }))
}

fn listed(suite: &dyn Suite, asked: &Asked) -> Result<Value, (StatusCode, Json<Value>)> {
    let end = suite.len(asked.split).unwrap_or(asked.start.unwrap_or(0).saturating_add(PREVIEW));
    let range = asked.start.unwrap_or(0)..asked.stop.unwrap_or(end).min(end);
    range.map(|index| described(suite, asked.split, index)).collect()
}

async fn tasks(State(shared): State<Arc<Shared>>, Path(name): Path<String>, Json(asked): Json<Asked>) -> JsonAnswer {
    let suite = known(&shared, &name)?;
    Ok(Json(json!({ "tasks": listed(suite, &asked)?, "env_name": suite.name() })))
}

async fn task_range(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Json(asked): Json<Asked>,
) -> JsonAnswer {
    Ok(Json(json!({ "tasks": listed(known(&shared, &name)?, &asked)? })))
}

async fn count(State(shared): State<Arc<Shared>>, Path(name): Path<String>, Json(asked): Json<Asked>) -> JsonAnswer {
    Ok(Json(json!({ "num_tasks": known(&shared, &name)?.len(asked.split).unwrap_or(ENDLESS) })))
}

async fn task(State(shared): State<Arc<Shared>>, Path(name): Path<String>, Json(asked): Json<Asked>) -> JsonAnswer {
    Ok(Json(json!({ "task": described(known(&shared, &name)?, asked.split, asked.index)? })))
}

/// JSON schemas of what is sent and received.
fn schema() -> Value {
    let metadata = json!({ "type": "object", "additionalProperties": true });
    json!({
        "action": {
            "title": "Action", "type": "object", "required": ["command"], "additionalProperties": false,
            "properties": {
                "command": { "type": "string", "description": "One command of the agent" },
                "metadata": metadata,
            },
        },
        "observation": {
            "title": "Observation", "type": "object", "required": ["text"],
            "properties": {
                "text": { "type": "string", "description": "The environment's words" },
                "admissible": {
                    "type": "array", "items": { "type": "string" },
                    "description": "Commands that would do something now, sorted; empty where the environment does not tell",
                },
                "won": { "type": "boolean", "description": "The goal is reached" },
                "valid": { "type": "boolean", "description": "The command was understood and did or told something" },
                "reward": { "type": "number" },
                "done": { "type": "boolean" },
            },
        },
        "state": {
            "title": "State", "type": "object",
            "properties": {
                "episode_id": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
                "step_count": { "type": "integer", "minimum": 0 },
                "task": { "type": "string" }, "kind": { "type": "string" }, "split": { "type": "string" },
            },
        },
    })
}

/// As much of an OpenAPI document as OpenEnv's validation reads: version and paths.
fn openapi() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": { "title": "uncouple", "version": "1.0.0" },
        "paths": {
            "/reset": { "post": {} }, "/step": { "post": {} }, "/state": { "get": {} }, "/health": { "get": {} },
            "/metadata": { "get": {} }, "/schema": { "get": {} }, "/mcp": { "post": {} },
        },
    })
}
