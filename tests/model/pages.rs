//! Whoever forks, writes and frees: every sequence keeps its own tokens, and no page is lost.

use proptest::prelude::*;
use std::collections::BTreeSet;
use uncouple::device::Error;
use uncouple::model::pages::PAGE;
use uncouple::model::{SequenceId, pages::Pages};

#[derive(Debug, Clone)]
enum Op {
    Alloc,
    Fork(usize),
    ForkAt(usize, usize),
    Free(usize),
    Extend(usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => Just(Op::Alloc),
        2 => any::<usize>().prop_map(Op::Fork),
        2 => any::<(usize, usize)>().prop_map(|(i, len)| Op::ForkAt(i, len)),
        1 => any::<usize>().prop_map(Op::Free),
        5 => (any::<usize>(), 1..3 * PAGE).prop_map(|(i, n)| Op::Extend(i, n)),
    ]
}

const COUNT: usize = 12;

/// Page tables beside the tokens that each sequence should hold, and those that lie in the pages.
struct World {
    pages: Pages,
    memory: Vec<[u32; PAGE]>,
    ids: Vec<(SequenceId, Vec<u32>)>,
    written: u32,
}

impl World {
    fn apply(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let n = self.ids.len();
        match *op {
            Op::Alloc => self.ids.push((self.pages.new_sequence(), Vec::new())),
            _ if n == 0 => {}
            Op::Fork(i) => {
                let (id, tokens) = self.ids[i % n].clone();
                self.ids.push((self.pages.fork(id), tokens));
            }
            Op::ForkAt(i, len) => {
                let (id, mut tokens) = self.ids[i % n].clone();
                tokens.truncate(len % (tokens.len() + 1));
                self.ids.push((self.pages.fork_at(id, tokens.len()), tokens));
            }
            Op::Free(i) => self.pages.free(self.ids.swap_remove(i % n).0),
            Op::Extend(i, more) => self.extend(i % n, more)?,
        }
        self.check()
    }

    fn extend(&mut self, i: usize, more: usize) -> Result<(), TestCaseError> {
        let (id, tokens) = &mut self.ids[i];
        let (left, held) = (self.pages.left(), self.pages.of(*id).to_vec());
        prop_assert_eq!(
            self.pages.check([(*id, more)].into_iter()).is_ok(),
            self.pages.clone().append(*id, more).is_ok()
        );
        match self.pages.append(*id, more) {
            Ok(copy) => {
                self.memory.resize(self.pages.count(), [0; PAGE]);
                if let Some((from, to)) = copy {
                    self.memory[to as usize] = self.memory[from as usize];
                }
                for at in tokens.len()..tokens.len() + more {
                    self.written += 1;
                    tokens.push(self.written);
                    self.memory[self.pages.of(*id)[at / PAGE] as usize][at % PAGE] = self.written;
                }
            }
            Err(error) => {
                prop_assert_eq!(self.pages.count(), COUNT, "only a pool that cannot grow refuses");
                let short = matches!(error, Error::OutOfPages { asked, free, .. } if asked > free);
                prop_assert!(short && error.to_string().contains("rollout.max_live"));
                // Nothing has changed.
                prop_assert_eq!((left, held), (self.pages.left(), self.pages.of(*id).to_vec()));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let mut held = BTreeSet::<u32>::new();
        for (id, tokens) in &self.ids {
            let pages = self.pages.of(*id);
            prop_assert_eq!((self.pages.len(*id), pages.len()), (tokens.len(), tokens.len().div_ceil(PAGE)));
            let stored = pages.iter().flat_map(|page| self.memory[*page as usize]).take(tokens.len());
            prop_assert_eq!(&stored.collect::<Vec<_>>(), tokens);
            held.extend(pages);
        }
        prop_assert_eq!(held.len() + self.pages.left(), self.pages.count());
        Ok(())
    }
}

proptest! {
    #[test]
    fn every_sequence_keeps_its_own(ops in prop::collection::vec(op(), 1..60)) {
        for pages in [Pages::new(COUNT), Pages::growing()] {
            let (memory, grows) = (vec![[0; PAGE]; pages.count()], pages.count() == 0);
            let mut world = World { pages, memory, ids: Vec::new(), written: 0 };
            for op in &ops {
                world.apply(op)?;
            }
            let most = world.ids.iter().map(|(id, _)| world.pages.of(*id).len()).sum::<usize>();
            while !world.ids.is_empty() {
                world.apply(&Op::Free(0))?;
            }
            prop_assert_eq!(world.pages.left(), world.pages.count());
            prop_assert!(grows || world.pages.count() == COUNT);
            prop_assert!(!grows || most == 0 || world.pages.count() > 0);
        }
    }
}

#[test]
fn a_shared_page_is_copied_by_the_first_to_write_it() {
    let mut pages = Pages::new(3);
    let one = pages.new_sequence();
    assert_eq!(pages.append(one, PAGE + 1).unwrap(), None);
    let two = pages.fork(one);
    assert_eq!(pages.of(one), pages.of(two));
    let shared = pages.of(one)[1];
    let (from, to) = pages.append(one, 1).unwrap().unwrap();
    assert_eq!((from, to), (shared, pages.of(one)[1]));
    assert_eq!(pages.append(two, 1).unwrap(), None);
    assert_eq!((pages.of(two)[0], pages.of(two)[1]), (pages.of(one)[0], shared));
    assert!(matches!(pages.append(two, PAGE), Err(Error::OutOfPages { asked: 1, free: 0, total: 3, .. })));
}

#[test]
fn pages_for_many_are_counted_before_any_is_taken() {
    let mut pages = Pages::new(6);
    let one = pages.new_sequence();
    pages.append(one, PAGE + 1).unwrap();
    let (two, three, four) = (pages.fork(one), pages.fork_at(one, PAGE + 1), pages.fork_at(one, PAGE));
    // Of the three that hold the second page, two copy it; the fourth begins a page of its own.
    let all = [one, two, three, four];
    pages.check(all.into_iter().map(|id| (id, 1))).unwrap();
    let refused = pages.check(all.into_iter().map(|id| (id, PAGE))).unwrap_err();
    assert!(matches!(refused, Error::OutOfPages { asked: 6, free: 4, total: 6, .. }), "{refused:?}");
    all.into_iter().for_each(|id| assert!(pages.append(id, 1).is_ok()));
    assert_eq!(pages.left(), 1);
}
