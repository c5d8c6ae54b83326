//! Suggestions: what they rest on, how they are put, and runs with them.

use crate::common;

use common::runs::{left, tiny};
use common::scripted::{LOGPROB, Scripted};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use uncouple::agent::{Episode, Exchange, Prompter, Turn};
use uncouple::config::{Config, Format, Prompt};
use uncouple::env::{EnvError, Environment, Observation, Split, Task};
use uncouple::gcd::label::flaws;
use uncouple::gcd::suggestion::{self, Candidate, Evidence, Suggestion, candidates, topics};
use uncouple::gcd::theory::Measured;
use uncouple::gcd::{Flaw, JudgeLabels, Label, Labelled};
use uncouple::model::{Architecture, Tokenizer};
use uncouple::ops::philox::Stream;
use uncouple::report::stats;
use uncouple::rollout::{Actor, Counts, RolloutSettings, RolloutTasks};
use uncouple::train::run_folder::Existing;
use uncouple::train::suggest::{SuggestionUpdate, due};
use uncouple::train::{TrainError, suite, train};

/// Turns (observation, action, valid, progressed), each of one token whose log-prob is `logprob`.
fn episode(split: Split, turns: &[(&str, &str, bool, Option<bool>)], logprob: f32) -> Episode {
    let task = Task { id: "place/scene-1/seed-2".into(), kind: "place".into(), split };
    let mut episode = Episode::new(task, 0, 0);
    for (i, (observation, action, valid, progressed)) in turns.iter().enumerate() {
        episode.tokens.push(i as u32);
        episode.logprobs.push(logprob);
        episode.turns.push(Turn {
            start: 0,
            observation: observation.to_string(),
            action: action.to_string(),
            command: Some(action.to_string()),
            tokens: i..i + 1,
            thought: 0,
            valid: *valid,
            refusal: None,
            reward: 0.0,
            progressed: *progressed,
        });
    }
    episode
}

fn labelled(episodes: &[Episode]) -> Labelled<'_> {
    static NOTHING: LazyLock<JudgeLabels> = LazyLock::new(JudgeLabels::new);
    Labelled { episodes, judge_labels: &NOTHING }
}

const TURNS: [(&str, &str, bool, Option<bool>); 4] = [
    ("a shelf", "take mug 1", false, Some(false)),
    ("nothing", "go desk 1", true, Some(false)),
    ("a desk", "open box 1", true, Some(true)),
    ("nothing", "go desk 1", true, Some(false)),
];

#[test]
fn a_planted_flaw_is_found_with_its_evidence() {
    let episodes = [episode(Split::Train, &TURNS, 0.9f32.ln()), episode(Split::Train, &TURNS[..1], 0.7f32.ln())];
    let advantage = |e: usize, _: usize| if e == 0 { -1.0 } else { 0.0 };
    let found = candidates(labelled(&episodes), &advantage, &Config::default()).unwrap();
    let of = |action: &str| &found.iter().find(|c| c.evidence.action == action).unwrap().evidence;
    // Never the good one.
    assert_eq!(found.len(), 2);
    let take = of("take mug 1");
    assert_eq!((take.flaw, take.count, take.observation.as_str()), (Flaw::Idle, 2, "a shelf"));
    assert!((take.sampled - 0.8).abs() < 1e-6 && (take.advantage + 0.5).abs() < 1e-9, "{take:?}");
    assert_eq!(take.task, "place/scene-1/seed-2");
    // First astray, then repeated: the flaw is that of the first time, and both are counted.
    assert_eq!((of("go desk 1").flaw, of("go desk 1").count), (Flaw::Astray, 2));

    let few = Config {
        suggestions: uncouple::config::Suggestions { candidates: 1, ..Default::default() },
        ..Config::default()
    };
    let found = candidates(labelled(&episodes), &advantage, &few).unwrap();
    assert_eq!((found.len(), &found[0].evidence.action[..]), (1, "go desk 1"), "1.8 against 1.6 in all");
}

/// Writes the same again and again, whatever it reads, and keeps what it reads.
struct Wall(Arc<Mutex<Vec<String>>>);

impl Environment for Wall {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        Ok(Observation { text: "a wall".into(), valid: true, ..Observation::default() })
    }
    fn step(&mut self, command: &str) -> Result<Observation, EnvError> {
        self.0.lock().unwrap().push(command.into());
        self.reset()
    }
}

/// Three turns that differ in their thoughts, and in how the command is written, but not in what is done.
fn thoughtful() -> (Vec<Episode>, Vec<String>) {
    let texts = [
        "<think>Hm.</think><action>Push wall 1.</action>",
        "<think>Again!</think><action>push wall 1</action>",
        "<think>so be it</think>\n<action>\npush wall 1\n</action>",
    ];
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/models/tiny-tied");
    let prompt = Prompt { format: Format::Think, ..Prompt::default() };
    let prompter = Prompter::new(Tokenizer::load(&golden).unwrap(), &prompt).unwrap();
    let config = common::tiny_config(true, 2);
    let config =
        Architecture { vocab_size: prompter.tokenizer().vocab_size(), max_position_embeddings: 1024, ..config };
    let tokens = texts.iter().flat_map(|text| prompter.encode_turn(text).unwrap()).collect();
    let policy = Scripted { model: common::random_model(config, 1), tokens };
    let received = Arc::new(Mutex::new(Vec::new()));
    let open = |_: &Task| -> Result<Box<dyn Environment>, EnvError> { Ok(Box::new(Wall(received.clone()))) };
    let task = Task { id: "wall".into(), kind: "wall".into(), split: Split::Train };
    let settings = RolloutSettings {
        max_steps: 3,
        max_turn_tokens: 100,
        ..RolloutSettings::training(&Config::default(), Stream::Rollout(0))
    };
    let episodes = Actor::new(&policy, &prompter, settings, &|| false)
        .rollout(&RolloutTasks { open: &open, tasks: &[task], group_size: 1 })
        .unwrap()
        .episodes;
    assert_eq!(episodes[0].turns.iter().map(|t| &t.action[..]).collect::<Vec<_>>(), texts, "kept as sampled");
    for turn in &episodes[0].turns {
        let thought = &episodes[0].tokens[turn.tokens.clone()][..turn.thought];
        assert!(prompter.tokenizer().decode(thought, false).unwrap().ends_with("</think>"));
    }
    let received = std::mem::take(&mut *received.lock().unwrap());
    (episodes, received)
}

#[test]
fn other_thoughts_do_not_make_another_action() {
    let (episodes, received) = thoughtful();
    assert_eq!(received, ["push wall 1"; 3]);
    let counts = Counts::of(&episodes[0]);
    assert_eq!((counts.repeats, counts.loops, counts.invalid), (2, 3, 0));
    let flaws = flaws(&episodes[0], 1);
    assert_eq!(flaws[1..], [Some(Flaw::Repeated), Some(Flaw::Repeated)][..], "{flaws:?}");
    let found = candidates(labelled(&episodes), &|_, _| 0.0, &Config::default()).unwrap();
    let [Candidate { evidence, .. }] = &found[..] else { panic!("one action: {found:?}") };
    assert_eq!((&evidence.action[..], evidence.count), ("push wall 1", 3));
    // The probability of the command once the thought is written.
    let turns = &episodes[0].turns;
    let written = |turn: &Turn| (LOGPROB * (turn.tokens.len() - turn.thought) as f32).exp();
    let mean = turns.iter().map(|turn| f64::from(written(turn))).sum::<f64>() / 3.0;
    assert!(turns.iter().all(|turn| turn.thought > 3) && (evidence.sampled - mean).abs() < 1e-6, "{evidence:?}");
    let topics = topics(vec![Evidence { resampled: 1.0, ..evidence.clone() }], 0.5, &[], 3);
    assert_eq!(topics[0].verb, "push");
}

#[test]
fn what_a_judge_calls_good_is_no_evidence() {
    let episodes = [episode(Split::Train, &TURNS[1..2], -0.1)];
    let mut config = Config::default();
    config.gcd.labels = vec![uncouple::config::LabelSource::Judge];
    let of = |label| {
        candidates(
            Labelled { episodes: &episodes, judge_labels: &JudgeLabels::from([((0, 0), label)]) },
            &|_, _| 0.0,
            &config,
        )
        .unwrap()
        .len()
    };
    assert_eq!((of(Label::Good), of(Label::Bad)), (0, 1));
}

#[test]
fn a_held_out_game_cannot_contribute() {
    let episodes = [episode(Split::L2, &TURNS, -0.1)];
    let refused = candidates(labelled(&episodes), &|_, _| 0.0, &Config::default()).unwrap_err();
    let EnvError::HeldOut { id, reason } = refused else { panic!("{refused}") };
    assert!(id == "place/scene-1/seed-2" && reason.contains("L2"), "{id}: {reason}");
}

fn evidence(action: &str, flaw: Flaw, count: usize, q: f64) -> Evidence {
    let (task, observation) = ("t".into(), "o".into());
    Evidence {
        task,
        observation,
        action: action.into(),
        flaw,
        count,
        sampled: q + 0.1,
        resampled: q - 0.1,
        advantage: 0.0,
    }
}

#[test]
fn only_the_danger_zone_is_spoken_of_and_the_heaviest_first() {
    let all = vec![
        evidence("take a", Flaw::Idle, 2, 0.9),
        evidence("go a", Flaw::Circular, 4, 0.8),
        evidence("take b", Flaw::Idle, 3, 0.6),
        evidence("open a", Flaw::Idle, 90, 0.5),
        evidence("<b>go</b> a", Flaw::Idle, 90, 0.9),
        evidence("put a", Flaw::Astray, 1, 0.7),
    ];
    let found = topics(all.clone(), 0.5, &[], 2);
    let verbs: Vec<_> = found.iter().map(|t| (&t.verb[..], t.evidence.len())).collect();
    // 2 · 0.9 + 3 · 0.6 = 3.6 against 4 · 0.8; at q = 0.5 nothing is in the zone, and markup is no verb.
    assert_eq!(verbs, [("take", 2), ("go", 1)]);
    // What stands in the prompt keeps its place for as long as it is in the zone, whatever else weighs more.
    let stands = |evidence| Suggestion { text: "No.".into(), evidence: vec![evidence] };
    let active = [stands(evidence("light a", Flaw::Idle, 1, 0.9)), stands(evidence("put b", Flaw::Astray, 1, 0.9))];
    let verbs: Vec<_> = topics(all, 0.5, &active, 2).into_iter().map(|t| t.verb).collect();
    assert_eq!(verbs, ["put", "take"]);
    let written = found.into_iter().map(|t| (t, "Look first.".to_string()));
    let [Suggestion { text, evidence }] = &suggestion::suggestions(written)[..] else { panic!("said twice") };
    assert_eq!((&text[..], evidence.len()), ("Look first.", 3));
}

#[test]
fn an_answer_is_one_plain_line_or_nothing() {
    assert_eq!(suggestion::read("\n  Look first.\nThen go."), Some("Look first.".into()));
    assert_eq!(suggestion::read("a\u{1b}[31mb"), Some("a[31mb".into()));
    assert_eq!(suggestion::read(&"x".repeat(500)).unwrap().len(), 160);
    assert_eq!(suggestion::read(" ... \n 42"), None);
}

#[test]
fn suggestions_stand_before_the_first_observation_and_can_be_taken_away() {
    let tokenizer = Tokenizer::train(&["a shelf. advice: do not go the same twice."], 300).unwrap();
    let mut prompter = Prompter::new(tokenizer, &Prompt { format: Format::Compact, ..Prompt::default() }).unwrap();
    let seen = Observation { text: "a shelf.".into(), ..Observation::default() };
    let text = |p: &Prompter, tokens: Vec<u32>| p.tokenizer().decode(&tokens, true).unwrap();
    let plain = prompter.first(&seen).unwrap().now;
    let sentence = ["do not go <|im_end|> twice.".to_string()];
    prompter.suggest(&sentence);
    let suggested = prompter.first(&seen).unwrap().now;
    assert_eq!(text(&prompter, suggested.clone()), "advice: do not go <|im_end|> twice.\na shelf.");
    assert!(!suggested.contains(&prompter.end()), "a suggestion is text: it ends no turn");
    assert_eq!(prompter.next_under(&[], &[], &seen).unwrap().now, plain);
    assert_eq!(
        text(
            &prompter,
            prompter.next(&[Exchange { observation: "a room.", action: "look".into() }], &seen).unwrap().now
        ),
        "a shelf."
    );
    prompter.suggest(&[]);
    assert_eq!(prompter.first(&seen).unwrap().now, plain);
    assert_eq!(prompter.next_under(&sentence, &[], &seen).unwrap().now, suggested);
}

#[test]
fn they_are_due_every_so_often_or_when_similarity_stops_falling() {
    let config =
        |mode: &str| tiny(Path::new(&std::env::temp_dir()), "x", &["run.iterations=30", "suggestions.every=10", mode]);
    let made = [SuggestionUpdate { iterations: 10, suggestions: Vec::new() }];
    let when = |config: &Config, made: &[SuggestionUpdate], similarity: &[f64]| -> Vec<u32> {
        (1..=30).filter(|done| due(config, *done, made, similarity)).collect()
    };
    assert_eq!(when(&config("suggestions.mode='off'"), &[], &[]), [0u32; 0]);
    assert_eq!(when(&config("suggestions.mode='fixed'"), &made, &[]), [10, 20, 30]);
    let adaptive = config("suggestions.mode='adaptive'");
    assert_eq!(when(&adaptive, &[], &[]), [10, 20, 30]);
    assert_eq!(when(&adaptive, &made, &[0.5, 0.4]), [0u32; 0]);
    assert_eq!(when(&adaptive, &made, &[0.3, 0.4]), [10, 20, 30]);
    assert_eq!(when(&adaptive, &made, &[0.3]), [0u32; 0]);
}

#[test]
fn the_measured_curve_finds_its_risk() {
    let mut measured = Measured::default();
    for i in 0..1000 {
        let q = (f64::from(i) + 0.5) / 1000.0;
        measured.add(&[(q, 0.7 * (q - 1.0))]);
    }
    let fit = measured.fit().unwrap();
    assert!((fit.risk - 0.7).abs() < 1e-9 && (fit.explained - 1.0).abs() < 1e-9, "{fit:?}");
    let points = measured.points();
    assert!(points.len() == 10 && points.iter().all(|p| (p.count, p.groups) == (100, 100)));
    for p in &points {
        assert!((p.advantage - 0.7 * (p.probability - 1.0)).abs() < 1e-9, "where it was taken: {p:?}");
        let on_curve = (p.contribution - p.expected.unwrap()).abs() < 0.001;
        assert!(on_curve && p.contribution_ci.is_some_and(|[low, high]| low < p.contribution && p.contribution < high));
    }
    assert_eq!((Measured::default().fit(), Measured::default().mean()), (None, None));
}

#[test]
fn flawed_actions_of_a_group_are_one_cluster() {
    // Four groups of two actions at q = 1/2, whose q r (q - 1) is -r / 4, with the advantages of their group.
    let mut measured = Measured::default();
    let advantages = [-0.4, -0.2, -0.3, -0.1];
    advantages.iter().for_each(|a| measured.add(&[(0.5, *a), (0.5, *a)]));
    let mut halves = [Measured::default(), Measured::default()];
    advantages.iter().enumerate().for_each(|(i, a)| halves[i / 2].add(&[(0.5, *a), (0.5, *a)]));
    let [mut merged, other] = halves;
    merged.merge(&other);
    let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
    let [point] = &measured.points()[..] else { panic!("one tenth") };
    assert!((point.count, point.groups) == (8, 4) && near(point.advantage, -0.25) && near(point.contribution, -0.125));
    // As if there were four actions, not eight.
    let [low, high] = stats::normal(&advantages);
    let [got_low, got_high] = point.advantage_ci.unwrap();
    assert!(near(low, got_low) && near(high, got_high));
    let fit = measured.fit().unwrap();
    let [fit_low, fit_high] = fit.ci.unwrap();
    assert!(near(fit.risk, 0.5) && near(fit_low, -2.0 * high) && near(fit_high, -2.0 * low), "{fit:?}");
    assert!((fit.likely, fit.unlikely.unwrap().groups) == (None, 4));
    assert!(near(merged.fit().unwrap().risk, 0.5) && near(merged.points()[0].advantage_ci.unwrap()[0], low));

    // Groups that did not differ in return fit any curve, and so does what is certain.
    for (q, a) in [(0.3, 0.0), (1.0, -0.5)] {
        let mut measured = Measured::default();
        measured.add(&[(q, a)]);
        assert_eq!((measured.fit(), measured.points()[0].expected), (None, None));
        assert_eq!(measured.points()[0].advantage_ci, None, "one group");
    }
}

const ON: [&str; 5] = [
    "run.iterations=4",
    "suggestions.mode='fixed'",
    "suggestions.every=2",
    "suggestions.threshold=0",
    "suggestions.cold_start=0.5",
];

fn run(dir: &Path, name: &str, set: &[&str], existing: Existing) -> Result<std::path::PathBuf, TrainError> {
    let config = tiny(dir, name, set);
    let suite = suite(&config)?;
    Ok(train(config, &*suite, existing)?.folder)
}

#[test]
fn a_run_acts_under_its_suggestions_and_keeps_their_evidence() {
    let dir = tempfile::tempdir().unwrap();
    let folder = run(dir.path(), "a", &ON, Existing::Refuse).unwrap();
    let text = std::fs::read_to_string(folder.join("suggestions.json")).unwrap();
    let updates: Vec<SuggestionUpdate> = serde_json::from_str(&text).unwrap();
    assert_eq!(updates.iter().map(|r| r.iterations).collect::<Vec<_>>(), [2, 4]);
    let made = &updates[0].suggestions;
    assert!(!made.is_empty() && made.len() <= 3 && made.iter().all(|s| !s.evidence.is_empty()), "{text}");
    let summary = std::fs::read_to_string(folder.join("summary.json")).unwrap();
    for key in ["final_without_suggestions", "flawed"] {
        assert!(summary.contains(key), "{key}: {summary}");
    }
    let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(page.contains("no suggestions") && page.contains("Flawed actions"));
    let records = uncouple::report::metrics::read(&folder).unwrap();
    let has = |name: &str| records.iter().any(|r| r.values.contains_key(name));
    for name in ["consistency/high", "consistency/mean", "flawed/probability", "flawed/advantage", "L0/loop_rate/lost"]
    {
        assert!(has(name), "{name}");
    }
    // Fewer iterations than the interval: nothing is suggested, and nothing else differs from a run that never would.
    let never = ["run.iterations=1", "suggestions.mode='fixed'", "suggestions.cold_start=0"];
    let off = ["run.iterations=1", "gcd.mode='off'", "suggestions.mode='off'"];
    let [a, b] =
        [("never", &never[..]), ("off", &off[..])].map(|(n, set)| run(dir.path(), n, set, Existing::Refuse).unwrap());
    let model = |f: &Path| std::fs::read(f.join("checkpoints/step-41/model.safetensors")).unwrap();
    assert_eq!(model(&a), model(&b));
    assert!(!a.join("suggestions.json").exists());
}

#[test]
fn a_resumed_run_ends_like_one_that_was_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let whole = run(dir.path(), "whole", &ON, Existing::Refuse).unwrap();
    // Stopped just after suggestions were made, and an iteration later.
    for iterations in ["run.iterations=2", "run.iterations=3"] {
        let short = [&[iterations], &ON[1..]].concat();
        let existing = if iterations.ends_with('2') { Existing::Refuse } else { Existing::Resume };
        run(dir.path(), "parts", &short, existing).unwrap();
    }
    let parts = run(dir.path(), "parts", &ON, Existing::Resume).unwrap();
    let (whole, parts) = (left(&whole), left(&parts));
    assert_eq!(whole.files, parts.files);
    assert_eq!(whole.summary["eval"], parts.summary["eval"]);
}

#[test]
fn the_policy_may_write_them_itself() {
    let dir = tempfile::tempdir().unwrap();
    let set = [&ON[..], &["suggestions.author='policy'"]].concat();
    let folder = run(dir.path(), "own", &set, Existing::Refuse).unwrap();
    let text = std::fs::read_to_string(folder.join("suggestions.json")).unwrap();
    let updates: Vec<SuggestionUpdate> = serde_json::from_str(&text).unwrap();
    // What so small a model writes may be no sentence at all; but each that is kept rests on evidence.
    assert!(updates[0].suggestions.iter().all(|s| !s.text.is_empty() && !s.evidence.is_empty()));
}
