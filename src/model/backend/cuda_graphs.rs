//! Captured decoding steps. The first step of a kind runs eagerly, which loads, plans and opts in for whatever it needs; then it is captured.

use crate::device::{Gpu, Graph, Result};
use crate::ops::sampling::SamplingParams;
use std::sync::{Mutex, PoisonError};

/// The graphs that a model's decoders have captured.
#[derive(Default)]
pub(super) struct Graphs(Mutex<Vec<Captured>>);

struct Captured {
    kind: GraphKind,
    /// Of all that it reads and writes, but for the model's weights.
    addresses: Vec<u64>,
    graph: Graph,
}

/// What a graph does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct GraphKind {
    pub rows: usize,
    /// Most parts of a context.
    pub splits: usize,
    /// Whether tiles of rows read the cache.
    pub tiled: bool,
    /// How the next tokens are drawn, if they are.
    pub sampling: Option<SamplingParams>,
}

impl Graphs {
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Does `work`: by the graph of this kind and these addresses, if there is one, or by itself, to be captured then.
    pub fn run(&self, gpu: &Gpu, kind: GraphKind, addresses: Vec<u64>, work: impl Fn() -> Result<()>) -> Result<()> {
        let mut captured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = captured.iter().find(|c| c.kind == kind && c.addresses == addresses) {
            return found.graph.replay();
        }
        work()?;
        let graph = gpu.capture(&work)?;
        captured.retain(|c| c.kind != kind);
        captured.push(Captured { kind, addresses, graph });
        Ok(())
    }
}
