//! A paged key/value cache whose slots share the pages of a common prefix, for one state of the weights.
//!
//! A page holds [`PAGE`] tokens of every layer and kv head. Forking a slot shares its pages; the page that both go on to write is
//! copied by the first to write it.

use super::Model;
use super::backend::cpu::Weights;
use crate::ops::decode_attention::Paged;
use std::sync::Arc;

/// Tokens in a page.
pub const PAGE: usize = 32;

/// One sequence in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub(crate) u32);

/// Keys and values of many sequences, in pages of fixed length.
pub struct KvCache {
    shape: PageShape,
    /// The model's parameters with every matrix in panels: decoding multiplies few rows at a time.
    weights: Vec<f32>,
    slots: Vec<Option<Sequence>>,
}

/// Where a layer's and head's keys and values lie in a page: keys `[head_dim, PAGE]`, then values `[PAGE, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageShape {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl PageShape {
    fn len(&self) -> usize {
        self.layers * self.kv_heads * 2 * self.head_dim * PAGE
    }

    fn at(&self, layer: usize, kv_head: usize) -> usize {
        (layer * self.kv_heads + kv_head) * 2 * self.head_dim * PAGE
    }
}

/// The pages of one slot.
#[derive(Clone, Default)]
pub(crate) struct Sequence {
    pages: Vec<Arc<[f32]>>,
    pub len: usize,
}

impl Sequence {
    /// Makes room for the tokens `len .. len + more`, copying a shared page before it is written.
    pub fn reserve(&mut self, more: usize, shape: PageShape) {
        let last = self.len / PAGE;
        if let Some(page) = self.pages.get_mut(last)
            && Arc::get_mut(page).is_none()
        {
            *page = Arc::from(&page[..]);
        }
        while self.pages.len() * PAGE < self.len + more {
            self.pages.push(std::iter::repeat_n(0.0, shape.len()).collect());
        }
    }

    /// Writes one token's keys and values (`[kv_heads, head_dim]` each) of one layer. Room must be reserved.
    pub fn write(&mut self, shape: PageShape, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        let (d, i) = (shape.head_dim, position % PAGE);
        let page = Arc::get_mut(&mut self.pages[position / PAGE]).expect("a page being written is never shared");
        for (head, (k, v)) in keys.chunks_exact(d).zip(values.chunks_exact(d)).enumerate() {
            let at = shape.at(layer, head);
            for (j, k) in k.iter().enumerate() {
                page[at + j * PAGE + i] = *k;
            }
            page[at + d * PAGE + i * d..][..d].copy_from_slice(v);
        }
    }
}

/// A layer of a sequence.
pub(crate) struct LayerPages<'a> {
    pub sequence: &'a Sequence,
    pub shape: PageShape,
    pub layer: usize,
}

impl Paged for LayerPages<'_> {
    fn pages(&self, kv: usize) -> impl Iterator<Item = (&[f32], &[f32])> + Clone {
        let (at, n) = (self.shape.at(self.layer, kv), self.shape.head_dim * PAGE);
        self.sequence.pages.iter().map(move |page| page[at..at + 2 * n].split_at(n))
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
        };
        KvCache { shape, weights: model.panels(), slots: Vec::new() }
    }

    /// An empty slot.
    pub fn alloc(&mut self) -> Slot {
        self.insert(Sequence::default())
    }

    /// A new slot that shares everything `of` holds.
    pub fn fork(&mut self, of: Slot) -> Slot {
        let copy = self.slots[of.0 as usize].clone().unwrap_or_default();
        self.insert(copy)
    }

    /// A new slot that shares the first `len` tokens of `of`.
    pub fn fork_at(&mut self, of: Slot, len: usize) -> Slot {
        let mut copy = self.slots[of.0 as usize].clone().unwrap_or_default();
        assert!(len <= copy.len, "a fork at {len} of {} tokens", copy.len);
        copy.pages.truncate(len.div_ceil(PAGE));
        copy.len = len;
        self.insert(copy)
    }

    /// Gives the slot's pages back; a freed slot must not be used again.
    pub fn free(&mut self, slot: Slot) {
        self.slots[slot.0 as usize] = None;
    }

    /// Tokens held by the slot.
    pub fn len(&self, slot: Slot) -> usize {
        self.slots[slot.0 as usize].as_ref().map_or(0, |s| s.len)
    }

    pub(super) fn weights(&self) -> Weights<'_> {
        Weights { flat: &self.weights, panels: true, spread: false }
    }

    pub(crate) fn shape(&self) -> PageShape {
        self.shape
    }

    /// Takes a slot's sequence out, to be extended and put back.
    ///
    /// # Panics
    /// If the slot is free or already taken: a mistake of the caller, never of its input.
    pub(crate) fn take(&mut self, slot: Slot) -> Sequence {
        self.slots[slot.0 as usize].take().expect("a slot is extended once at a time, and not after it was freed")
    }

    pub(crate) fn put(&mut self, slot: Slot, sequence: Sequence) {
        self.slots[slot.0 as usize] = Some(sequence);
    }

    fn insert(&mut self, sequence: Sequence) -> Slot {
        let free = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[free] = Some(sequence);
        Slot(free as u32)
    }
}
