//! Training steps whose memory is held to the plan that `--dry-run` prints.

use uncouple::config::{Config, LORA_TARGETS, MomentDtype};
use uncouple::grpo::{LossNormalizer, Sample};
use uncouple::model::{Adapter, Model, Params};
use uncouple::train::learner::Learner;
use uncouple::train::memory::{Placement, model_shape, plan};

const VOCAB: u32 = 512;

/// Of a model whose weights and whose micro-batch take about as much: all weights, the same with 8-bit moments and stochastic rounding,
/// and adapters. `times` tells how wide it is, and how large the micro-batch.
pub fn variants(times: usize) -> [(&'static str, Config); 3] {
    let mut full = Config::default();
    let m = &mut full.model;
    (m.hidden_size, m.num_attention_heads, m.num_key_value_heads, m.intermediate_size) =
        (128 * times, 2 * times, times, 256 * times);
    full.grpo.micro_tokens = 256 * times as u32;
    let (mut narrow, mut lora) = (full.clone(), full.clone());
    (narrow.optim.moments, narrow.optim.stochastic_rounding) = (MomentDtype::Dynamic8, true);
    (lora.lora.rank, lora.lora.targets) = (8, LORA_TARGETS.map(String::from).to_vec());
    [("all weights", full), ("8-bit moments, no masters", narrow), ("adapters", lora)]
}

pub fn learner(config: &Config) -> Learner {
    let shape = model_shape(config).unwrap();
    let model = Model::new(shape.clone(), Params::random(&shape, 3)).with_dtype(config.model.dtype);
    let model = match config.lora.is_on() {
        true => model.with_adapter(Adapter::random(&shape, &config.lora, 5)),
        false => model,
    };
    Learner::with_moments(model, false, config.optim.moments)
}

/// Each with as many tokens as a micro-batch has, none of them shared.
pub fn two_steps(config: &Config, learner: &mut Learner) {
    let sample = |first: u32| {
        let tokens: Vec<u32> = (0..64).map(|i| (first + 7 * i) % VOCAB).collect();
        Sample { mask: vec![true; 64], advantage: vec![1.0; 64], tokens, ..Sample::default() }
    };
    let samples: Vec<Sample> = (0..config.grpo.micro_tokens / 64).map(sample).collect();
    for _ in 0..2 {
        let norm = LossNormalizer::new(&samples, 1);
        learner.backward_policy(&config.grpo, &samples, norm, 1.0, &mut |_, _| {}).unwrap();
        assert!(!learner.step(&config.optim, 1e-3).unwrap().skipped);
    }
}

/// Bytes of the plan's parts but these.
pub fn planned(config: &Config, place: Placement, but: &[&str]) -> u64 {
    let parts = plan(config, &model_shape(config).unwrap(), place);
    assert!(but.iter().all(|name| parts.iter().any(|part| part.name == *name)), "{but:?}");
    parts.iter().filter(|part| !but.contains(&part.name)).map(|part| part.bytes).sum()
}

/// Of the plan, 10 % at most.
pub fn expect_as_planned(what: &str, held: u64, planned: u64) {
    let share = held as f64 / planned as f64;
    println!("{what}: {held} bytes held, {planned} planned: {share:.3}");
    assert!((share - 1.0).abs() < 0.1, "{what}: {held} bytes held, {planned} planned");
}
