//! Whether classes lie further apart than chance would set them.
//!
//! Labels are drawn anew within each state only: samples of one state share their prompt, and a state can be good or bad as a whole,
//! so that labels drawn across states would call likeness of states coupling of actions. A state of one sample, or of one class,
//! keeps its labels: there is nothing to draw.

use super::strata::Traits;
use crate::ops::philox::{self, Stream};
use std::collections::BTreeMap;

/// Permutations of the test.
const PERMUTATIONS: u32 = 999;

pub(super) struct PermutationTest {
    /// `None` where no state holds samples of both classes.
    pub p_value: Option<f64>,
    /// Samples whose label is drawn.
    pub permuted: usize,
}

/// By how much pairs of a class are more alike than pairs of two classes, against labels drawn within states. `cosine` is
/// `[samples, samples]`.
pub(super) fn test(cosine: &[f64], traits: &[Traits], seed: u64) -> PermutationTest {
    let members: Vec<usize> = (0..traits.len()).filter(|i| traits[*i].side != 0.0).collect();
    let mut positive: Vec<bool> = members.iter().map(|i| traits[*i].side > 0.0).collect();
    // The places of each state in `members`.
    let mut states: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    members.iter().enumerate().for_each(|(place, i)| states.entry(traits[*i].state).or_default().push(place));
    let mixed = |places: &Vec<usize>| places.iter().any(|p| positive[*p] != positive[places[0]]);
    let states: Vec<Vec<usize>> = states.into_values().filter(mixed).collect();
    let permuted = states.iter().map(Vec::len).sum();
    if permuted == 0 {
        return PermutationTest { p_value: None, permuted };
    }
    let observed = gap(cosine, traits.len(), &members, &positive);
    let mut as_far = 0;
    for permutation in 0..PERMUTATIONS {
        for places in &states {
            for at in (1..places.len()).rev() {
                let word = philox::block(seed, Stream::Permutations.part(permutation.into()), places[at] as u64)[0];
                positive.swap(places[at], places[word as usize % (at + 1)]);
            }
        }
        as_far += u32::from(gap(cosine, traits.len(), &members, &positive) >= observed);
    }
    PermutationTest { p_value: Some(f64::from(1 + as_far) / f64::from(1 + PERMUTATIONS)), permuted }
}

/// Mean cosine of pairs of a class less that of pairs of two classes.
fn gap(cosine: &[f64], n: usize, members: &[usize], positive: &[bool]) -> f64 {
    let (mut within, mut across) = ((0.0, 0usize), (0.0, 0usize));
    for (a, i) in members.iter().enumerate() {
        for (b, j) in members.iter().enumerate().skip(a + 1) {
            let sum = if positive[a] == positive[b] { &mut within } else { &mut across };
            *sum = (sum.0 + cosine[i * n + j], sum.1 + 1);
        }
    }
    within.0 / within.1.max(1) as f64 - across.0 / across.1.max(1) as f64
}
