//! Means over pairs of samples, by class and by what the samples of a pair share.

use crate::report::stats;
use serde::Serialize;

/// What is known of a sample besides its gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traits {
    /// Its advantage, or +1 or −1 for its label. Its class is the sign; 0 is in neither class.
    pub side: f64,
    /// The state, as an index: equal numbers are equal states.
    pub state: usize,
    /// The command's verb, as an index: equal numbers are equal verbs.
    pub verb: usize,
}

/// Mean and standard deviation over pairs of samples; not a number (in JSON null) where there is no pair.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The mean over pairs.
    pub mean: f64,
    /// The standard deviation over pairs.
    pub std: f64,
    /// Number of pairs.
    pub pairs: usize,
}

/// By the classes of a pair: both positive, both negative, one of each (`pn` and `np` differ for projections).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Means {
    /// Both positive.
    pub pp: Spread,
    /// Both negative.
    pub nn: Spread,
    /// The first positive, the second negative.
    pub pn: Spread,
    /// The first negative, the second positive.
    pub np: Spread,
}

/// Pairs that share the same things.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stratum {
    /// Mean cosines of these pairs, by class.
    pub cosine: Means,
    /// ⟨g_i, g_j⟩ / ⟨g_i, g_i⟩.
    pub projection: Means,
}

/// All pairs, each in one stratum. Actions of one state share all of their prompt, those of one verb a token or two: what is alike in
/// their gradients is no sign that good and bad actions as such are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Strata {
    /// Pairs of one state.
    pub same_state: Stratum,
    /// Another state, the same verb.
    pub same_verb: Stratum,
    /// Another state and another verb.
    pub other_verb: Stratum,
}

/// Which pairs (i, j) count.
type PairFilter<'a> = &'a dyn Fn(usize, usize) -> bool;

impl Spread {
    fn of(values: &[f64]) -> Spread {
        let of = |statistic: fn(&[f64]) -> f64| if values.is_empty() { f64::NAN } else { statistic(values) };
        Spread { mean: of(stats::mean), std: of(stats::std), pairs: values.len() }
    }
}

impl Means {
    /// Of a symmetric matrix `[n, n]`: each pair once.
    pub fn symmetric(matrix: &[f64], n: usize, positive: &[usize], negative: &[usize], keep: PairFilter<'_>) -> Means {
        let once = |i: usize, j: usize| i < j && keep(i, j);
        let across = spread(matrix, n, positive, negative, keep);
        Means {
            pp: spread(matrix, n, positive, positive, &once),
            nn: spread(matrix, n, negative, negative, &once),
            pn: across,
            np: across,
        }
    }

    /// Of a matrix that is not: (i, j) and (j, i) are two pairs.
    pub fn ordered(matrix: &[f64], n: usize, positive: &[usize], negative: &[usize], keep: PairFilter<'_>) -> Means {
        let spread = |rows: &[usize], columns: &[usize]| spread(matrix, n, rows, columns, keep);
        Means {
            pp: spread(positive, positive),
            nn: spread(negative, negative),
            pn: spread(positive, negative),
            np: spread(negative, positive),
        }
    }
}

/// Standard errors of the mean cosines of pp, nn and pn, by the jackknife over samples: pairs that share a sample are not independent.
/// Not a number where a class has fewer than three samples.
pub fn errors(matrix: &[f64], n: usize, positive: &[usize], negative: &[usize]) -> [f64; 3] {
    let without = |class: &[usize], i: usize| class.iter().copied().filter(|j| *j != i).collect::<Vec<_>>();
    let mean = |rows: &[usize], columns: &[usize]| spread(matrix, n, rows, columns, &|_, _| true).mean;
    let variance = |class: &[usize], of: &dyn Fn(usize) -> f64| {
        let left_out: Vec<f64> = class.iter().map(|i| of(*i)).collect();
        let (count, centre) = (class.len() as f64, stats::mean(&left_out));
        (count - 1.0) / count * left_out.iter().map(|mean| (mean - centre).powi(2)).sum::<f64>()
    };
    let within = |class: &[usize]| {
        let error = variance(class, &|i| mean(&without(class, i), &without(class, i))).sqrt();
        if class.len() < 3 { f64::NAN } else { error }
    };
    let across = variance(positive, &|i| mean(&without(positive, i), negative))
        + variance(negative, &|i| mean(positive, &without(negative, i)));
    [within(positive), within(negative), across.sqrt()]
}

fn spread(matrix: &[f64], n: usize, rows: &[usize], columns: &[usize], keep: PairFilter<'_>) -> Spread {
    let pairs = rows.iter().flat_map(|i| columns.iter().map(move |j| (*i, *j))).filter(|(i, j)| i != j && keep(*i, *j));
    Spread::of(&pairs.map(|(i, j)| matrix[i * n + j]).collect::<Vec<_>>())
}

impl Strata {
    pub(super) fn of(
        cosine: &[f64],
        projection: &[f64],
        traits: &[Traits],
        positive: &[usize],
        negative: &[usize],
    ) -> Strata {
        let n = traits.len();
        let stratum = |keep: PairFilter<'_>| Stratum {
            cosine: Means::symmetric(cosine, n, positive, negative, keep),
            projection: Means::ordered(projection, n, positive, negative, keep),
        };
        let state = |i: usize, j: usize| traits[i].state == traits[j].state;
        let verb = |i: usize, j: usize| traits[i].verb == traits[j].verb;
        Strata {
            same_state: stratum(&state),
            same_verb: stratum(&|i, j| !state(i, j) && verb(i, j)),
            other_verb: stratum(&|i, j| !state(i, j) && !verb(i, j)),
        }
    }

    /// The strata by their names in records, and in words.
    pub fn named(&self) -> [(&'static str, &'static str, &Stratum); 3] {
        [
            ("same_state", "same state", &self.same_state),
            ("same_verb", "other state, same verb", &self.same_verb),
            ("other_verb", "other state, other verb", &self.other_verb),
        ]
    }
}
