//! ScienceWorld's simulator spoken to directly, against the official Python package; splits; Java machines that die.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uncouple::config::{Reward, TrainTypes};
use uncouple::env::bridge::{Limits, Worker};
use uncouple::env::scienceworld::{HELD_OUT, Rules, ScienceWorld, Simulator};
use uncouple::env::{EnvError, Observation, Split, Suite, Task};

const LIMITS: Limits =
    Limits { workers: 2, start: Duration::from_secs(60), call: Duration::from_secs(30), retries: 3, wait: None };

/// Tests take turns: one of them kills the Java machines of this process.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A Python with the official package, made once below the target folder.
fn python() -> Option<PathBuf> {
    static PYTHON: std::sync::OnceLock<Option<PathBuf>> = std::sync::OnceLock::new();
    let made = || {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("scienceworld");
        let python = folder.join("bin/python");
        let run = |program: &Path, args: &[&str]| {
            let output = Command::new(program).args(args).stdin(Stdio::null()).output();
            output.is_ok_and(|o| o.status.success())
        };
        let has = |python: &Path| run(python, &["-c", "import scienceworld"]);
        let java = run(Path::new("java"), &["-version"]);
        let there = java
            && (has(&python)
                || run(Path::new("python3"), &["-m", "venv", folder.to_str()?])
                    && run(&python, &["-m", "pip", "install", "-q", "scienceworld==1.2.3"])
                    && has(&python));
        if !there {
            eprintln!("SKIPPED: ScienceWorld needs java, python3 with venv, and `pip install scienceworld==1.2.3`");
        }
        there.then_some(python)
    };
    PYTHON.get_or_init(made).clone()
}

/// How to play, with the jar of the official package.
fn rules(admissible: bool) -> Option<Rules> {
    let ask = "import scienceworld, os; print(os.path.dirname(scienceworld.__file__))";
    let output = Command::new(python()?).args(["-c", ask]).output().unwrap();
    let folder = String::from_utf8(output.stdout).unwrap();
    let jar = Path::new(folder.trim()).join("scienceworld.jar");
    Some(Rules { jar, simplifications: "easy".into(), admissible, reward: Reward::Success })
}

fn soon() -> Instant {
    Instant::now() + LIMITS.call
}

/// Plays valid actions, chosen by a simple rule, and some invalid ones; what was done and shown.
fn random_walk(simulator: &mut Simulator, task: &str, steps: usize) -> (Vec<String>, Vec<Observation>) {
    let mut seen = vec![simulator.reset(task, soon()).unwrap()];
    let mut actions = Vec::new();
    for i in 0..steps {
        // A wrong focus would end the episode.
        let valid: Vec<&String> = seen[i].admissible.iter().filter(|a| !a.starts_with("focus")).collect();
        let action =
            if i % 5 == 4 || valid.is_empty() { "sing".into() } else { valid[(i * 7919 + 13) % valid.len()].clone() };
        seen.push(simulator.step(&action, soon()).unwrap());
        actions.push(action);
        if seen[i + 1].done {
            break;
        }
    }
    (actions, seen)
}

/// Text, whether the episode is over, and the valid actions.
type Shown = (String, bool, Vec<String>);

/// The same through the official package: what was shown, and seconds for all steps.
fn official(episodes: &[(&str, Vec<String>)]) -> (Vec<Vec<Shown>>, f64) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/scienceworld_play.py");
    let mut child = Command::new(python().unwrap())
        .arg(script)
        .env("JAVA_TOOL_OPTIONS", "-XX:+UnlockExperimentalVMOptions -XX:hashCode=2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for (task, actions) in episodes {
        let (name, variation) = task.split_once('/').unwrap();
        let variation: u64 = variation.parse().unwrap();
        let line = serde_json::json!({"task": name, "variation": variation, "actions": actions});
        writeln!(stdin, "{line}").unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    #[derive(serde::Deserialize)]
    struct Played {
        seen: Vec<Shown>,
        seconds: f64,
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let played: Vec<Played> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seconds = played.iter().map(|p| p.seconds).sum();
    (played.into_iter().map(|p| p.seen).collect(), seconds)
}

const TASKS: [&str; 6] =
    ["boil/3", "find-plant/230", "power-component/4", "chemistry-mix/30", "lifespan-longest-lived/7", "melt/25"];

#[test]
fn says_what_the_official_package_says_and_repeats_itself() {
    let _turn = turn();
    let Some(rules) = rules(true) else { return };
    let mut simulator = Simulator::start(&rules, soon()).unwrap();
    let ours: Vec<_> = TASKS.map(|task| (task, random_walk(&mut simulator, task, 10))).into();
    let episodes: Vec<_> = ours.iter().map(|(task, (actions, _))| (*task, actions.clone())).collect();
    let (theirs, their_seconds) = official(&episodes);
    assert_eq!(theirs.len(), ours.len());
    let (mut steps, mut refused) = (0, 0);
    for ((task, (actions, seen)), theirs) in ours.iter().zip(theirs) {
        assert_eq!(seen.len(), theirs.len(), "{task}");
        for (i, (a, (text, done, valid))) in seen.iter().zip(theirs).enumerate() {
            let action = i.checked_sub(1).map(|i| &actions[i]);
            assert_eq!((&a.text, a.done), (&text, done), "{task}, step {i}: {action:?}");
            assert!(a.done || a.admissible == valid, "{task}, step {i}: {action:?}");
            // The simulator lists some actions as valid that it then does not know.
            let unknown = a.text.contains("No known action matches");
            assert_eq!(a.valid, !unknown, "{task}, step {i}: {action:?}");
            refused += usize::from(unknown);
        }
        steps += actions.len();
    }
    assert!(refused > 0 && refused < steps, "{refused} of {steps} were refused");
    // Other Java machines play the same.
    let mut again = Simulator::start(&Rules { admissible: false, ..rules }, soon()).unwrap();
    let mut seconds = 0.0;
    for (task, (actions, seen)) in &ours {
        assert_eq!(again.reset(task, soon()).unwrap().text, seen[0].text, "{task}");
        let began = Instant::now();
        for (action, seen) in actions.iter().zip(&seen[1..]) {
            assert_eq!(again.step(action, soon()).unwrap().text, seen.text, "{task}: {action}");
        }
        seconds += began.elapsed().as_secs_f64();
    }
    let rate = |seconds: f64| steps as f64 / seconds;
    let (mine, theirs) = (rate(seconds), rate(their_seconds));
    eprintln!("{mine:.0} steps/s; env.step() of the package: {theirs:.0} steps/s ({:.1} x)", mine / theirs);
}

#[test]
fn the_score_is_paid_as_it_changes_where_that_is_asked() {
    let _turn = turn();
    let Some(rules) = rules(false) else { return };
    let play = |task, reward, actions: &[&str]| {
        let mut simulator = Simulator::start(&Rules { reward, ..rules.clone() }, soon()).unwrap();
        simulator.reset(task, soon()).unwrap();
        let seen: Vec<_> = actions.iter().map(|action| simulator.step(action, soon()).unwrap()).collect();
        let last = seen.last().unwrap();
        (seen.iter().map(|o| (100.0 * o.reward).round()).collect::<Vec<f32>>(), last.done, last.won)
    };
    // The official package's scores are 8 (as from the beginning), 25, 75 and 100; and -100 where it focusses on the wrong thing.
    let found = "find-non-living-thing/0";
    let right = ["open door to kitchen", "go to kitchen", "focus on table", "move table to red box"];
    assert_eq!(play(found, Reward::Score, &right), (vec![8.0, 17.0, 50.0, 25.0], true, true));
    assert_eq!(play(found, Reward::Success, &right), (vec![0.0, 0.0, 0.0, 100.0], true, true));
    let wrong = ["open door to kitchen", "go to kitchen", "focus on table"];
    assert_eq!(play("boil/0", Reward::Score, &wrong), (vec![0.0, 0.0, -100.0], true, false));
    assert_eq!(play("boil/0", Reward::Success, &wrong), (vec![0.0; 3], true, false));
}

#[test]
fn splits_follow_the_rule_and_the_guard_keeps_them() {
    let _turn = turn();
    let Some(rules) = rules(false) else { return };
    let suite = ScienceWorld::open(rules.clone(), LIMITS, TrainTypes::Seen, 0).unwrap();
    let task = |id: &str| Task { id: id.into(), kind: String::new(), split: Split::Train };
    assert_eq!(suite.len(Split::L2), Some(549), "as in RLVMR");
    let pass: Vec<Task> = (0..2242).map(|i| suite.task(Split::Train, i).unwrap()).collect();
    let mut sorted = pass.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), 2242, "one pass over RLVMR's training set meets each variation once");
    assert!(pass.iter().all(|t| !HELD_OUT.contains(&&t.kind[..]) && t.kind != "use-thermometer"));
    for (id, held_out) in [
        ("boil/13", false),
        ("boil/14", true),
        ("boil/29", true),
        ("boil/30", true),
        ("find-plant/0", true),
        ("use-thermometer/0", true),
        ("nonsense", true),
    ] {
        let refused = matches!(suite.open_for_training(&task(id)), Err(EnvError::HeldOut { .. }));
        assert_eq!(refused, held_out, "{id}");
    }
    assert_eq!(suite.task(Split::L0, 0).unwrap().id, "boil/14");
    for unlisted in ["boil/999", "boil/03", "boil/+3", "boil/3/../4", "../../boil/3", "no-such-task/0"] {
        let error = suite.open(&task(unlisted)).err().expect("is refused").to_string();
        assert!(error.contains("ScienceWorld has no such variation"), "{unlisted}: {error}");
    }
}

#[test]
fn an_episode_survives_the_death_of_its_java_machine() {
    let _turn = turn();
    let Some(rules) = rules(false) else { return };
    let mut simulator = Simulator::start(&rules, soon()).unwrap();
    let actions = ["open door to hallway", "go to hallway", "look around", "inventory"];
    let mut expected = vec![simulator.reset("melt/2", soon()).unwrap().text];
    expected.extend(actions.map(|action| simulator.step(action, soon()).unwrap().text));
    drop(simulator);

    let suite = ScienceWorld::open(rules, LIMITS, TrainTypes::Seen, 0).unwrap();
    let mut env = suite.open(&suite.task(Split::Train, 0).unwrap()).unwrap();
    drop(env.reset().unwrap());
    drop(env);
    let mut env = suite.open(&Task { id: "melt/2".into(), kind: "melt".into(), split: Split::Train }).unwrap();
    let mut texts = vec![env.reset().unwrap().text];
    for (i, action) in actions.iter().enumerate() {
        if i == 2 {
            for process in children() {
                let kill = Command::new("kill").args(["-9", &process.to_string()]).status().unwrap();
                assert!(kill.success());
            }
        }
        texts.push(env.step(action).unwrap().text);
    }
    assert_eq!(texts, expected);
}

/// Java processes that this process has started.
fn children() -> Vec<u32> {
    let me = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    let ours = |process: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1).map(str::to_string));
        stat.contains("(java)") && parent.as_ref() == Some(&me)
    };
    processes.filter(ours).collect()
}

#[test]
fn a_jar_that_is_none_is_named() {
    let _turn = turn();
    let Some(rules) = rules(false) else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    let error =
        Simulator::start(&Rules { jar: file.path().into(), ..rules }, soon()).err().expect("is refused").to_string();
    assert!(error.contains("it ended (exit status: 1)") && error.contains("py4j.GatewayServer"), "{error}");
    let error = uncouple::env::scienceworld::jar("/no/such.jar").unwrap_err().to_string();
    assert!(error.contains("/no/such.jar: is not there"), "{error}");
}
