//! Decoding on a GPU: the forward pass of [`super::cuda`] against a paged cache, and tokens drawn from its logits. What comes back
//! to the host is tokens and their log-probs.

use super::Keep;
use super::cuda::{CudaActivations, CudaModel};
use super::cuda_step::Steps;
use crate::device::{Result, Slice, Tensor, expect};
use crate::model::kv_cache::PAGE;
use crate::model::pages::Pages;
use crate::model::{Architecture, Decoder, Draw, Policy, Slot};
use crate::ops::decode_attention::cuda::{self as attention, Cache, Rows};
use crate::ops::embedding::cuda::{self as embedding, Moves};
use crate::ops::sampling::cuda::{self as sampling, Logits, Seen};
use crate::ops::sampling::{Sampled, SamplingParams};
use half::bf16;

/// Most tokens of one pass through the model: long prompts take several.
const ROWS: usize = 2048;
/// Most rows of logits at once.
pub(crate) const DRAWS: usize = 256;

/// The keys and values of many sequences in device memory.
pub struct CudaDecoder<'a> {
    model: &'a CudaModel,
    cache: Cache,
    pages: Pages,
    /// The final hidden state of each slot's last token, `[slots, hidden]`, and room for more.
    states: Tensor<bf16>,
    steps: Steps,
}

impl Policy for CudaModel {
    fn config(&self) -> &Architecture {
        &self.config
    }

    /// With pages for [`CudaModel::max_live`] whole contexts, or for as many tokens as memory allows.
    fn decoder(&self) -> Result<Box<dyn Decoder + '_>> {
        let c = &self.config;
        // The last page of a prompt is copied by each who goes on from it.
        let wanted = self.max_live * (c.max_position_embeddings.div_ceil(PAGE) + 1);
        let page = Cache::page_bytes(self.shape(), c.num_hidden_layers);
        // A tenth is left to what does not fit the gaps.
        let room = self.gpu.free_bytes().saturating_sub(self.scratch_bytes()) / 10 * 9;
        Ok(Box::new(CudaDecoder::new(self, wanted.min(room / page.max(1)))?))
    }
}

impl CudaModel {
    /// Reads `tokens` of the vocabulary at their places in `cache`.
    pub(super) fn decode(&self, tokens: &Slice<u32>, rows: &Rows, cache: &Cache, acts: &CudaActivations) -> Result<()> {
        self.run(tokens, acts, &|layer, a| {
            attention::append(&self.gpu, &a.qkv, rows, &self.rope, cache, layer)?;
            attention::forward(&self.gpu, &a.qkv, rows, cache, layer, &a.attn)
        })
    }

    /// The most that passes, steps and draws take beside the cache; several times what lives of a layer.
    fn scratch_bytes(&self) -> usize {
        let c = &self.config;
        // Graphs of all powers of two, up to twice the sequences.
        let rows = ROWS + 4 * self.max_live;
        let widths = 6 * c.hidden_size + 3 * c.intermediate_size + 2 * self.shape().qkv_dim();
        // Parts of a long context's sums, in f32.
        let splits = c.max_position_embeddings.div_ceil(attention::SPLIT).next_power_of_two() * self.shape().q_dim();
        2 * rows * widths + 4 * rows * splits + 4 * DRAWS * c.vocab_size
    }
}

impl<'a> CudaDecoder<'a> {
    /// With so many pages of [`PAGE`] tokens.
    pub fn new(model: &'a CudaModel, pages: usize) -> Result<CudaDecoder<'a>> {
        // One more, for what fills up a step.
        let cache = Cache::new(&model.gpu, model.shape(), model.config.num_hidden_layers, pages + 1)?;
        let (states, steps) = (model.gpu.uninit(0)?, Steps::new(pages as u32));
        Ok(CudaDecoder { model, cache, pages: Pages::new(pages), states, steps })
    }

    /// CUDA graphs noted so far.
    pub fn graphs(&self) -> usize {
        self.steps.len()
    }

    /// The final hidden states of the slots' last tokens, `[slots, hidden]`.
    pub fn hidden(&self, slots: &[Slot]) -> Result<Tensor<bf16>> {
        let (gpu, width) = (&self.model.gpu, self.model.config.hidden_size);
        let (rows, room): (Vec<u32>, usize) = (slots.iter().map(|slot| slot.0).collect(), self.states.len() / width);
        expect("decoding", rows.iter().all(|row| (*row as usize) < room), || format!("slots {slots:?} of {room}"))?;
        let (rows, out) = (gpu.tensor(&rows)?, gpu.uninit(slots.len() * width)?);
        embedding::gather(gpu, &rows, &self.states, width, &out)?;
        Ok(out)
    }

    /// Refuses what cannot be appended, before anything is changed.
    fn check(&self, feeds: &[(Slot, &[u32])]) -> Result<()> {
        let (context, vocab) = (self.model.config.max_position_embeddings, self.model.config.vocab_size);
        for (slot, fed) in feeds {
            let end = self.pages.len(*slot) + fed.len();
            expect("decoding", end <= context, || format!("{end} tokens for a context of {context}"))?;
            let unknown = fed.iter().find(|token| **token as usize >= vocab);
            expect("decoding", unknown.is_none(), || format!("token {unknown:?} of a vocabulary of {vocab}"))?;
        }
        self.pages.check(feeds.iter().map(|(slot, fed)| (*slot, fed.len())))
    }

    /// Makes room for the states of so many slots.
    fn reserve(&mut self, slots: usize) -> Result<()> {
        let (gpu, width) = (&self.model.gpu, self.model.config.hidden_size);
        if slots * width > self.states.len() {
            let wider = gpu.zeros(slots.next_power_of_two() * width)?;
            if let Some(old) = wider.part(0..self.states.len()) {
                gpu.copy(&self.states, &old)?;
            }
            self.states = wider;
        }
        Ok(())
    }
}

impl Decoder for CudaDecoder<'_> {
    fn alloc(&mut self) -> Slot {
        self.pages.alloc()
    }

    fn fork(&mut self, of: Slot) -> Result<Slot> {
        let (slot, width) = (self.pages.fork(of), self.model.config.hidden_size);
        self.reserve(of.0.max(slot.0) as usize + 1)?;
        let state = |slot: Slot| self.states.part(slot.0 as usize * width..(slot.0 as usize + 1) * width);
        if let (Some(from), Some(to)) = (state(of), state(slot)) {
            self.model.gpu.copy(&from, &to)?;
        }
        Ok(slot)
    }

    fn fork_at(&mut self, of: Slot, len: usize) -> Result<Slot> {
        Ok(self.pages.fork_at(of, len))
    }

    fn free(&mut self, slot: Slot) {
        self.pages.free(slot);
    }

    fn extend(&mut self, feeds: &[(Slot, &[u32])]) -> Result<()> {
        let (mut tokens, mut rows, mut last) = (Vec::new(), Vec::new(), Vec::with_capacity(feeds.len()));
        self.check(feeds)?;
        for ((slot, fed), sequence) in feeds.iter().zip(0u32..) {
            let first = self.pages.len(*slot);
            let end = first + fed.len();
            if let Some((from, to)) = self.pages.extend(*slot, fed.len())? {
                self.cache.copy_page(&self.model.gpu, from, to)?;
            }
            tokens.extend_from_slice(fed);
            rows.extend((first..end).map(|position| (sequence, position as u32)));
            last.push((rows.len() - 1, slot.0));
        }
        self.reserve(feeds.iter().map(|(slot, _)| slot.0 as usize + 1).max().unwrap_or(0))?;
        let tables: Vec<&[u32]> = feeds.iter().map(|(slot, _)| self.pages.of(*slot)).collect();
        let (model, gpu, width) = (self.model, &self.model.gpu, self.model.config.hidden_size);
        let slots = self.states.len() / width;
        // A token for each: a step. All that it needs is brought to the device first, so that it never waits for the host.
        if rows.len() == feeds.len() && rows.len() <= ROWS {
            let places: Vec<(u32, u32)> = last.iter().map(|(row, slot)| (*row as u32, *slot)).collect();
            let places = Moves::new(gpu, &places, [Steps::rows(rows.len()), slots])?;
            let position: Vec<u32> = rows.iter().map(|(_, position)| *position).collect();
            let hidden = self.steps.run(model, &self.cache, &tokens, &position, &tables)?;
            return embedding::place(gpu, hidden, &places, width, &self.states);
        }
        for start in (0..rows.len()).step_by(ROWS) {
            let pass = start..rows.len().min(start + ROWS);
            let places = last.iter().filter(|(row, _)| pass.contains(row));
            let places: Vec<(u32, u32)> = places.map(|(row, slot)| ((row - start) as u32, *slot)).collect();
            let places = Moves::new(gpu, &places, [pass.len(), slots])?;
            let (tokens, acts) = (gpu.tensor(&tokens[pass.clone()])?, model.activations(pass.len(), Keep::Nothing)?);
            let rows = Rows::new(gpu, &self.cache, &rows[pass], &tables)?;
            model.decode(&tokens, &rows, &self.cache, &acts)?;
            embedding::place(gpu, &acts.hidden, &places, width, &self.states)?;
        }
        Ok(())
    }

    fn draw(&mut self, draws: &[Draw<'_>], params: &SamplingParams) -> Result<Vec<Sampled>> {
        let (gpu, c) = (&self.model.gpu, &self.model.config);
        let head = self.model.weight(&self.model.layout.head);
        let mut drawn = Vec::with_capacity(draws.len());
        for draws in draws.chunks(DRAWS) {
            let slots: Vec<Slot> = draws.iter().map(|draw| draw.slot).collect();
            let logits = Logits::new(gpu, draws.len(), c.vocab_size)?;
            let hidden = self.hidden(&slots)?;
            logits.compute(gpu, &hidden, &head, c.hidden_size)?;
            let seen = if params.repetition_penalty == 1.0 {
                None
            } else {
                Some(Seen::new(gpu, &draws.iter().map(|draw| draw.seen).collect::<Vec<_>>(), c.vocab_size)?)
            };
            let uniform = gpu.tensor(&draws.iter().map(|draw| draw.uniform).collect::<Vec<_>>())?;
            let (token, logprob) = (gpu.uninit(draws.len())?, gpu.uninit(draws.len())?);
            sampling::sample(gpu, &logits, seen.as_ref(), params, &uniform, &token, &logprob)?;
            let pairs = gpu.read(&token)?.into_iter().zip(gpu.read(&logprob)?);
            drawn.extend(pairs.map(|(token, logprob)| Sampled { token, logprob }));
        }
        Ok(drawn)
    }
}
