//! Ground facts: numbered, found by value, and listed by what they mention.

use foldhash::HashMap;

use super::pddl::{MOST_ARGUMENTS, PredicateId};

/// Index of an object, in the order of the objects' names.
pub type EntityId = u16;
/// Index of a fact. Facts that no action changes come first.
pub type FactId = u32;

/// A predicate and its arguments as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(u128);

impl Key {
    /// `None` when an argument is unknown.
    pub fn new(predicate: PredicateId, args: impl Iterator<Item = Option<EntityId>>) -> Option<Self> {
        let mut key = 0;
        for arg in args {
            key = key << 16 | u128::from(arg?);
        }
        Some(Self(u128::from(predicate) << (16 * MOST_ARGUMENTS) | key))
    }
}

/// Every fact that holds at the start or that some reachable action makes true.
#[derive(Debug, Default)]
pub struct Facts {
    predicates: Vec<PredicateId>,
    starts: Vec<u32>,
    args: Vec<EntityId>,
    ids: HashMap<Key, FactId>,
    of_predicate: Vec<Vec<FactId>>,
    mentioning: HashMap<(PredicateId, u8, EntityId), Vec<FactId>>,
}

impl Facts {
    pub fn new(predicates: usize) -> Self {
        Self { of_predicate: vec![Vec::new(); predicates], starts: vec![0], ..Self::default() }
    }

    pub fn count(&self) -> usize {
        self.predicates.len()
    }

    /// Adds a fact of `arity` arguments: its number, and whether it is new.
    pub fn insert(&mut self, key: Key, arity: usize) -> (FactId, bool) {
        let id = self.count() as FactId;
        let known = *self.ids.entry(key).or_insert(id);
        if known != id {
            return (known, false);
        }
        let predicate = (key.0 >> (16 * MOST_ARGUMENTS)) as PredicateId;
        self.predicates.push(predicate);
        self.of_predicate[usize::from(predicate)].push(id);
        for place in 0..arity {
            let arg = (key.0 >> (16 * (arity - 1 - place))) as EntityId;
            self.args.push(arg);
            self.mentioning.entry((predicate, place as u8, arg)).or_default().push(id);
        }
        self.starts.push(self.args.len() as u32);
        (id, true)
    }

    pub fn find(&self, key: Key) -> Option<FactId> {
        self.ids.get(&key).copied()
    }

    pub fn predicate(&self, fact: FactId) -> PredicateId {
        self.predicates[fact as usize]
    }

    pub fn args(&self, fact: FactId) -> &[EntityId] {
        &self.args[self.starts[fact as usize] as usize..self.starts[fact as usize + 1] as usize]
    }

    /// The shortest list that holds every fact of `predicate` with these arguments (`None`: any).
    pub fn candidates(&self, predicate: PredicateId, args: &[Option<EntityId>]) -> &[FactId] {
        let mut best = self.of_predicate[usize::from(predicate)].as_slice();
        for (place, arg) in args.iter().enumerate() {
            if let Some(arg) = arg {
                let list = self.mentioning.get(&(predicate, place as u8, *arg)).map_or(&[][..], Vec::as_slice);
                if list.len() < best.len() {
                    best = list;
                }
            }
        }
        best
    }

    /// Puts every list in the order of the facts' arguments, which is the order texts name things in.
    pub fn sort(&mut self) {
        let (args, starts) = (&self.args, &self.starts);
        let key = |id: &FactId| &args[starts[*id as usize] as usize..starts[*id as usize + 1] as usize];
        let lists = self.of_predicate.iter_mut().chain(self.mentioning.values_mut());
        lists.for_each(|list| {
            list.sort_by(|a, b| key(a).cmp(key(b)));
            list.shrink_to_fit();
        });
    }
}
