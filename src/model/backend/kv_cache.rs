//! A paged key/value cache in host memory, for one state of the weights. The page table is that of every device ([`Pages`]).
//!
//! A page holds [`PAGE`] tokens of every layer and kv head, in f32 or, where products are in bf16, in bf16.

use super::cpu_weights::{PackedModel, Weights};
use crate::device::Dtype;
use crate::model::Model;
use crate::model::pages::{PAGE, Pages, SequenceId};
use crate::ops::decode_attention::{Element, Paged};
use std::marker::PhantomData;

/// Keys and values of many sequences.
pub struct KvCache {
    shape: PageShape,
    /// Packed: decoding multiplies few rows at a time.
    weights: PackedModel,
    pages: Pages,
    /// The content of each page; empty while a sequence that grows has taken it out.
    memory: Vec<Page>,
}

/// Numbers of whatever format.
type Page = Box<[u32]>;

/// Where a layer's and head's keys and values lie in a page: keys `[head_dim, PAGE]`, then values `[PAGE, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageShape {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    dtype: Dtype,
}

impl PageShape {
    /// Words of a page.
    fn words(&self) -> usize {
        self.layers * self.kv_heads * 2 * self.head_dim * PAGE * self.dtype.bytes() / size_of::<u32>()
    }

    fn at(&self, layer: usize, kv_head: usize) -> usize {
        (layer * self.kv_heads + kv_head) * 2 * self.head_dim * PAGE
    }
}

/// A sequence that grows: the pages before its new tokens, which others may share, and the pages that it alone writes.
pub(crate) struct Growing<'a> {
    shape: PageShape,
    /// Tokens before the new ones.
    pub past: usize,
    read: Vec<&'a [u32]>,
    written: Vec<Page>,
}

impl Growing<'_> {
    /// Writes one token's keys and values (`[kv_heads, head_dim]` each) of one layer.
    pub fn write<E: Element>(&mut self, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        let (shape, d, i) = (self.shape, self.shape.head_dim, position % PAGE);
        let page: &mut [E] = bytemuck::cast_slice_mut(&mut self.written[position / PAGE - self.read.len()]);
        for (head, (k, v)) in keys.chunks_exact(d).zip(values.chunks_exact(d)).enumerate() {
            let at = shape.at(layer, head);
            for (j, k) in k.iter().enumerate() {
                page[at + j * PAGE + i] = E::narrow(*k);
            }
            page[at + d * PAGE + i * d..][..d].iter_mut().zip(v).for_each(|(to, v)| *to = E::narrow(*v));
        }
    }

    pub fn layer<E: Element>(&self, layer: usize) -> LayerPages<'_, E> {
        LayerPages { sequence: self, layer, element: PhantomData }
    }
}

/// A layer of a sequence.
pub(crate) struct LayerPages<'a, E> {
    sequence: &'a Growing<'a>,
    layer: usize,
    element: PhantomData<E>,
}

impl<E: Element> Paged for LayerPages<'_, E> {
    type Element = E;

    fn pages(&self, kv: usize) -> impl Iterator<Item = (&[E], &[E])> + Clone {
        let Growing { shape, read, written, .. } = self.sequence;
        let (at, n) = (shape.at(self.layer, kv), shape.head_dim * PAGE);
        let all = read.iter().copied().chain(written.iter().map(|page| &page[..]));
        all.map(move |page| bytemuck::cast_slice(page)[at..at + 2 * n].split_at(n))
    }
}

impl KvCache {
    /// For `model` with the weights it has now.
    pub fn new(model: &Model) -> KvCache {
        let config = &model.config;
        let shape = PageShape {
            layers: config.num_hidden_layers,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            dtype: model.dtype(),
        };
        KvCache { shape, weights: model.packed(), pages: Pages::growing(), memory: Vec::new() }
    }

    /// An empty sequence.
    pub fn new_sequence(&mut self) -> SequenceId {
        self.pages.new_sequence()
    }

    /// A new sequence that shares everything `of` holds.
    pub fn fork(&mut self, of: SequenceId) -> SequenceId {
        self.pages.fork(of)
    }

    /// A new sequence that shares the first `len` tokens of `of`.
    pub fn fork_at(&mut self, of: SequenceId, len: usize) -> SequenceId {
        self.pages.fork_at(of, len)
    }

    /// Gives the sequence's pages back; a freed sequence must not be used again.
    pub fn free(&mut self, id: SequenceId) {
        self.pages.free(id);
    }

    /// Tokens held by the sequence.
    pub fn len(&self, id: SequenceId) -> usize {
        self.pages.len(id)
    }

    pub(super) fn weights(&self) -> Weights<'_> {
        self.weights.weights()
    }

    /// Makes each sequence (none twice) longer by so many tokens, which `write` writes; a page that is shared is copied before.
    pub(in crate::model) fn grow(
        &mut self,
        ids: &[(SequenceId, usize)],
        write: impl FnOnce(Weights<'_>, &mut [Growing<'_>]),
    ) {
        let past: Vec<usize> = ids.iter().map(|(id, _)| self.pages.len(*id)).collect();
        for (id, more) in ids {
            let copy = self.pages.append(*id, *more).expect("the pool grows");
            let new = || std::iter::repeat_n(0, self.shape.words()).collect();
            self.memory.resize_with(self.pages.count(), new);
            if let Some((from, to)) = copy {
                self.memory[to as usize] = self.memory[from as usize].clone();
            }
            let len = self.pages.len(*id) - more;
            // Of what a page held before, nothing may be read, be it not a number.
            self.pages.of(*id)[len.div_ceil(PAGE)..].iter().for_each(|page| self.memory[*page as usize].fill(0));
        }
        // What is written belongs to one sequence, and leaves the memory while the rest is read.
        let mut written: Vec<Vec<Page>> = Vec::with_capacity(ids.len());
        for ((id, _), past) in ids.iter().zip(&past) {
            let own = &self.pages.of(*id)[past / PAGE..];
            written.push(own.iter().map(|page| std::mem::take(&mut self.memory[*page as usize])).collect());
        }
        let sequences = ids.iter().zip(&past).zip(written);
        let mut growing: Vec<Growing<'_>> = sequences
            .map(|(((id, _), &past), written)| {
                let read = self.pages.of(*id)[..past / PAGE].iter().map(|page| &*self.memory[*page as usize]);
                Growing { shape: self.shape, past, read: read.collect(), written }
            })
            .collect();
        write(self.weights.weights(), &mut growing);
        let written: Vec<Vec<Page>> = growing.into_iter().map(|sequence| sequence.written).collect();
        for (((id, _), past), written) in ids.iter().zip(past).zip(written) {
            for (page, content) in self.pages.of(*id)[past / PAGE..].iter().zip(written) {
                self.memory[*page as usize] = content;
            }
        }
    }
}
