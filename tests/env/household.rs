//! Generated household games: solvable, honest about distances, reproducible.

use proptest::prelude::*;
use uncouple::env::household::{Household, PLAN_LENGTHS, SCENES, SEARCH_LIMIT, TaskId, TaskType, generate};
use uncouple::env::textgame::{Game, Planner, Shared};
use uncouple::env::{Environment, Split, Suite, Task};

fn open(id: &TaskId) -> Box<dyn Environment> {
    Household::new(0).open(&Task { id: id.to_string(), kind: id.kind.name().into(), split: Split::L0 }).unwrap()
}

/// Any task that its scene allows.
fn ids() -> impl Strategy<Value = TaskId> {
    let any = (0..6usize, 0..SCENES, 0..1_000_000u64);
    any.prop_filter_map("the scene's room lacks something", |(kind, scene, seed)| {
        TaskId { kind: TaskType::ALL[kind], scene, seed }.to_string().parse().ok()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_expert_wins_and_each_of_its_steps_shortens_the_distance_by_one(id in ids()) {
        let mut game = open(&id);
        game.reset().unwrap();
        let mut left = game.distance().unwrap();
        prop_assert!(PLAN_LENGTHS.contains(&left), "{id}: {left}");
        while left > 0 {
            let command = game.expert().unwrap();
            let seen = game.step(&command).unwrap();
            left -= 1;
            prop_assert!(seen.valid);
            prop_assert_eq!(game.distance(), Some(left), "{} after {}", id, command);
            prop_assert_eq!(seen.won, left == 0);
        }
        prop_assert_eq!(game.expert(), None);
    }

    #[test]
    fn no_step_changes_the_distance_by_more_than_the_way_back(id in ids(), choices in prop::collection::vec(0..1000usize, 12)) {
        let mut game = open(&id);
        let mut seen = game.reset().unwrap();
        for choice in choices {
            let before = game.distance().unwrap();
            let command = seen.admissible[choice % seen.admissible.len()].clone();
            seen = game.step(&command).unwrap();
            prop_assert!(seen.valid, "{}: {}", id, command);
            let after = game.distance().unwrap();
            prop_assert!(after + 1 >= before, "{}: {} took {} to {}", id, command, before, after);
            if seen.done {
                prop_assert_eq!(after, 0);
                break;
            }
        }
    }

    #[test]
    fn the_searching_player_wins_within_the_limit(id in ids()) {
        let mut game = open(&id);
        let mut seen = game.reset().unwrap();
        let mut steps = 0;
        while !seen.done {
            let command = game.demonstrate().unwrap();
            prop_assert!(seen.admissible.contains(&command), "{}: {} not in {:?}", id, command, seen.admissible);
            seen = game.step(&command).unwrap();
            steps += 1;
            prop_assert!(steps <= SEARCH_LIMIT);
        }
    }

    #[test]
    fn the_same_id_is_the_same_game(id in ids()) {
        let play = || {
            let mut game = open(&id);
            let mut said = vec![game.reset().unwrap()];
            while let Some(command) = game.demonstrate().filter(|_| !said.last().unwrap().done) {
                said.push(game.step(&command).unwrap());
            }
            said
        };
        prop_assert_eq!(play(), play());
    }
}

/// Fewest steps to the goal, by looking at every state within `most` steps.
fn blind_search(game: &Game, most: u32) -> Option<u32> {
    let mut layer = vec![game.initial()];
    let mut seen: std::collections::HashSet<Box<[u64]>> = layer.iter().map(|s| s.bits().into()).collect();
    for depth in 0..=most {
        if layer.iter().any(|s| game.won(s)) {
            return Some(depth);
        }
        let mut next = Vec::new();
        for state in &layer {
            game.possible(state, |action| {
                let mut after = state.clone();
                game.apply(&mut after, action);
                if seen.insert(after.bits().into()) {
                    next.push(after);
                }
            });
        }
        layer = next;
    }
    None
}

#[test]
fn the_planner_is_exact() {
    let mut compared = 0;
    for seed in 0..96 {
        let kind = TaskType::ALL[seed % 6];
        let Ok(id) = TaskId { kind, scene: (seed * 7 % 60) as u64, seed: seed as u64 }.to_string().parse() else {
            continue;
        };
        let Some(made) = generate(&id, 0) else { continue };
        let game = made.file.compile(&mut Shared::default()).unwrap();
        let planned = Planner::default().distance(&game, &game.initial()).unwrap();
        if planned <= 7 {
            assert_eq!(blind_search(&game, 7), Some(planned), "{id}");
            compared += 1;
        } else {
            assert_eq!(blind_search(&game, 7), None, "{id}");
        }
    }
    assert!(compared >= 25, "only {compared} games were compared");
}

/// Plays of the searching player, kept so that a change of the games is seen. `UNCOUPLE_BLESS=1` writes them anew.
#[test]
fn the_games_are_those_of_the_fixture() {
    let mut text = String::new();
    for id in [
        "place/scene-3",
        "inspect/scene-0",
        "clean-and-place/scene-1",
        "heat-and-place/scene-2",
        "cool-and-place/scene-6",
        "place-two/scene-4",
    ] {
        for seed in [1, 2] {
            let id = format!("{id}/seed-{seed}").parse().unwrap();
            let mut game = open(&id);
            let mut seen = game.reset().unwrap();
            text += &format!("# {id}\n{}\n", seen.text);
            while let Some(command) = game.demonstrate().filter(|_| !seen.done) {
                seen = game.step(&command).unwrap();
                text += &format!("> {command}\n{}\n", seen.text);
            }
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/household/plays.txt");
    if std::env::var_os("UNCOUPLE_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), text);
}

#[test]
fn an_unknown_command_changes_nothing_and_is_invalid() {
    let mut game = open(&"place/scene-0/seed-1".parse().unwrap());
    let first = game.reset().unwrap();
    let seen = game.step("fly to the moon").unwrap();
    assert_eq!((seen.text.as_str(), seen.valid, seen.reward), ("nothing changes.", false, 0.0));
    assert_eq!(seen.admissible, first.admissible);
}

#[test]
fn a_reset_starts_the_same_game_anew() {
    let mut game = open(&"heat-and-place/scene-2/seed-5".parse().unwrap());
    let first = game.reset().unwrap();
    while game.distance() != Some(0) {
        let command = game.expert().unwrap();
        game.step(&command).unwrap();
    }
    assert_eq!(game.reset().unwrap(), first);
}

/// Few words and short sentences, for small models.
#[test]
fn the_games_speak_a_small_language() {
    let suite = Household::new(0);
    let mut words = std::collections::BTreeSet::new();
    let (mut observations, mut long) = (0, 0);
    for split in [Split::L0, Split::L1, Split::L2] {
        for index in 0..suite.len(split).unwrap() {
            let mut game = suite.open(&suite.task(split, index).unwrap()).unwrap();
            let mut seen = game.reset().unwrap();
            assert!(seen.text.split(' ').count() <= 40, "{}", seen.text);
            loop {
                words.extend(seen.text.split([' ', '.', ',', ':']).map(str::to_string));
                let Some(command) = game.demonstrate().filter(|_| !seen.done) else { break };
                words.extend(command.split(' ').map(str::to_string));
                seen = game.step(&command).unwrap();
                observations += 1;
                long += usize::from(seen.text.split(' ').count() > 12);
            }
        }
    }
    assert!(words.len() <= 120, "{} words: {words:?}", words.len());
    assert!(long * 20 <= observations, "{long} of {observations} observations are long");
}
