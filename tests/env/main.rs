//! Environments: games, workers, servers, splits.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/lift.rs"]
mod lift;
#[path = "../common/recorded.rs"]
mod recorded;

mod alfworld;
mod bridge;
mod demonstrations;
mod guess;
mod household;
mod openenv;
mod scienceworld;
mod splits;
mod textgame;
