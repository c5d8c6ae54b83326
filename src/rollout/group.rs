//! What the members of a group share: their prompt, which is computed once.

use super::PrefixCache;
use super::episode::ActiveEpisode;
use crate::agent::{Episode, Finish};
use crate::model::SequenceId;

#[derive(Default)]
pub(super) struct Group {
    pub prompt: Vec<u32>,
    /// Holds the prompt until the last member has forked it.
    pub sequence: Option<SequenceId>,
    /// The model has read the prompt.
    pub is_read: bool,
    /// Members that have not forked the prompt yet.
    expected: usize,
}

impl Group {
    pub fn new(members: usize) -> Group {
        Group { expected: members, ..Group::default() }
    }

    /// Lets a member in, or gives back its failed episode: a group is one instance, so a member that began elsewhere
    /// cannot be compared with the others.
    pub fn admit(
        &mut self,
        cache: &mut PrefixCache<'_>,
        entrant: ActiveEpisode,
    ) -> Result<ActiveEpisode, Box<Episode>> {
        if self.prompt.is_empty() {
            self.prompt.clone_from(&entrant.episode.tokens);
            self.sequence = Some(cache.new_sequence());
        }
        if self.prompt == entrant.episode.tokens {
            return Ok(entrant);
        }
        let reason = "it began with another observation than the rest of its group".into();
        Err(Box::new(Episode { finish: Finish::EnvFailed(reason), ..entrant.episode }))
    }

    /// One member fewer will need the prompt.
    pub fn release(&mut self, cache: &mut PrefixCache<'_>) {
        self.expected -= 1;
        if self.expected == 0
            && let Some(id) = self.sequence.take()
        {
            cache.free(id);
        }
    }

    /// Gives the prompt's pages back until it is read again; whether it held any.
    pub fn evict(&mut self, cache: &mut PrefixCache<'_>) -> bool {
        let Some(id) = self.sequence.as_mut().filter(|_| self.is_read) else { return false };
        cache.free(*id);
        *id = cache.new_sequence();
        self.is_read = false;
        true
    }
}
