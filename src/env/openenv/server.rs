//! The server: sessions at `/ws`, and over HTTP what there is to play.

use super::session::{Games, Session};
use crate::env::{Split, Suite, Task};
use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Json, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, serve};
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::block_in_place;
use tokio::time::timeout;

/// Longest message of a client, bytes.
const LONGEST: usize = 1 << 20;
/// Most tasks that are listed of an endless split.
const PREVIEW: u64 = 100;
/// What is said to be the number of tasks where there is no end of them.
const ENDLESS: u64 = i32::MAX as u64;

/// Bounds of a server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Most sessions at once; one more is told that there is no room.
    pub sessions: usize,
    /// A session that says nothing for so long is closed.
    pub idle: Duration,
}

/// Why a server could not be set up.
#[derive(Debug, thiserror::Error)]
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
}

struct Shared {
    games: Arc<Games>,
    seats: Arc<Semaphore>,
    bounds: Bounds,
}

impl Server {
    /// Listens on an address; port 0 is any free one.
    pub fn bind(suite: Box<dyn Suite>, address: SocketAddr, bounds: Bounds) -> Result<Server, ServeError> {
        let listener = TcpListener::bind(address).map_err(|source| ServeError::Bind { address, source })?;
        listener.set_nonblocking(true)?;
        let seats = Arc::new(Semaphore::new(bounds.sessions));
        let shared = Arc::new(Shared { games: Arc::new(Games::new(suite)), seats, bounds });
        Ok(Server { address: listener.local_addr()?, listener, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves for as long as the process lives.
    pub fn run(self) -> Result<(), ServeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let routes = routes(self.shared);
        runtime.block_on(async { serve(tokio::net::TcpListener::from_std(self.listener)?, routes).await })?;
        Ok(())
    }
}

fn routes(shared: Arc<Shared>) -> Router {
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
}

async fn upgrade(socket: WebSocketUpgrade, State(shared): State<Arc<Shared>>) -> Response {
    socket.max_message_size(LONGEST).on_upgrade(move |socket| converse(socket, shared))
}

/// One session, until either side has had enough.
async fn converse(mut socket: WebSocket, shared: Arc<Shared>) {
    let Ok(_seat) = shared.seats.clone().try_acquire_owned() else {
        let sessions = shared.bounds.sessions;
        let message = format!("Server at capacity: {sessions} sessions are open");
        let data = json!({
            "message": message, "code": "CAPACITY_REACHED", "active_sessions": sessions, "max_sessions": sessions
        });
        let _ = socket.send(Message::text(json!({ "type": "error", "data": data }).to_string())).await;
        let _ = socket.send(Message::Close(None)).await;
        return;
    };
    let mut session = Session::new(shared.games.clone());
    while let Ok(Some(Ok(message))) = timeout(shared.bounds.idle, socket.recv()).await {
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

/// An answer of an HTTP route, or its refusal.
type Answer = Result<Json<Value>, (StatusCode, Json<Value>)>;

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

/// HTTP keeps no session: the beginning of a task.
async fn reset(State(shared): State<Arc<Shared>>, body: Bytes) -> Answer {
    let bad = |e| refused(StatusCode::UNPROCESSABLE_ENTITY, e);
    let data = if body.is_empty() { json!({}) } else { serde_json::from_slice(&body).map_err(bad)? };
    let begun = block_in_place(|| Session::new(shared.games.clone()).reset(data));
    begun.map(Json).map_err(|e| refused(StatusCode::BAD_REQUEST, e))
}

#[derive(Deserialize)]
struct StepRequest {
    action: Value,
}

/// HTTP keeps no session: one step in the first training task.
async fn step(State(shared): State<Arc<Shared>>, Json(StepRequest { action }): Json<StepRequest>) -> Answer {
    let play = || {
        let mut session = Session::new(shared.games.clone());
        session.reset(json!({ "seed": 0 }))?;
        session.step(action)
    };
    block_in_place(play).map(Json).map_err(|e| {
        let invalid = e.code == "VALIDATION_ERROR";
        refused(if invalid { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST }, e)
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

async fn splits(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Answer {
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

async fn tasks(State(shared): State<Arc<Shared>>, Path(name): Path<String>, Json(asked): Json<Asked>) -> Answer {
    let suite = known(&shared, &name)?;
    Ok(Json(json!({ "tasks": listed(suite, &asked)?, "env_name": suite.name() })))
}

async fn task_range(State(shared): State<Arc<Shared>>, Path(name): Path<String>, Json(asked): Json<Asked>) -> Answer {
    Ok(Json(json!({ "tasks": listed(known(&shared, &name)?, &asked)? })))
}

async fn count(State(shared): State<Arc<Shared>>, Path(name): Path<String>, Json(asked): Json<Asked>) -> Answer {
    Ok(Json(json!({ "num_tasks": known(&shared, &name)?.len(asked.split).unwrap_or(ENDLESS) })))
}

async fn task(State(shared): State<Arc<Shared>>, Path(name): Path<String>, Json(asked): Json<Asked>) -> Answer {
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
