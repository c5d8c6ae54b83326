//! Environments in other processes: the worker protocol, and workers that die, hang, babble or flood.

use crate::common;

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use uncouple::env::bridge::py4j::{Gateway, JavaArg};
use uncouple::env::bridge::{JsonLines, Limits, Worker, WorkerSuite};
use uncouple::env::{EnvError, Environment, Split, Suite, Task};
use uncouple::train::run_folder::Existing;
use uncouple::train::{suite, train};

fn here(file: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file).display().to_string()
}

fn misbehaving(marks: &Path) -> Vec<String> {
    ["python3", "-u", &here("tests/fixtures/misbehaving_worker.py"), &marks.display().to_string()]
        .map(String::from)
        .into()
}

const LIMITS: Limits =
    Limits { workers: 2, start: Duration::from_secs(30), call: Duration::from_secs(5), retries: 2, wait: None };

fn open(marks: &Path, limits: Limits) -> WorkerSuite {
    WorkerSuite::open(&misbehaving(marks), limits, 0).unwrap()
}

fn task(id: &str) -> Task {
    Task { id: id.into(), kind: "count".into(), split: Split::Train }
}

/// Processes started so far.
fn started(marks: &Path) -> usize {
    let names = std::fs::read_dir(marks).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with("started-")).count()
}

/// Plays to the end; what was shown.
fn play(env: &mut dyn Environment) -> Result<Vec<String>, EnvError> {
    let mut seen = env.reset()?;
    let mut texts = vec![seen.text];
    while !seen.done {
        seen = env.step("on")?;
        texts.push(seen.text);
    }
    Ok(texts)
}

#[test]
fn a_fault_is_mended_by_a_new_worker_that_replays_the_episode() {
    let quick = Limits { call: Duration::from_secs(1), ..LIMITS };
    let kinds = [("plain", 1), ("dies", 2), ("hangs", 2), ("babbles", 2), ("skips", 2), ("floods", 1)];
    for (kind, workers) in kinds.into_iter().chain([("pours", 2), ("rambles", 2)]) {
        let marks = tempfile::tempdir().unwrap();
        let suite = open(marks.path(), quick);
        let texts = play(&mut *suite.open(&task(kind)).unwrap()).unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert_eq!(texts, (0..5).map(|i| format!("{kind} {i}")).collect::<Vec<_>>());
        assert_eq!(started(marks.path()), workers, "{kind}");
    }
}

#[test]
fn what_cannot_be_mended_fails_the_episode_with_its_reason() {
    let marks = tempfile::tempdir().unwrap();
    let suite = open(marks.path(), Limits { call: Duration::from_millis(700), ..LIMITS });
    let cases = [
        ("always-dies", "step: it ended (exit status: 3), saying: a pipe burst; given up after 3 tries"),
        ("always-hangs", "step: no answer within 0.7 s; given up after 3 tries"),
        ("declines", "worker misbehaving, step: I would rather not"),
        ("forgets", "a replay of the episode in a new worker showed something else"),
    ];
    for (kind, expected) in cases {
        let began = Instant::now();
        let error = play(&mut *suite.open(&task(kind)).unwrap()).unwrap_err();
        assert!(matches!(error, EnvError::Failed { .. }));
        assert!(error.to_string().contains(expected), "{kind}: {error}");
        assert!(began.elapsed() < Duration::from_secs(20), "{kind}: {:?}", began.elapsed());
    }
    // The pool is as good as before.
    assert!(play(&mut *suite.open(&task("plain")).unwrap()).is_ok());
}

#[test]
fn workers_are_bounded_and_kept_for_the_next_episode() {
    let marks = tempfile::tempdir().unwrap();
    let suite = open(marks.path(), LIMITS);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| play(&mut *suite.open(&task("plain")).unwrap()).unwrap());
        }
    });
    assert!(started(marks.path()) <= 2);
}

#[test]
fn an_episode_waits_for_a_worker_no_longer_than_it_may() {
    let marks = tempfile::tempdir().unwrap();
    let suite = open(marks.path(), Limits { workers: 1, wait: Some(Duration::from_millis(100)), ..LIMITS });
    let mut first = suite.open(&task("plain")).unwrap();
    first.reset().unwrap();
    let error = suite.open(&task("plain")).unwrap().reset().unwrap_err().to_string();
    assert!(error.contains("none of 1 workers became free within 0.1 s"), "{error}");
    assert!(first.step("on").is_ok(), "the one that has it keeps it");
    drop(first);
    assert!(play(&mut *suite.open(&task("plain")).unwrap()).is_ok());
}

#[test]
fn the_worker_lists_its_splits_and_the_guard_keeps_them() {
    let marks = tempfile::tempdir().unwrap();
    let suite = open(marks.path(), LIMITS);
    assert_eq!((suite.name(), suite.len(Split::L2), suite.len(Split::L0)), ("misbehaving", Some(1), Some(0)));
    let held_out = suite.task(Split::L2, 0).unwrap();
    for held_out in [held_out, task("unheard-of")] {
        assert!(matches!(suite.open_for_training(&held_out), Err(EnvError::HeldOut { .. })), "{}", held_out.id);
    }
    for unlisted in ["unheard-of", "../../..", "", "plain/"] {
        let error = suite.open(&task(unlisted)).err().expect("is refused").to_string();
        assert!(error.contains("the worker does not list it"), "{error}");
    }
    assert!(suite.open_for_training(&suite.task(Split::Train, 1000).unwrap()).is_ok());
    assert_eq!(suite.content_hash(), open(marks.path(), LIMITS).content_hash());
}

#[test]
fn a_program_that_is_no_worker_is_named() {
    let refusal = |command: &[&str]| {
        let command: Vec<String> = command.iter().map(|s| s.to_string()).collect();
        let limits = Limits { start: Duration::from_millis(1500), ..LIMITS };
        WorkerSuite::open(&command, limits, 0).err().expect("is refused").to_string()
    };
    assert!(refusal(&[]).contains("set env.worker.command"));
    assert!(refusal(&["/no/such/worker"]).contains("/no/such/worker cannot be started"));
    let greets = refusal(&["sh", "-c", "read line; echo hello; sleep 9"]);
    assert!(greets.contains("worker sh, hello: the answer breaks the protocol"), "{greets}");
    assert!(refusal(&["sleep", "100"]).contains("no answer within 1.5 s"));
    assert!(refusal(&["false"]).contains("it ended (exit status: 1)"));
    let other = r#"read line; echo '{"id":1,"protocol":2,"name":"new"}'; sleep 9"#;
    assert!(refusal(&["sh", "-c", other]).contains("new speaks protocol 2, not 1"));
}

/// Whether a process runs (a zombie does not).
fn runs(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn gone(process: u32) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while runs(process) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    !runs(process)
}

#[test]
fn a_dropped_worker_ends_even_while_it_hangs() {
    let marks = tempfile::tempdir().unwrap();
    let suite = open(marks.path(), Limits { call: Duration::from_millis(300), retries: 0, ..LIMITS });
    let mut env = suite.open(&task("hangs")).unwrap();
    assert!(play(&mut *env).is_err());
    drop((env, suite));
    for entry in std::fs::read_dir(marks.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(process) = name.strip_prefix("started-") {
            assert!(gone(process.parse().unwrap()), "{name}");
        }
    }
}

/// A worker that is greeted by `script` in a shell.
fn shell(script: &str) -> JsonLines {
    let command = ["sh", "-c", script].map(String::from);
    JsonLines::start(&command, Instant::now() + Duration::from_secs(10)).unwrap()
}

const GREET: &str = r#"read line; echo '{"id":1,"protocol":1,"name":"shell"}'"#;

#[test]
fn a_worker_that_does_not_read_is_given_up_at_the_deadline() {
    let mut worker = shell(&format!("{GREET}; exec sleep 100"));
    let began = Instant::now();
    // More than a pipe holds.
    let error = worker.step(&"x".repeat(4 << 20), began + Duration::from_millis(300)).unwrap_err().to_string();
    assert!(error.contains("worker shell, step: it did not read what it was sent in time"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn a_long_message_reaches_one_that_reads_slowly() {
    let count = r#"sleep 0.2; read line; printf '{"id":2,"text":"%d"}\n' ${#line}"#;
    let mut worker = shell(&format!("{GREET}; {count}"));
    let seen = worker.step(&"x".repeat(1 << 20), Instant::now() + Duration::from_secs(60)).unwrap();
    assert!(seen.text.parse::<usize>().unwrap() > 1 << 20, "{}", seen.text);
}

#[test]
fn the_words_of_an_error_have_an_end() {
    let error = r#"read line; printf '{"id":2,"error":"%1000000s"}\n' no"#;
    let mut worker = shell(&format!("{GREET}; {error}"));
    let error = worker.step("on", Instant::now() + Duration::from_secs(10)).unwrap_err().to_string();
    assert!(error.len() < 1000, "{} bytes", error.len());
}

#[test]
fn what_a_worker_has_started_ends_with_it_even_when_it_ended_first() {
    let folder = tempfile::tempdir().unwrap();
    for (pipes, told) in
        [("</dev/null >/dev/null 2>&1", "it ended (exit status: 0)"), ("", "it ended (exit status: 0)")]
    {
        let file = folder.path().join("process");
        let script = format!("sleep 100 {pipes} & echo $! > {}; {GREET}; read line; exit 0", file.display());
        let mut worker = shell(&script);
        let child: u32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        assert!(runs(child));
        let error = worker.step("on", Instant::now() + Duration::from_secs(2)).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
        drop(worker);
        assert!(gone(child), "what it had started outlived it");
    }
}

/// Started by the next test in a process of its own, on a thread that ends while the worker lives.
#[test]
#[ignore = "a part of the next test"]
fn start_a_deaf_worker_and_wait() {
    let Some(file) = std::env::var_os("UNCOUPLE_TEST_FILE").map(PathBuf::from) else { return };
    let child = file.with_extension("child");
    let script = format!("sleep 100 </dev/null & echo $! > {}; {GREET}; exec sleep 100 0</dev/null", child.display());
    let worker = std::thread::spawn(move || shell(&script)).join().unwrap();
    // What cannot be started makes nobody forget what runs.
    let none = ["/no/such/worker".to_string()];
    assert!(JsonLines::start(&none, Instant::now() + Duration::from_secs(5)).is_err());
    std::thread::sleep(Duration::from_millis(200));
    assert!(runs(worker.process_id()), "it lives on when the thread that started it ends");
    let child = std::fs::read_to_string(child).unwrap();
    std::fs::write(&file, format!("{} {}", worker.process_id(), child.trim())).unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn nothing_outlives_a_killed_parent() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("process");
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "bridge::start_a_deaf_worker_and_wait"])
        .env("UNCOUPLE_TEST_FILE", &file)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let started: Vec<u32> = loop {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        match text.split(' ').map(str::parse).collect::<Result<Vec<u32>, _>>() {
            Ok(started) if started.len() == 2 => break started,
            _ => assert!(Instant::now() < deadline, "the worker did not start"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(started.iter().all(|process| runs(*process)));
    parent.kill().unwrap();
    parent.wait().unwrap();
    for process in started {
        assert!(gone(process), "{process} outlived the trainer");
    }
}

#[test]
fn a_gateway_that_trickles_or_does_not_read_is_given_up_at_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let streams: Vec<_> = listener.incoming().take(2).map_while(Result::ok).collect();
        // Each byte in time, the line never; what the second one is sent is never read.
        while (&streams[0]).write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let soon = || Instant::now() + Duration::from_millis(300);
    let mut trickles = Gateway::connect(port, soon()).unwrap();
    let mut deaf = Gateway::connect(port, soon()).unwrap();
    let began = Instant::now();
    let error = trickles.construct("a.b.C", soon()).unwrap_err().to_string();
    assert!(error.contains("no answer within 0.3 s"), "{error}");
    let error = deaf.call("o1", "step", &[JavaArg::Text(&"x".repeat(64 << 20))], soon()).unwrap_err().to_string();
    assert!(error.contains("it did not read what it was sent in time"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

fn paying(tasks: &[&str]) -> Vec<String> {
    let script = here("tests/fixtures/paying_worker.py");
    ["python3", "-u", &script].iter().chain(tasks).map(|s| s.to_string()).collect()
}

#[test]
fn a_worker_may_tell_its_demonstrator_and_the_distance() {
    let right = [
        (r#"{"expert": "go east", "distance": 3}"#, Some("go east"), Some(3)),
        (r#"{"expert": "go east"}"#, Some("go east"), None),
        (r#"{"expert": null, "distance": 0}"#, None, Some(0)),
        (r#"{"reward": 0}"#, None, None),
    ];
    let long = format!("{{\"expert\": \"{}\"}}", "x".repeat(1001));
    let wrong = [
        (r#"{"expert": 5}"#, "expert must be a command, a string: invalid type: integer `5`"),
        (r#"{"expert": ["go"]}"#, "expert must be a command, a string: invalid type: sequence"),
        (r#"{"expert": " "}"#, "expert is empty; leave it out, or say null"),
        (r#"{"expert": "go\neast"}"#, "expert must be a command of one line"),
        (&long[..], "expert has more than 1000 characters"),
        (
            r#"{"distance": -1}"#,
            "distance must be a number of steps, a whole number from 0: invalid value: integer `-1`",
        ),
        (r#"{"distance": 1.5}"#, "distance must be a number of steps"),
        (r#"{"distance": "far"}"#, "distance must be a number of steps"),
        (r#"{"distance": 4294967296}"#, "distance must be a number of steps"),
    ];
    let listed: Vec<&str> =
        right.iter().map(|(answer, ..)| *answer).chain(wrong.iter().map(|(answer, _)| *answer)).collect();
    let suite = WorkerSuite::open(&paying(&listed), Limits { retries: 0, ..LIMITS }, 0).unwrap();
    for (answer, expert, distance) in right {
        let mut env = suite.open(&task(answer)).unwrap();
        env.reset().unwrap();
        assert_eq!((env.expert(), env.distance()), (None, None));
        env.step("look").unwrap();
        assert_eq!((env.demonstrate().as_deref(), env.distance()), (expert, distance), "{answer}");
    }
    for (answer, reason) in wrong {
        let mut env = suite.open(&task(answer)).unwrap();
        env.reset().unwrap();
        let error = env.step("look").unwrap_err().to_string();
        assert!(error.contains(reason), "{answer}: {error}");
    }
}

#[test]
fn a_reward_is_what_the_worker_says_or_that_of_success() {
    let right = [
        (r#"{"reward": 0.45}"#, 0.45),
        (r#"{"reward": -3}"#, -3.0),
        (r#"{"reward": 0.5, "won": true}"#, 0.5),
        (r#"{"reward": 0, "won": true}"#, 0.0),
        (r#"{"reward": 1e6}"#, 1e6),
        (r#"{"won": true}"#, 1.0),
        (r#"{"reward": null, "won": true}"#, 1.0),
        (r#"{"won": false}"#, 0.0),
    ];
    let absurd = [
        (r#"{"reward": 1e7}"#, "it paid the reward 10000000"),
        (r#"{"reward": -1e30}"#, "it paid the reward -1"),
        (r#"{"reward": 1e39}"#, "number out of range"),
        (r#"{"reward": NaN}"#, "JSON has no NaN"),
        (r#"{"reward": -Infinity}"#, "JSON has no Infinity"),
        (r#"{"reward": "1.0"}"#, "the answer breaks the protocol"),
    ];
    let listed: Vec<&str> = right.iter().map(|(answer, _)| *answer).chain(absurd.map(|(answer, _)| answer)).collect();
    let suite = WorkerSuite::open(&paying(&listed), Limits { retries: 0, ..LIMITS }, 0).unwrap();
    for (answer, reward) in right {
        let mut env = suite.open(&task(answer)).unwrap();
        env.reset().unwrap();
        assert_eq!(env.step("look").unwrap().reward, reward, "{answer}");
    }
    for (answer, reason) in absurd {
        let mut env = suite.open(&task(answer)).unwrap();
        env.reset().unwrap();
        let error = env.step("look").unwrap_err();
        assert!(matches!(error, EnvError::Failed { .. }));
        assert!(error.to_string().contains(reason), "{answer}: {error}");
    }
}

#[test]
fn graded_rewards_teach_and_a_long_first_observation_costs_its_episodes_only() {
    let runs = tempfile::tempdir().unwrap();
    let command =
        format!("env.worker.command={}", serde_json::json!(paying(&["graded 1", "graded 2", "long 1", "graded 3"])));
    let set = ["env.suite=worker", &command, "sft.steps=0", "sft.games=4", "run.iterations=3", "rollout.groups=4"];
    let set = [&set[..], &["model.max_position_embeddings=128", "rollout.max_turn_tokens=20"]].concat();
    // Each iteration plays all four games, one of which is too long.
    let config = common::runs::tiny(runs.path(), "a", &set);
    let outcome = train(config.clone(), &*suite(&config).unwrap(), Existing::Refuse).unwrap_or_else(|e| panic!("{e}"));
    let records = uncouple::report::metrics::read(&outcome.folder).unwrap();
    for record in records.iter().filter(|r| r.phase == "grpo") {
        let of = |name: &str| record.values[name];
        assert_eq!((of("env_failed"), of("success")), (4.0, 0.0));
        assert!(of("reward_std") > 0.0 && of("frac_reward_zero_std") < 1.0 && of("grad_norm") > 0.0, "{record:?}");
    }
    let last = records.iter().rfind(|r| r.phase == "eval").unwrap();
    assert_eq!((last.values["L0/success"], last.values["verdict_rate"]), (0.0, 0.0));
    assert!(last.values.contains_key("L0/reward"));
    let db = rusqlite::Connection::open(outcome.folder.join("trajectories.sqlite")).unwrap();
    let count = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let differs = "abs(reward - (select sum(reward) from turns where episode = id)
                              + 0.1 * (select count(*) from turns where episode = id and not valid)) > 1e-6";
    assert_eq!(count(&format!("select count(*) from episodes where steps > 0 and {differs}")), 0, "fines included");
    assert!(count("select count(*) from episodes where reward > 0 and reward < 1") > 0);
}

#[test]
fn the_example_worker_is_trained_on() {
    let runs = tempfile::tempdir().unwrap();
    let command = format!("env.worker.command=[\"python3\", {:?}]", here("examples/worker.py"));
    let set = ["env.suite=worker", &command, "sft.steps=0", "sft.games=2", "run.iterations=2", "env.workers=3"];
    let config = common::runs::tiny(runs.path(), "a", &set);
    let games = suite(&config).unwrap();
    assert_eq!(games.name(), "corridor");
    assert_eq!(games.len(Split::L2), Some(12));
    let mut env = games.open(&games.task(Split::L0, 0).unwrap()).unwrap();
    let first = env.reset().unwrap();
    assert!(first.text.contains("corridor") && first.admissible.contains(&"go home".to_string()));
    assert!(!env.step("sing").unwrap().valid);
    drop(env);
    let outcome = train(config, &*games, Existing::Refuse);
    match outcome {
        Ok(outcome) => assert!(outcome.summary.env_steps > 0),
        Err(error) => panic!("{error}"),
    }
}
