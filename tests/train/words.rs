//! The words of STYLE.md: retired ones do not come back, and a type's name says which of several things it is.

use std::fs;
use std::path::{Path, PathBuf};

/// Words that stood for something the field has a word for, and that word.
const RETIRED: [(&str, &str); 24] = [
    ("mail", "channel"),
    ("Letter", "Event"),
    ("Lesson", "SftSequence"),
    ("lesson", "SftSequence"),
    ("Script", "Trajectory"),
    ("Slip", "noise_action"),
    ("wander", "random_action"),
    ("standing", "active"),
    ("renewal", "suggestion update"),
    ("bare", "without_suggestions"),
    ("feeds", "inputs"),
    ("read_back", "sync_to_host"),
    ("noted", "recorded"),
    ("Normaliser", "LossNormalizer"),
    ("Stepper", "OpenEnvironment"),
    ("Arrival", "PendingEpisode"),
    ("Way", "GramMethod"),
    ("optimiser", "optimizer"),
    ("Slot", "SequenceId"),
    ("tensor copies", "TMA"),
    ("products of warpgroups", "WGMMA"),
    ("there and back", "round trip"),
    ("asks for", "needs, requests or has"),
    ("asked for", "requested or issued"),
];

/// Names that several types had at once.
const AMBIGUOUS: [&str; 18] = [
    "Answers", "Batch", "Case", "Entry", "Group", "Item", "Judge", "Kind", "Keep", "Line", "Outcome", "Part", "Place",
    "Point", "Probe", "Report", "Row", "Rows",
];

/// The files below `folder` whose names end in one of `extensions`.
fn files(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extensions, found);
        } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
            found.push(path);
        }
    }
}

/// The texts of the program, its kernels and its tests, but for this list.
fn texts(folders: &[&str], extensions: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    folders.iter().for_each(|folder| files(&root.join(folder), extensions, &mut found));
    found.retain(|path| !path.ends_with("tests/train/words.rs"));
    found.into_iter().map(|path| (path.display().to_string(), fs::read_to_string(&path).unwrap())).collect()
}

/// The lines of a text that hold `word` as a whole word, from 1.
fn lines_with(text: &str, word: &str) -> Vec<usize> {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    let whole = |line: &str, at: usize| !line[..at].ends_with(letter) && !line[at + word.len()..].starts_with(letter);
    let has = |line: &str| line.match_indices(word).any(|(at, _)| whole(line, at));
    text.lines().zip(1..).filter(|(line, _)| has(line)).map(|(_, number)| number).collect()
}

/// How many types of this name a text declares; those of a trait are not counted.
fn declares(text: &str, name: &str) -> usize {
    let declared = |line: &str| {
        let code = line.trim_start();
        let code = ["pub ", "pub(crate) ", "pub(super) "].iter().find_map(|p| code.strip_prefix(p)).unwrap_or(code);
        let kinds: &[&str] =
            if line == line.trim_start() { &["struct ", "enum ", "trait ", "type "] } else { &["struct ", "enum "] };
        let rest = kinds.iter().find_map(|kind| code.strip_prefix(kind));
        rest.is_some_and(|rest| rest.starts_with(name) && lines_with(rest, name) == [1])
    };
    text.lines().filter(|line| declared(line)).count()
}

#[test]
fn retired_words_do_not_come_back() {
    let texts = texts(&["src", "kernels", "tests", "benches", "examples"], &["rs", "cu", "cuh", "h", "cpp"]);
    assert!(texts.len() > 200, "the sources were found");
    let mut wrong = Vec::new();
    for (file, text) in &texts {
        for (word, now) in RETIRED {
            wrong.extend(lines_with(text, word).iter().map(|line| format!("{file}:{line}: {word}: write {now}")));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_eq!(lines_with("a mail\nmailbox, e_mail\n(mail)", "mail"), [1, 3]);
}

#[test]
fn no_two_types_share_a_bare_name() {
    let texts = texts(&["src"], &["rs"]);
    for name in AMBIGUOUS {
        let files: Vec<&str> =
            texts.iter().filter(|(_, text)| declares(text, name) > 0).map(|(file, _)| &file[..]).collect();
        assert!(files.len() < 2, "{name} is declared in {files:?}: say which");
    }
    assert_eq!(declares("pub struct Row {\n    enum Row {\nstruct RowSet;\n    type Row;\nlet Row = 1;", "Row"), 2);
}
