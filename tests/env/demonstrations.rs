//! Demonstrations from a file: cold start and labels for a game that has no demonstrator.

use crate::common;

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use uncouple::config::Config;
use uncouple::env::Split;
use uncouple::report::metrics;
use uncouple::train::run_folder::Existing;
use uncouple::train::{TrainError, suite, train};

/// Two words are to be said in the order that the task names; it tells no expert and no distance.
const GAME: &str = r#"
import sys
sys.path.insert(0, EXAMPLES)
from worker import serve

class Words:
    name = "words"

    def tasks(self):
        ids = [("train", "up down"), ("train", "down up"), ("L0", "up up")]
        return [{"id": id, "kind": "words", "split": split} for split, id in ids]

    def reset(self, task):
        self.left = task.split()
        return {"text": f"Say {task}.", "admissible": ["down", "up"]}

    def step(self, action):
        right = action == self.left[0]
        self.left = self.left[1:] if right else self.left
        return {"text": "Yes." if right else "No.", "admissible": ["down", "up"], "won": not self.left}

serve(Words())
"#;

const DEMONSTRATIONS: &str = r#"
{"task": "up down", "commands": ["up", "down"]}
{"task": "down up", "commands": ["down", "up"]}
"#;

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn config(dir: &Path, demonstrations: &str, set: &[&str]) -> Config {
    let (game, file) = (dir.join("words.py"), dir.join("demonstrations.jsonl"));
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples");
    std::fs::write(&game, GAME.replace("EXAMPLES", &format!("{:?}", examples.display().to_string()))).unwrap();
    std::fs::write(&file, demonstrations).unwrap();
    let command = format!("env.worker.command=['python3', '{}']", game.display());
    let file = format!("env.demonstrations={}", file.display());
    common::runs::tiny(dir, "a", &[&["env.suite=worker", &command, &file], set].concat())
}

#[test]
fn an_episode_has_an_expert_while_it_follows_its_demonstration() {
    let dir = tempfile::tempdir().unwrap();
    let games = suite(&config(dir.path(), DEMONSTRATIONS, &[])).unwrap();
    let demonstrated = games.demonstrated().unwrap();
    assert_eq!(demonstrated.iter().map(|task| &task.id[..]).collect::<Vec<_>>(), ["up down", "down up"]);
    let mut env = games.open_for_training(&demonstrated[1]).unwrap();
    env.reset().unwrap();
    assert_eq!(
        (env.expert().as_deref(), env.demonstrate().as_deref(), env.distance()),
        (Some("down"), Some("down"), Some(2))
    );
    env.step("down").unwrap();
    assert_eq!((env.expert().as_deref(), env.distance()), (Some("up"), Some(1)));
    assert!(env.step("up").unwrap().won);
    assert_eq!((env.expert(), env.distance()), (None, Some(0)));
    env.reset().unwrap();
    env.step("up").unwrap();
    env.step("down").unwrap();
    assert_eq!((env.expert(), env.distance()), (None, None), "it has left the way");
    env.reset().unwrap();
    assert_eq!(env.expert().as_deref(), Some("down"));
    let mut other = games.open(&games.task(Split::L0, 0).unwrap()).unwrap();
    other.reset().unwrap();
    assert_eq!((other.expert(), other.distance()), (None, None));
}

#[test]
fn a_bad_file_is_refused_by_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |text: &str| suite(&config(dir.path(), text, &[])).err().expect("is refused").to_string();
    for (text, says) in [
        ("", "demonstrations.jsonl: it demonstrates nothing"),
        ("{\"task\": \"up down\", \"commands\": [\"up\"]}\n{oops}", "demonstrations.jsonl:2: "),
        ("{\"task\": \"up down\"}", "missing field `commands`"),
        ("{\"task\": \"up down\", \"commands\": [\"up\"], \"reward\": 1}", "unknown field `reward`"),
        ("{\"task\": \"up down\", \"commands\": []}", "task \"up down\" has no commands; a line is {\"task\": ID"),
        (&DEMONSTRATIONS.repeat(2), "demonstrations.jsonl:5: task \"up down\" is demonstrated twice"),
        ("{\"task\": \"up up\", \"commands\": [\"up\"]}", "the split guard refuses up up: the worker lists it in L0"),
        ("{\"task\": \"left\", \"commands\": [\"up\"]}", "the worker does not list it"),
    ] {
        assert!(refused(text).contains(says), "{}", refused(text));
    }
    let missing = config(dir.path(), DEMONSTRATIONS, &["env.demonstrations=no/such.jsonl"]);
    assert!(suite(&missing).err().unwrap().to_string().contains("no/such.jsonl: env.demonstrations cannot be read"));
}

#[test]
fn a_game_without_a_demonstrator_is_taught_labelled_and_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let set = ["gcd.mode=generate", "gcd.labels=['oracle']", "run.iterations=1", "sft.steps=40"];
    let config = config(dir.path(), DEMONSTRATIONS, &set);
    let games = suite(&config).unwrap();
    let plain =
        Config { env: uncouple::config::Env { demonstrations: String::new(), ..config.env.clone() }, ..config.clone() };
    let untaught = train(plain.clone(), &*suite(&plain).unwrap(), Existing::Overwrite).err().unwrap();
    assert!(matches!(untaught, TrainError::Env(_)), "{untaught}");
    assert!(untaught.to_string().contains("record demonstrations of others (env.demonstrations)"), "{untaught}");

    let outcome = train(config, &*games, Existing::Overwrite).unwrap();
    let records = metrics::read(&outcome.folder).unwrap();
    let losses: Vec<f64> = records.iter().filter(|r| r.phase == "sft").map(|r| r.values["loss"]).collect();
    assert!(losses[39] < 0.3 * losses[0], "{losses:?}");
    let page = std::fs::read_to_string(outcome.folder.join("report.html")).unwrap();
    let files = &outcome.summary.provenance.unwrap().sessions[0].files;
    assert_eq!(
        files.iter().map(|file| &file.key[..]).collect::<Vec<_>>(),
        ["env.worker.command", "env.demonstrations"]
    );
    assert_eq!(files[1].path, dir.path().join("demonstrations.jsonl").display().to_string());
    assert_eq!(files[1].sha256, sha256(DEMONSTRATIONS));
    assert!(files.iter().all(|file| page.contains(&file.sha256)), "the report tells them");
    let grpo = records.iter().find(|r| r.phase == "grpo").unwrap();
    assert!(grpo.values["success"] > 0.3, "{:?}", grpo.values["success"]);
    assert!(grpo.values["gcd/labels/good"] > 0.0, "steps on the way are good");
}
