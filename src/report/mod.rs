//! What a run leaves behind for people and programs: metrics, trajectories, tables, the report page.

pub mod compare;
pub mod escape;
pub mod flawed;
pub mod heatmap;
pub mod metrics;
pub mod page;
pub mod plot;
pub mod progress;
pub mod provenance;
pub mod results;
pub mod stats;
pub mod tensorboard;
pub mod terminal;
pub mod trajectories;
