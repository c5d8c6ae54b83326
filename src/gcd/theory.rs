//! Why flawed actions survive GRPO: their expected advantage vanishes as they become likely (docs/method.md).
//!
//! A member of a group takes the flawed action with probability q, which costs it risk r of its success:
//! E[A of the flawed action, where it is taken] = q r (q - 1), without scaling by a standard deviation.

use crate::ops::philox::{self, Stream};
use crate::report::results::{ClusterMean, Flawed, FlawedFit};
use crate::report::stats::Clusters;
use serde::{Deserialize, Serialize};

/// Members of a simulated group.
const GROUP: usize = 8;
/// Simulated groups of each point.
const GROUPS: u64 = 40_000;

/// One probability of the flawed action.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TheoryPoint {
    /// The probability of the flawed action.
    pub q: f64,
    /// q r (q - 1).
    pub expected: f64,
    /// Mean over simulated groups.
    pub simulated: f64,
    /// Standard error of that mean.
    pub error: f64,
}

/// q r (q - 1): most negative at q = 1/2.
pub fn expected(q: f64, r: f64) -> f64 {
    // Not -0 at either end.
    q * r * (q - 1.0) + 0.0
}

/// The curve at `steps + 1` probabilities from 0 to 1, with its simulation: groups of eight play, succeed with probability 1, or
/// 1 - r with the flawed action, and their centred returns are summed over the flawed. A mean that includes the member itself
/// shrinks this by 1 - 1/8, which is taken out.
pub fn curve(r: f64, steps: u32, seed: u64) -> Vec<TheoryPoint> {
    let point = |step: u32| {
        let q = f64::from(step) / f64::from(steps);
        let (mut sum, mut squares) = (0.0, 0.0);
        for group in 0..GROUPS {
            let a = advantage(q, r, seed, Stream::Theory(step).part(group));
            (sum, squares) = (sum + a, squares + a * a);
        }
        let (n, mean) = (GROUPS as f64, sum / GROUPS as f64);
        let error = ((squares / n - mean * mean).max(0.0) / (n - 1.0)).sqrt();
        TheoryPoint { q, expected: expected(q, r), simulated: mean, error }
    };
    (0..=steps).map(point).collect()
}

/// Of one group: the mean over its members of the advantage of those that took the flawed action.
fn advantage(q: f64, r: f64, seed: u64, stream: u64) -> f64 {
    let members: [(bool, f64); GROUP] = std::array::from_fn(|i| {
        let [choice, luck, ..] = philox::block(seed, stream, i as u64);
        let flawed = f64::from(philox::uniform(choice)) < q;
        let failed = flawed && f64::from(philox::uniform(luck)) < r;
        (flawed, f64::from(u8::from(!failed)))
    });
    let n = GROUP as f64;
    let mean = members.iter().map(|(_, reward)| reward).sum::<f64>() / n;
    let flawed = members.iter().filter(|(flawed, _)| *flawed).map(|(_, reward)| reward - mean).sum::<f64>();
    flawed / n / (1.0 - 1.0 / n)
}

/// Flawed actions as measured. An advantage measured where the action was taken is r (q - 1); to the expected advantage it contributes
/// with the probability q of being taken. Intervals take the groups of episodes as clusters: all flawed actions of an episode
/// have its advantage, and the advantages of a group add up to 0.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    tenths: [Tenth; 10],
    /// Advantages where q <= 1/2, and above.
    halves: [Clusters; 2],
    /// Least squares of q A over q (q - 1).
    risk: Clusters,
    /// Sum of (q A)^2.
    squares: f64,
}

/// The flawed actions of a tenth of probability.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Tenth {
    /// Sum of their probabilities.
    q: f64,
    advantage: Clusters,
    contribution: Clusters,
}

impl Measured {
    /// The flawed actions that a group's episodes took, as (probability, advantage).
    pub fn add(&mut self, group: &[(f64, f64)]) {
        for (i, tenth) in self.tenths.iter_mut().enumerate() {
            let of: Vec<_> = group.iter().filter(|(q, _)| ((10.0 * q) as usize).min(9) == i).collect();
            let count = of.len() as f64;
            tenth.q += of.iter().map(|(q, _)| q).sum::<f64>();
            tenth.advantage.add(of.iter().map(|(_, a)| a).sum(), count);
            tenth.contribution.add(of.iter().map(|(q, a)| q * a).sum(), count);
        }
        for (above, half) in [false, true].into_iter().zip(&mut self.halves) {
            let of: Vec<_> = group.iter().filter(|(q, _)| (*q > 0.5) == above).collect();
            half.add(of.iter().map(|(_, a)| a).sum(), of.len() as f64);
        }
        let sum = |of: &dyn Fn(f64, f64) -> f64| group.iter().map(|(q, a)| of(*q, *a)).sum::<f64>();
        self.risk.add(sum(&|q, a| expected(q, 1.0) * q * a), sum(&|q, _| expected(q, 1.0).powi(2)));
        self.squares += sum(&|q, a| (q * a).powi(2));
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Measured) {
        for (tenth, of) in self.tenths.iter_mut().zip(&other.tenths) {
            tenth.q += of.q;
            tenth.advantage.merge(&of.advantage);
            tenth.contribution.merge(&of.contribution);
        }
        self.halves.iter_mut().zip(&other.halves).for_each(|(half, of)| half.merge(of));
        self.risk.merge(&other.risk);
        self.squares += other.squares;
    }

    /// Mean probability and advantage of all; `None` of nothing.
    pub fn mean(&self) -> Option<(f64, f64)> {
        let count: f64 = self.tenths.iter().map(|t| t.advantage.whole).sum();
        let mean = |of: fn(&Tenth) -> f64| self.tenths.iter().map(of).sum::<f64>() / count;
        (count > 0.0).then(|| (mean(|t| t.q), mean(|t| t.advantage.part)))
    }

    /// The risk r that brings q r (q - 1) nearest to q A (least squares over actions), and how near. `None` where all advantages, or
    /// all q (q - 1), are 0: that fits any risk, or none.
    pub fn fit(&self) -> Option<FlawedFit> {
        let risk = self.risk.value().filter(|_| self.squares > 0.0)?;
        let [unlikely, likely] = self.halves.map(|half| Some(ClusterMean::of(&half)).filter(|mean| mean.count > 0));
        // r Sum(x y) is what the curve takes off Sum(y^2).
        Some(FlawedFit {
            risk,
            ci: self.risk.interval(),
            explained: risk * self.risk.part / self.squares,
            unlikely,
            likely,
        })
    }

    /// The tenths that hold something.
    pub fn points(&self) -> Vec<Flawed> {
        let fit = self.fit();
        let filled = self.tenths.iter().filter(|t| t.advantage.count > 0);
        let point = |t: &Tenth| {
            let probability = t.q / t.advantage.whole;
            let (advantage, contribution) = (ClusterMean::of(&t.advantage), ClusterMean::of(&t.contribution));
            Flawed {
                probability,
                advantage: advantage.mean,
                advantage_ci: advantage.ci,
                contribution: contribution.mean,
                contribution_ci: contribution.ci,
                expected: fit.map(|fit| expected(probability, fit.risk)),
                count: advantage.count,
                groups: advantage.groups,
            }
        };
        filled.map(point).collect()
    }
}
