//! What a run leaves behind for people and programs: metrics, trajectories, tables, the report page.

pub mod files;
pub mod metrics;
pub mod stats;
pub mod tensorboard;
