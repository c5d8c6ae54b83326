//! Splits of the household suite and the guard before training.

use std::collections::HashSet;

use uncouple::env::baseline::baselines;
use uncouple::env::household::{FIRST_EVALUATION_SEED, Household, TRAIN_SCENES, TaskId};
use uncouple::env::{EnvError, Split, Suite, Task};

fn tasks(suite: &Household, split: Split, count: u64) -> Vec<Task> {
    (0..count).map(|i| suite.task(split, i).unwrap()).collect()
}

fn refusal(id: &str) -> String {
    let task = Task { id: id.into(), kind: "place".into(), split: Split::Train };
    match Household::new(0).open_for_training(&task) {
        Err(EnvError::HeldOut { id: named, reason }) => {
            assert_eq!(named, id);
            reason
        }
        Err(other) => panic!("{id}: refused for another reason: {other}"),
        Ok(_) => panic!("{id}: was not refused"),
    }
}

#[test]
fn the_guard_refuses_by_name_what_is_held_out() {
    assert!(refusal("cool-and-place/scene-0/seed-1").contains("task type cool-and-place"));
    assert!(refusal("place-two/scene-3/seed-1").contains("task type place-two"));
    assert!(refusal("place/scene-41/seed-1").contains("scene 41"));
    assert!(refusal(&format!("place/scene-3/seed-{FIRST_EVALUATION_SEED}")).contains("evaluation seed"));
    let suite = Household::new(0);
    for split in [Split::L0, Split::L1, Split::L2] {
        for task in tasks(&suite, split, 128) {
            let refused = suite.open_for_training(&Task { split: Split::Train, ..task.clone() });
            assert!(matches!(refused, Err(EnvError::HeldOut { .. })), "{}", task.id);
        }
    }
}

#[test]
fn training_tasks_are_open_and_of_the_training_types() {
    let suite = Household::new(7);
    for task in tasks(&suite, Split::Train, 24) {
        assert!(suite.open_for_training(&task).is_ok(), "{}", task.id);
    }
    let kinds: HashSet<String> = tasks(&suite, Split::Train, 64).into_iter().map(|t| t.kind).collect();
    assert_eq!(kinds, ["place", "inspect", "clean-and-place", "heat-and-place"].map(String::from).into());
}

#[test]
fn the_splits_do_not_overlap_and_the_panels_are_fixed() {
    let (one, other) = (Household::new(1), Household::new(2));
    let mut seen = HashSet::new();
    for split in [Split::L0, Split::L1, Split::L2] {
        let panel = tasks(&one, split, one.len(split).unwrap());
        assert_eq!(panel, tasks(&other, split, 128));
        for task in panel {
            let id: TaskId = task.id.parse().unwrap();
            assert_eq!(id.scene >= TRAIN_SCENES, split == Split::L1);
            assert!(seen.insert(task.id));
        }
    }
    assert!(tasks(&one, Split::Train, 1000).iter().all(|t| !seen.contains(&t.id)));
    assert_ne!(tasks(&one, Split::Train, 10), tasks(&other, Split::Train, 10));
    assert!(one.task(Split::L0, 128).is_err());
}

#[test]
fn ids_read_back_and_nonsense_is_refused() {
    let id: TaskId = "clean-and-place/scene-18/seed-123".parse().unwrap();
    assert_eq!(id.to_string(), "clean-and-place/scene-18/seed-123");
    for text in [
        "",
        "place",
        "fly/scene-1/seed-1",
        "place/scene-60/seed-1",
        "place/scene-1/seed-x",
        "heat-and-place/scene-1/seed-1",
    ] {
        let error = text.parse::<TaskId>().unwrap_err().to_string();
        assert!(error.contains("TYPE/scene-N/seed-N"), "{error}");
    }
}

#[test]
fn the_content_hash_is_stable_and_knows_the_seed() {
    let hash = |seed| Household::new(seed).content_hash().unwrap();
    assert_eq!(hash(1), hash(1));
    assert_ne!(hash(1), hash(2));
    assert_eq!(hash(1).len(), 64);
}

#[test]
fn the_oracle_always_wins_and_the_random_player_seldom() {
    let suite = Household::new(0);
    for split in [Split::L0, Split::L1, Split::L2] {
        let rates = baselines(&suite, split, 24, 20, 0).unwrap();
        eprintln!("{split}: {rates:?}");
        assert_eq!((rates.oracle, rates.demonstrator, rates.games), (Some(1.0), Some(1.0), 24));
        assert!(rates.random.is_some_and(|rate| rate < 0.35), "{split}: {rates:?}");
    }
}

/// The words of a task's sentence, and of the demonstrator's commands.
fn words(suite: &Household, task: &Task) -> (String, HashSet<String>) {
    let mut game = suite.open(task).unwrap();
    let mut seen = game.reset().unwrap();
    let sentence = seen.text.split("task: ").nth(1).unwrap().trim_end_matches('.').to_string();
    let mut words: HashSet<String> = sentence.split(' ').map(String::from).collect();
    while let Some(command) = game.demonstrate().filter(|_| !seen.done) {
        words.extend(command.split(' ').map(String::from));
        seen = game.step(&command).unwrap();
    }
    (sentence, words)
}

/// With another word in L2 an agent trained from scratch could only fail there; with a sentence of training's nothing would be
/// held out.
#[test]
fn l2_recombines_the_words_of_training_into_sentences_of_its_own() {
    let suite = Household::new(0);
    let of = |split, count| tasks(&suite, split, count).iter().map(|t| words(&suite, t)).collect::<Vec<_>>();
    let training = of(Split::Train, 1200);
    let known: HashSet<&String> = training.iter().flat_map(|(_, words)| words).collect();
    let sentences: HashSet<&String> = training.iter().map(|(sentence, _)| sentence).collect();
    for (sentence, words) in of(Split::L2, 128) {
        assert!(!sentences.contains(&sentence), "{sentence}");
        let new: Vec<&String> = words.iter().filter(|word| !known.contains(word)).collect();
        assert!(new.is_empty(), "{sentence}: {new:?}");
    }
}
