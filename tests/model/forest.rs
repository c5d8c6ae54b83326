//! The forest: what it packs comes out again, and its arrays say who precedes whom.

use proptest::prelude::*;
use std::collections::HashSet;
use uncouple::forest::{Forest, ROOT};

/// Few tokens and short sequences, so that prefixes, duplicates and empty sequences are common.
fn sequences() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(0u32..4, 0..8), 0..12)
}

fn prefixes(sequences: &[Vec<u32>]) -> HashSet<&[u32]> {
    sequences.iter().flat_map(|s| (1..=s.len()).map(|n| &s[..n])).collect()
}

/// The node itself and the nodes before it, last first.
fn line(forest: &Forest, node: usize) -> Vec<usize> {
    std::iter::successors(Some(node), |n| Some(forest.parent[*n]).filter(|p| *p != ROOT).map(|p| p as usize)).collect()
}

proptest! {
    #[test]
    fn sequences_come_out_as_they_went_in(sequences in sequences()) {
        let forest = Forest::new(&sequences);
        prop_assert_eq!(forest.paths.len(), sequences.len());
        for (i, sequence) in sequences.iter().enumerate() {
            prop_assert_eq!(&forest.sequence(i), sequence);
        }
    }

    #[test]
    fn one_node_for_each_distinct_prefix_in_any_order(sequences in sequences(), seed in any::<usize>()) {
        let forest = Forest::new(&sequences);
        prop_assert_eq!(forest.len(), prefixes(&sequences).len());
        prop_assert_eq!(forest.is_empty(), prefixes(&sequences).is_empty());
        let mut shuffled = sequences.clone();
        (1..shuffled.len()).for_each(|i| shuffled.swap(i, seed / (i + 1) % (i + 1)));
        prop_assert_eq!(Forest::new(&shuffled).len(), forest.len());
    }

    #[test]
    fn parents_positions_and_reach_agree(sequences in sequences()) {
        let f = Forest::new(&sequences);
        let n = f.len();
        prop_assert_eq!([f.tokens.len(), f.position.len(), f.reach.len(), f.parent.len()], [n; 4]);
        for i in 0..n {
            let line = line(&f, i);
            prop_assert_eq!(f.position[i] as usize, line.len() - 1);
            prop_assert!(f.parent[i] == ROOT || (f.parent[i] as usize) < i, "a parent comes first");
            for j in 0..n {
                let sees = j <= i && i < f.reach[j] as usize;
                prop_assert_eq!(sees, line.contains(&j), "{} sees {}", i, j);
            }
        }
        for path in &f.paths {
            prop_assert!(path.first().is_none_or(|p| f.parent[*p as usize] == ROOT));
            prop_assert!(path.windows(2).all(|w| f.parent[w[1] as usize] == w[0]));
        }
    }
}

#[test]
fn a_small_forest_by_hand() {
    let f = Forest::new(&[vec![1, 2, 3], vec![1, 2, 4, 5], vec![], vec![6], vec![1, 2], vec![1, 2, 3]]);
    assert_eq!(f.tokens, [1, 2, 3, 4, 5, 6]);
    assert_eq!(f.position, [0, 1, 2, 2, 3, 0]);
    assert_eq!(f.reach, [5, 5, 3, 5, 5, 6]);
    assert_eq!(f.parent, [ROOT, 0, 1, 1, 3, ROOT]);
    assert_eq!(f.paths, [vec![0, 1, 2], vec![0, 1, 3, 4], vec![], vec![5], vec![0, 1], vec![0, 1, 2]]);
}

#[test]
fn nothing_and_empty_sequences() {
    let none: [Vec<u32>; 0] = [];
    assert_eq!(Forest::new(&none), Forest::default());
    let empty = Forest::new(&[vec![], vec![]]);
    assert!(empty.is_empty());
    assert_eq!(empty.paths, vec![Vec::<u32>::new(); 2]);
}

/// Deep chains are packed without recursion.
#[test]
fn a_long_sequence() {
    let sequence: Vec<u32> = (0..200_000).map(|i| i % 7).collect();
    let f = Forest::new(&[&sequence[..], &sequence[..100_000]]);
    assert_eq!(f.len(), sequence.len());
    assert_eq!(f.tokens, sequence);
    assert!(f.reach.iter().all(|r| *r as usize == sequence.len()));
}
