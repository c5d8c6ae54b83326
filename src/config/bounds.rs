//! The range of every number in a configuration. Within it nothing overflows; how much memory a run takes is for `--dry-run` to say.

use super::{Config, ConfigError};
use serde_json::Value;

/// Vocabulary, hidden and intermediate size of a model, and any other of its sizes: larger than a real model has, small enough that
/// no product of two overflows.
pub const MAX_SIZE: usize = 1 << 24;
/// Each layer costs a table entry even before its weights are looked for.
pub const MAX_LAYERS: usize = 1 << 12;
/// Positions times head size: the tables of the rotary embeddings are made for every position. A million positions of 128 fit.
pub const MAX_ANGLES: usize = 1 << 27;
/// Parameters of the embedded model, which is made of nothing but these numbers.
pub const MAX_PARAMETERS: usize = 1 << 30;

/// Turns of a windowed history.
pub const MAX_WINDOW: usize = 100_000;

/// A number without a range of its own.
const COUNT: (i64, i64) = (0, 1_000_000);
const REAL: f64 = 1e6;

const SIZE: (i64, i64) = (1, MAX_SIZE as i64);
const TOKENS: (i64, i64) = (1, 1 << 24);
/// What a run holds so many of at once.
const MANY: (i64, i64) = (1, 1 << 16);

/// Least and most of the whole numbers. Where 0 is refused only by some configurations, validation says so.
const RANGES: [(&str, (i64, i64)); 39] = [
    ("run.seed", (0, i64::MAX)),
    ("run.env_steps", (0, i64::MAX)),
    ("run.keep_checkpoints", (1, 1_000_000)),
    ("run.max_nonfinite_steps", (1, 1_000_000)),
    ("model.vocab_size", (0, MAX_SIZE as i64)),
    ("model.hidden_size", SIZE),
    ("model.num_hidden_layers", (1, MAX_LAYERS as i64)),
    ("model.num_attention_heads", SIZE),
    ("model.num_key_value_heads", SIZE),
    ("model.intermediate_size", SIZE),
    ("model.max_position_embeddings", SIZE),
    ("lora.rank", (0, 1 << 12)),
    ("env.workers", (1, 1024)),
    ("env.retries", (0, 1000)),
    ("env.max_steps", (1, 100_000)),
    ("sft.batch", (0, 1 << 16)),
    ("sft.games", (0, 100_000)),
    ("rollout.groups", MANY),
    ("rollout.group_size", (0, 1 << 16)),
    ("rollout.top_k", (0, MAX_SIZE as i64)),
    ("rollout.max_turn_tokens", TOKENS),
    ("rollout.max_episode_tokens", (0, 1 << 24)),
    ("rollout.max_live", MANY),
    ("grpo.constant_length", TOKENS),
    ("grpo.epochs", (1, 1000)),
    ("grpo.micro_tokens", TOKENS),
    ("gcd.pairs", (0, 1 << 16)),
    ("gcd.judgments", (0, 1 << 12)),
    ("gcd.max_tokens", (0, 1 << 24)),
    ("gcd.cold_start", (0, 1000)),
    ("judge.votes", (0, 1000)),
    ("judge.agree", (0, 1000)),
    ("judge.backoff_ms", (0, 3_600_000)),
    ("judge.max_calls", (0, i64::MAX)),
    ("judge.max_tokens", (0, i64::MAX)),
    ("suggestions.most", (0, 1000)),
    ("suggestions.candidates", (0, 1 << 16)),
    ("suggestions.resamples", (0, 1 << 12)),
    ("coupling.samples", (0, 1 << 12)),
];

/// Products of two whole numbers that are held at once, and the most of each.
const PRODUCTS: [(&str, &str, i64); 3] = [
    ("rollout.groups", "rollout.group_size", 1 << 20),
    ("gcd.pairs", "gcd.judgments", 1 << 20),
    ("suggestions.candidates", "suggestions.resamples", 1 << 20),
];

/// Least and most of the whole number of this key.
pub fn range_of(key: &str) -> (i64, i64) {
    RANGES.iter().find(|(of, _)| *of == key).map_or(COUNT, |(_, range)| *range)
}

impl Config {
    /// Refuses whole numbers outside their ranges.
    pub(super) fn validate_whole_numbers(&self) -> Result<(), ConfigError> {
        let numbers = Numbers::of(self);
        for (key, value) in &numbers.0 {
            let Number::Whole(value) = *value else { continue };
            let (least, most) = range_of(key);
            if value < i128::from(least) || value > i128::from(most) {
                return Err(outside(key, value.to_string(), format!("must be at least {least} and at most {most}")));
            }
        }
        for (one, other, most) in PRODUCTS {
            let product = numbers.whole(one).saturating_mul(numbers.whole(other));
            if product > i128::from(most) {
                let reason = format!("times {other} = {} must be at most {most}", numbers.whole(other));
                return Err(outside(one, numbers.whole(one).to_string(), reason));
            }
        }
        Ok(())
    }

    /// Refuses real numbers that are absurd, or none.
    pub(super) fn validate_real_numbers(&self) -> Result<(), ConfigError> {
        for (key, value) in &Numbers::of(self).0 {
            if let Number::Real(value) = value
                && (!value.is_finite() || value.abs() > REAL)
            {
                return Err(outside(key, value.to_string(), format!("must be at least -{REAL} and at most {REAL}")));
            }
        }
        Ok(())
    }
}

fn outside(key: &str, value: String, reason: String) -> ConfigError {
    ConfigError::Range { key: key.into(), value, reason }
}

enum Number {
    Whole(i128),
    /// JSON has no infinities: those come as not-a-number.
    Real(f64),
}

/// The numbers of a configuration by their keys.
struct Numbers(Vec<(String, Number)>);

impl Numbers {
    fn of(config: &Config) -> Numbers {
        let mut numbers = Numbers(Vec::new());
        numbers.add(String::new(), &serde_json::json!(config));
        numbers
    }

    fn add(&mut self, key: String, value: &Value) {
        match value {
            Value::Object(section) => {
                let dot = if key.is_empty() { "" } else { "." };
                section.iter().for_each(|(name, value)| self.add(format!("{key}{dot}{name}"), value));
            }
            Value::Number(number) => {
                let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
                let real = || Number::Real(number.as_f64().unwrap_or(f64::NAN));
                self.0.push((key, whole.map_or_else(real, Number::Whole)));
            }
            Value::Null => self.0.push((key, Number::Real(f64::NAN))),
            _ => {}
        }
    }

    fn whole(&self, key: &str) -> i128 {
        let found = self.0.iter().find_map(|(of, number)| match number {
            Number::Whole(value) if of == key => Some(*value),
            _ => None,
        });
        found.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_is_of_a_key_and_holds_its_default() {
        let numbers = Numbers::of(&Config::default());
        let whole = |key: &str| numbers.0.iter().any(|(of, n)| of == key && matches!(n, Number::Whole(_)));
        let products = PRODUCTS.iter().flat_map(|(one, other, _)| [one, other]);
        for key in RANGES.iter().map(|(key, _)| key).chain(products) {
            assert!(whole(key), "no whole number {key}");
        }
        Config::default().validate_whole_numbers().unwrap();
        Config::default().validate_real_numbers().unwrap();
    }
}
