//! A decoding step as a CUDA graph: what was fed to each sequence, one token or many, and the next token of each, as one launch instead of
//! hundreds, between one upload and one download. There are graphs for a few numbers of tokens; a step fills up the next larger one.
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

/// Most tokens of a step: a longer one computes so long that its launches hide.
const ROWS: usize = 1024;

/// Tokens fed to some sequences, of the vocabulary, for which the cache has room.
pub(super) struct Step {
    pub ids: Vec<SequenceId>,
    pub tokens: Vec<u32>,
    /// (place in `ids`, position) of each token.
    pub rows: Vec<(u32, u32)>,
    /// The row of each sequence's last token.
    pub last: Vec<u32>,
    /// The pages of each sequence.
    pub tables: Vec<Vec<u32>>,
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
    /// By rows.
    buffers: BTreeMap<usize, Buffers>,
    pub logits: Logits,
}

/// What the steps of so many rows read and write, in `[sequences]` for each sequence.
struct Buffers {
    tokens: Tensor<u32>,
    rows: Rows,
    /// The row of each sequence's last token.
    last: Tensor<u32>,
    /// From there to the states of the sequences.
    moves: Moves,
    uniform: Tensor<f32>,
    acts: CudaActivations,
    /// Of the last rows, `[sequences, hidden]`.
    hidden: Tensor<bf16>,
    /// Tokens, then the bits of their log-probs: read in one copy.
    sampled: Tensor<u32>,
}

impl Step {
    /// What was fed to each sequence, and is appended to its pages already.
    pub fn new(fed: &[(SequenceId, &[u32])], pages: &Pages) -> Step {
        let mut step = Step {
            ids: fed.iter().map(|(id, _)| *id).collect(),
            tokens: Vec::new(),
            rows: Vec::new(),
            last: Vec::with_capacity(fed.len()),
            tables: fed.iter().map(|(id, _)| pages.of(*id).to_vec()).collect(),
        };
        for ((id, fed), sequence) in fed.iter().zip(0u32..) {
            let end = pages.len(*id);
            step.tokens.extend_from_slice(fed);
            step.rows.extend((end - fed.len()..end).map(|position| (sequence, position as u32)));
            step.last.push(step.rows.len() as u32 - 1);
        }
        step
    }
}

impl Steps {
    /// For at most so many sequences, and whatever is sampled beside them.
    pub fn new(model: &CudaModel, cache: &Cache, spare_page: u32, sequences: usize, states: usize) -> Result<Steps> {
        let logits = Logits::new(&model.gpu, sequences.next_power_of_two().min(DRAWS), model.config.vocab_size)?;
        let mut steps = Steps { spare_page, buffers: BTreeMap::new(), logits };
        // All at once and in this order, so that they lie where those of the decoder before lay.
        for rows in Steps::sizes(sequences) {
            let ids = rows.min(steps.logits.room());
            steps.buffers.insert(rows, Buffers::new(model, cache, [rows, ids], 1, (spare_page, states))?);
        }
        Ok(steps)
    }

    /// The numbers of rows that there are graphs for: a power of two, or the middle to the next. A few of the sequences are fed what
    /// the environment said, the others a token each.
    pub fn sizes(sequences: usize) -> impl Iterator<Item = usize> {
        let most = (8 * sequences.next_power_of_two()).min(ROWS);
        let doubled = (0..).map(|power| 1usize << power);
        doubled.flat_map(|n| [n, n / 2 * 3]).filter(|n| *n > 0).take_while(move |n| *n <= most)
    }

    /// Whether a step has a graph's size.
    pub fn fits(&self, step: &Step) -> bool {
        step.ids.len() <= self.logits.room() && self.buffers.range(step.rows.len()..).next().is_some()
    }

    /// Computes the final hidden states of a step that fits and puts them in their sequences' `states`; what fills up is put in the last.
    /// Samples the next tokens.
    pub fn run(
        &mut self,
        model: &CudaModel,
        cache: &Cache,
        states: &Slice<bf16>,
        step: &Step,
        drawing: Option<&Drawing<'_>>,
    ) -> Result<Vec<Sampled>> {
        let last_state = states.len() / model.config.hidden_size - 1;
        let spare = (self.spare_page, last_state);
        let rows = self.buffers.range(step.rows.len()..).next().map_or(step.rows.len(), |(rows, _)| *rows);
        // Contexts that outgrow the memory get twice as much.
        let splits = Rows::splits(&step.rows).next_power_of_two();
        let buffers = match self.buffers.remove(&rows) {
            Some(held) if held.rows.room() >= splits && held.moves.rows()[1] == last_state + 1 => held,
            outgrown => {
                drop(outgrown);
                Buffers::new(model, cache, [rows, rows.min(self.logits.room())], splits, spare)?
            }
        };
        let buffers = self.buffers.entry(rows).or_insert(buffers);
        buffers.write(model, cache, step, spare, drawing)?;
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
        Ok(split_sampled(&model.gpu.read(&*buffers.sampled)?, step.ids.len()))
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
        [rows, ids]: [usize; 2],
        splits: usize,
        (spare_page, spare_state): (u32, usize),
    ) -> Result<Buffers> {
        let (gpu, width, pages) = (&model.gpu, model.config.hidden_size, [spare_page]);
        let fill = vec![(ids as u32, 0); rows];
        let moves: Vec<(u32, u32)> = (0..ids as u32).map(|i| (i, spare_state as u32)).collect();
        let mut packed = Packed::default();
        let tokens = packed.add(&vec![0; rows]);
        let held = Rows::pack(&mut packed, gpu, cache, &fill, &vec![&pages[..]; ids + 1], splits)?;
        let last = packed.add(&vec![0; ids]);
        let moves = Moves::pack(&mut packed, &moves, [ids, spare_state + 1])?;
        let uniform = packed.add(&vec![0.5; ids]);
        let mut on = packed.upload(gpu)?;
        Ok(Buffers {
            tokens: on.take(tokens),
            rows: held(&mut on),
            last: on.take(last),
            moves: moves(&mut on),
            uniform: on.take(uniform),
            acts: model.activations(rows, SavedActivations::Nothing)?,
            hidden: gpu.uninit(ids * width)?,
            sampled: gpu.uninit(2 * ids)?,
        })
    }

    /// Brings a step to the device.
    fn write(
        &mut self,
        model: &CudaModel,
        cache: &Cache,
        step: &Step,
        (spare_page, spare_state): (u32, usize),
        drawing: Option<&Drawing<'_>>,
    ) -> Result<()> {
        let (rows, ids, pages) = (self.tokens.len(), self.last.len(), [spare_page]);
        let (mut tokens, mut places, mut last) = (step.tokens.clone(), step.rows.clone(), step.last.clone());
        tokens.resize(rows, 0);
        places.resize(rows, (ids as u32, 0));
        last.resize(ids, 0);
        let tables = step.tables.iter().map(|table| &table[..]).chain(std::iter::repeat(&pages[..]));
        let lists = self.rows.replace(cache, &places, &tables.take(ids + 1).collect::<Vec<_>>())?;
        let state = |i: usize| step.ids.get(i).map_or(spare_state as u32, |id| id.0);
        let moves = self.moves.replaced(&(0..ids).map(|i| (i as u32, state(i))).collect::<Vec<_>>())?;
        let mut uniform = drawing.map(|drawing| drawing.uniform.clone()).unwrap_or_default();
        uniform.resize(ids, 0.5);
        model.gpu.write_all(&[
            self.tokens.piece(&tokens)?,
            self.rows.lists().piece(&lists)?,
            self.last.piece(&last)?,
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
        let (gpu, width, ids) = (&model.gpu, model.config.hidden_size, self.last.len());
        model.decode(&self.tokens, &self.rows, cache, &self.acts)?;
        embedding::gather(gpu, &self.last, &self.acts.hidden, width, &self.hidden)?;
        embedding::place(gpu, &self.hidden, &self.moves, width, states)?;
        let Some(params) = request else { return Ok(()) };
        logits.compute(gpu, &self.hidden, &model.weight(&model.layout.head), width)?;
        let (token, logprob) = (part(&self.sampled, &(0..ids)), part(&self.sampled, &(ids..2 * ids)));
        sampling::sample(gpu, logits, None, params, &self.uniform, &token, &logprob.cast())
    }

    fn addresses(&self, cache: &Cache, states: &Slice<bf16>, logits: &Logits) -> Vec<u64> {
        let mut all = vec![cache.address(), states.address(), logits.values.address()];
        all.extend([&self.tokens, &self.last, &self.sampled].map(|list| list.address()));
        all.extend([self.moves.lists().address(), self.uniform.address(), self.hidden.address()]);
        all.extend(self.rows.addresses());
        all.extend(self.acts.addresses());
        all
    }
}
