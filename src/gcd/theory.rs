//! Why flawed actions survive GRPO: their expected advantage vanishes as they become likely (DESIGN section 2).
//!
//! A member of a group takes the flawed action with probability q, which costs it risk r of its success:
//! E[A of the flawed action, where it is taken] = q r (q - 1), without scaling by a standard deviation.

use crate::ops::philox;
use serde::Serialize;

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
    q * r * (q - 1.0)
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
