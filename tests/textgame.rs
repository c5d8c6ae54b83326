//! The interpreter against recorded plays of the original engine, and its errors.

#[path = "common/lift.rs"]
mod lift;
#[path = "common/recorded.rs"]
mod recorded;

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use lift::{DOMAIN as LIFT, GRAMMAR as LIFT_GRAMMAR, PROBLEM as LIFT_PROBLEM};
use uncouple::env::Environment;
use uncouple::env::textgame::{Game, GameFile, Shared, TextGame};

#[derive(serde::Deserialize)]
struct Transcript {
    game: String,
    kind: String,
    steps: Vec<Step>,
}

#[derive(serde::Deserialize)]
struct Step {
    action: Option<String>,
    feedback: String,
    admissible: Vec<String>,
    won: bool,
    score: Option<u32>,
    done: Option<bool>,
}

#[test]
fn plays_the_recorded_games_word_for_word() {
    let Some(folder) = recorded::folder() else {
        eprintln!(
            "SKIPPED: no recorded games in ../shared/alfworld (set UNCOUPLE_SHARED to the folder that holds alfworld)"
        );
        return;
    };
    let mut text = String::new();
    let file = std::fs::File::open(folder.join("transcripts.jsonl.gz")).unwrap();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let mut shared = Shared::default();
    let mut games: HashMap<String, Arc<Game>> = HashMap::new();
    let (mut steps, mut wrong) = (0, Vec::new());
    for line in text.lines() {
        let transcript: Transcript = serde_json::from_str(line).unwrap();
        let game = games.entry(transcript.game.clone()).or_insert_with(|| {
            let file = GameFile::read(&folder.join("games").join(&transcript.game)).unwrap();
            Arc::new(file.compile(&mut shared).unwrap())
        });
        let mut play = TextGame::new(&transcript.game, game.clone());
        for (i, step) in transcript.steps.iter().enumerate() {
            let seen = match &step.action {
                None => play.reset().unwrap(),
                Some(action) => play.step(action).unwrap(),
            };
            steps += 1;
            let mut report = |what: &str, ours: String, theirs: String| {
                if ours != theirs {
                    wrong.push(format!(
                        "{} {} step {i} {what}:\n  ours   {ours}\n  theirs {theirs}",
                        transcript.game, transcript.kind
                    ));
                }
            };
            report("feedback", format!("{:?}", seen.text), format!("{:?}", step.feedback));
            report("admissible", format!("{:?}", seen.admissible), format!("{:?}", step.admissible));
            report("won", seen.won.to_string(), step.won.to_string());
            report("score", u32::from(seen.won).to_string(), step.score.unwrap_or(u32::from(step.won)).to_string());
            report("done", seen.done.to_string(), step.done.unwrap_or(step.won).to_string());
        }
    }
    assert!(steps > 1000, "only {steps} steps were recorded");
    for difference in wrong.iter().take(8) {
        eprintln!("{difference}");
    }
    assert!(wrong.is_empty(), "{} differences in {steps} steps", wrong.len());
}

fn lift(domain: &str, grammar: &str, problem: &str) -> Result<TextGame, String> {
    let file = GameFile { pddl_domain: domain.into(), grammar: grammar.into(), pddl_problem: problem.into() };
    let game = file.compile(&mut Shared::default()).map_err(|e| e.to_string())?;
    Ok(TextGame::new("lift", Arc::new(game)))
}

#[test]
fn interprets_or_imply_forall_when_and_subtypes() {
    let mut game = lift(LIFT, LIFT_GRAMMAR, LIFT_PROBLEM).unwrap();
    assert_eq!(game.reset().unwrap().admissible, ["ride to f 1"]);
    // Up, doors, up, doors, greet, down, down, doors, ring.
    assert_eq!(game.distance(), Some(9));
    let plays = [
        ("ride to f 1", "inside: nobody."),
        ("doors", "inside: a ann 1."),
        ("ring", "Nothing happens."),
        ("ride to f 2", "inside: a ann 1."),
        ("doors", "inside: a ann 1, and a bob 1."),
        ("greet ann 1", "Nothing happens."),
        ("greet bob 1", "hello, bob 1."),
        ("ride to f 1", "inside: a ann 1, and a bob 1."),
        ("ride to ground ", "Nothing happens."),
    ];
    for (command, said) in plays {
        assert_eq!(game.step(command).unwrap().text, said, "{command}");
    }
    // An object outside every class keeps the space for a number, as in the original; a command is trimmed.
    let down = game.step("ride to ground").unwrap();
    assert_eq!((down.valid, game.distance()), (false, Some(3)));
}

#[test]
fn a_locked_lift_goes_only_where_its_rule_allows() {
    let problem = LIFT_PROBLEM.replace("(:init (lift ground)", "(:init (locked) (lift f_bar_2)");
    let mut game = lift(LIFT, LIFT_GRAMMAR, &problem).unwrap();
    assert_eq!(game.reset().unwrap().admissible, ["doors", "ride to ground "]);
    assert_eq!(game.distance(), None, "nobody can fetch bob");
}

#[test]
fn errors_name_text_line_and_column_and_what_was_expected() {
    let cases = [
        (LIFT.replace("(rung))", "(rung)"), LIFT_GRAMMAR.into(), LIFT_PROBLEM.into(), "pddl_domain, line"),
        (
            LIFT.replace("(:action greet", "(:axiom greet"),
            LIFT_GRAMMAR.into(),
            LIFT_PROBLEM.into(),
            "pddl_domain, line 14, column 2: expected :requirements",
        ),
        (
            LIFT.replace("(inside ?v)", "(inside ?w)"),
            LIFT_GRAMMAR.into(),
            LIFT_PROBLEM.into(),
            "line 14, column 62: expected a variable in scope, found '?w'",
        ),
        (
            LIFT.replace("(warm ?v)", "(warm ?v ?v)"),
            LIFT_GRAMMAR.into(),
            LIFT_PROBLEM.into(),
            "expected 1 arguments of 'warm', found 2",
        ),
        (
            LIFT.into(),
            LIFT_GRAMMAR.into(),
            LIFT_PROBLEM.replace("(lift ground)", "(lift attic)"),
            "pddl_problem, line 3, column 15: expected objects that :objects or :constants declares, found 'attic'",
        ),
        (
            LIFT.into(),
            LIFT_GRAMMAR.into(),
            LIFT_PROBLEM.replace("- vip)", "- king)"),
            "pddl_problem, line 2, column 54: expected a type",
        ),
        (
            LIFT.into(),
            LIFT_GRAMMAR.into(),
            "(".repeat(100_000),
            "pddl_problem, line 1, column 201: expected at most 200 nested brackets",
        ),
        (
            LIFT.into(),
            LIFT_GRAMMAR.into(),
            LIFT_PROBLEM.replace("(:goal", "(:gaol"),
            "pddl_problem, line 5, column 2: expected :domain",
        ),
        (
            LIFT.into(),
            LIFT_GRAMMAR.replace("#who#", "#whom#"),
            LIFT_PROBLEM.into(),
            "grammar, line 6, column 8: expected the name of a rule between '#', found 'whom'",
        ),
        (
            LIFT.into(),
            LIFT_GRAMMAR.replace("action ring {", "action ring ("),
            LIFT_PROBLEM.into(),
            "grammar, line 9, column 13: expected '{', found '('",
        ),
        (LIFT.into(), LIFT_GRAMMAR.replace("\"who\": [", "\"who\" ["), LIFT_PROBLEM.into(), "grammar, line 2, column"),
        (
            LIFT.into(),
            LIFT_GRAMMAR.replace("action greet", "action meet"),
            LIFT_PROBLEM.into(),
            "expected an 'action' block for 'greet'",
        ),
        (
            LIFT.into(),
            LIFT_GRAMMAR.replace("inside(r:rider)}", "within(r:rider)}"),
            LIFT_PROBLEM.into(),
            "expected a predicate of the domain in a condition, found 'within'",
        ),
    ];
    for (domain, grammar, problem, expected) in cases {
        match lift(&domain, &grammar, &problem) {
            Err(error) => assert!(error.contains(expected), "{error}\n  should say: {expected}"),
            Ok(_) => panic!("accepted, but should say: {expected}"),
        }
    }
}

#[test]
fn a_grammar_that_circles_fails_with_the_rules_name() {
    let grammar =
        LIFT_GRAMMAR.replace("a lift.", "#who#").replace("{\"rhs\": \"inside: [{r.name", "{\"rhs\": \"#who# [{r.name");
    let error = lift(LIFT, &grammar, LIFT_PROBLEM).unwrap().reset().unwrap_err().to_string();
    assert!(error.contains("rule 'who' of the grammar comes back to itself"), "{error}");
}

#[test]
fn a_missing_or_broken_game_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("game.tw-pddl");
    assert!(GameFile::read(&path).unwrap_err().to_string().contains("game.tw-pddl: cannot be read"));
    std::fs::write(&path, "{\"pddl_domain\": 3").unwrap();
    assert!(GameFile::read(&path).unwrap_err().to_string().contains("is not a game file"));
}
