//! Defaults for a model that the user gives, and for a GPU. A given model is pretrained and large, the embedded one neither: it learns from fewer and smaller
//! steps, writes more, and every token costs more.

use super::{Config, Format, Override};
use toml::Value;

/// Parameters of SmolLM2-135M, the smallest model that the learning rates are meant for, and of Qwen2.5-3B, the largest.
const SMALL: f64 = 135e6;
const LARGE: f64 = 3.09e9;
/// From here on activations are recomputed: kept, a token's take over a megabyte.
const RECOMPUTE: u64 = 300_000_000;

impl Config {
    /// What a model of so many parameters, acting in `format` (`compact`, the embedded model's, stands for none chosen), needs
    /// otherwise than the embedded one: defaults for [`Config::load_over`].
    ///
    /// The learning rate of the cold start was measured at 135 M: 48 steps of 8 demonstrations at 1e-4 took SmolLM2 on household
    /// games from no success to L0 50 %. Larger models follow a power of their size. Adapters (`lora`) learn at ten times these rates, as
    /// is usual for them; that was not measured.
    pub fn for_a_given_model(parameters: u64, format: Format, lora: bool) -> Vec<Override> {
        let turn = if format == Format::Think { 256 } else { 48 };
        let rate = |small: f64, large: f64| {
            let by = if lora { 10.0 } else { 1.0 };
            learning_rate([by * small, by * large], parameters)
        };
        let defaults: [(&str, Value); 17] = [
            // A model directory speaks its own chat template.
            ("prompt.format", "chat".into()),
            ("rollout.max_turn_tokens", turn.into()),
            ("rollout.max_live", 32.into()),
            ("sft.steps", 48.into()),
            ("sft.batch", 8.into()),
            ("sft.games", 384.into()),
            ("sft.lr", rate(1e-4, 1e-5).into()),
            ("optim.lr", rate(1e-5, 1e-6).into()),
            ("run.iterations", 50.into()),
            ("gcd.max_tokens", 64.into()),
            ("grpo.epochs", 1.into()),
            ("grpo.micro_tokens", 4096.into()),
            // The embedded model has too few parameters to follow advice.
            ("suggestions.mode", "fixed".into()),
            ("model.recompute", (parameters >= RECOMPUTE).into()),
            ("eval.games", 32.into()),
            ("eval.judgments", 128.into()),
            ("eval.consistency_states", 16.into()),
        ];
        defaults.into_iter().map(|(key, value)| Override::flag("the defaults of a given model", key, value)).collect()
    }

    /// What the embedded model needs on a GPU: heads of 64, which the kernels have code for. On the CPU it keeps its four heads of 48,
    /// from which cold starts learn more reliably.
    pub fn for_a_gpu() -> Vec<Override> {
        let heads = [("model.num_attention_heads", 3), ("model.num_key_value_heads", 1)];
        heads.into_iter().map(|(key, count)| Override::flag("the defaults of --device cuda", key, count)).collect()
    }
}

/// Between the rates of the smallest and the largest model by a power of the size, to one digit; theirs beyond them.
fn learning_rate([small, large]: [f64; 2], parameters: u64) -> f64 {
    let at = ((parameters as f64 / SMALL).ln() / (LARGE / SMALL).ln()).clamp(0.0, 1.0);
    let rate = small * (large / small).powf(at);
    let digit = 10f64.powf(rate.log10().floor());
    // By way of its decimal form, so that it prints with one digit.
    format!("{:.0}e{}", (rate / digit).round(), digit.log10().round()).parse().unwrap_or(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rates_fall_with_the_size() {
        let rate = |parameters| learning_rate([1e-4, 1e-5], parameters);
        assert_eq!(
            [1_000, 134_515_008, 494_032_768, 1_543_714_304, 3_085_938_688, 7_615_616_512].map(rate),
            [1e-4, 1e-4, 4e-5, 2e-5, 1e-5, 1e-5]
        );
    }
}
