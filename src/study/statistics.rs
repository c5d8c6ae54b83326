//! The statistics of a study: intervals by a hierarchical bootstrap, and what difference a design can see.
//!
//! A unit (a game, or a sample of a probe set) lies in a cluster (a seed). A resample draws as many clusters as there
//! are, with replacement, and of each as many of its units. So both kinds of chance are in an interval: other seeds,
//! and other games.

use crate::ops::philox;
use crate::report::stats;
use serde::Serialize;

/// Resamples of an interval.
const RESAMPLES: u64 = 2000;
/// Seed of all resamples: one report of the same data says the same.
const SEED: u64 = 0x5EED_0F57;

/// A number with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    pub value: f64,
    /// By the hierarchical bootstrap; `None` where nothing can be resampled.
    pub ci: Option<[f64; 2]>,
}

/// A cluster as a resample has it.
pub struct Drawn {
    /// Its place among the clusters.
    pub cluster: usize,
    /// How often each of its units was drawn.
    pub counts: Vec<u32>,
}

/// The statistic of the data as they are, and its interval over resamples. `units` are the sizes of the clusters.
/// `None` where the data have no such statistic; resamples that have none are left out.
pub fn interval(units: &[usize], statistic: &dyn Fn(&[Drawn]) -> Option<f64>) -> Option<Interval> {
    let once: Vec<Drawn> =
        units.iter().enumerate().map(|(cluster, n)| Drawn { cluster, counts: vec![1; *n] }).collect();
    let value = statistic(&once)?;
    let alone = units.len() < 2 && units.iter().all(|n| *n < 2);
    let mut values = if alone { Vec::new() } else { resampled(units, statistic) };
    values.sort_by(f64::total_cmp);
    let ci = (!values.is_empty()).then(|| [0.025, 0.975].map(|share| quantile(&values, share)));
    Some(Interval { value, ci })
}

/// The statistic of every resample that has one.
pub fn resampled(units: &[usize], statistic: &dyn Fn(&[Drawn]) -> Option<f64>) -> Vec<f64> {
    (0..RESAMPLES).filter_map(|resample| statistic(&drawn(units, resample))).collect()
}

fn drawn(units: &[usize], resample: u64) -> Vec<Drawn> {
    let mut numbers = (0..).flat_map(|index| philox::block(SEED, resample, index));
    let mut below = |n: usize| ((u64::from(numbers.next().unwrap_or_default()) * n as u64) >> 32) as usize;
    let clusters: Vec<usize> = units.iter().map(|_| below(units.len())).collect();
    let mut draw = |cluster: usize| {
        let mut counts = vec![0; units[cluster]];
        (0..units[cluster]).for_each(|_| counts[below(units[cluster])] += 1);
        Drawn { cluster, counts }
    };
    clusters.into_iter().map(&mut draw).collect()
}

/// A quantile of sorted values, linear between them (numpy's default).
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// The mean over clusters of the mean over their units: each seed counts the same.
pub fn mean_of_means(clusters: &[Vec<f64>]) -> Option<Interval> {
    let units: Vec<usize> = clusters.iter().map(Vec::len).collect();
    interval(&units, &|drawn| {
        let mean = |d: &Drawn| {
            let sum: f64 = d.counts.iter().zip(&clusters[d.cluster]).map(|(n, x)| f64::from(*n) * x).sum();
            sum / f64::from(d.counts.iter().sum::<u32>().max(1))
        };
        (!drawn.is_empty()).then(|| stats::mean(&drawn.iter().map(mean).collect::<Vec<_>>()))
    })
}

/// Σ parts / Σ wholes over all units of all clusters, each unit a pair (part, whole), e.g. turns in loops of turns.
pub fn ratio(clusters: &[Vec<[f64; 2]>]) -> Option<Interval> {
    let units: Vec<usize> = clusters.iter().map(Vec::len).collect();
    interval(&units, &|drawn| {
        let mut sums = [0.0; 2];
        for d in drawn {
            for (n, [part, whole]) in d.counts.iter().zip(&clusters[d.cluster]) {
                sums[0] += f64::from(*n) * part;
                sums[1] += f64::from(*n) * whole;
            }
        }
        (sums[1] > 0.0).then(|| sums[0] / sums[1])
    })
}

/// 80 % quantiles of Student's t, by degrees of freedom from 1; and the normal's.
const POWER: [f64; 10] = [1.376, 1.061, 0.978, 0.941, 0.920, 0.906, 0.896, 0.889, 0.883, 0.879];
const NORMAL_POWER: f64 = 0.842;

/// What is assumed of a comparison of two variants before it is run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Design {
    pub seeds: usize,
    /// Games of a split, played by every cell.
    pub games: usize,
    /// Success rate of both.
    pub success: f64,
    /// Correlation of the two variants' outcomes in one game of one seed.
    pub correlation: f64,
    /// Standard deviation, between seeds, of the true difference.
    pub spread: f64,
}

impl Design {
    /// Standard error of the mean paired difference: √(spread² / seeds + 2 p (1 − p) (1 − correlation) / (seeds ×
    /// games)).
    pub fn standard_error(&self) -> f64 {
        let Design { success: p, correlation, spread, .. } = *self;
        let (seeds, games) = (self.seeds as f64, self.games as f64);
        (spread * spread / seeds + 2.0 * p * (1.0 - p) * (1.0 - correlation) / (seeds * games)).sqrt()
    }

    /// The difference that a two-sided test at 5 % finds in 80 % of such studies: (t₀.₉₇₅ + t₀.₈) standard errors, with
    /// seeds − 1 degrees of freedom. With one seed nothing is known of how seeds differ: then the normal's, of these
    /// games alone.
    pub fn detectable(&self) -> f64 {
        let degrees = self.seeds.saturating_sub(1);
        let power = degrees.checked_sub(1).and_then(|at| POWER.get(at)).copied().unwrap_or(NORMAL_POWER);
        (stats::student_quantile(degrees) + power) * self.standard_error()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_linear_between_values() {
        let values = [1.0, 2.0, 4.0, 8.0, 16.0];
        assert_eq!([0.0, 0.25, 0.5, 1.0].map(|share| quantile(&values, share)), [1.0, 2.0, 4.0, 16.0]);
        // 0.9 × 4 = 3.6: six tenths of the way from 8 to 16.
        assert!((quantile(&values, 0.9) - 12.8).abs() < 1e-12);
    }

    #[test]
    fn resamples_of_one_cluster_follow_the_binomial() {
        // Two units 0 and 1: means 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
        let means = resampled(&[2], &|drawn| Some(f64::from(drawn[0].counts[1]) / 2.0));
        let share = |of: f64| means.iter().filter(|mean| **mean == of).count() as f64 / means.len() as f64;
        assert_eq!(means.len(), 2000);
        // Three standard deviations of a share of 2000.
        for (value, chance) in [(0.0, 0.25), (0.5, 0.5), (1.0, 0.25)] {
            assert!((share(value) - chance).abs() < 3.0 * (chance * (1.0 - chance) / 2000.0_f64).sqrt(), "{value}");
        }
        assert_eq!(mean_of_means(&[vec![0.0, 1.0]]), Some(Interval { value: 0.5, ci: Some([0.0, 1.0]) }));
    }

    #[test]
    fn both_levels_of_chance_are_in_an_interval() {
        // All games of a seed alike: only seeds differ. Of 3 seeds with means 0, 0, 3 a resample has mean 0 with chance
        // (2/3)³ = 0.296 and mean 3 with chance (1/3)³ = 0.037, more than 2.5 %.
        let seeds = mean_of_means(&[vec![0.0; 5], vec![0.0; 5], vec![3.0; 5]]).unwrap();
        assert_eq!((seeds.value, seeds.ci), (1.0, Some([0.0, 3.0])));
        // All seeds alike: the standard deviation over resamples is that of a mean of 400 games, √(p (1 − p) / 400) =
        // 0.025.
        let games: Vec<f64> = (0..100).map(|i| f64::from(i % 2)).collect();
        let clusters = vec![games; 4];
        let units = [100; 4];
        let mean = |drawn: &[Drawn]| {
            let one =
                |d: &Drawn| d.counts.iter().zip(&clusters[d.cluster]).map(|(n, x)| f64::from(*n) * x).sum::<f64>();
            Some(drawn.iter().map(one).sum::<f64>() / 400.0)
        };
        let spread = stats::std(&resampled(&units, &mean));
        assert!((spread - 0.025).abs() < 0.0015, "{spread}");
        let ci = mean_of_means(&clusters).unwrap().ci.unwrap();
        assert!((ci[0] - 0.451).abs() < 0.006 && (ci[1] - 0.549).abs() < 0.006, "{ci:?}");
    }

    #[test]
    fn what_cannot_be_resampled_has_no_interval() {
        assert_eq!(mean_of_means(&[vec![0.3]]), Some(Interval { value: 0.3, ci: None }));
        assert_eq!(mean_of_means(&[]), None);
        assert_eq!(ratio(&[vec![[1.0, 0.0]]]), None);
        let of = ratio(&[vec![[1.0, 4.0], [2.0, 2.0]]]).unwrap();
        // 3 of 6; a resample of one unit alone has 1/4 or 1.
        assert_eq!((of.value, of.ci), (0.5, Some([0.25, 1.0])));
    }

    #[test]
    fn the_power_of_a_design_is_its_formula() {
        let design = Design { seeds: 3, games: 128, success: 0.5, correlation: 0.0, spread: 0.0 };
        // 2 × 1/4 / 384 = 0.001302; its root 0.03608; (4.303 + 1.061) of it.
        assert!((design.standard_error() - 0.036_084).abs() < 1e-6);
        assert!((design.detectable() - 5.364 * 0.036_084).abs() < 1e-5);
        // Seeds that differ by 5 points add 0.0025 / 3.
        let spread = Design { spread: 0.05, correlation: 0.5, ..design };
        assert!((spread.standard_error() - (0.0025_f64 / 3.0 + 0.25 / 384.0).sqrt()).abs() < 1e-12);
        // One seed: the normal's quantiles.
        let one = Design { seeds: 1, ..design };
        assert!((one.detectable() - 2.802 * (0.5_f64 / 128.0).sqrt()).abs() < 1e-5);
        assert!(Design { seeds: 30, ..design }.detectable() < Design { seeds: 5, ..design }.detectable());
    }
}
