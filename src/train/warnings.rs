//! What goes wrong without an error: said once, when it has gone on for some iterations.

use crate::config::Config;
use crate::report::metrics::Record;

/// Iterations in a row that are no accident.
const STRETCH: u32 = 3;

/// A condition, and for how many iterations in a row it has held.
#[derive(Debug, Default)]
pub struct Stretch(u32);

impl Stretch {
    /// Whether the condition has now held for so long that it is to be said; once a stretch.
    pub fn is_due(&mut self, holds: bool) -> bool {
        self.0 = if holds { self.0 + 1 } else { 0 };
        self.0 == STRETCH
    }
}

/// What is watched.
#[derive(Debug, Default)]
pub struct Warnings {
    constant: Stretch,
    unparsable: Stretch,
    invalid: Stretch,
}

/// What there is to say where a model with random weights is not taught anything before GRPO.
pub fn untrained(config: &Config) -> Option<String> {
    (config.sft.steps == 0).then(|| {
        "warning: the model begins with random weights and sft.steps = 0: it knows neither the commands nor where a turn ends, and \
         without a win GRPO learns nothing; let it learn from demonstrations (sft.steps above 0), which a worker's game tells as `expert`, \
         or give a trained model (--model DIR)"
            .into()
    })
}

impl Warnings {
    /// What there is to say after an iteration with this record.
    pub fn after(&mut self, config: &Config, record: &Record) -> Vec<String> {
        let mut lines = Vec::new();
        let is_all = |name| record.values.get(name) == Some(&1.0);
        if self.constant.is_due(is_all("frac_reward_zero_std")) {
            lines.push(format!(
                "warning: for {STRETCH} iterations all episodes of each group were paid the same (frac_reward_zero_std = 1), so GRPO \
                 learns nothing; look at the rewards in trajectories.sqlite: where all are 0, the games are too hard or env.max_steps \
                 = {} too few; else raise rollout.temperature = {} or rollout.group_size = {}",
                config.env.max_steps, config.rollout.temperature, config.rollout.group_size
            ));
        }
        if self.unparsable.is_due(is_all("gcd/unparsable")) {
            lines.push(format!(
                "warning: for {STRETCH} iterations no judgment had a verdict (gcd/unparsable = 1), so GCD learns nothing; its form is \
                 taught in the cold start (sft.steps = {}, gcd.cold_start = {}), and gcd.max_tokens = {} must leave room for it",
                config.sft.steps, config.gcd.cold_start, config.gcd.max_tokens
            ));
        }
        if self.invalid.is_due(is_all("invalid_rate")) {
            lines.push(format!(
                "warning: for {STRETCH} iterations no turn was valid (invalid_rate = 1): the environment understood no command; look at \
                 the turns in trajectories.sqlite: rollout.max_turn_tokens = {} must leave room for a command, prompt.format = {} must be \
                 the model's, and a longer cold start (sft.steps = {}) teaches the commands",
                config.rollout.max_turn_tokens,
                serde_json::json!(config.prompt.format),
                config.sft.steps
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_is_taught_nothing_is_warned_of() {
        let mut config = Config::default();
        assert_eq!(untrained(&config), None, "the cold start teaches it");
        config.sft.steps = 0;
        let said = untrained(&config).unwrap();
        assert!(said.contains("random weights and sft.steps = 0") && said.contains("--model DIR"), "{said}");
    }

    #[test]
    fn turns_that_are_never_valid_are_warned_of_once() {
        let (mut warnings, config) = (Warnings::default(), Config::default());
        let mut after = |rate: f64| warnings.after(&config, &Record::new("grpo", 1, 0.0).with("invalid_rate", rate));
        assert!(after(1.0).is_empty() && after(1.0).is_empty());
        let said = after(1.0);
        assert!(said.len() == 1 && said[0].contains("no turn was valid (invalid_rate = 1)"), "{said:?}");
        assert!(said[0].contains("rollout.max_turn_tokens = 24") && said[0].contains("prompt.format = \"compact\""));
        assert!(after(1.0).is_empty(), "once a stretch");
        assert!([0.99, 1.0, 1.0].map(&mut after).iter().all(Vec::is_empty), "one valid turn begins another");
        assert_eq!(after(1.0).len(), 1);
    }

    #[test]
    fn a_stretch_is_said_once_and_again_after_it_was_over() {
        let mut stretch = Stretch::default();
        let said: String =
            "111110111110110111".chars().map(|c| if stretch.is_due(c == '1') { '!' } else { '.' }).collect();
        assert_eq!(said, "..!.....!........!");
    }
}
