//! What the agent reads and writes: prompts, the history of an episode, action parsing.

mod action;
mod command_tokens;
mod episode;
mod error;
mod layout;
mod memory;
mod prompter;
mod tag;
mod template;
pub use action::{CommandReader, Refusal};
pub use command_tokens::{command_tokens, guessed_command};
pub use episode::{Episode, Finish, Turn};
pub use error::PromptError;
pub use layout::COMPACT_TEMPLATE;
pub use memory::{Memory, Next, Shown};
pub use prompter::{Action, Prompter, lead, turn_text};
pub use tag::Tag;
pub use template::{Exchange, is_built_in};
