//! ALFWorld's folder layout: the index, the splits and their guard, playing by program, training and evaluating.
//! The games are generated; where recorded ones are at hand, the binary plays them word for word.

use crate::common;
use crate::recorded;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use uncouple::config::TrainTypes;
use uncouple::env::alfworld::{Alfworld, GameIndex, PARTS, TYPES};
use uncouple::env::household::{TaskType, generate};
use uncouple::env::{EnvError, Split, Suite, Task};
use uncouple::train::run_folder::Existing;
use uncouple::train::{suite, train};

/// A household game as a file of ALFWorld's.
fn game(seed: u64) -> serde_json::Value {
    let id = uncouple::env::household::TaskId { kind: TaskType::Place, scene: 0, seed };
    let made = (0..64).find_map(|attempt| generate(&id, attempt)).expect("some attempt makes a game");
    let mut json = serde_json::to_value(made.file).unwrap();
    json["solvable"] = true.into();
    json
}

fn add(root: &Path, id: &str, game: &serde_json::Value) {
    fs::create_dir_all(root.join(id)).unwrap();
    fs::write(root.join(id).join("game.tw-pddl"), game.to_string()).unwrap();
}

/// Two games of each type in each part, and what the index must leave out.
fn data() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("json_2.1.1");
    for (p, part) in PARTS.iter().enumerate() {
        for (k, kind) in TYPES.iter().enumerate() {
            for trial in 0..2 {
                let game = game((p * 100 + k * 10 + trial) as u64);
                add(&root, &format!("{part}/{kind}-Cup-None-Shelf-{p}/trial_{trial}"), &game);
            }
        }
    }
    add(&root, "train/pick_and_place_simple-AppleSliced-None-Shelf-1/trial_0", &game(900));
    add(&root, "train/pick_and_place_with_movable_recep-Cup-Pan-Shelf-1/trial_0", &game(901));
    let mut hopeless = game(902);
    hopeless["solvable"] = false.into();
    add(&root, "train/pick_and_place_simple-Mug-None-Shelf-1/trial_0", &hopeless);
    folder
}

fn tasks(suite: &dyn Suite, split: Split, count: u64) -> Vec<Task> {
    (0..count).map(|i| suite.task(split, i).unwrap()).collect()
}

#[test]
fn the_index_is_sorted_counts_as_alfworld_does_and_knows_its_content() {
    let folder = data();
    let index = GameIndex::read(folder.path()).unwrap();
    assert_eq!(index.games.len(), 36);
    assert!(index.games.is_sorted_by(|a, b| a.id < b.id));
    assert!(index.games.iter().all(|g| g.id.starts_with(g.part) && !g.id.contains("Sliced") && g.hash.len() == 64));
    assert_eq!(GameIndex::read(&folder.path().join("json_2.1.1")).unwrap().hash, index.hash, "both roots are accepted");
    add(&index.root, &index.games[3].id, &game(999));
    assert_ne!(GameIndex::read(folder.path()).unwrap().hash, index.hash);
}

#[test]
fn splits_and_guard_follow_the_types_trained_on() {
    let folder = data();
    let index = GameIndex::read(folder.path()).unwrap();
    let seen = Alfworld::new(index.clone(), TrainTypes::Seen, 1);
    let all = Alfworld::new(index.clone(), TrainTypes::All, 1);
    let sizes = |s: &Alfworld| [Split::L0, Split::L1, Split::L2].map(|split| s.len(split).unwrap());
    assert_eq!((sizes(&seen), sizes(&all)), ([8, 8, 4], [12, 12, 0]));

    // Every pass over the training games meets each once, in another order; only they are open to training.
    for (suite, count) in [(&seen, 8), (&all, 12)] {
        let passes = tasks(suite, Split::Train, 2 * count);
        let (mut one, mut two): (Vec<_>, Vec<_>) =
            (passes[..count as usize].to_vec(), passes[count as usize..].to_vec());
        assert_ne!(one, two);
        one.sort();
        two.sort();
        assert_eq!(one, two);
        for game in &index.games {
            let task = Task { id: game.id.clone(), kind: game.kind.into(), split: Split::Train };
            match suite.open_for_training(&task) {
                Ok(_) => assert!(one.contains(&task), "{}", task.id),
                Err(EnvError::HeldOut { id, .. }) => assert!(id == task.id && !one.contains(&task), "{id}"),
                Err(other) => panic!("{other}"),
            }
            suite.open(&task).unwrap().reset().unwrap();
        }
    }
    let l2 = tasks(&seen, Split::L2, 4);
    assert!(l2.is_sorted() && l2.iter().all(|t| TYPES[4..].contains(&&t.kind[..]) && t.id.starts_with("valid_unseen")));
    assert!(seen.task(Split::L2, 4).is_err());
    let refusal = seen.open_for_training(&l2[0]).err().unwrap().to_string();
    assert!(refusal.contains("valid_unseen is for evaluation only"), "{refusal}");
}

#[test]
fn bad_data_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let error = GameIndex::read(empty.path()).unwrap_err().to_string();
    assert!(error.contains("holds no ALFWorld games") && error.contains("alfworld-download"), "{error}");
}

/// Bad games of every kind in the data: what is said of each.
fn spoil(root: &Path) -> [(String, &'static str); 5] {
    let file = |trial: &str| root.join(format!("train/pick_and_place_simple-Cup-None-Shelf-0/{trial}/game.tw-pddl"));
    let mut unknown = game(1000);
    unknown["pddl_problem"] =
        unknown["pddl_problem"].as_str().unwrap().replacen("(:init", "(:init (at ghost)", 1).into();
    add(root, "train/pick_and_place_simple-Cup-None-Shelf-0/trial_u", &unknown);
    let mut speechless = game(1001);
    speechless["grammar"] = speechless["grammar"].as_str().unwrap().replacen("\"intro\"", "\"outro\"", 1).into();
    add(root, "train/pick_and_place_simple-Cup-None-Shelf-0/trial_v", &speechless);
    fs::write(file("trial_0"), "{\"solvable\": tr").unwrap();
    fs::create_dir_all(file("trial_w")).unwrap();
    fs::create_dir_all(file("trial_x").parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("nowhere", file("trial_x")).unwrap();
    [
        ("trial_0", "line 1 column"),
        ("trial_u", "found 'ghost'"),
        ("trial_v", "expected a rule 'intro'"),
        ("trial_w", "not a regular file"),
        ("trial_x", "No such file"),
    ]
    .map(|(trial, says)| (file(trial).display().to_string(), says))
}

#[test]
fn bad_games_are_skipped_by_name_and_counted() {
    let folder = data();
    let whole = GameIndex::read(folder.path()).unwrap();
    let spoilt = spoil(&whole.root);
    let index = GameIndex::read(folder.path()).unwrap();
    assert_eq!((whole.games.len(), index.games.len(), index.skipped.len()), (36, 35, 5));
    assert_ne!(whole.hash, index.hash);
    for (skipped, (file, says)) in index.skipped.iter().zip(&spoilt) {
        assert!(skipped.file.display().to_string() == *file && skipped.reason.contains(says), "{skipped:?}: {says}");
    }

    let list = |flags: &[&str]| {
        let flags = [&["env", "index", "--data", folder.path().to_str().unwrap()], flags].concat();
        Command::new(env!("CARGO_BIN_EXE_uncouple")).args(flags).output().unwrap()
    };
    let (table, json) = (list(&[]), list(&["--json"]));
    for output in [&table, &json] {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("5 of 40 games skipped"), "{said}");
        assert!(spoilt.iter().all(|(file, says)| said.contains(file) && said.contains(says)), "{said}");
    }
    assert!(String::from_utf8_lossy(&table.stdout).contains(&index.hash));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json["games"].as_array().unwrap().len(), json["skipped"].as_array().unwrap().len()), (35, 5));
    assert_eq!(json["skipped"][0]["file"], spoilt[0].0);
}

#[test]
fn no_run_begins_on_a_folder_with_a_bad_game() {
    let (folder, runs) = (data(), tempfile::tempdir().unwrap());
    let spoilt = spoil(&folder.path().join("json_2.1.1"));
    let set = format!("env.alfworld.data={}", folder.path().display());
    let config = common::runs::tiny(runs.path(), "a", &["env.suite=alfworld", &set]);
    let error = suite(&config).err().unwrap().to_string();
    assert!(error.contains(&spoilt[0].0) && error.contains("lists all 5 bad games"), "{error}");
    spoilt.iter().for_each(|(file, _)| fs::remove_dir_all(Path::new(file).parent().unwrap()).unwrap());
    suite(&config).unwrap();
}

#[test]
fn a_tiny_model_trains_on_it_and_a_run_notices_other_content() {
    let (folder, runs) = (data(), tempfile::tempdir().unwrap());
    let set = format!("env.alfworld.data={}", folder.path().display());
    let set = ["env.suite=alfworld", &set, "sft.steps=4", "run.iterations=1"];
    let mut config = common::runs::tiny(runs.path(), "a", &set);
    let games = suite(&config).unwrap();
    config.env.hash = games.content_hash().unwrap();
    let outcome = train(config.clone(), &*games, Existing::Refuse).unwrap_or_else(|e| panic!("{e}"));
    assert!(outcome.summary.env_steps > 0);

    let run = runs.path().join("a");
    let eval = |flags: &[&str]| {
        let flags = [&["eval", "--run", run.to_str().unwrap()], flags].concat();
        Command::new(env!("CARGO_BIN_EXE_uncouple")).args(flags).output().unwrap()
    };
    let output = eval(&["--split", "L2", "--all", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["results"][0]["games"], 4);
    let panel = &json["panels"][0];
    assert_eq!(
        (&panel["split"], &panel["games"], panel["hash"].as_str().unwrap().len()),
        (&"L2".into(), &4.into(), 64)
    );
    let output = eval(&["--split", "L2", "--set", "env.alfworld.train_types=all"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("alfworld has no L2 games"));

    add(&folder.path().join("json_2.1.1"), "train/pick_two_obj_and_place-Cup-None-Shelf-9/trial_0", &game(77));
    let error = suite(&config).err().unwrap().to_string();
    assert!(error.contains("env.hash") && error.contains("the games have changed"), "{error}");
}

#[test]
fn the_index_command_counts_and_lists() {
    let folder = data();
    let run = |flags: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_uncouple"))
            .args([&["env", "index"], flags].concat())
            .env("ALFWORLD_DATA", folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let hash = GameIndex::read(folder.path()).unwrap().hash;
    let table = run(&[]);
    assert!(table.contains("pick_two_obj_and_place") && table.contains("12") && table.contains(&hash), "{table}");
    let json: serde_json::Value = serde_json::from_str(&run(&["--json"])).unwrap();
    assert_eq!((json["games"].as_array().unwrap().len(), json["hash"].as_str().unwrap()), (36, &hash[..]));
}

/// Plays commands through `uncouple env play`; its lines.
fn play(game: &Path, commands: &[String]) -> Vec<serde_json::Value> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_uncouple"))
        .args(["env".as_ref(), "play".as_ref(), "--game".as_ref(), game.as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The commands fit into the pipe, so that nothing waits for a reader.
    let text: String = commands.iter().map(|c| format!("{c}\n")).collect();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_game_is_played_line_by_line() {
    let folder = data();
    let index = GameIndex::read(folder.path()).unwrap();
    let game = &index.games[0];
    let suite = Alfworld::new(index.clone(), TrainTypes::All, 0);
    let mut ours = suite.open(&Task { id: game.id.clone(), kind: game.kind.into(), split: Split::Train }).unwrap();
    let mut commands = vec!["sing".to_string()];
    let mut expected = vec![ours.reset().unwrap(), ours.step("sing").unwrap()];
    while let Some(command) = ours.expert() {
        expected.push(ours.step(&command).unwrap());
        commands.push(command);
    }
    let lines = play(&index.root.join(&game.id).join("game.tw-pddl"), &commands);
    assert_eq!(lines.len(), expected.len());
    for (line, seen) in lines.iter().zip(&expected) {
        let expected = serde_json::json!({"feedback": seen.text, "admissible": seen.admissible, "won": seen.won,
            "score": u32::from(seen.won), "done": seen.done});
        assert_eq!(line, &expected);
    }
    assert_eq!(lines.last().unwrap()["won"], true);
}

#[derive(serde::Deserialize)]
struct Transcript {
    game: String,
    steps: Vec<Step>,
}

#[derive(serde::Deserialize)]
struct Step {
    action: Option<String>,
    feedback: String,
    admissible: Vec<String>,
    won: bool,
}

#[test]
fn the_binary_plays_recorded_games_word_for_word() {
    let Some(folder) = recorded::folder() else {
        eprintln!(
            "SKIPPED: no recorded games in ../shared/alfworld (set UNCOUPLE_SHARED to the folder above alfworld)"
        );
        return;
    };
    let mut text = String::new();
    let file = fs::File::open(folder.join("transcripts.jsonl.gz")).unwrap();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    // All are played in-process by another test; here every fifth, through pipes.
    for line in text.lines().step_by(5) {
        let transcript: Transcript = serde_json::from_str(line).unwrap();
        let commands: Vec<String> = transcript.steps.iter().filter_map(|s| s.action.clone()).collect();
        let lines = play(&folder.join("games").join(&transcript.game), &commands);
        assert_eq!(lines.len(), transcript.steps.len());
        for (i, (line, step)) in lines.iter().zip(&transcript.steps).enumerate() {
            let ours = (&line["feedback"], &line["admissible"], &line["won"]);
            let theirs = (serde_json::json!(step.feedback), serde_json::json!(step.admissible), step.won.into());
            assert_eq!(ours, (&theirs.0, &theirs.1, &theirs.2), "{} step {i}", transcript.game);
        }
    }
    let index = GameIndex::read(&folder.join("games")).unwrap();
    assert!(index.games.len() > 30, "{}", index.games.len());
}
