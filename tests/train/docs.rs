//! What the documentation says to type is what the program takes, and what it points to is there.

use clap::Parser;
use clap::error::ErrorKind;
use std::path::{Path, PathBuf};
use uncouple::cli::Cli;

/// README.md, CONTRIBUTING.md and the like, docs/, and the heads of recipes and studies.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files =
        |folder: &Path| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let all = files(root).into_iter().chain(files(&root.join("docs"))).chain(files(&root.join("recipes")));
    let all = all.chain(files(&root.join("studies")));
    let page = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        (name.ends_with(".md") || name.ends_with(".toml"))
            && !["CHANGELOG.md", "Cargo.toml", "rustfmt.toml"].contains(&name)
    };
    all.filter(page).map(|path| (path.clone(), std::fs::read_to_string(&path).unwrap())).collect()
}

/// A command line of the documentation, and whether it is whole: words in a sentence may leave out arguments.
#[derive(Debug, PartialEq)]
struct Line {
    text: String,
    whole: bool,
}

/// The program's command lines in blocks of console, bash or sh, in a recipe's head, and between backticks.
fn command_lines(page: &str) -> Vec<Line> {
    let mut found = Vec::new();
    let (mut block, mut open) = (None::<bool>, String::new());
    for line in page.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            block = if block.is_some() { None } else { Some(["console", "bash", "sh"].contains(&language)) };
            continue;
        }
        match block {
            Some(true) => {
                open.push_str(line.trim().trim_start_matches("$ "));
                if open.ends_with('\\') {
                    open.pop();
                    continue;
                }
                found.extend(program(&std::mem::take(&mut open)).map(|text| Line { text, whole: true }));
            }
            Some(false) => {}
            None => {
                let head = line.strip_prefix("#   ").and_then(program);
                found.extend(head.map(|text| Line { text, whole: true }));
                let spans = line.split('`').skip(1).step_by(2);
                found.extend(spans.filter_map(program).map(|text| Line { text, whole: false }));
            }
        }
    }
    found
}

/// `uncouple …`, out of a line that may begin with settings or be run by cargo; without what follows in the shell.
fn program(line: &str) -> Option<String> {
    let mut rest = line.trim();
    while let Some((word, after)) = rest.split_once(' ').filter(|(word, _)| {
        word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    }) {
        (_, rest) = (word, after);
    }
    let rest = match rest.strip_prefix("cargo run --release -- ") {
        Some(args) => format!("uncouple {args}"),
        None => rest.strip_prefix("target/release/").unwrap_or(rest).to_string(),
    };
    let end = [" | ", " > ", " && ", " # ", " &"].iter().filter_map(|mark| rest.find(mark)).min().unwrap_or(rest.len());
    let rest = rest[..end].trim();
    (rest == "uncouple" || rest.starts_with("uncouple ")).then(|| rest.to_string())
}

/// The words of a command line, as a shell sees them.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quote, mut begun) = (vec![String::new()], None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => (quote, begun) = (Some(c), true),
            (None, ' ') if begun => {
                words.push(String::new());
                begun = false;
            }
            (None, ' ') => {}
            (_, c) => {
                words.last_mut().unwrap().push(c);
                begun = true;
            }
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// What is wrong with a command line.
fn wrong(line: &Line) -> Option<String> {
    let mut words = words(&line.text);
    // Places for names and numbers.
    for at in 1..words.len() {
        let number = ["--games", "--port", "--sessions", "--idle"].contains(&&words[at - 1][..]);
        if words[at] == "…" || (number && words[at].chars().all(|c| c.is_ascii_uppercase())) {
            words[at] = "1".into();
        }
    }
    let error = Cli::try_parse_from(&words).err()?;
    let partly = [
        ErrorKind::MissingRequiredArgument,
        ErrorKind::MissingSubcommand,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
    ];
    let fine = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion].contains(&error.kind())
        || !line.whole && partly.contains(&error.kind());
    (!fine).then(|| format!("{}: {error}", line.text))
}

#[test]
fn every_command_line_of_the_documentation_is_one_the_program_takes() {
    let (mut count, mut problems) = (0, Vec::new());
    for (path, text) in pages() {
        let lines = command_lines(&text);
        count += lines.len();
        problems.extend(lines.iter().filter_map(wrong).map(|problem| format!("{}: {problem}", path.display())));
    }
    assert!(count > 40, "the command lines were found: {count}");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn command_lines_are_found_and_mistakes_in_them_too() {
    let page = "Use `uncouple trian`, or `uncouple eval --run DIR`, `uncouple`.\n```console\n$ A=1 cargo run --release -- train \\\n    --set 'env.worker.command=[\"a b\"]' | head\noutput\n```\n\
                ```toml\nuncouple = 1\n```\n#   uncouple bench gcd --peer\n";
    let found = command_lines(page);
    let texts: Vec<&str> = found.iter().map(|line| &line.text[..]).collect();
    let training = "uncouple train --set 'env.worker.command=[\"a b\"]'";
    assert_eq!(texts, ["uncouple trian", "uncouple eval --run DIR", "uncouple", training, "uncouple bench gcd --peer"]);
    assert_eq!(words(training)[3], "env.worker.command=[\"a b\"]");
    let bad: Vec<bool> = found.iter().map(|line| wrong(line).is_some()).collect();
    assert_eq!(bad, [true, false, false, false, false]);
    let line = |text: &str, whole| Line { text: text.into(), whole };
    assert!(wrong(&line("uncouple eval", true)).is_some() && wrong(&line("uncouple eval", false)).is_none());
    assert!(wrong(&line("uncouple eval --run DIR --games N", true)).is_none());
}

#[test]
fn every_link_within_the_documentation_leads_somewhere() {
    for (path, text) in pages() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let (file, _) = link.split_once('#').unwrap_or((link, ""));
            let outside = link.contains("://") || link.starts_with("mailto:");
            assert!(
                outside || file.is_empty() || path.parent().unwrap().join(file).exists(),
                "{}: {link}",
                path.display()
            );
        }
    }
}

#[test]
fn the_readme_can_be_read_in_minutes() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let words = readme.split_whitespace().count();
    assert!(words <= 900, "README.md has {words} words, at most 900: move what is not for everybody to docs/");
}
