//! What a rollout gives: episodes to learn from, and apart from them those that their environment failed.

use crate::agent::Episode;

/// The episodes of a rollout; either list is ordered by task, then member.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Played {
    /// Those that say something about the policy.
    pub episodes: Vec<Episode>,
    /// Those that the environment failed: they count for nothing, but are kept and named.
    pub failed: Vec<Episode>,
}

impl Played {
    /// Sets apart the episodes that the environment failed.
    pub fn new(all: Vec<Episode>) -> Played {
        let (failed, episodes) = all.into_iter().partition(|e| e.finish.is_failure());
        Played { episodes, failed }
    }

    /// All of them, by task, then member; with the place of each among `episodes`, where it is one of those.
    pub fn all(&self) -> Vec<(Option<usize>, &Episode)> {
        let played = self.episodes.iter().enumerate().map(|(i, e)| (Some(i), e));
        let mut all: Vec<_> = played.chain(self.failed.iter().map(|e| (None, e))).collect();
        all.sort_by_key(|(_, e)| (e.group, e.sample));
        all
    }
}
