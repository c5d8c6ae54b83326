//! The layering of the design: imports point down, and modules of one layer do not import each other in circles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Top to bottom. `config` and the record types of `report` stand above `ops` and may be imported by all that is higher.
const LAYERS: [&[&str]; 10] = [
    &["main"],
    &["cli"],
    &["reference", "bench", "selftest"],
    &["study"],
    &["train"],
    &["grpo", "gcd", "coupling", "rollout"],
    &["agent", "env", "model", "forest"],
    &["config", "report"],
    &["ops", "device"],
    &["files"],
];

/// Pairs within a layer with a fixed direction.
const BELOW: [(&str, &str); 3] = [("device", "ops"), ("rollout", "coupling"), ("rollout", "gcd")];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Top-level modules that a source text imports: `crate::a::…` and `crate::{a::…, b}` outside comments.
fn imports(source: &str) -> BTreeSet<String> {
    let code: String = source.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for root in ["crate::", "uncouple::"] {
        for (at, _) in code.match_indices(root) {
            let part_of_a_word = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if !part_of_a_word {
                found.extend(heads(&code[at + root.len()..]));
            }
        }
    }
    found
}

/// The first names of a path: one, or one for each branch of a brace group.
fn heads(path: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut depth, mut names, mut start) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && !c.is_whitespace() => {
                names.push(name(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    names
}

/// What is wrong with the imports of `sources` (module, file, text), one line each.
fn violations(sources: &[(String, String, String)]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut graph: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (module, file, text) in sources {
        let Some(from) = layer(module) else {
            wrong.push(format!("{file}: the module {module} has no layer yet: give it one in tests/train/layers.rs"));
            continue;
        };
        for import in imports(text).into_iter().filter(|i| i != module) {
            match layer(&import) {
                None => wrong.push(format!("{file}: imports {import}, which has no layer")),
                Some(to) if to < from => wrong.push(format!("{file}: {module} imports {import}, which is above it")),
                Some(_) if BELOW.contains(&(&module[..], &import[..])) => {
                    wrong.push(format!("{file}: {module} imports {import}, which is above it"));
                }
                Some(to) if to == from => {
                    graph.entry(module).or_default().insert(import);
                }
                Some(_) if ["grpo", "gcd", "coupling"].contains(&&module[..]) && import == "device" => {
                    wrong.push(format!("{file}: {module} knows no device"));
                }
                Some(_) => {}
            }
        }
    }
    wrong.extend(
        graph
            .keys()
            .filter(|m| reaches(&graph, m, m, &mut BTreeSet::new()))
            .map(|m| format!("{m} imports itself in a circle")),
    );
    wrong
}

fn reaches<'a>(
    graph: &'a BTreeMap<&str, BTreeSet<String>>,
    from: &str,
    goal: &str,
    seen: &mut BTreeSet<&'a str>,
) -> bool {
    graph
        .get(from)
        .into_iter()
        .flatten()
        .any(|next| next == goal || seen.insert(next) && reaches(graph, next, goal, seen))
}

/// Every file under src/ with its top-level module.
fn sources(folder: &Path, module: Option<&str>, found: &mut Vec<(String, String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() {
            sources(&path, Some(module.unwrap_or(stem)), found);
        } else if path.extension().is_some_and(|e| e == "rs") && stem != "lib" {
            let module = module.unwrap_or(stem).to_string();
            found.push((module, path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn imports_point_down() {
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), None, &mut all);
    assert!(all.len() > 20, "the sources were found");
    assert!(all.iter().any(|(_, _, text)| !imports(text).is_empty()), "imports were found");
    let wrong = violations(&all);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The members of a folder (files and subfolders) that import each other in a circle; `path` is the folder's, from the crate's root.
fn circles(folder: &Path, path: &str) -> Vec<String> {
    let mut texts: BTreeMap<String, Vec<(bool, String)>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap().path();
        let stem = entry.file_stem().unwrap().to_str().unwrap().to_string();
        if entry.is_dir() {
            wrong.extend(circles(&entry, &format!("{path}{stem}::")));
            let mut inside = Vec::new();
            sources(&entry, Some(&stem), &mut inside);
            texts.entry(stem).or_default().extend(inside.into_iter().map(|(_, _, text)| (false, text)));
        } else if entry.extension().is_some_and(|e| e == "rs") && !["lib", "main", "mod"].contains(&&stem[..]) {
            texts.entry(stem).or_default().push((true, fs::read_to_string(&entry).unwrap()));
        }
    }
    let members: BTreeSet<String> = texts.keys().cloned().collect();
    let graph: BTreeMap<&str, BTreeSet<String>> = texts
        .iter()
        .map(|(member, texts)| {
            let found = texts.iter().flat_map(|(direct, text)| siblings(text, path, *direct));
            (&member[..], found.filter(|name| name != member && members.contains(name)).collect())
        })
        .collect();
    let in_a_circle = graph.keys().filter(|m| reaches(&graph, m, m, &mut BTreeSet::new()));
    wrong.extend(in_a_circle.map(|m| format!("{path}{m} imports itself in a circle")));
    wrong
}

/// What a text in the folder `path` imports of it; `direct`: not from a subfolder. Unit tests may import what they test.
fn siblings(text: &str, path: &str, direct: bool) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for line in code.split(';').filter_map(|statement| statement.split_once("use ").map(|(_, path)| path.trim())) {
        if let Some(rest) = line.strip_prefix(&format!("crate::{path}")) {
            found.extend(heads(rest));
        }
        if let Some(rest) = line.strip_prefix("super::").filter(|_| direct) {
            found.extend(heads(rest));
        }
    }
    found
}

#[test]
fn no_folder_has_a_circle_of_imports() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let wrong: Vec<String> = fs::read_dir(&src)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .flat_map(|path| circles(&path, &format!("{}::", path.file_name().unwrap().to_str().unwrap())))
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    // A planted one, through a subfolder.
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    file("mod.rs", "mod a; mod b; mod c;");
    file("a.rs", "use super::b::B;");
    file("b/mod.rs", "mod inner;");
    file("b/inner.rs", "use crate::room::{c::C, d};");
    file("c.rs", "use super::d::D;\nuse std::fs;");
    file("d.rs", "");
    assert_eq!(circles(folder.path(), "room::"), Vec::<String>::new());
    file("d.rs", "use super::{c, a::A};");
    let circle = |name: &str| format!("room::{name} imports itself in a circle");
    assert_eq!(circles(folder.path(), "room::"), ["a", "b", "c", "d"].map(circle));
}

#[test]
fn planted_violations_are_found() {
    let check = |files: &[(&str, &str)]| {
        let files: Vec<_> =
            files.iter().map(|(m, text)| (m.to_string(), format!("{m}.rs"), text.to_string())).collect();
        violations(&files)
    };
    let up = "use std::fs;\nuse crate::{\n    ops::linear,\n    train::{memory, run_folder},\n};";
    assert_eq!(check(&[("model", up)]), ["model.rs: model imports train, which is above it"]);
    assert_eq!(check(&[("ops", "fn f(c: &crate::config::Config) {}")]).len(), 1);
    assert_eq!(check(&[("grpo", "use crate::device::cpu;")]), ["grpo.rs: grpo knows no device"]);
    assert_eq!(check(&[("device", "use crate::ops::linear;")]).len(), 1);
    assert_eq!(check(&[("strange", "")]).len(), 1);
    assert_eq!(check(&[("train", "use crate::strange::X;")]).len(), 1);
    let circle = [("agent", "use crate::env::E;"), ("env", "use crate::model::M;"), ("model", "use crate::agent::A;")];
    assert_eq!(check(&circle).len(), 3);
    assert!(check(&circle[..2]).is_empty(), "one layer, no circle");
    let fine = "// crate::cli\n/// [`crate::train`]\nuse crate::model::{self, Params};\nuse crate::config::Config;";
    assert!(check(&[("rollout", fine)]).is_empty());
    assert_eq!(check(&[("main", "use uncouple::cli::{self, Cli};")]), Vec::<String>::new());
}
