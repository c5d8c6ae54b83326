//! Why flawed actions survive GRPO: their expected advantage vanishes as they become likely (DESIGN section 2).
//!
//! A member of a group takes the flawed action with probability q, which costs it risk r of its success:
//! E[A of the flawed action, where it is taken] = q r (q - 1), without scaling by a standard deviation.

use crate::ops::philox;
use serde::{Deserialize, Serialize};

/// Members of a simulated group.
const GROUP: usize = 8;
/// Simulated groups of each point.
const GROUPS: u64 = 40_000;

/// One probability of the flawed action.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
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
pub fn curve(r: f64, steps: u32, seed: u64) -> Vec<Point> {
    let point = |step: u32| {
        let q = f64::from(step) / f64::from(steps);
        let (mut sum, mut squares) = (0.0, 0.0);
        for group in 0..GROUPS {
            let a = advantage(q, r, seed, u64::from(step) << 32 | group);
            (sum, squares) = (sum + a, squares + a * a);
        }
        let (n, mean) = (GROUPS as f64, sum / GROUPS as f64);
        let error = ((squares / n - mean * mean).max(0.0) / (n - 1.0)).sqrt();
        Point { q, expected: expected(q, r), simulated: mean, error }
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

/// Flawed actions as measured, by tenths of their probability. An advantage measured where the action was taken is r (q - 1); to the
/// expected advantage it contributes with the probability q of being taken.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Measured {
    bins: [Bin; 10],
}

/// Sums over the flawed actions of a tenth.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Bin {
    count: u64,
    q: f64,
    advantage: f64,
}

/// The flawed actions of a tenth, beside the curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeasuredPoint {
    /// Mean probability.
    pub q: f64,
    /// Its mean advantage where it is taken, times q.
    pub advantage: f64,
    /// q r (q - 1) with [`Measured::risk`].
    pub expected: f64,
    pub count: u64,
}

impl Measured {
    /// One flawed action of probability `q` that was taken.
    pub fn add(&mut self, q: f64, advantage: f64) {
        let bin = &mut self.bins[((10.0 * q) as usize).min(9)];
        (bin.count, bin.q, bin.advantage) = (bin.count + 1, bin.q + q, bin.advantage + advantage);
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Measured) {
        for (sum, bin) in self.bins.iter_mut().zip(other.bins) {
            sum.count += bin.count;
            sum.q += bin.q;
            sum.advantage += bin.advantage;
        }
    }

    /// Probability, contribution to the expected advantage, and count of each tenth that holds something.
    fn means(&self) -> impl Iterator<Item = (f64, f64, u64)> + '_ {
        let filled = self.bins.iter().filter(|bin| bin.count > 0);
        filled.map(|bin| {
            let (q, advantage) = (bin.q / bin.count as f64, bin.advantage / bin.count as f64);
            (q, q * advantage, bin.count)
        })
    }

    /// Mean probability and advantage of all; `None` of nothing.
    pub fn mean(&self) -> Option<(f64, f64)> {
        let count: u64 = self.bins.iter().map(|bin| bin.count).sum();
        let mean = |of: fn(&Bin) -> f64| self.bins.iter().map(of).sum::<f64>() / count as f64;
        (count > 0).then(|| (mean(|bin| bin.q), mean(|bin| bin.advantage)))
    }

    /// The risk r that brings q r (q - 1) nearest to what was measured (least squares over actions).
    pub fn risk(&self) -> Option<f64> {
        let curve = |q: f64| q * (q - 1.0);
        let sum = |f: &dyn Fn(f64, f64) -> f64| self.means().map(|(q, a, n)| n as f64 * f(q, a)).sum::<f64>();
        let squares = sum(&|q, _| curve(q) * curve(q));
        (squares > 0.0).then(|| sum(&|q, a| curve(q) * a) / squares)
    }

    /// The tenths that hold something.
    pub fn points(&self) -> Vec<MeasuredPoint> {
        let risk = self.risk().unwrap_or(0.0);
        let point = |(q, advantage, count)| MeasuredPoint { q, advantage, expected: expected(q, risk), count };
        self.means().map(point).collect()
    }
}
