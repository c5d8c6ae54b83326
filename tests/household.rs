//! Generated household games: solvable, honest about distances, reproducible.

use proptest::prelude::*;
use uncouple::env::household::{Household, PLAN_LENGTHS, SCENES, SEARCH_LIMIT, TaskId, TaskType};
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
