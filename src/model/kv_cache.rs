//! A paged key/value cache whose slots share the pages of a common prefix.

use super::Qwen2Config;

/// One sequence in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub(crate) u32);

/// Keys and values of many sequences, in pages of fixed length.
pub struct KvCache {}

impl KvCache {
    pub fn new(config: &Qwen2Config) -> KvCache {
        let _ = config;
        unimplemented!()
    }
    /// An empty slot.
    pub fn alloc(&mut self) -> Slot {
        unimplemented!()
    }
    /// A new slot that shares everything `of` holds.
    pub fn fork(&mut self, of: Slot) -> Slot {
        let _ = of;
        unimplemented!()
    }
    /// Gives the slot's pages back; a freed slot must not be used again.
    pub fn free(&mut self, slot: Slot) {
        let _ = slot;
        unimplemented!()
    }
    /// Tokens held by the slot.
    pub fn len(&self, slot: Slot) -> usize {
        let _ = slot;
        unimplemented!()
    }
}
