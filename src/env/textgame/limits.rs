//! How large a game may be. A text of a few bytes can describe more than any machine can hold, so what it leads to is counted
//! before it is made. ALFWorld's games stay far below every limit.

use std::cell::Cell;

/// Bytes of a game file.
pub const MOST_FILE: u64 = 4 << 20;
pub const MOST_TYPES: usize = 128;
/// Predicates, and actions, of a domain.
pub const MOST_DECLARED: usize = 4096;
pub const MOST_OBJECTS: usize = 65535;
/// Parameters and quantified variables of one action or goal.
pub const MOST_VARIABLES: usize = 255;

/// Values looked at or kept while a game's actions are filled in and spelled.
pub const MOST_GROUNDING: u64 = 20_000_000;
/// The same for the texts of one observation; a byte of text counts as one.
pub const MOST_SPEECH: u64 = 4_000_000;
/// The same for one search for a shortest plan.
pub const MOST_PLANNING: u64 = 1_000_000_000;

/// Work that may still be done. It is counted, not timed: a game is too large everywhere or nowhere.
#[derive(Debug)]
pub struct Budget(Cell<u64>);

/// The budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMuch;

impl Budget {
    pub fn new(most: u64) -> Self {
        Self(Cell::new(most))
    }

    /// Takes `work` from what is left.
    pub fn spend(&self, work: usize) -> Result<(), TooMuch> {
        match self.0.get().checked_sub(work as u64) {
            Some(left) => self.0.set(left),
            None => {
                self.0.set(0);
                return Err(TooMuch);
            }
        }
        Ok(())
    }
}
