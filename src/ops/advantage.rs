//! Group advantages: `A = (r - mean of the group) / (std + eps)`.
//!
//! Deviations have Bessel's correction. A group of one, or one whose rewards are all equal, teaches nothing: its
//! advantages are exactly 0.

/// Which standard deviation divides the centred rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// The group's own.
    Group,
    /// That of all rewards of the batch.
    Batch,
    /// None: the centred rewards themselves (Dr. GRPO).
    None,
}

/// Advantages of `rewards`, which lie group after group; `groups` holds the groups' sizes and sums to `rewards.len()`.
pub fn advantages(rewards: &[f64], groups: &[usize], scale: Scale, eps: f64) -> Vec<f64> {
    assert_eq!(
        groups.iter().sum::<usize>(),
        rewards.len(),
        "advantages: group sizes must sum to the number of rewards"
    );
    let batch_std = std(rewards);
    let mut out = Vec::with_capacity(rewards.len());
    let mut rest = rewards;
    for &size in groups {
        let (group, tail) = rest.split_at(size);
        rest = tail;
        // Compared exactly: the mean of equal rewards may differ from them in the last bit.
        if group.windows(2).all(|w| w[0] == w[1]) {
            out.extend(std::iter::repeat_n(0.0, size));
            continue;
        }
        let divisor = match scale {
            Scale::Group => std(group) + eps,
            Scale::Batch => batch_std + eps,
            Scale::None => 1.0,
        };
        let centre = mean(group);
        out.extend(group.iter().map(|r| (r - centre) / divisor));
    }
    out
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

/// Standard deviation with Bessel's correction; 0 for fewer than two values.
fn std(x: &[f64]) -> f64 {
    if x.len() < 2 {
        return 0.0;
    }
    let centre = mean(x);
    (x.iter().map(|v| (v - centre).powi(2)).sum::<f64>() / (x.len() - 1) as f64).sqrt()
}
