//! What a configuration must satisfy before anything is built from it.

use super::bounds::{MAX_ANGLES, MAX_PARAMETERS};
use super::{
    Author, Config, ConfigError, GcdMode, LORA_TARGETS, LabelSource, MomentDtype, StepAdvantage, SuggestionMode,
    secret_in,
};
use std::fmt::Display;

fn need(ok: bool, key: &'static str, value: impl Display, reason: &str) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(ConfigError::Invalid { key, value: value.to_string(), reason: reason.into() }) }
}

fn at_least_one(key: &'static str, value: impl Into<u64>) -> Result<(), ConfigError> {
    let value = value.into();
    need(value >= 1, key, value, "must be at least 1")
}

fn positive(key: &'static str, value: f32) -> Result<(), ConfigError> {
    need(value.is_finite() && value > 0.0, key, value, "must be a number above 0")
}

fn not_negative(key: &'static str, value: f32) -> Result<(), ConfigError> {
    need(value.is_finite() && value >= 0.0, key, value, "must be a number, 0 or above")
}

impl Config {
    /// Refuses what could not train, or would train without learning; the error names the key, its value and the mend.
    ///
    /// # Errors
    /// At the first key whose value cannot train, or trains without learning.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_whole_numbers()?;
        self.validate_run()?;
        // Used or not, they are written down.
        self.validate_addresses()?;
        if self.model.path.is_empty() {
            self.validate_embedded_model()?;
        }
        self.validate_lora()?;
        self.validate_rollout()?;
        self.validate_grpo()?;
        self.validate_gcd()?;
        self.validate_suggestions()?;
        self.validate_decouple()?;
        let pairs = "must be 4 or more: pairs of each sign are compared";
        need(self.coupling.samples >= 4, "coupling.samples", self.coupling.samples, pairs)?;
        self.validate_optimizers()?;
        self.validate_env()?;
        for (key, seconds) in [
            ("env.timeout", self.env.timeout),
            ("env.start_timeout", self.env.start_timeout),
            ("judge.timeout", self.judge.timeout),
        ] {
            positive(key, seconds)?;
            need(seconds <= 86400.0, key, seconds, "must be at most a day, 86400 s")?;
        }
        let e = &self.eval;
        let alone = "must be at least 2: one sample is always of one mind (eval.consistency_states = 0 takes none)";
        let compared = e.consistency_samples >= 2 || e.consistency_states == 0;
        need(compared, "eval.consistency_samples", e.consistency_samples, alone)?;
        not_negative("eval.temperature", e.temperature)?;
        self.validate_real_numbers()
    }

    /// Refuses an embedded model, or adapters, that a GPU's kernels have no code for.
    ///
    /// # Errors
    /// If the embedded model's heads are neither 64 nor 128 wide, or the adapters' rank is no multiple of 8.
    pub fn validate_for_gpu(&self) -> Result<(), ConfigError> {
        let size = self.model.hidden_size / self.model.num_attention_heads.max(1);
        let heads =
            "the GPU's attention has heads of 64 or 128: choose model.hidden_size and model.num_attention_heads so";
        let narrow = "must be a multiple of 8 on a GPU, whose loads are of 8 numbers: 8, 16, 32 and 64 are usual";
        need(self.lora.rank.is_multiple_of(8), "lora.rank", self.lora.rank, narrow)?;
        let embedded = self.model.path.is_empty();
        need(!embedded || size == 64 || size == 128, "model.hidden_size", self.model.hidden_size, heads)
    }

    fn validate_run(&self) -> Result<(), ConfigError> {
        let r = &self.run;
        need(!r.dir.is_empty(), "run.dir", "\"\"", "must name a folder, e.g. \"runs\"")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let ok = r.name.chars().all(plain) && !r.name.starts_with('.') && r.name.len() <= 100;
        let reason = "a run name is at most 100 letters, digits, `-`, `_` and `.`, and does not start with `.`";
        need(ok, "run.name", format_args!("{:?}", r.name), reason)
    }

    fn validate_env(&self) -> Result<(), ConfigError> {
        let Some(other) = self.env.table_of_another() else { return Ok(()) };
        let unread =
            format!("leaves the settings of [env.{other}] unread: set env.suite = \"{other}\", or take them out");
        need(false, "env.suite", format_args!("{:?}", self.env.suite), &unread)
    }

    fn validate_embedded_model(&self) -> Result<(), ConfigError> {
        let m = &self.model;
        let bytes = "must be above 256: a byte-level tokenizer needs one token per byte and its special tokens";
        need(m.vocab_size > 256, "model.vocab_size", m.vocab_size, bytes)?;
        let (heads, kv_heads) = (m.num_attention_heads, m.num_key_value_heads);
        let even_groups = format!("must be a multiple of model.num_key_value_heads = {kv_heads}");
        need(heads.is_multiple_of(kv_heads), "model.num_attention_heads", heads, &even_groups)?;
        let even_heads = format!("must be an even multiple of model.num_attention_heads = {heads} (RoPE turns pairs)");
        need(m.hidden_size.is_multiple_of(2 * heads), "model.hidden_size", m.hidden_size, &even_heads)?;
        let head = m.hidden_size / heads;
        let angles =
            format!("must be at most {} with heads of {head}, for each of which it makes a table", MAX_ANGLES / head);
        let context = m.max_position_embeddings;
        need(context <= MAX_ANGLES / head, "model.max_position_embeddings", context, &angles)?;
        // Queries and output, keys and values, and the three matrices of the MLP; biases and norms are few.
        let layer =
            2 * m.hidden_size.saturating_mul(m.hidden_size + kv_heads * head) + 3 * m.hidden_size * m.intermediate_size;
        let parameters = layer.saturating_mul(m.num_hidden_layers).saturating_add(m.vocab_size * m.hidden_size);
        let large = format!(
            "makes a model of {parameters} parameters with model.num_hidden_layers = {}, model.intermediate_size = {} and \
             model.vocab_size = {}: at most {MAX_PARAMETERS} are made, a larger one must come from a folder (model.path)",
            m.num_hidden_layers, m.intermediate_size, m.vocab_size
        );
        need(parameters <= MAX_PARAMETERS, "model.hidden_size", m.hidden_size, &large)
    }

    fn validate_lora(&self) -> Result<(), ConfigError> {
        let l = &self.lora;
        if !l.is_on() {
            return Ok(());
        }
        let base = "adapts a pretrained model, not the embedded one, which has learnt nothing yet: name one by model.path (--model)";
        need(!self.model.path.is_empty(), "lora.rank", l.rank, base)?;
        positive("lora.alpha", l.alpha)?;
        let all = LORA_TARGETS.join(", ");
        need(!l.targets.is_empty(), "lora.targets", "[]", &format!("must name a linear map or more, of {all}"))?;
        let unknown = l.targets.iter().find(|target| !LORA_TARGETS.contains(&target.as_str()));
        let none = format!("is no linear map of a layer: there are {all}");
        need(unknown.is_none(), "lora.targets", format_args!("{unknown:?}"), &none)?;
        let twice = l.targets.iter().enumerate().find(|(i, target)| l.targets[..*i].contains(target));
        let once = "is named twice: an adapter stands beside a linear map once";
        need(twice.is_none(), "lora.targets", format_args!("{:?}", twice.map(|(_, target)| target)), once)
    }

    fn validate_rollout(&self) -> Result<(), ConfigError> {
        let r = &self.rollout;
        let lonely = "a group is compared with itself: with fewer than 2 episodes every advantage is 0 and nothing is \
                      learned; use 2 or more (8 is usual)";
        need(r.group_size >= 2, "rollout.group_size", r.group_size, lonely)?;
        need(
            r.temperature.is_finite() && r.temperature > 0.0,
            "rollout.temperature",
            r.temperature,
            "must be above 0: a group of identical greedy episodes teaches nothing",
        )?;
        need(r.top_p > 0.0 && r.top_p <= 1.0, "rollout.top_p", r.top_p, "must be above 0 and at most 1 (1: off)")?;
        need((0.0..1.0).contains(&r.min_p), "rollout.min_p", r.min_p, "must be in [0, 1) (0: off)")?;
        positive("rollout.repetition_penalty", r.repetition_penalty)?;
        let most = r.max_episode_tokens;
        let room = format!("must exceed rollout.max_turn_tokens = {} (0: the model's context)", r.max_turn_tokens);
        need(most == 0 || most > r.max_turn_tokens, "rollout.max_episode_tokens", most, &room)?;
        if self.model.path.is_empty() {
            let context = self.model.max_position_embeddings;
            let fits = format!("is longer than the model's context, model.max_position_embeddings = {context}");
            need(most as usize <= context, "rollout.max_episode_tokens", most, &fits)?;
        }
        need(r.invalid_reward.is_finite(), "rollout.invalid_reward", r.invalid_reward, "must be a finite number")
    }

    fn validate_grpo(&self) -> Result<(), ConfigError> {
        let g = &self.grpo;
        not_negative("grpo.advantage_eps", g.advantage_eps)?;
        let tagged = g.step_advantage != StepAdvantage::Tags || self.prompt.tags;
        need(tagged, "grpo.step_advantage", "\"tags\"", "rewards the tags of turns: set prompt.tags = true as well")?;
        not_negative("grpo.step_weight", g.step_weight)?;
        let discount = "must be a number from 0 to 1 (0.95 is usual)";
        need((0.0..=1.0).contains(&g.step_discount), "grpo.step_discount", g.step_discount, discount)?;
        let low = "must be in (0, 1): the ratio is clipped below at 1 - epsilon_low";
        need(g.epsilon_low > 0.0 && g.epsilon_low < 1.0, "grpo.epsilon_low", g.epsilon_low, low)?;
        positive("grpo.epsilon_high", g.epsilon_high)?;
        let dual = "must be 0 (off) or above 1: it bounds how far a ratio above 1 may count (3 is usual)";
        let dual_ok = g.dual_clip == 0.0 || g.dual_clip.is_finite() && g.dual_clip > 1.0;
        need(dual_ok, "grpo.dual_clip", g.dual_clip, dual)?;
        not_negative("grpo.beta", g.beta)?;
        not_negative("grpo.entropy_coef", g.entropy_coef)
    }

    fn validate_gcd(&self) -> Result<(), ConfigError> {
        let g = &self.gcd;
        if !self.needs_labels() {
            return Ok(());
        }
        at_least_one("gcd.pairs", g.pairs)?;
        let lonely = "judgments of a pair are compared with each other: use 2 or more (8 is usual)";
        need(g.judgments >= 2 || g.mode != GcdMode::Generate, "gcd.judgments", g.judgments, lonely)?;
        not_negative("gcd.lambda", g.lambda)?;
        need(!g.labels.is_empty(), "gcd.labels", "[]", "must name a source of labels, e.g. [\"loop\", \"oracle\"]")?;
        at_least_one("gcd.cycle", g.cycle)?;
        if g.labels.contains(&LabelSource::Judge) {
            self.validate_judge()?;
        }
        at_least_one("gcd.max_tokens", g.max_tokens)
    }

    fn validate_suggestions(&self) -> Result<(), ConfigError> {
        let s = &self.suggestions;
        if s.mode == SuggestionMode::Off {
            return Ok(());
        }
        at_least_one("suggestions.every", s.every)?;
        at_least_one("suggestions.most", s.most)?;
        at_least_one("suggestions.candidates", s.candidates)?;
        at_least_one("suggestions.resamples", s.resamples)?;
        let zone = "must be a probability below 1 (0.5 is where the danger zone begins)";
        need((0.0..1.0).contains(&s.threshold), "suggestions.threshold", s.threshold, zone)?;
        need(
            (0.0..=1.0).contains(&s.cold_start),
            "suggestions.cold_start",
            s.cold_start,
            "must be a share from 0 to 1",
        )?;
        if s.author == Author::Judge { self.validate_judge() } else { Ok(()) }
    }

    fn validate_decouple(&self) -> Result<(), ConfigError> {
        let d = &self.decouple;
        positive("decouple.temperature", d.temperature)?;
        not_negative("decouple.weight", d.weight)
    }

    fn validate_addresses(&self) -> Result<(), ConfigError> {
        let judge = "; a key belongs into an environment variable that judge.key_env names";
        for (key, url, mend) in [("judge.url", &self.judge.url, judge), ("env.openenv.url", &self.env.openenv.url, "")]
        {
            let reason = secret_in(url).map(|reason| format!("{reason}{mend}"));
            need(reason.is_none(), key, "(not shown)", &reason.unwrap_or_default())?;
        }
        Ok(())
    }

    fn validate_judge(&self) -> Result<(), ConfigError> {
        let j = &self.judge;
        let http = j.url.starts_with("http://") || j.url.starts_with("https://");
        need(http, "judge.url", format_args!("{:?}", j.url), "must be the endpoint's http(s) address")?;
        need(!j.model.is_empty(), "judge.model", "\"\"", "must name the endpoint's model")?;
        not_negative("judge.temperature", j.temperature)?;
        at_least_one("judge.votes", j.votes)?;
        let agree = format!("must be more than half of judge.votes = {}, and at most all", j.votes);
        need(j.agree <= j.votes && 2 * j.agree > j.votes, "judge.agree", j.agree, &agree)?;
        at_least_one("judge.pairs", j.pairs)?;
        at_least_one("judge.concurrency", j.concurrency)?;
        let threads = "must be at most 256: each request at once has a thread and a connection";
        need(j.concurrency <= 256, "judge.concurrency", j.concurrency, threads)?;
        need(j.retries <= 100, "judge.retries", j.retries, "must be at most 100 (4 are usual)")?;
        need(!j.cache.is_empty(), "judge.cache", "\"\"", "must name a file, e.g. \"judge.sqlite\"")
    }

    fn validate_optimizers(&self) -> Result<(), ConfigError> {
        let (o, s) = (&self.optim, &self.sft);
        positive("optim.lr", o.lr)?;
        need((0.0..=1.0).contains(&o.lr_end), "optim.lr_end", o.lr_end, "must be a share from 0 to 1")?;
        for (key, beta) in [("optim.beta1", o.beta1), ("optim.beta2", o.beta2)] {
            need((0.0..1.0).contains(&beta), key, beta, "must be in [0, 1)")?;
        }
        positive("optim.eps", o.eps)?;
        not_negative("optim.weight_decay", o.weight_decay)?;
        positive("optim.clip", o.clip)?;
        let alone = "is a step of 8-bit moments: set optim.moments = \"dynamic8\" as well";
        let narrow = o.moments == MomentDtype::Dynamic8 || !o.stochastic_rounding;
        need(narrow, "optim.stochastic_rounding", o.stochastic_rounding, alone)?;
        if s.steps > 0 {
            at_least_one("sft.batch", s.batch)?;
            positive("sft.lr", s.lr)?;
            at_least_one("sft.games", s.games)?;
            need(
                (0.0..1.0).contains(&s.noise_action),
                "sft.noise_action",
                s.noise_action,
                "must be a chance from 0 to below 1",
            )?;
        }
        Ok(())
    }
}
