//! What the agent has before it at each turn of an episode.

/// The tokens that an observation adds to what the agent has before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// At this turn.
    pub now: Vec<u32>,
    /// At every later turn: the same, or the same without the commands that were admissible; nothing with a windowed history, where
    /// a turn tells all of the past itself.
    pub later: Vec<u32>,
}

/// The episode so far, as a later turn has it.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The observations and turns before the latest observation.
    talk: Vec<u32>,
    latest: Option<Shown>,
}

/// What the agent reads next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// More of the sequence that it is in.
    More(Vec<u32>),
    /// A sequence from its beginning.
    Sequence(Vec<u32>),
}

impl Memory {
    /// Shows an observation in answer to the turn `written`, its end token included; the first one in answer to nothing.
    pub fn show(&mut self, written: &[u32], shown: Shown) -> Next {
        let now = shown.now.clone();
        let Some(last) = self.latest.replace(shown) else { return Next::Sequence(now) };
        if last.later.is_empty() {
            return Next::Sequence(now);
        }
        self.talk.extend(last.later.iter().chain(written));
        match last.now == last.later {
            true => Next::More(now),
            false => Next::Sequence([&self.talk[..], &now].concat()),
        }
    }
}
