//! OpenEnv (packages `openenv-core` 0.3 and `openenv` 0.10), both ways: our games as a server, any server's as a suite.
//!
//! A session is one WebSocket at `/ws`; a request is answered by one message.
//! ```text
//! → {"type":"reset","data":{"seed":7}}           ← {"type":"observation","data":{"observation":{…},"reward":0.0,"done":false}}
//! → {"type":"step","data":{"command":"look"}}    ← the same, or {"type":"error","data":{"message":"…","code":"…"}}
//! → {"type":"state"}                             ← {"type":"state","data":{"episode_id":null,"step_count":1,…}}
//! → {"type":"close"}                             the server closes
//! ```
//! Beside it, HTTP says what there is: `/health`, `/metadata`, `/schema`, and the tasks of each split (the Task API of 0.10).

mod access;
mod client;
mod listen;
mod server;
mod session;
mod suite;

pub use client::{Address, Connection, MessageLayout};
pub use listen::Bounds;
pub use server::{ServeError, Server, Stop};
pub use session::{Games, Session};
pub use suite::OpenEnv;
