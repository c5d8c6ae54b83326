//! What the agent reads and writes: prompts, the history of an episode, action parsing.

mod action;
mod episode;
pub use action::{Refusal, parse};
pub use episode::{Episode, Finish, Turn};
