//! Group advantages: `A = (r - mean of the group) / (std + eps)`.
//!
//! Deviations have Bessel's correction. A group of one, or one whose rewards are all equal, teaches nothing: its
//! advantages are exactly 0.

pub(crate) mod case;

use serde::{Deserialize, Serialize};

/// Which standard deviation divides the centred rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// The group's own.
    Group,
    /// That of all rewards of the batch.
    Batch,
    /// None: the centred rewards themselves (Dr. GRPO).
    None,
}

/// Advantages of `rewards`, which lie group after group; `groups` holds the groups' sizes and sums to `rewards.len()`.
///
/// ```
/// use uncouple::ops::advantage::{Scale, advantages};
///
/// // Two groups of two: a group whose members got the same has no advantage.
/// let advantage = advantages(&[1.0, 0.0, 1.0, 1.0], &[2, 2], Scale::None, 0.0);
/// assert_eq!(advantage, [0.5, -0.5, 0.0, 0.0]);
/// ```
///
/// # Panics
/// If the sizes do not sum to the number of rewards.
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

/// On a GPU, in f32.
pub mod cuda {
    use super::Scale;
    use crate::device::{Arg, Gpu, Launch, Result, Slice, expect};

    /// As [`super::advantages`]; `start` `[groups + 1]` holds where each group begins, and the number of rewards.
    ///
    /// # Errors
    /// If the sizes do not fit together, or the launch fails.
    pub fn advantages(
        gpu: &Gpu,
        reward: &Slice<f32>,
        start: &Slice<u32>,
        scale: Scale,
        eps: f32,
        advantage: &Slice<f32>,
    ) -> Result<()> {
        let (n, groups) = (reward.len(), start.len().saturating_sub(1));
        let fits = n == advantage.len() && !start.is_empty() && n <= i32::MAX as usize;
        expect("advantages", fits, || {
            format!("{n} rewards, {} advantages, {} starts of groups", advantage.len(), start.len())
        })?;
        let std = gpu.uninit::<f32>(1)?;
        if scale == Scale::Batch {
            let args = [reward.arg(), std.arg(), Arg::from(n as i32)];
            let (kernel, grid, block) = ("advantage_batch_std_f32", [1, 1, 1], [256, 1, 1]);
            gpu.launch(Launch { kernel, grid, block, shared: 0, args: &args })?;
        }
        let std = if scale == Scale::Batch { std.arg() } else { Arg::NULL };
        let [groups_, centre_only] = [groups as i32, i32::from(scale == Scale::None)].map(Arg::from);
        let args = [reward.arg(), start.arg(), std, advantage.arg(), groups_, centre_only, Arg::from(eps)];
        gpu.launch_threads("advantage_group_f32", 32 * groups, &args)
    }
}
