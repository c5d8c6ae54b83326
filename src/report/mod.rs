//! What a run leaves behind for people and programs: metrics, trajectories, tables, the report page.

pub(crate) mod compare;
pub(crate) mod escape;
pub(crate) mod flawed;
pub(crate) mod heatmap;
pub mod metrics;
pub mod page;
pub(crate) mod plot;
pub mod progress;
pub(crate) mod provenance;
pub mod results;
pub mod stats;
pub(crate) mod tensorboard;
pub(crate) mod terminal;
pub mod trajectories;
