//! The interpreter against recorded plays of the original engine, and its errors.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

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

/// The folder of recorded games, where this machine has one.
fn recorded() -> Option<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let given = std::env::var_os("UNCOUPLE_SHARED").map(PathBuf::from);
    let places = given.into_iter().chain([here.join("../shared"), here.join("../../shared")]);
    places.map(|p| p.join("alfworld")).find(|p| p.join("transcripts.jsonl.gz").exists())
}

#[test]
fn plays_the_recorded_games_word_for_word() {
    let Some(folder) = recorded() else {
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
