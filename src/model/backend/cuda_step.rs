//! Decoding one token of each sequence, and drawing the next, as a CUDA graph: one launch instead of hundreds, between one upload and
//! one download. There is a graph for each power of two of sequences; a step fills up the next larger one.
//!
//! The first step of a graph runs eagerly, which loads, plans and opts in for whatever it needs; then it is captured. Graphs outlive
//! a decoder: they serve the next one again, as long as what they read and write lies where it lay.

use super::SavedActivations;
use super::cuda::{CudaActivations, CudaModel};
use super::cuda_graphs::GraphKind;
use super::cuda_sink::part;
use crate::device::{Packed, Result, Slice, Tensor};
use crate::model::SequenceId;
use crate::model::pages::Pages;
use crate::ops::decode_attention::cuda::{Cache, Rows};
use crate::ops::embedding::cuda::{self as embedding, Moves};
use crate::ops::sampling::cuda::{self as sampling, Logits};
use crate::ops::sampling::{Sampled, SamplingParams};
use half::bf16;
use std::collections::BTreeMap;

/// Most rows that are sampled from at once.
pub(crate) const DRAWS: usize = 256;

/// A token for each of some sequences, of the vocabulary, for which the cache has room.
pub(super) struct Step {
    pub ids: Vec<SequenceId>,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    tables: Vec<Vec<u32>>,
}

/// How the next token of each sequence of a step is sampled.
pub(super) struct Drawing<'a> {
    pub uniform: Vec<f32>,
    /// Without a penalty.
    pub params: &'a SamplingParams,
}

/// Memory of the steps.
pub(super) struct Steps {
    /// The page of the cache where what fills a step up lies.
    spare_page: u32,
    buffers: BTreeMap<usize, Buffers>,
    pub logits: Logits,
}

/// What the steps of a number of sequences read and write.
struct Buffers {
    tokens: Tensor<u32>,
    rows: Rows,
    /// From the step's rows to the states of their sequences.
    moves: Moves,
    uniform: Tensor<f32>,
    acts: CudaActivations,
    /// Tokens, then the bits of their log-probs: read in one copy.
    sampled: Tensor<u32>,
}

impl Step {
    /// The next token of each sequence, whose pages hold it already.
    pub fn new(fed: &[(SequenceId, &[u32])], pages: &Pages) -> Step {
        let ids: Vec<SequenceId> = fed.iter().map(|(id, _)| *id).collect();
        Step {
            tokens: fed.iter().map(|(_, token)| token[0]).collect(),
            positions: ids.iter().map(|id| pages.len(*id) as u32 - 1).collect(),
            tables: ids.iter().map(|id| pages.of(*id).to_vec()).collect(),
            ids,
        }
    }
}

impl Steps {
    /// For steps of at most so many sequences, and whatever is sampled beside them.
    pub fn new(model: &CudaModel, cache: &Cache, spare_page: u32, sequences: usize, states: usize) -> Result<Steps> {
        let most = Steps::rows(sequences).min(DRAWS);
        let logits = Logits::new(&model.gpu, most, model.config.vocab_size)?;
        let mut steps = Steps { spare_page, buffers: BTreeMap::new(), logits };
        // All at once and in this order, so that they lie where those of the decoder before lay.
        for rows in (0..=most.ilog2()).map(|power| 1 << power) {
            steps.buffers.insert(rows, Buffers::new(model, cache, rows, 1, (spare_page, states))?);
        }
        Ok(steps)
    }

    /// Rows of a step of so many sequences.
    pub fn rows(sequences: usize) -> usize {
        sequences.next_power_of_two()
    }

    /// Computes the final hidden states of a step and puts them in their sequences' `states`; what fills up is put in the last. Draws
    /// the next tokens.
    pub fn run(
        &mut self,
        model: &CudaModel,
        cache: &Cache,
        states: &Slice<bf16>,
        step: &Step,
        drawing: Option<&Drawing<'_>>,
    ) -> Result<Vec<Sampled>> {
        let (gpu, rows) = (&model.gpu, Steps::rows(step.ids.len()));
        let last_state = states.len() / model.config.hidden_size - 1;
        let spare = (self.spare_page, last_state);
        let places: Vec<(u32, u32)> =
            (0..rows).map(|i| (i as u32, step.positions.get(i).copied().unwrap_or(0))).collect();
        // Contexts that outgrow the memory get twice as much.
        let splits = Rows::splits(&places).next_power_of_two();
        let buffers = match self.buffers.remove(&rows) {
            Some(held) if held.rows.room() >= splits && held.moves.rows()[1] == last_state + 1 => held,
            outgrown => {
                drop(outgrown);
                Buffers::new(model, cache, rows, splits, spare)?
            }
        };
        let buffers = self.buffers.entry(rows).or_insert(buffers);
        buffers.write(model, cache, step, &places, spare, drawing)?;
        let sampling = drawing.map(|drawing| *drawing.params);
        let kind = GraphKind { rows, splits: buffers.rows.room(), tiled: buffers.rows.tiled(), sampling };
        let addresses = buffers.addresses(cache, states, &self.logits);
        let logits = &self.logits;
        model.graphs.run(&model.gpu, kind, addresses, || {
            buffers.compute(model, cache, states, logits, kind.sampling.as_ref())
        })?;
        if drawing.is_none() {
            return Ok(Vec::new());
        }
        Ok(split_sampled(&gpu.read(&*buffers.sampled)?, step.ids.len()))
    }
}

/// The first so many of tokens, and of the bits of their log-probs, which follow them.
pub(super) fn split_sampled(sampled: &[u32], count: usize) -> Vec<Sampled> {
    let (tokens, logprobs) = sampled.split_at(sampled.len() / 2);
    let pairs = tokens.iter().zip(logprobs).take(count);
    pairs.map(|(token, bits)| Sampled { token: *token, logprob: f32::from_bits(*bits) }).collect()
}

impl Buffers {
    /// What fills a step up lies in the spare page, and goes to the spare state, which is the last.
    fn new(
        model: &CudaModel,
        cache: &Cache,
        rows: usize,
        splits: usize,
        (spare_page, spare_state): (u32, usize),
    ) -> Result<Buffers> {
        let (gpu, pages) = (&model.gpu, [spare_page]);
        let fill: Vec<(u32, u32)> = (0..rows as u32).map(|i| (i, 0)).collect();
        let moves: Vec<(u32, u32)> = (0..rows as u32).map(|i| (i, spare_state as u32)).collect();
        let mut packed = Packed::default();
        let tokens = packed.add(&vec![0; rows]);
        let held = Rows::pack(&mut packed, gpu, cache, &fill, &vec![&pages[..]; rows], splits)?;
        let moves = Moves::pack(&mut packed, &moves, [rows, spare_state + 1])?;
        let uniform = packed.add(&vec![0.5; rows]);
        let mut on = packed.upload(gpu)?;
        Ok(Buffers {
            tokens: on.take(tokens),
            rows: held(&mut on),
            moves: moves(&mut on),
            uniform: on.take(uniform),
            acts: model.activations(rows, SavedActivations::Nothing)?,
            sampled: gpu.uninit(2 * rows)?,
        })
    }

    /// Brings a step to the device.
    fn write(
        &mut self,
        model: &CudaModel,
        cache: &Cache,
        step: &Step,
        places: &[(u32, u32)],
        (spare_page, spare_state): (u32, usize),
        drawing: Option<&Drawing<'_>>,
    ) -> Result<()> {
        let (rows, pages) = (self.tokens.len(), [spare_page]);
        let mut tokens = step.tokens.clone();
        tokens.resize(rows, 0);
        let tables = step.tables.iter().map(|table| &table[..]).chain(std::iter::repeat(&pages[..]));
        let lists = self.rows.replace(cache, places, &tables.take(rows).collect::<Vec<_>>())?;
        let state = |i: usize| step.ids.get(i).map_or(spare_state as u32, |id| id.0);
        let moves = self.moves.replaced(&(0..rows).map(|i| (i as u32, state(i))).collect::<Vec<_>>())?;
        let mut uniform = drawing.map(|drawing| drawing.uniform.clone()).unwrap_or_default();
        uniform.resize(rows, 0.5);
        model.gpu.write_all(&[
            self.tokens.piece(&tokens)?,
            self.rows.lists().piece(&lists)?,
            self.moves.lists().piece(&moves)?,
            self.uniform.piece(&uniform)?,
        ])
    }

    fn compute(
        &self,
        model: &CudaModel,
        cache: &Cache,
        states: &Slice<bf16>,
        logits: &Logits,
        request: Option<&SamplingParams>,
    ) -> Result<()> {
        let (gpu, width, rows) = (&model.gpu, model.config.hidden_size, self.tokens.len());
        model.decode(&self.tokens, &self.rows, cache, &self.acts)?;
        embedding::place(gpu, &self.acts.hidden, &self.moves, width, states)?;
        let Some(params) = request else { return Ok(()) };
        logits.compute(gpu, &self.acts.hidden, &model.weight(&model.layout.head), width)?;
        let (token, logprob) = (part(&self.sampled, &(0..rows)), part(&self.sampled, &(rows..2 * rows)));
        sampling::sample(gpu, logits, None, params, &self.uniform, &token, &logprob.cast())
    }

    fn addresses(&self, cache: &Cache, states: &Slice<bf16>, logits: &Logits) -> Vec<u64> {
        let mut all = vec![cache.address(), states.address(), logits.values.address()];
        all.extend([
            self.tokens.address(),
            self.moves.lists().address(),
            self.uniform.address(),
            self.sampled.address(),
        ]);
        all.extend(self.rows.addresses());
        all.extend(self.acts.addresses());
        all
    }
}
