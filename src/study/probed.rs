//! The coupling of a run's probe set, as its files keep it, with what a bootstrap over seeds and samples needs.

use super::StudyError;
use super::statistics::{Drawn, Interval, interval};
use crate::coupling::{FOLDER, Probe, Side, Traits, read};
use crate::report::stats;
use serde::Serialize;
use std::path::Path;

/// A probe set's cosines and inner products.
#[derive(Debug, Clone, PartialEq)]
pub struct Probed {
    pub probe: Probe,
    traits: Vec<Traits>,
    cosine: Vec<f64>,
    inner: Vec<f64>,
}

/// What both samples of a pair share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairStratum {
    All,
    SameState,
    /// Another state: the two below together.
    OtherState,
    SameVerb,
    OtherVerb,
}

/// The signs of a pair's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    Pp,
    Nn,
    Pn,
}

impl PairStratum {
    pub const ALL: [PairStratum; 5] = [
        PairStratum::All,
        PairStratum::SameState,
        PairStratum::OtherState,
        PairStratum::SameVerb,
        PairStratum::OtherVerb,
    ];

    pub fn name(self) -> &'static str {
        match self {
            PairStratum::All => "all",
            PairStratum::SameState => "same state",
            PairStratum::OtherState => "other state",
            PairStratum::SameVerb => "other state, same verb",
            PairStratum::OtherVerb => "other state, other verb",
        }
    }

    fn has(self, a: &Traits, b: &Traits) -> bool {
        let (state, verb) = (a.state == b.state, a.verb == b.verb);
        match self {
            PairStratum::All => true,
            PairStratum::SameState => state,
            PairStratum::OtherState => !state,
            PairStratum::SameVerb => !state && verb,
            PairStratum::OtherVerb => !state && !verb,
        }
    }
}

impl Class {
    pub const ALL: [Class; 3] = [Class::Pp, Class::Nn, Class::Pn];

    pub fn name(self) -> &'static str {
        match self {
            Class::Pp => "pp",
            Class::Nn => "nn",
            Class::Pn => "pn",
        }
    }

    fn has(self, a: &Traits, b: &Traits) -> bool {
        match self {
            Class::Pp => a.side > 0.0 && b.side > 0.0,
            Class::Nn => a.side < 0.0 && b.side < 0.0,
            Class::Pn => a.side * b.side < 0.0,
        }
    }
}

/// |Σ g|² / Σ |g|² of all samples, those of negative sides subtracted or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sum {
    Signed,
    Unsigned,
}

impl Probed {
    /// What the measurement `stem` of a run left; `None` where it was not made.
    pub fn read(run: &Path, stem: &str) -> Result<Option<Probed>, StudyError> {
        let folder = run.join(FOLDER);
        if !folder.join(format!("{stem}.safetensors")).exists() {
            return Ok(None);
        }
        let probe = Probe::of(run).map_err(crate::train::TrainError::from)?;
        let [cosine, inner] = read(&folder, stem)?;
        let traits = probe.traits(Side::Advantage);
        let n = traits.len();
        if cosine.len() != n * n || inner.len() != n * n {
            let reason = format!("its matrices are not those of the {n} samples in probe.json");
            return Err(StudyError::Corrupt { file: folder.join(format!("{stem}.safetensors")), reason });
        }
        Ok(Some(Probed { probe, traits, cosine, inner }))
    }

    /// Whether both are of the same states and actions, with the same fates; what else is known of them may differ.
    fn has_samples_of(&self, other: &Probed) -> bool {
        let of = |p: &Probed| -> Vec<_> {
            p.probe
                .samples
                .iter()
                .map(|s| (s.tokens.clone(), s.action, s.command.clone(), s.advantage.to_bits()))
                .collect()
        };
        of(self) == of(other)
    }

    pub fn samples(&self) -> usize {
        self.traits.len()
    }

    /// Pairs of different samples, each once.
    fn pairs(&self, class: Class, stratum: PairStratum) -> impl Iterator<Item = (usize, usize)> {
        let n = self.traits.len();
        let both = move |(i, j): &(usize, usize)| {
            let (a, b) = (&self.traits[*i], &self.traits[*j]);
            class.has(a, b) && stratum.has(a, b)
        };
        (0..n).flat_map(move |i| (i + 1..n).map(move |j| (i, j))).filter(both)
    }

    pub fn count(&self, class: Class, stratum: PairStratum) -> usize {
        self.pairs(class, stratum).count()
    }

    /// The mean cosine of the pairs, each as often as both its samples were drawn.
    fn mean(&self, counts: &[u32], class: Class, stratum: PairStratum) -> Option<f64> {
        let n = self.traits.len();
        let mut sums = [0.0; 2];
        for (i, j) in self.pairs(class, stratum) {
            let weight = f64::from(counts[i] * counts[j]);
            sums[0] += weight * self.cosine[i * n + j];
            sums[1] += weight;
        }
        (sums[1] > 0.0).then(|| sums[0] / sums[1])
    }

    fn sum(&self, counts: &[u32], sum: Sum) -> Option<f64> {
        let n = self.traits.len();
        let weight = |i: usize| {
            let sign = if self.traits[i].side == 0.0 { 0.0 } else { self.traits[i].side.signum() };
            f64::from(counts[i]) * if sum == Sum::Signed { sign } else { sign.abs() }
        };
        let mut sums = [0.0; 2];
        for i in 0..n {
            sums[0] += (0..n).map(|j| weight(i) * weight(j) * self.inner[i * n + j]).sum::<f64>();
            sums[1] += weight(i).abs() * self.inner[i * n + i];
        }
        (sums[1] > 0.0).then(|| sums[0] / sums[1])
    }
}

/// Over seeds, the mean of what `of` gives for each resampled probe set; resampled together where the probe sets are
/// shared.
fn over(probes: &[&Probed], of: &dyn Fn(usize, &[u32]) -> Option<f64>) -> Option<Interval> {
    let units: Vec<usize> = probes.iter().map(|probe| probe.samples()).collect();
    interval(&units, &|drawn: &[Drawn]| {
        let values: Vec<f64> = drawn.iter().filter_map(|d| of(d.cluster, &d.counts)).collect();
        (!values.is_empty()).then(|| stats::mean(&values))
    })
}

/// The mean cosine over seeds: bootstrap over seeds, then samples.
pub fn cosine(probes: &[&Probed], class: Class, stratum: PairStratum) -> Option<Interval> {
    over(probes, &|at, counts| probes[at].mean(counts, class, stratum))
}

/// The mean ratio |Σ g|² / Σ |g|² over seeds. Only seeds are resampled: a sample drawn twice would add its own
/// likeness.
pub fn sums(probes: &[&Probed], sum: Sum) -> Option<Interval> {
    let values: Vec<Vec<f64>> =
        probes.iter().filter_map(|probe| Some(vec![probe.sum(&vec![1; probe.samples()], sum)?])).collect();
    super::statistics::mean_of_means(&values)
}

/// The mean difference of cosines, of pairs of runs that measured the same samples.
pub fn difference(pairs: &[(&Probed, &Probed)], class: Class, stratum: PairStratum) -> Option<Interval> {
    let same = pairs.iter().all(|(a, b)| a.has_samples_of(b));
    let first: Vec<&Probed> = pairs.iter().map(|(a, _)| *a).collect();
    let of = |at: usize, counts: &[u32]| {
        let (a, b) = pairs[at];
        Some(a.mean(counts, class, stratum)? - b.mean(counts, class, stratum)?)
    };
    if same { over(&first, &of) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coupling::ProbeSample;

    /// Two states; in the first a good and a bad action, in the second the same.
    fn probed(cosine: [f64; 6]) -> Probed {
        let sample = |state: u32, action: u32, advantage: f64| ProbeSample {
            tokens: vec![state, action],
            action: 1,
            command: None,
            advantage,
            label: 0,
            count: 1,
        };
        let samples = vec![sample(0, 1, 1.0), sample(0, 2, -1.0), sample(3, 1, 2.0), sample(3, 2, -0.5)];
        let probe = Probe { iteration: 0, samples };
        let mut matrix = vec![0.0; 16];
        let pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];
        for ((i, j), x) in pairs.into_iter().zip(cosine) {
            (matrix[4 * i + j], matrix[4 * j + i]) = (x, x);
        }
        (0..4).for_each(|i| matrix[5 * i] = 1.0);
        Probed { traits: probe.traits(Side::Advantage), probe, inner: matrix.clone(), cosine: matrix }
    }

    #[test]
    fn strata_are_means_over_their_pairs() {
        let p = probed([0.5, 0.1, 0.2, 0.4, 0.3, 0.7]);
        let of = |class, stratum| cosine(&[&p], class, stratum).map(|i| i.value);
        assert_eq!((of(Class::Pp, PairStratum::All), of(Class::Nn, PairStratum::OtherState)), (Some(0.1), Some(0.3)));
        // pn of one state: (0, 1) and (2, 3); of another: (0, 3) and (1, 2).
        assert!((of(Class::Pn, PairStratum::SameState).unwrap() - 0.6).abs() < 1e-12);
        assert!((of(Class::Pn, PairStratum::OtherState).unwrap() - 0.3).abs() < 1e-12);
        assert_eq!((of(Class::Pp, PairStratum::SameState), p.count(Class::Pn, PairStratum::All)), (None, 4));
        // 4 + 2 (0.1 + 0.3 − 0.5 − 0.2 − 0.4 − 0.7) = 1.2, over 4; unsigned 4 + 2 × 2.2 = 8.4.
        let sum = |of| sums(&[&p], of).unwrap();
        assert!((sum(Sum::Signed).value - 0.3).abs() < 1e-12 && (sum(Sum::Unsigned).value - 2.1).abs() < 1e-12);
        assert_eq!(sum(Sum::Signed).ci, None);
    }

    #[test]
    fn differences_are_of_the_same_samples() {
        let (a, b) = (probed([0.5, 0.1, 0.2, 0.4, 0.3, 0.7]), probed([0.4, 0.1, 0.1, 0.3, 0.3, 0.6]));
        let pn = difference(&[(&b, &a), (&b, &a)], Class::Pn, PairStratum::All).unwrap();
        // Every pair fell by 0.1, so that no resample says otherwise.
        let ci = pn.ci.unwrap();
        assert!((pn.value + 0.1).abs() < 1e-12 && (ci[0] + 0.1).abs() < 1e-12 && (ci[1] + 0.1).abs() < 1e-12);
        let mut other = b.clone();
        other.probe.samples[0].tokens[0] = 9;
        assert_eq!(difference(&[(&other, &a)], Class::Pn, PairStratum::All), None);
    }
}
