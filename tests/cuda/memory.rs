//! What the device holds in training against the plan that `--dry-run` prints.

use crate::emulated;

use std::sync::atomic::Ordering;
use uncouple::config::{Config, LORA_TARGETS, MomentDtype};
use uncouple::grpo::{LossNormalizer, Sample};
use uncouple::model::{Adapter, Model, Params};
use uncouple::train::learner::Learner;
use uncouple::train::memory::{Placement, model_shape, plan};

/// Of a model whose weights and whose micro-batch take about as much.
fn config() -> Config {
    let mut config = Config::default();
    let m = &mut config.model;
    (m.hidden_size, m.num_attention_heads, m.num_key_value_heads, m.intermediate_size) = (128, 2, 1, 256);
    config.grpo.micro_tokens = 256;
    config
}

/// As many tokens as a micro-batch has, none of them shared.
fn samples(config: &Config) -> Vec<Sample> {
    let sample = |first: u32| {
        let tokens: Vec<u32> = (0..64).map(|i| (first + 7 * i) % 512).collect();
        Sample { mask: vec![true; 64], advantage: vec![1.0; 64], tokens, ..Sample::default() }
    };
    (0..config.grpo.micro_tokens / 64).map(sample).collect()
}

/// Two steps' peak, and the plan without what sampling takes.
fn peak_and_plan(config: &Config) -> [f64; 2] {
    let shape = model_shape(config).unwrap();
    let parts = plan(config, &shape, Placement::Gpu);
    let sampling: u64 = parts.iter().filter(|part| part.name == "KV cache").map(|part| part.bytes).sum();
    let logits = 4 * 256 * shape.vocab_size as u64;
    let planned = parts.iter().map(|part| part.bytes).sum::<u64>() - sampling - logits;

    let (gpu, most) = emulated::metered_gpu();
    let base = Model::new(shape.clone(), Params::random(&shape, 3));
    let model = match config.lora.is_on() {
        true => base.with_adapter(Adapter::random(&shape, &config.lora, 5)),
        false => base,
    };
    let mut learner = Learner::with_moments(model, false, config.optim.moments);
    learner.to_gpu(&gpu, &config.optim, 8).unwrap();
    let samples = samples(config);
    for _ in 0..2 {
        let norm = LossNormalizer::new(&samples, 1);
        learner.backward_policy(&config.grpo, &samples, norm, 1.0, &mut |_, _| {}).unwrap();
        assert!(!learner.step(&config.optim, 1e-3).unwrap().skipped);
    }
    [most.load(Ordering::Relaxed) as f64, planned as f64]
}

#[test]
fn a_training_step_holds_what_the_plan_says() {
    let full = config();
    let mut narrow = config();
    (narrow.optim.moments, narrow.optim.stochastic_rounding) = (MomentDtype::Dynamic8, true);
    let mut lora = config();
    (lora.lora.rank, lora.lora.targets) = (8, LORA_TARGETS.map(String::from).to_vec());
    let both = [("all weights", full), ("8-bit moments, no masters", narrow), ("adapters", lora)];
    let found = both.map(|(name, config)| {
        let [held, planned] = peak_and_plan(&config);
        println!("{name}: {held} bytes held, {planned} planned: {:.3}", held / planned);
        (name, held, planned)
    });
    for (name, held, planned) in found {
        assert!((held / planned - 1.0).abs() < 0.1, "{name}: {held} bytes held, {planned} planned");
    }
}
