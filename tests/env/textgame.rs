//! The interpreter against recorded plays of the original engine, and its errors.

use crate::lift;
use crate::recorded;

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

/// What is refused says so, in these words.
fn refused(domain: &str, grammar: &str, problem: &str) -> String {
    lift(domain, grammar, problem).err().expect("should be refused")
}

#[test]
fn what_init_denies_does_not_hold_anyway_unless_it_is_said_to_hold() {
    let denied = LIFT_PROBLEM.replace("(:init", "(:init (not (locked)) (not (lift f_bar_1)) (not (warm bob_bar_1))");
    let (mut plain, mut same) =
        (lift(LIFT, LIFT_GRAMMAR, LIFT_PROBLEM).unwrap(), lift(LIFT, LIFT_GRAMMAR, &denied).unwrap());
    assert_eq!(plain.reset().unwrap(), same.reset().unwrap());
    for command in ["ride to f 1", "doors", "ride to f 2"] {
        assert_eq!(plain.step(command).unwrap(), same.step(command).unwrap());
        assert_eq!(plain.distance(), same.distance());
    }
    // On whichever side it is said first.
    for contradiction in ["(:init (not (lift ground))", "(:init (rung) (not (rung))"] {
        let error = refused(LIFT, LIFT_GRAMMAR, &LIFT_PROBLEM.replace("(:init", contradiction));
        assert!(error.contains("pddl_problem, line 3") && error.contains("either true or false"), "{error}");
    }
}

#[test]
fn an_object_that_nothing_declares_is_named_wherever_it_stands() {
    let problem = |from: &str, to: &str| (LIFT.to_string(), LIFT_PROBLEM.replace(from, to));
    let domain = |from: &str, to: &str| (LIFT.replace(from, to), LIFT_PROBLEM.to_string());
    for (says, (domain, problem)) in [
        ("pddl_problem, line 3", problem("(lift ground)", "(lift ghost)")),
        ("pddl_problem, line 3", problem("(lift ground)", "(lift ground) (not (lift ghost))")),
        ("pddl_problem, line 3", problem("(lift ground)", "(lift ground) (= (far ghost) 3)")),
        ("pddl_problem, line 5", problem("(rung)", "(warm ghost)")),
        ("pddl_problem, line 5", problem("(rung)", "(not (= ghost ground))")),
        ("pddl_domain, line 7", domain("(imply (locked)", "(imply (lift ghost)")),
        ("pddl_domain, line 7", domain("(= ?g ground)", "(= ?g ghost)")),
        ("pddl_domain, line 8", domain("(increase (total-cost) 1)", "(increase (total-cost) (far ghost))")),
        ("pddl_domain, line 14", domain(":effect (warm ?v)", ":effect (and (warm ?v) (not (warm ghost)))")),
        ("pddl_domain, line 14", domain(":effect (warm ?v)", ":effect (when (inside ghost) (warm ?v))")),
    ] {
        let error = refused(&domain, LIFT_GRAMMAR, &problem);
        assert!(error.contains("objects that :objects or :constants declares, found 'ghost'"), "{error}");
        assert!(error.starts_with(says), "{error}\n  should start with {says}");
    }
    // A problem may declare what the domain's actions name; the order of the domain's sections does not matter.
    let named = LIFT.replace("(:constants ground - floor)", "");
    refused(&named, LIFT_GRAMMAR, LIFT_PROBLEM);
    lift(&named, LIFT_GRAMMAR, &LIFT_PROBLEM.replace("f_bar_2 - floor", "f_bar_2 ground - floor")).unwrap();
    let late = named.replace(":effect (rung))", ":effect (rung)) (:constants ground - floor)");
    lift(&late, LIFT_GRAMMAR, LIFT_PROBLEM).unwrap();
}

#[test]
fn an_object_is_one_thing() {
    let again = |what: &str| LIFT_PROBLEM.replace("ann_bar_1 - rider", &format!("ann_bar_1 - rider {what}"));
    let mut twice = lift(LIFT, LIFT_GRAMMAR, &again("ann_bar_1 - rider ground - floor")).unwrap();
    assert_eq!(twice.reset().unwrap(), lift(LIFT, LIFT_GRAMMAR, LIFT_PROBLEM).unwrap().reset().unwrap());
    for (other, found) in [
        ("ann_bar_1 - floor", "'ann_bar_1' as rider and as floor"),
        ("ground - rider", "'ground' as floor and as rider"),
    ] {
        let error = refused(LIFT, LIFT_GRAMMAR, &again(other));
        assert!(error.contains(&format!("one type of each object, found {found}")), "{error}");
    }
    let error = refused(&LIFT.replace("(rung))", "(rung) (lift ?a ?b))"), LIFT_GRAMMAR, LIFT_PROBLEM);
    assert!(error.contains("one number of arguments of 'lift', found 2 here and 1 before"), "{error}");
}

#[test]
fn a_game_that_leads_to_too_much_is_refused_before_it_does() {
    let many: String = (0..200).map(|i| format!("o{i} ")).collect();
    let problem = LIFT_PROBLEM.replace("(:objects", &format!("(:objects {many} - floor"));
    let domain = |action: &str| format!("{}\n{action})", LIFT.trim_end().strip_suffix(')').unwrap());
    let grammar = LIFT_GRAMMAR.to_string() + r#"action burst { template :: "burst"; feedback :: ""; }"#;
    let six = "?a ?b ?c ?d ?e ?f - floor";
    let alternatives = "(or (lift ?a) (locked)) ".repeat(40);
    for (action, says) in [
        (format!("(:action burst :parameters ({six}) :effect (locked))"), "more of them, the last for action 'burst'"),
        (format!("(:action burst :parameters () :effect (forall ({six}) (lift ?a)))"), "action 'burst'"),
        (
            format!("(:action burst :parameters () :precondition (forall ({six}) (not (lift ?a))) :effect (locked))"),
            "action 'burst'",
        ),
        (
            format!("(:action burst :parameters () :effect (when (exists ({six}) (lift ?a)) (locked)))"),
            "action 'burst'",
        ),
        (
            format!("(:action burst :parameters (?a - floor) :precondition (and {alternatives}) :effect (locked))"),
            "at most 4096 alternatives",
        ),
        (
            format!(
                "(:action burst :parameters (?a - floor) :precondition (and {alternatives} (or)) :effect (locked))"
            ),
            "at most 4096 alternatives",
        ),
        (
            format!(
                "(:action burst :parameters ({}) :effect (locked))",
                (0..256).map(|i| format!("?v{i} ")).collect::<String>()
            ),
            "at most 255 variables",
        ),
    ] {
        let error = refused(&domain(&action), &grammar, &problem);
        assert!(
            error.starts_with("pddl_domain, line 16, column") && error.contains(says),
            "{error}\n  should say: {says}"
        );
    }
    let goal = problem.replace("(rung)", &format!("(exists ({six}) (not (locked)))"));
    let error = refused(LIFT, LIFT_GRAMMAR, &goal);
    assert!(error.starts_with("pddl_problem, line 5") && error.contains("the last for the goal"), "{error}");
    let types: String = (0..200).map(|i| format!("t{i} ")).collect();
    let error = refused(&LIFT.replace("(:types", &format!("(:types {types}")), LIFT_GRAMMAR, LIFT_PROBLEM);
    assert!(error.contains("pddl_domain, line 2, column") && error.contains("at most 128 types"), "{error}");
}

#[test]
fn a_grammar_says_no_more_than_a_state_can_bear() {
    // Every rule says the next one twice; every floor is listed with every other, and again.
    let rules: String = (0..40).map(|i| format!("\"r{i}\": [{{\"rhs\": \"#r{}##r{}#\"}}], ", i + 1, i + 1)).collect();
    let double = LIFT_GRAMMAR.replace(
        "{ \"intro\": [{\"rhs\": \"a lift.\"}]",
        &format!("{{ {rules} \"r40\": [{{\"rhs\": \"\"}}], \"intro\": [{{\"rhs\": \"#r0#\"}}]"),
    );
    let next: String = (0..200).map(|i| format!("(next o{i} ground) ")).collect();
    let many: String = (0..200).map(|i| format!("o{i} ")).collect();
    let crowd = LIFT_PROBLEM
        .replace("(:objects", &format!("(:objects {many} - floor"))
        .replace("(:init", &format!("(:init {next}"));
    let pairs = (0..5).map(|i| format!("next(a{i}:floor, g:floor)")).collect::<Vec<_>>().join(" & ");
    let list = LIFT_GRAMMAR.replace("a lift.", &format!("{{a0 | {pairs}}}"));
    for (grammar, problem) in [(double, LIFT_PROBLEM), (list, &crowd)] {
        let error = lift(LIFT, &grammar, problem).unwrap().reset().unwrap_err().to_string();
        assert!(error.contains("the grammar has too much to say of one state"), "{error}");
    }
}

#[test]
fn a_command_that_cannot_be_spelled_is_found_before_the_game_begins() {
    let error = refused(LIFT, &LIFT_GRAMMAR.replace("greet {v}", "greet {w}"), LIFT_PROBLEM);
    let says = "grammar, line 8, column 8: expected a template that spells action 'greet', found one that fails: the grammar speaks of 'w'";
    assert!(error.starts_with(says), "{error}");
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
    std::fs::write(&path, " ".repeat((4 << 20) + 1)).unwrap();
    assert!(GameFile::read(&path).unwrap_err().to_string().contains("cannot be read: it has 4194305 bytes"));
    for no_file in [folder.path(), "/dev/zero".as_ref()] {
        assert!(GameFile::read(no_file).unwrap_err().to_string().contains("it is not a regular file"));
    }
}
