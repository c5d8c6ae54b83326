//! A block's shared memory: poisoned before each block, its arrays between guard zones.

use crate::block::Line;
use crate::buffer::POISON;
use std::ops::Range;

/// What a block of sm_90 can have.
pub const LIMIT: usize = 227 << 10;
const GUARD: usize = 256;

struct Array {
    /// The declaration: equal for all threads that pass it.
    key: (Line, usize),
    bytes: Range<usize>,
}

pub struct Shared {
    words: Box<[u128]>,
    /// As the asynchronous parts see it.
    shown: Box<[u128]>,
    arrays: Vec<Array>,
    /// Bytes of arrays, guard zones left out.
    used: usize,
    end: usize,
}

const POISON_WORD: u128 = u128::MAX / 0xFFFF * POISON as u128;

impl Shared {
    pub fn new() -> Shared {
        // Room for the arrays and the guard zones of a good many of them.
        let words: Box<[u128]> = vec![POISON_WORD; (LIMIT + 64 * GUARD) / 16].into();
        Shared { shown: words.clone(), words, arrays: Vec::new(), used: 0, end: GUARD }
    }

    /// Before a block.
    pub fn poison(&mut self) {
        let touched = self.touched();
        self.words[..touched].fill(POISON_WORD);
        self.shown[..touched].fill(POISON_WORD);
        (self.used, self.end) = (0, GUARD);
        self.arrays.clear();
    }

    /// The declaration of the array that holds an address, and where in it that is.
    #[cfg(feature = "counters")]
    pub fn array_of(&self, address: usize) -> Option<(Line, usize)> {
        let at = address.wrapping_sub(self.base());
        self.arrays.iter().find(|a| a.bytes.contains(&at)).map(|a| (a.key.0, at - a.bytes.start))
    }

    #[cfg(feature = "counters")]
    pub fn addresses(&self) -> Range<usize> {
        self.base()..self.base() + 16 * self.words.len()
    }

    /// Words up to the last guard zone.
    fn touched(&self) -> usize {
        (self.end + GUARD).min(16 * self.words.len()) / 16
    }

    /// Shows everything to the asynchronous parts.
    pub fn show_all(&mut self) {
        let touched = self.touched();
        self.shown[..touched].copy_from_slice(&self.words[..touched]);
    }

    /// Shows the 16 bytes at an address, counted from [`Shared::base`].
    pub fn show_chunk(&mut self, address: usize) {
        if let (Some(shown), Some(word)) = (self.shown.get_mut(address / 16), self.words.get(address / 16)) {
            *shown = *word;
        }
    }

    pub fn is_shown(&self, address: usize) -> bool {
        self.shown.get(address / 16) == self.words.get(address / 16)
    }

    /// What shared addresses count from.
    pub fn base(&self) -> usize {
        self.words.as_ptr() as usize
    }

    /// The array of a declaration; `Err` holds the bytes that are too many.
    pub fn array(&mut self, line: Line, bytes: usize, alignment: usize) -> Result<*mut u8, usize> {
        let key = (line, bytes);
        if !self.arrays.iter().any(|a| a.key == key) {
            self.used += bytes;
            // The gap before it belongs to the guard zone of the one before.
            let start = self.end.next_multiple_of(alignment);
            self.end = start + bytes.next_multiple_of(16) + GUARD;
            if self.used > LIMIT || self.end > 16 * self.words.len() {
                return Err(self.used);
            }
            self.arrays.push(Array { key, bytes: start..start + bytes });
        }
        let start = self.arrays.iter().find(|a| a.key == key).map_or(0, |a| a.bytes.start);
        Ok(unsafe { self.words.as_mut_ptr().cast::<u8>().add(start) })
    }

    pub fn contains(&self, addresses: &Range<usize>) -> bool {
        let base = self.base();
        self.arrays.iter().any(|a| base + a.bytes.start <= addresses.start && addresses.end <= base + a.bytes.end)
    }

    /// After a block: the declaration of the array next to which something was written.
    pub fn damage(&self) -> Option<Line> {
        let bytes: &[u8] = bytemuck::cast_slice(&self.words[..]);
        self.arrays.iter().find_map(|a| {
            let gap = a.bytes.end..a.bytes.end.next_multiple_of(16) + GUARD;
            let before = a.bytes.start - GUARD..a.bytes.start;
            let whole = |range: Range<usize>| range.into_iter().all(|i| bytes[i] == POISON.to_ne_bytes()[i % 2]);
            (!whole(gap) || !whole(before)).then_some(a.key.0)
        })
    }
}
