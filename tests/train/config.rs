//! Loading, overriding, refusing and printing the configuration.

use proptest::prelude::*;
use std::io::Write;
use uncouple::config::{Config, Override};
use uncouple::ops::advantage::Scale;

fn load(text: &str, sets: &[&str]) -> Result<Config, String> {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let sets: Result<Vec<_>, _> = sets.iter().map(|s| Override::parse(s)).collect();
    sets.and_then(|sets| Config::load(Some(file.path()), &sets))
        .map_err(|e| e.to_string().replace(&file.path().display().to_string(), "FILE"))
}

fn refused(text: &str, sets: &[&str]) -> String {
    load(text, sets).expect_err("should be refused")
}

#[test]
fn defaults_are_valid_and_print_to_themselves() {
    let defaults = Config::load(None, &[]).unwrap();
    assert_eq!(defaults, Config::default());
    assert_eq!(load(&defaults.to_toml(), &[]).unwrap(), defaults);
    assert!(defaults.to_toml().contains("epsilon_low = 0.2\n"), "numbers print short: {}", defaults.to_toml());
}

#[test]
fn overrides_win_over_the_file_and_later_over_earlier() {
    let text = "[rollout]\ngroup_size = 4\ntemperature = 1\n[grpo]\nadvantage = \"batch\"\n";
    let config = load(text, &["rollout.group_size=6", "rollout.group_size = 16", "grpo.advantage=none"]).unwrap();
    assert_eq!((config.rollout.group_size, config.rollout.temperature), (16, 1.0));
    assert_eq!(config.grpo.advantage, Scale::None);
    let flags = [Override::parse("run.name=a").unwrap(), Override::flag("--name", "run.name", "b")];
    assert_eq!(Config::load(None, &flags).unwrap().run.name, "b");
}

#[test]
fn override_values_are_toml_or_bare_words() {
    let config = load("", &["run.name=7", "model.path=/models/qwen = x", "optim.lr=1e-5", "prompt.admissible=true"]);
    let config = config.unwrap();
    assert_eq!(config.run.name, "7");
    assert_eq!(config.model.path, "/models/qwen = x");
    assert_eq!(config.optim.lr, 1e-5);
    assert!(config.prompt.admissible);
    assert_eq!(load("", &["grpo={beta=0.5, epochs=2}"]).unwrap().grpo.epochs, 2);
}

#[test]
fn the_settings_of_another_suite_are_not_left_unread() {
    assert!(load("", &["env.suite=scienceworld", "env.scienceworld.reward=score"]).is_ok());
    assert!(load("", &["env.suite=worker", "env.scienceworld.reward=success"]).is_ok(), "its default is no setting");
    for suite in ["household", "alfworld", "worker", "openenv"] {
        let error = refused("", &[&format!("env.suite={suite}"), "env.scienceworld.reward=score"]);
        let mend =
            "leaves the settings of [env.scienceworld] unread: set env.suite = \"scienceworld\", or take them out";
        assert_eq!(error, format!("`env.suite = \"{suite}\"`: {mend}"));
    }
    assert!(refused("", &["env.worker.command=['a']"]).contains("[env.worker] unread: set env.suite = \"worker\""));
    assert!(refused("", &["env.scienceworld.reward=points"]).contains("success"));
}

#[test]
fn keys_that_moved_lead_to_their_place() {
    for (old, new) in [
        ("env.command=['a']", "`env.worker.command`"),
        ("env.url=http://host", "`env.openenv.url`"),
        ("env.action=say", "`env.openenv.action`"),
        ("env.data=here", "`env.alfworld.data` or `env.scienceworld.data`"),
        ("env.train_types=all", "`env.alfworld.train_types` or `env.scienceworld.train_types`"),
        ("env.simplifications=easy", "`env.scienceworld.simplifications`"),
        ("env.reward=score", "`env.scienceworld.reward`"),
        ("gcd.judge.url=http://host", "`judge.url`"),
        ("gcd.judge.max_tokens=9", "`judge.max_tokens`"),
        ("gcd.judge.timeout=9", "`judge.timeout`"),
    ] {
        assert!(refused("", &[old]).ends_with(&format!("it is now {new}")), "{}", refused("", &[old]));
    }
    let error = refused("[gcd]\nlambda = 1.0\n[gcd.judge]\nurl = \"http://host\"\n", &[]);
    assert_eq!(error, "FILE:3: unknown key `gcd.judge`: it is now `judge`");
}

#[test]
fn unknown_keys_name_the_place_and_the_likely_key() {
    let error = refused("[run]\nseed = 1\n\n[rollout]\ngroup_sise = 4\n", &[]);
    assert_eq!(error, "FILE:5: unknown key `rollout.group_sise`: did you mean `rollout.group_size`?");
    assert_eq!(refused("[rolout]\n", &[]), "FILE:1: unknown key `rolout`: did you mean `rollout`?");
    let error = refused("", &["lr=1e-4"]);
    assert_eq!(error, "--set lr=1e-4: unknown key `lr`: did you mean `optim.lr` or `sft.lr`?");
    let error = refused("[sft]\nslip = 0.1\n", &[]);
    assert_eq!(error, "FILE:2: unknown key `sft.slip`: it is now `sft.noise_action`");
    let error = refused("", &["prompt.zzzzzzzz=1"]);
    assert!(error.contains("[prompt] has admissible"), "{error}");
    assert!(refused("", &["run.seed.x=1"]).contains("unknown key `run.seed.x`"));
    assert!(refused("", &["novalue"]).contains("--set SECTION.KEY=VALUE"));
    assert!(refused("", &["=1"]).contains("--set SECTION.KEY=VALUE"));
}

#[test]
fn wrong_types_and_values_name_key_expected_and_found() {
    let error = refused("[rollout]\ngroup_size = \"many\"\n", &[]);
    assert_eq!(error, "FILE:2: `rollout.group_size` must be an integer, not a string (\"many\")");
    assert!(refused("grpo = 3\n", &[]).contains("`grpo` must be a section of keys, not an integer (3)"));
    assert!(refused("", &["optim.lr=fast"]).contains("`optim.lr` must be a number, not a string (\"fast\")"));
    assert!(refused("", &["rollout.groups=-1"]).contains("`rollout.groups`: invalid value: integer `-1`"));
    let error = refused("", &["grpo.aggregation=mean"]);
    assert!(error.contains("`grpo.aggregation`: unknown variant `mean`") && error.contains("token-mean"), "{error}");
}

#[test]
fn broken_toml_and_missing_files_are_named() {
    let error = refused("[run]\nseed = = 1\n", &[]);
    assert!(error.starts_with("FILE:2: not valid TOML"), "{error}");
    assert!(!error.contains('\n'), "one line: {error}");
    let error = Config::load(Some("no/such.toml".as_ref()), &[]).unwrap_err().to_string();
    assert!(error.contains("no/such.toml"), "{error}");
}

#[test]
fn what_cannot_train_is_refused_by_key() {
    for (set, says) in [
        ("rollout.group_size=1", "every advantage is 0"),
        ("rollout.groups=0", "at least 1"),
        ("rollout.temperature=0", "above 0"),
        ("rollout.temperature=nan", "above 0"),
        ("rollout.top_p=0", "at most 1"),
        ("rollout.top_p=1.5", "at most 1"),
        ("rollout.min_p=1", "[0, 1)"),
        ("rollout.max_turn_tokens=0", "at least 1"),
        ("rollout.max_episode_tokens=8", "max_turn_tokens"),
        ("rollout.max_episode_tokens=2000", "context"),
        ("model.num_attention_heads=3", "num_key_value_heads"),
        ("model.num_key_value_heads=0", "at least 1"),
        ("model.hidden_size=130", "multiple"),
        ("model.vocab_size=256", "above 256"),
        ("grpo.epsilon_low=1", "(0, 1)"),
        ("grpo.epsilon_high=0", "above 0"),
        ("grpo.dual_clip=0.5", "above 1"),
        ("grpo.beta=-1", "0 or above"),
        ("grpo.epochs=0", "at least 1"),
        ("grpo.step_weight=-1", "0 or above"),
        ("grpo.step_discount=1.5", "0 to 1"),
        ("grpo.step_advantage=tags", "prompt.tags"),
        ("decouple.temperature=0", "above 0"),
        ("decouple.weight=-1", "0 or above"),
        ("optim.lr=0", "above 0"),
        ("optim.beta2=1", "[0, 1)"),
        ("sft.batch=0", "at least 1"),
        ("env.max_steps=0", "at least 1"),
        ("eval.consistency_samples=1", "at least 2"),
        ("run.name=../up", "run name"),
        ("run.keep_checkpoints=0", "at least 1"),
    ] {
        let error = refused("", &[set]);
        let key = set.split('=').next().unwrap();
        assert!(error.starts_with(&format!("`{key} = ")) && error.contains(says), "{set}: {error}");
    }
    assert!(load("", &["eval.consistency_samples=0", "eval.consistency_states=0", "eval.judgments=0"]).is_ok());
    assert!(refused("", &["coupling.tokens=some"]).contains("coupling.tokens"));
    // A model folder brings its own shape.
    assert!(load("", &["model.path=/m", "model.num_attention_heads=3"]).is_ok());
}

#[test]
fn every_number_has_a_range_that_the_refusal_names() {
    for (set, says) in [
        ("rollout.groups=4294967295", "`rollout.groups = 4294967295`: must be at least 1 and at most 65536"),
        ("env.max_steps=4000000000", "`env.max_steps = 4000000000`: must be at least 1 and at most 100000"),
        ("run.iterations=4000000000", "`run.iterations = 4000000000`: must be at least 0 and at most 1000000"),
        ("grpo.micro_tokens=4294967295", "at most 16777216"),
        ("rollout.max_live=4294967295", "at most 65536"),
        ("model.num_hidden_layers=9223372036854775807", "at least 1 and at most 4096"),
        ("model.hidden_size=9223372036854775807", "at least 1 and at most 16777216"),
        ("model.vocab_size=16777217", "at most 16777216"),
        ("judge.agree=4294967295", "at most 1000"),
        ("optim.lr=1e30", "at least -1000000 and at most 1000000"),
        ("rollout.invalid_reward=1e30", "at least -1000000 and at most 1000000"),
        ("coupling.samples=4294967295", "at most 4096"),
        ("prompt.history=\"window:99999999999\"", "at most \"window:100000\""),
    ] {
        let error = refused("", &[set]);
        assert!(error.contains(says) && error.contains(set.split('=').next().unwrap()), "{set}: {error}");
    }
    // Values that are fine alone.
    let both = refused("", &["rollout.groups=60000", "rollout.group_size=60000"]);
    assert_eq!(both, "`rollout.groups = 60000`: times rollout.group_size = 60000 must be at most 1048576");
    let large = refused("", &["model.hidden_size=8192", "model.num_hidden_layers=100"]);
    assert!(
        large.starts_with("`model.hidden_size = 8192`: makes a model of") && large.contains("at most 1073741824"),
        "{large}"
    );
    let long = refused("", &["model.max_position_embeddings=16777216"]);
    assert!(long.contains("must be at most 2796202 with heads of 48"), "{long}");
}

#[test]
fn a_configuration_is_a_regular_file_of_bounded_size() {
    for (path, says) in [("/dev/zero", "is not a regular file"), ("/", "is not a regular file")] {
        let error = Config::load(Some(path.as_ref()), &[]).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.to_string().contains(path) && source.contains(says), "{error}: {source}");
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all("# a long one\n".repeat(100_000).as_bytes()).unwrap();
    let error = Config::load(Some(file.path()), &[]).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("1300000 bytes, more than the 1048576"));
}

#[test]
fn the_fingerprint_covers_what_must_not_change_on_resume() {
    let base = Config::default();
    let with = |set: &str| load("", &[set]).unwrap();
    for same in
        ["run.name=other", "run.iterations=99", "sft.checkpoint_every=9", "eval.every=3", "model.recompute=true"]
    {
        assert_eq!(with(same).fingerprint(), base.fingerprint(), "{same}");
        assert!(with(same).changed_since(&base).is_empty(), "{same}");
    }
    for other in ["run.seed=1", "optim.lr=1e-5", "rollout.group_size=4", "env.max_steps=9"] {
        assert_ne!(with(other).fingerprint(), base.fingerprint(), "{other}");
    }
    assert_eq!(with("sft.lr=0.1").changed_since(&base), ["sft.lr: 0.001 → 0.1"]);
    assert_eq!(base.fingerprint().len(), 64);
}

proptest! {
    #[test]
    fn printing_and_loading_is_the_identity(
        lr in 1e-8f32..1.0,
        seed in 0u64..=i64::MAX as u64,
        group_size in 2u32..100,
        name in "[a-z0-9][a-z0-9._-]{0,20}",
    ) {
        let mut config = Config::default();
        config.optim.lr = lr;
        config.run.seed = seed;
        config.rollout.group_size = group_size;
        config.run.name = name;
        prop_assert_eq!(load(&config.to_toml(), &[]).unwrap(), config);
    }

    #[test]
    fn no_text_makes_loading_panic(text in "\\PC{0,60}", set in "\\PC{0,30}") {
        let _ = load(&text, &[]);
        let _ = load("", &[&set]);
        let _ = load("", &[&format!("run.{set}")]);
        let _ = load("", &[&format!("run.name={set}")]);
    }
}

#[test]
fn a_gpu_brings_a_default_model_that_it_can_train_and_refuses_others_by_name() {
    let valid = |sets: &[&str]| {
        let overrides: Vec<Override> = sets.iter().map(|set| Override::parse(set).unwrap()).collect();
        Config::load_over(&Config::for_a_gpu(), None, &overrides).unwrap().validate_for_gpu()
    };
    valid(&[]).unwrap();
    let method = ["grpo.beta=0.1", "gcd.mode=value-head", "decouple.method=contrastive"];
    valid(&method).unwrap();
    let error = valid(&["model.num_attention_heads=4"]).unwrap_err().to_string();
    assert!(error.contains("model.hidden_size") && error.contains("heads of 64 or 128"), "{error}");
}
