//! Sub-allocation of one large piece of memory: first fit, neighbours joined when freed. Knows offsets only.
//!
//! One stream does all the work of a device, so memory may be handed out again while kernels that use it still wait: whatever
//! comes next waits behind them.

use super::{Error, Result};
use std::collections::BTreeMap;

/// What every allocation is aligned to, and a multiple of.
const ALIGNMENT: usize = 256;

/// Hands out offsets of one large allocation, first fit; it touches no memory itself.
#[derive(Debug)]
pub struct Arena {
    total: usize,
    /// Offset and length of the gaps, no two touching.
    gaps: BTreeMap<usize, usize>,
    /// Offset and length of what is in use.
    used: BTreeMap<usize, usize>,
}

/// What an allocation of so many bytes takes.
pub fn padded(bytes: usize) -> usize {
    bytes.max(1).checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX)
}

impl Arena {
    /// An arena of so many bytes, all free.
    pub fn new(bytes: usize) -> Arena {
        let total = bytes / ALIGNMENT * ALIGNMENT;
        Arena { total, gaps: BTreeMap::from([(0, total)]), used: BTreeMap::new() }
    }

    /// The offset of `bytes` that nobody else has; of their own even if there are none.
    ///
    /// # Errors
    /// If no free stretch is long enough.
    pub fn alloc(&mut self, bytes: usize) -> Result<usize> {
        let wanted = padded(bytes);
        let Some((offset, gap)) = self.gaps.iter().map(|(o, n)| (*o, *n)).find(|(_, n)| *n >= wanted) else {
            let (free, largest) = (self.free_bytes(), self.gaps.values().copied().max().unwrap_or(0));
            return Err(Error::OutOfMemory { asked: bytes, free, largest, total: self.total });
        };
        self.gaps.remove(&offset);
        if gap > wanted {
            self.gaps.insert(offset + wanted, gap - wanted);
        }
        self.used.insert(offset, wanted);
        Ok(offset)
    }

    /// As many stretches, side by side: each begins where the one before, `padded`, ends.
    ///
    /// # Errors
    /// If no free stretch is long enough for all together.
    pub fn alloc_all(&mut self, bytes: &[usize]) -> Result<Vec<usize>> {
        let padded: Vec<usize> = bytes.iter().map(|n| padded(*n)).collect();
        if padded.is_empty() {
            return Ok(Vec::new());
        }
        let mut next = self.alloc(padded.iter().sum())?;
        // One stretch becomes several, each to be freed on its own.
        self.used.remove(&next);
        Ok(padded
            .into_iter()
            .map(|length| {
                let offset = next;
                self.used.insert(offset, length);
                next += length;
                offset
            })
            .collect())
    }

    /// Takes back what [`Arena::alloc`] gave; anything else is left alone.
    pub fn free(&mut self, offset: usize) {
        let Some(mut length) = self.used.remove(&offset) else { return };
        if let Some(next) = self.gaps.remove(&(offset + length)) {
            length += next;
        }
        match self.gaps.range_mut(..offset).next_back() {
            Some((before, gap)) if before + *gap == offset => *gap += length,
            _ => drop(self.gaps.insert(offset, length)),
        }
    }

    /// Bytes of the arena.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Bytes that are free, in all stretches together.
    pub fn free_bytes(&self) -> usize {
        self.gaps.values().sum()
    }
}
