//! Decoding on a GPU: the forward pass of [`super::cuda`] against a paged cache, and tokens drawn from its logits.

use super::cuda::CudaModel;
use super::kv_cache::PAGE;
use super::pages::Pages;
use super::{Decoder, Draw, Keep, Policy, Qwen2Config, Slot};
use crate::device::{Result, expect};
use crate::ops::decode_attention::cuda::{self as attention, Cache, Rows};
use crate::ops::embedding::{self, cuda::Tokens};
use crate::ops::linear;
use crate::ops::sampling::{self, Sampled, SamplingParams};
use half::bf16;
use rayon::prelude::*;

/// Most tokens of one pass through the model: long prompts take several.
const ROWS: usize = 2048;
/// Most rows of logits at once.
const DRAWS: usize = 64;

/// The keys and values of many sequences in device memory.
pub struct CudaDecoder<'a> {
    model: &'a CudaModel,
    cache: Cache,
    pages: Pages,
}

impl Policy for CudaModel {
    fn config(&self) -> &Qwen2Config {
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
    /// The most that a pass or a draw takes beside the cache; several times what lives of a layer.
    fn scratch_bytes(&self) -> usize {
        let c = &self.config;
        let widths = 6 * c.hidden_size + 3 * c.intermediate_size + 2 * self.shape().qkv_dim();
        // Parts of a long context's sums, in f32.
        let splits = c.max_position_embeddings.div_ceil(attention::SPLIT) * self.shape().q_dim();
        2 * ROWS * widths + 4 * ROWS * splits + 4 * DRAWS * c.vocab_size
    }
}

impl<'a> CudaDecoder<'a> {
    /// With so many pages of [`PAGE`] tokens.
    pub fn new(model: &'a CudaModel, pages: usize) -> Result<CudaDecoder<'a>> {
        let cache = Cache::new(&model.gpu, model.shape(), model.config.num_hidden_layers, pages)?;
        Ok(CudaDecoder { model, cache, pages: Pages::new(pages) })
    }

    /// One pass over tokens at (sequence, position); the final hidden states of the rows `wanted`.
    fn pass(&self, tokens: &[u32], rows: &[(u32, u32)], tables: &[&[u32]], wanted: &[u32]) -> Result<Vec<bf16>> {
        let (gpu, hidden, cache) = (&self.model.gpu, self.model.config.hidden_size, &self.cache);
        let rows = Rows::new(gpu, rows, tables, cache.pages())?;
        let tokens = Tokens::new(gpu, tokens, self.model.config.vocab_size)?;
        let acts = self.model.run(&tokens, &rows.position, Keep::Nothing, &|layer, a| {
            attention::append(gpu, &a.qkv, &rows, cache, layer)?;
            attention::forward(gpu, &a.qkv, &rows, cache, layer, &a.attn)
        })?;
        let (picked, out) = (Tokens::new(gpu, wanted, rows.len())?, gpu.uninit(wanted.len() * hidden)?);
        embedding::cuda::forward(gpu, &picked, &acts.hidden, hidden, &out)?;
        gpu.read(&out)
    }
}

impl Decoder for CudaDecoder<'_> {
    fn alloc(&mut self) -> Slot {
        self.pages.alloc()
    }

    fn fork(&mut self, of: Slot) -> Slot {
        self.pages.fork(of)
    }

    fn free(&mut self, slot: Slot) {
        self.pages.free(slot);
    }

    fn extend(&mut self, feeds: &[(Slot, &[u32])]) -> Result<Vec<f32>> {
        let context = self.model.config.max_position_embeddings;
        let (mut tokens, mut rows, mut last) = (Vec::new(), Vec::new(), Vec::with_capacity(feeds.len()));
        for ((slot, fed), sequence) in feeds.iter().zip(0u32..) {
            let first = self.pages.len(*slot);
            let end = first + fed.len();
            expect("decoding", end <= context, || format!("{end} tokens for a context of {context}"))?;
            if let Some((from, to)) = self.pages.extend(*slot, fed.len())? {
                self.cache.copy_page(&self.model.gpu, from, to)?;
            }
            tokens.extend_from_slice(fed);
            rows.extend((first..end).map(|position| (sequence, position as u32)));
            last.push(rows.len() - 1);
        }
        let tables: Vec<&[u32]> = feeds.iter().map(|(slot, _)| self.pages.of(*slot)).collect();
        let mut hidden = Vec::with_capacity(feeds.len() * self.model.config.hidden_size);
        for start in (0..rows.len()).step_by(ROWS) {
            let pass = start..rows.len().min(start + ROWS);
            let wanted = last.iter().filter(|row| pass.contains(row)).map(|row| (row - start) as u32);
            let wanted: Vec<u32> = wanted.collect();
            let states = self.pass(&tokens[pass.clone()], &rows[pass], &tables, &wanted)?;
            hidden.extend(states.into_iter().map(f32::from));
        }
        Ok(hidden)
    }

    fn draw(&mut self, hidden: &[f32], draws: &[Draw<'_>], params: &SamplingParams) -> Result<Vec<Sampled>> {
        let (gpu, c) = (&self.model.gpu, &self.model.config);
        let head = self.model.weight(&self.model.layout.head);
        let mut drawn = Vec::with_capacity(draws.len());
        for (rows, draws) in hidden.chunks(DRAWS * c.hidden_size).zip(draws.chunks(DRAWS)) {
            // As they came from the device: nothing is rounded.
            let rows: Vec<bf16> = rows.iter().map(|x| bf16::from_f32(*x)).collect();
            let rows = gpu.tensor(&rows)?;
            let logits = gpu.uninit::<f32>(draws.len() * c.vocab_size)?;
            linear::cuda::forward(gpu, &rows, &head, None, c.hidden_size, &logits)?;
            let mut logits = gpu.read(&logits)?;
            let rows = logits.par_chunks_mut(c.vocab_size).zip(draws);
            drawn.par_extend(rows.map(|(row, draw)| sampling::sample(row, draw.seen, params, draw.uniform)));
        }
        Ok(drawn)
    }
}
