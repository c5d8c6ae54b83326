//! Decoding one token of each sequence, as a CUDA graph: one launch instead of hundreds. There is a graph for each power of two of
//! sequences, noted when it is first needed; a step fills up the next larger one.

use super::cuda::{CudaActivations, CudaModel};
use crate::device::{Graph, Result, Slice, Tensor};
use crate::ops::decode_attention::cuda::{Cache, Rows};
use half::bf16;
use std::collections::BTreeMap;

/// The graphs noted so far, by their number of sequences.
pub(super) struct Steps {
    /// The page of the cache where what fills a step up lies.
    spare: u32,
    noted: BTreeMap<usize, Step>,
}

/// What a graph reads and writes is its own.
struct Step {
    graph: Graph,
    tokens: Tensor<u32>,
    rows: Rows,
    acts: CudaActivations,
}

impl Steps {
    pub fn new(spare: u32) -> Steps {
        Steps { spare, noted: BTreeMap::new() }
    }

    pub fn len(&self) -> usize {
        self.noted.len()
    }

    /// Rows of a step of so many sequences.
    pub fn rows(sequences: usize) -> usize {
        sequences.next_power_of_two()
    }

    /// Token `i`, of the vocabulary, at `position[i]` of the sequence whose pages are `tables[i]`. The final hidden states of all
    /// [`Steps::rows`]; what fills up comes last.
    pub fn run(
        &mut self,
        model: &CudaModel,
        cache: &Cache,
        tokens: &[u32],
        position: &[u32],
        tables: &[&[u32]],
    ) -> Result<&Slice<bf16>> {
        let (gpu, n) = (&model.gpu, Steps::rows(tokens.len()));
        let (mut tokens, mut tables) = (tokens.to_vec(), tables.to_vec());
        let spare = [self.spare];
        tokens.resize(n, 0);
        tables.resize(n, &spare);
        let rows: Vec<(u32, u32)> = (0..n).map(|i| (i as u32, position.get(i).copied().unwrap_or(0))).collect();
        // Contexts that outgrow a graph make a new one, with room for twice as much.
        let splits = Rows::splits(&rows).next_power_of_two();
        let step = match self.noted.remove(&n).filter(|step| step.rows.room() >= splits) {
            Some(step) => step,
            None => Step::note(model, cache, n, splits)?,
        };
        gpu.write(&step.tokens, &tokens)?;
        step.rows.write(gpu, cache, &rows, &tables)?;
        step.graph.replay()?;
        Ok(&self.noted.entry(n).or_insert(step).acts.hidden)
    }
}

impl Step {
    fn note(model: &CudaModel, cache: &Cache, n: usize, splits: usize) -> Result<Step> {
        let gpu = &model.gpu;
        let (tokens, rows) = (gpu.uninit(n)?, Rows::with_room(gpu, cache, n, n, splits)?);
        let acts = model.activations(n, super::Keep::Nothing)?;
        let graph = gpu.capture(|| model.decode(&tokens, &rows, cache, &acts))?;
        Ok(Step { graph, tokens, rows, acts })
    }
}
