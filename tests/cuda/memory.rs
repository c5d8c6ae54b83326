//! What the device holds in training against the plan.

use crate::common::planned::{expect_as_planned, learner, planned, two_steps, variants};
use crate::emulated;

use std::sync::atomic::Ordering;
use uncouple::train::memory::Placement;

#[test]
fn a_training_step_holds_what_the_plan_says() {
    for (name, config) in variants(1) {
        let (gpu, most) = emulated::metered_gpu();
        let mut learner = learner(&config);
        learner.to_gpu(&gpu, &config.optim, 8).unwrap();
        two_steps(&config, &mut learner);
        // Nothing is sampled here.
        let sampled = 4 * 256 * config.model.vocab_size as u64;
        let planned = planned(&config, Placement::Gpu, &["KV cache"]) - sampled;
        expect_as_planned(name, most.load(Ordering::Relaxed) as u64, planned);
    }
}
