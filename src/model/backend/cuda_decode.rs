//! Decoding on a GPU: the forward pass of [`super::cuda`] against a paged cache, and tokens sampled from its logits. What comes back
//! to the host is tokens and their log-probs.

use super::SavedActivations;
use super::cuda::{CudaActivations, CudaModel};
use super::cuda_sink::part;
use super::cuda_step::{DRAWS, Drawing, Step, Steps, split_sampled};
use crate::device::{Packed, Result, Slice, Tensor, expect};
use crate::model::pages::PAGE;
use crate::model::pages::Pages;
use crate::model::{Architecture, Decoder, Policy, SampleRequest, SequenceId};
use crate::ops::decode_attention::cuda::{self as attention, Cache, Rows};
use crate::ops::embedding::cuda::{self as embedding, Moves};
use crate::ops::sampling::cuda::{self as sampling, Seen};
use crate::ops::sampling::{Sampled, SamplingParams};
use half::bf16;
use std::collections::{HashMap, HashSet};

/// Most tokens of one pass through the model: long prompts take several.
const ROWS: usize = 2048;

/// The keys and values of many sequences in device memory.
pub struct CudaDecoder<'a> {
    model: &'a CudaModel,
    cache: Cache,
    pages: Pages,
    /// The final hidden state of each sequence's last token, `[sequences + 1, hidden]`, and room for more; what fills up a step is in the last.
    states: Tensor<bf16>,
    steps: Steps,
    /// What was fed last and not computed yet: if the next tokens are sampled from just these, both are one step.
    pending: Option<Step>,
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

    /// The most that passes, steps and requests take beside the cache; several times what lives of a layer.
    fn scratch_bytes(&self) -> usize {
        let c = &self.config;
        let rows = ROWS + Steps::sizes(self.max_live).sum::<usize>();
        let widths = 6 * c.hidden_size + 3 * c.intermediate_size + 2 * self.shape().qkv_dim();
        // Parts of a long context's sums, in f32.
        let splits = c.max_position_embeddings.div_ceil(attention::SPLIT).next_power_of_two() * self.shape().q_dim();
        2 * rows * widths + 4 * rows * splits + 4 * DRAWS * c.vocab_size
    }
}

impl<'a> CudaDecoder<'a> {
    /// With so many pages of [`PAGE`] tokens.
    ///
    /// # Errors
    /// If there is too little device memory.
    pub fn new(model: &'a CudaModel, pages: usize) -> Result<CudaDecoder<'a>> {
        let (gpu, sequences) = (&model.gpu, model.max_live);
        // One more, for what fills up a step.
        let cache = Cache::new(gpu, model.shape(), model.config.num_hidden_layers, pages + 1)?;
        let room = sequences.next_power_of_two();
        let states = gpu.zeros((room + 1) * model.config.hidden_size)?;
        let steps = Steps::new(model, &cache, pages as u32, sequences, room)?;
        Ok(CudaDecoder { model, cache, pages: Pages::new(pages), states, steps, pending: None })
    }

    /// The final hidden states of the sequences' last tokens, `[sequences, hidden]`.
    ///
    /// # Errors
    /// If a sequence does not exist, or a launch fails.
    pub fn hidden(&mut self, ids: &[SequenceId]) -> Result<Tensor<bf16>> {
        self.compute_pending()?;
        self.check_ids(ids)?;
        let (gpu, width) = (&self.model.gpu, self.model.config.hidden_size);
        let rows: Vec<u32> = ids.iter().map(|id| id.0).collect();
        let (rows, out) = (gpu.tensor(&rows)?, gpu.uninit(ids.len() * width)?);
        embedding::gather(gpu, &rows, &self.states, width, &out)?;
        Ok(out)
    }

    fn check_ids(&self, ids: &[SequenceId]) -> Result<()> {
        let room = self.room();
        expect("decoding", ids.iter().all(|id| (id.0 as usize) < room), || format!("sequences {ids:?} of {room}"))
    }

    /// Slots that there are states for.
    fn room(&self) -> usize {
        self.states.len() / self.model.config.hidden_size - 1
    }

    /// Computes what was fed last, before anything else is done to the cache or the states.
    fn compute_pending(&mut self) -> Result<()> {
        let Some(step) = self.pending.take() else { return Ok(()) };
        self.steps.run(self.model, &self.cache, &self.states, &step, None).map(drop)
    }

    /// What was fed last, if all requests sample from it, so that one graph can do both; and the place of each request in it.
    fn pending_of(&mut self, requests: &[SampleRequest<'_>], params: &SamplingParams) -> Option<(Step, Vec<usize>)> {
        let step = self.pending.as_ref().filter(|step| params.repetition_penalty == 1.0 && self.steps.fits(step))?;
        let places: HashMap<SequenceId, usize> = step.ids.iter().copied().zip(0..).collect();
        let of_requests: Vec<usize> =
            requests.iter().map(|request| places.get(&request.sequence).copied()).collect::<Option<_>>()?;
        let distinct: HashSet<usize> = of_requests.iter().copied().collect();
        // Twice from one sequence is two numbers.
        if distinct.len() < requests.len() {
            return None;
        }
        Some((self.pending.take()?, of_requests))
    }

    /// Refuses what cannot be appended, before anything is changed.
    fn check(&self, inputs: &[(SequenceId, &[u32])]) -> Result<()> {
        let (context, vocab) = (self.model.config.max_position_embeddings, self.model.config.vocab_size);
        for (id, fed) in inputs {
            let end = self.pages.len(*id) + fed.len();
            expect("decoding", end <= context, || format!("{end} tokens for a context of {context}"))?;
            let unknown = fed.iter().find(|token| **token as usize >= vocab);
            expect("decoding", unknown.is_none(), || format!("token {unknown:?} of a vocabulary of {vocab}"))?;
        }
        self.pages.check(inputs.iter().map(|(id, fed)| (*id, fed.len())))
    }

    /// Makes room for the states of so many sequences.
    fn reserve(&mut self, count: usize) -> Result<()> {
        let (gpu, width) = (&self.model.gpu, self.model.config.hidden_size);
        if count > self.room() {
            let wider = gpu.zeros((count.next_power_of_two() + 1) * width)?;
            gpu.copy(&self.states, &*part(&wider, &(0..self.states.len())))?;
            self.states = wider;
        }
        Ok(())
    }

    /// Computes a step that is too long for a graph, in passes.
    fn prefill(&self, step: &Step) -> Result<()> {
        let (model, gpu, width) = (self.model, &self.model.gpu, self.model.config.hidden_size);
        let tables: Vec<&[u32]> = step.tables.iter().map(Vec::as_slice).collect();
        for start in (0..step.rows.len()).step_by(ROWS) {
            let pass = start..step.rows.len().min(start + ROWS);
            let last = step.last.iter().zip(&step.ids).filter(|(row, _)| pass.contains(&(**row as usize)));
            let places: Vec<(u32, u32)> = last.map(|(row, id)| (row - start as u32, id.0)).collect();
            let mut packed = Packed::default();
            let moves = Moves::pack(&mut packed, &places, [pass.len(), self.room() + 1])?;
            let (tokens, rows) = (packed.add(&step.tokens[pass.clone()]), &step.rows[pass.clone()]);
            let rows = Rows::pack(&mut packed, gpu, &self.cache, rows, &tables, Rows::splits(rows))?;
            let mut on = packed.upload(gpu)?;
            let acts = model.activations(pass.len(), SavedActivations::Nothing)?;
            model.decode(&on.take(tokens), &rows(&mut on), &self.cache, &acts)?;
            embedding::place(gpu, &acts.hidden, &moves(&mut on), width, &self.states)?;
        }
        Ok(())
    }

    /// Draws from the states of so many sequences as there is room for logits.
    fn draw_some(&self, requests: &[SampleRequest<'_>], params: &SamplingParams) -> Result<Vec<Sampled>> {
        let (gpu, c, logits) = (&self.model.gpu, &self.model.config, &self.steps.logits);
        let n = requests.len();
        let mut packed = Packed::default();
        let ids = packed.add(&requests.iter().map(|request| request.sequence.0).collect::<Vec<_>>());
        let uniform = packed.add(&requests.iter().map(|request| request.uniform).collect::<Vec<_>>());
        let seen = match params.repetition_penalty {
            1.0 => None,
            _ => Some(Seen::pack(
                &mut packed,
                &requests.iter().map(|request| request.seen).collect::<Vec<_>>(),
                c.vocab_size,
            )?),
        };
        let mut on = packed.upload(gpu)?;
        let (ids, uniform, seen) = (on.take(ids), on.take(uniform), seen.map(|seen| seen(&mut on)));
        let (hidden, sampled) = (gpu.uninit(n * c.hidden_size)?, gpu.uninit::<u32>(2 * n)?);
        embedding::gather(gpu, &ids, &self.states, c.hidden_size, &hidden)?;
        logits.compute(gpu, &hidden, &self.model.weight(&self.model.layout.head), c.hidden_size)?;
        let (token, logprob) = (part(&sampled, &(0..n)), part(&sampled, &(n..2 * n)));
        sampling::sample(gpu, logits, seen.as_ref(), params, &uniform, &token, &logprob.cast())?;
        Ok(split_sampled(&gpu.read(&*sampled)?, n))
    }
}

impl Decoder for CudaDecoder<'_> {
    fn new_sequence(&mut self) -> SequenceId {
        self.pages.new_sequence()
    }

    fn fork(&mut self, of: SequenceId) -> Result<SequenceId> {
        self.compute_pending()?;
        let (id, width) = (self.pages.fork(of), self.model.config.hidden_size);
        self.reserve(of.0.max(id.0) as usize + 1)?;
        let state = |id: SequenceId| part(&self.states, &(id.0 as usize * width..(id.0 as usize + 1) * width));
        self.model.gpu.copy(&*state(of), &*state(id))?;
        Ok(id)
    }

    fn fork_at(&mut self, of: SequenceId, len: usize) -> Result<SequenceId> {
        Ok(self.pages.fork_at(of, len))
    }

    fn free(&mut self, id: SequenceId) {
        self.pages.free(id);
    }

    fn append(&mut self, inputs: &[(SequenceId, &[u32])]) -> Result<()> {
        self.compute_pending()?;
        self.check(inputs)?;
        self.reserve(inputs.iter().map(|(id, _)| id.0 as usize + 1).max().unwrap_or(0))?;
        for (id, fed) in inputs {
            if let Some((from, to)) = self.pages.append(*id, fed.len())? {
                self.cache.copy_page(&self.model.gpu, from, to)?;
            }
        }
        let step = Step::new(inputs, &self.pages);
        // Whose next tokens are perhaps sampled with it.
        if self.steps.fits(&step) {
            self.pending = Some(step).filter(|step| !step.ids.is_empty());
            return Ok(());
        }
        self.prefill(&step)
    }

    fn sample(&mut self, requests: &[SampleRequest<'_>], params: &SamplingParams) -> Result<Vec<Sampled>> {
        if let Some((step, places)) = self.pending_of(requests, params) {
            let mut uniform = vec![0.5; step.ids.len()];
            places.iter().zip(requests).for_each(|(at, request)| uniform[*at] = request.uniform);
            let drawing = Drawing { uniform, params };
            let sampled = self.steps.run(self.model, &self.cache, &self.states, &step, Some(&drawing))?;
            return Ok(places.into_iter().map(|at| sampled[at]).collect());
        }
        self.compute_pending()?;
        self.check_ids(&requests.iter().map(|request| request.sequence).collect::<Vec<_>>())?;
        let mut sampled = Vec::with_capacity(requests.len());
        for some in requests.chunks(self.steps.logits.room()) {
            sampled.extend(self.draw_some(some, params)?);
        }
        Ok(sampled)
    }
}
