//! The same learner on the CPU and on the emulated device, and what both learn from.

use crate::emulated;

use uncouple::config::Optim;
use uncouple::grpo::Sample;
use uncouple::model::Model;
use uncouple::train::learner::Learner;

/// On the CPU, and on the device; with `recompute`, there alone.
pub fn pair(model: &Model, recompute: bool) -> [Learner; 2] {
    let learners = [Learner::new(model.clone(), false), Learner::new(model.clone(), recompute)];
    apart(learners, &Optim::default())
}

/// The second goes to the device.
pub fn apart(mut learners: [Learner; 2], optim: &Optim) -> [Learner; 2] {
    learners[1].to_gpu(&emulated::quick_gpu(), optim, 8).unwrap();
    learners
}

/// Two with a common start, and two others.
pub fn sequences() -> Vec<Vec<u32>> {
    let shared: Vec<u32> = (0..20).map(|i| i * 7 % 96).collect();
    let with = |tail: &[u32]| shared.iter().chain(tail).copied().collect::<Vec<u32>>();
    vec![with(&[1, 2, 3]), with(&[1, 5]), vec![9, 9, 9, 1], (0..50).collect()]
}

/// Two samples that share a prompt, one of them better than the other, and an old policy a little beside the present one.
pub fn samples() -> Vec<Sample> {
    let sample = |tail: u32, n: usize, advantage: f32| {
        let tokens: Vec<u32> = (0..20u32).chain((0..n as u32).map(|i| (tail + 7 * i) % 96)).collect();
        Sample {
            mask: (0..tokens.len()).map(|t| t >= 20).collect(),
            advantage: vec![advantage; tokens.len()],
            old_logprobs: Some((0..tokens.len()).map(|t| -4.6 + 0.02 * (t % 5) as f32).collect()),
            tokens,
            ..Sample::default()
        }
    };
    vec![sample(30, 9, 1.0), sample(61, 14, -0.6)]
}
