//! The page table of a KV cache, on either device: which sequence holds which pages. Numbers only, the keys and values lie elsewhere.
//!
//! Forks share pages by counting references. What is shared is never written: the last page, when it is partly filled and shared,
//! is copied by the first to go on.

use crate::device::{Error, Result};
use std::collections::HashMap;

/// Tokens in a page.
pub const PAGE: usize = 32;

/// One sequence in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub(crate) u32);

/// A pool of pages, and the sequences that hold them.
#[derive(Debug, Clone)]
pub struct Pages {
    /// Slots that hold each page.
    references: Vec<u32>,
    free: Vec<u32>,
    sequences: Vec<Option<Sequence>>,
    /// The pool grows when it is empty.
    grows: bool,
}

#[derive(Debug, Clone, Default)]
struct Sequence {
    pages: Vec<u32>,
    len: usize,
}

impl Pages {
    /// So many pages, and never more.
    pub fn new(count: usize) -> Pages {
        Pages {
            references: vec![0; count],
            free: (0..count as u32).rev().collect(),
            sequences: Vec::new(),
            grows: false,
        }
    }

    /// As many pages as are needed: [`Pages::check`] and [`Pages::append`] never fail.
    pub fn growing() -> Pages {
        Pages { grows: true, ..Pages::new(0) }
    }

    /// Pages that there are, used or not.
    pub fn count(&self) -> usize {
        self.references.len()
    }

    /// An empty sequence.
    pub fn new_sequence(&mut self) -> SequenceId {
        self.insert(Sequence::default())
    }

    /// A new sequence that shares everything `of` holds.
    pub fn fork(&mut self, of: SequenceId) -> SequenceId {
        self.fork_at(of, self.len(of))
    }

    /// A new sequence that shares the first `len` tokens of `of`.
    ///
    /// # Panics
    /// If `of` holds fewer: a mistake of the caller, never of its input.
    pub fn fork_at(&mut self, of: SequenceId, len: usize) -> SequenceId {
        let mut copy = self.sequence(of).clone();
        assert!(len <= copy.len, "a fork at {len} of {} tokens", copy.len);
        copy.pages.truncate(len.div_ceil(PAGE));
        copy.len = len;
        copy.pages.iter().for_each(|page| self.references[*page as usize] += 1);
        self.insert(copy)
    }

    /// Gives the sequence's pages back; a freed sequence must not be used again.
    pub fn free(&mut self, id: SequenceId) {
        for page in self.sequences[id.0 as usize].take().unwrap_or_default().pages {
            self.release(page);
        }
    }

    /// Whether there are pages to make sequences (each at most once) longer by so many tokens.
    ///
    /// # Errors
    /// If there are too few free pages.
    pub fn check(&self, inputs: impl Iterator<Item = (SequenceId, usize)>) -> Result<()> {
        let (mut fresh, mut written) = (0, HashMap::<u32, u32>::new());
        for (id, more) in inputs {
            let Sequence { pages, len } = self.sequence(id);
            fresh += (len + more).div_ceil(PAGE) - pages.len();
            if len % PAGE > 0 && more > 0 {
                pages.last().into_iter().for_each(|page| *written.entry(*page).or_default() += 1);
            }
        }
        // The last who holds a page writes it where it is.
        let copies = written.iter().map(|(page, holders)| (*holders).min(self.references[*page as usize] - 1));
        self.refuse(fresh + copies.sum::<u32>() as usize)
    }

    /// Refuses to take more pages than there are.
    fn refuse(&self, asked: usize) -> Result<()> {
        let (free, total) = (self.free.len(), self.references.len());
        if asked <= free || self.grows { Ok(()) } else { Err(Error::OutOfPages { asked, free, total, tokens: PAGE }) }
    }

    /// Makes the sequence longer by `more` tokens. The page that must be copied (from, to) before they are written, if any.
    ///
    /// Changes nothing when there are too few pages.
    ///
    /// # Errors
    /// If there are too few free pages.
    pub fn append(&mut self, id: SequenceId, more: usize) -> Result<Option<(u32, u32)>> {
        let Sequence { pages, len } = self.sequence(id);
        let partial = if len % PAGE > 0 && more > 0 { pages.last().copied() } else { None };
        let shared = partial.filter(|page| self.references[*page as usize] > 1);
        let fresh = (len + more).div_ceil(PAGE) - pages.len();
        let asked = fresh + usize::from(shared.is_some());
        self.refuse(asked)?;
        let mut taken = self.take(asked);
        let copy = shared.and_then(|from| Some((from, taken.pop()?)));
        if let Some((from, _)) = copy {
            self.release(from);
        }
        if let Some(sequence) = &mut self.sequences[id.0 as usize] {
            if let (Some((_, to)), Some(last)) = (copy, sequence.pages.last_mut()) {
                *last = to;
            }
            sequence.pages.extend(taken);
            sequence.len += more;
        }
        Ok(copy)
    }

    /// Pages for one sequence; there must be so many.
    fn take(&mut self, count: usize) -> Vec<u32> {
        let held = self.references.len() as u32;
        let more = count.saturating_sub(self.free.len()) as u32;
        self.references.extend((0..more).map(|_| 0));
        let mut taken: Vec<u32> = (held..held + more).rev().collect();
        taken.extend(self.free.split_off(self.free.len() - (count - more as usize)));
        taken.iter().for_each(|page| self.references[*page as usize] = 1);
        taken
    }

    /// Tokens held by the sequence.
    pub fn len(&self, id: SequenceId) -> usize {
        self.sequence(id).len
    }

    /// The sequence's pages, in order.
    pub fn of(&self, id: SequenceId) -> &[u32] {
        &self.sequence(id).pages
    }

    /// Pages that nobody holds.
    pub fn left(&self) -> usize {
        self.free.len()
    }

    fn sequence(&self, id: SequenceId) -> &Sequence {
        self.sequences[id.0 as usize].as_ref().expect("a sequence is not used after it was freed")
    }

    fn release(&mut self, page: u32) {
        let references = &mut self.references[page as usize];
        *references -= 1;
        if *references == 0 {
            self.free.push(page);
        }
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let at = self.sequences.iter().position(Option::is_none).unwrap_or_else(|| {
            self.sequences.push(None);
            self.sequences.len() - 1
        });
        self.sequences[at] = Some(sequence);
        SequenceId(at as u32)
    }
}
