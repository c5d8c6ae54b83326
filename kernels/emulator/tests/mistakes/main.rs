//! Mistakes planted in the real kernels, one at a time: each must be found, by a fault of the emulator or by results that are wrong.
//!
//! A kernel's file is compiled anew with one piece of text changed, loaded into a process of its own and run on a small case. What
//! its results should be, the sound kernel says. A mistake whose text is no longer in the kernels is an error here.

mod cases;

use cases::{CASES, Results, Runs};
use kernel_emulator::{Kernel, Schedule, replace};
use std::cmp::Ordering::Less;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

/// Longer than any case takes, by far: a mistake may make a kernel run for ever.
const DEADLINE: Duration = Duration::from_secs(120);
/// Where a process of its own finds the library that it is to load, and its case's name.
const LIBRARY: &str = "MISTAKE_LIBRARY";
const CASE: &str = "MISTAKE_CASE";

struct Mistake {
    /// Whose kernels' file it is in, unless it is in `file` of common/.
    case: &'static str,
    file: Option<&'static str>,
    name: &'static str,
    /// `sound` first comes after this.
    after: String,
    sound: String,
    wrong: String,
    /// Why it is not found.
    escapes: String,
}

/// As mistakes.txt has them.
fn mistakes() -> Vec<Mistake> {
    let paragraphs = include_str!("mistakes.txt").split("\n\n").map(str::trim).filter(|p| !p.starts_with('#'));
    let mistake = |paragraph: &'static str| {
        let (place, name) = paragraph.lines().next().and_then(|head| head.split_once(": ")).expect("a name");
        let (case, file) = place.split_once(" in ").map_or((place, None), |(case, file)| (case, Some(file)));
        let marked = |mark: char| -> String {
            let lines = paragraph.lines().skip(1).filter_map(|line| line.strip_prefix(mark));
            lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
        };
        Mistake { case, file, name, after: marked('@'), sound: marked('-'), wrong: marked('+'), escapes: marked('!') }
    };
    paragraphs.map(mistake).collect()
}

#[derive(Debug, PartialEq)]
enum Verdict {
    /// And how.
    Found(String),
    Escaped,
}

#[test]
fn sound_kernels_pass() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let outcomes = in_parallel(CASES.len(), |i| {
        let case = CASES[i].0;
        run(&folder.path().join(case), case, None)
    });
    for ((case, _), verdict) in CASES.iter().zip(outcomes) {
        assert_eq!(verdict, Verdict::Escaped, "{case}");
    }
}

#[test]
fn mistakes_are_found() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mistakes = mistakes();
    let names: BTreeSet<(&str, &str)> = mistakes.iter().map(|m| (m.case, m.name)).collect();
    assert_eq!(names.len(), mistakes.len(), "two mistakes of one name");
    for (case, _) in CASES {
        assert!(mistakes.iter().any(|m| m.case == case), "no mistake is planted in {case}");
    }
    let verdicts = in_parallel(mistakes.len(), |i| {
        let mistake = &mistakes[i];
        run(&folder.path().join(i.to_string()), mistake.case, Some(mistake))
    });
    let mut amiss = Vec::new();
    for (Mistake { case, name, escapes, .. }, verdict) in mistakes.iter().zip(&verdicts) {
        match verdict {
            Verdict::Found(how) => println!("{case}: {name}: {how}"),
            Verdict::Escaped => println!("{case}: {name}: ESCAPES: {escapes}"),
        }
        if (*verdict == Verdict::Escaped) != (!escapes.is_empty() && !cfg!(feature = "counters")) {
            amiss.push(format!("{case}: {name}: {verdict:?}"));
        }
    }
    assert!(amiss.is_empty(), "otherwise than mistakes.txt says, of {}: {amiss:#?}", mistakes.len());
}

/// What a process of its own does; nothing in any other.
#[test]
fn one_mistake() {
    let (Some(library), Ok(case)) = (env::var_os(LIBRARY), env::var(CASE)) else { return };
    let (_, compute) = CASES.iter().find(|(name, _)| *name == case).expect("a case");
    let want = compute(&Runs(Some(Schedule::Forward))).unwrap_or_else(|fault| panic!("the sound kernel: {fault}"));
    load(Path::new(&library), &case);
    match compute(&Runs(None)) {
        Err(fault) => println!("FOUND {fault}"),
        Ok(got) => match difference(&got, &want) {
            Some(wrong) => println!("FOUND {wrong}"),
            None => println!("ESCAPED"),
        },
    }
}

/// The kernels of a file that was compiled with a mistake, in place of the sound ones.
fn load(library: &Path, stem: &str) {
    // SAFETY: compiled below, from a unit that ends in a table of kernels and their number.
    unsafe {
        let library = Box::leak(Box::new(libloading::Library::new(library).expect("a library")));
        let kernels = library.get::<*const Kernel>(format!("emulated_{stem}").as_bytes()).expect("a table");
        let count = library.get::<*const usize>(b"emulated_count").expect("its length");
        replace(std::slice::from_raw_parts(*kernels, **count));
    }
}

/// The first result that is off by more than a hundredth, of itself and of what its kind usually is.
fn difference(got: &Results, want: &Results) -> Option<String> {
    for (which, (got, want)) in got.iter().zip(want).enumerate() {
        let usual = (want.iter().map(|x| f64::from(x * x)).sum::<f64>() / want.len() as f64).sqrt() as f32;
        let wrong = |(g, w): (&f32, &f32)| (g - w).abs().partial_cmp(&(0.01 * (w.abs() + usual))) != Some(Less);
        if let Some(at) = got.iter().zip(want).position(|pair| pair.0 != pair.1 && wrong(pair)) {
            return Some(format!("element {at} of result {which} is {}, should be {}", got[at], want[at]));
        }
    }
    None
}

/// f(0) … f(n - 1), on as many threads as there are cores.
fn in_parallel<T: Send>(n: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let work = || -> Vec<(usize, T)> {
        std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < n))
            .map(|i| (i, f(i)))
            .collect()
    };
    let mut done: Vec<(usize, T)> = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..thread::available_parallelism().map_or(1, usize::from)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|w| w.join().expect("a worker")).collect()
    });
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Compiles a case's kernels in a folder, with a mistake if there is one, and runs the case on them.
fn run(folder: &Path, case: &str, mistake: Option<&Mistake>) -> Verdict {
    let library = compile(folder, case, mistake);
    let mut command = Command::new(env::current_exe().expect("this test's path"));
    command.args(["one_mistake", "--exact", "--nocapture", "--test-threads=1"]);
    let output = finish(command.env(LIBRARY, library).env(CASE, case));
    let text = output.map(|o| format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr)));
    let Some(text) = text else { return Verdict::Found("never ends".into()) };
    if let Some((_, how)) = text.split_once("FOUND ") {
        return Verdict::Found(how.lines().next().unwrap_or_default().into());
    }
    assert!(!text.contains("the sound kernel"), "{case}: {text}");
    // A process that says neither has died of what it did to its memory.
    if text.contains("ESCAPED") { Verdict::Escaped } else { Verdict::Found("ends the process".into()) }
}

fn finish(command: &mut Command) -> Option<Output> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("this test again");
    let began = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if began.elapsed() > DEADLINE {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
    Some(child.wait_with_output().expect("what it says"))
}

/// A library of one file of kernels, from a copy of all of them.
fn compile(folder: &Path, stem: &str, mistake: Option<&Mistake>) -> PathBuf {
    let (here, folder) = (Path::new(env!("CARGO_MANIFEST_DIR")), folder.join("kernels"));
    let sources = here.join("..");
    let copy = |name: &str| fs::copy(sources.join(name), folder.join(name)).map(drop);
    let copied = fs::create_dir_all(folder.join("common")).and_then(|()| copy(&format!("{stem}.cu"))).and_then(|()| {
        fs::read_dir(sources.join("common"))?
            .try_for_each(|file| copy(&format!("common/{}", file?.file_name().to_string_lossy())))
    });
    copied.expect("a copy of the kernels");
    if let Some(mistake) = mistake {
        plant(&folder, mistake).expect("a kernel's text");
    }
    // As the build script wrote it, but of the copy.
    let unit = fs::read_to_string(Path::new(env!("OUT_DIR")).join(format!("{stem}.cpp"))).expect("a unit");
    let source = |folder: &Path| folder.join(format!("{stem}.cu")).display().to_string();
    let unit = unit.replace(&source(&sources), &source(&folder));
    let count =
        format!("extern \"C\" const size_t emulated_count = sizeof(emulated_{stem}) / sizeof(emulator::Kernel);\n");
    let [file, object, library] = ["unit.cpp", "unit.o", "unit.so"].map(|name| folder.join(name));
    fs::write(&file, unit + &count).expect("a unit");
    let words: Vec<&str> = env!("EMULATOR_COMPILER").split('\t').collect();
    let name = mistake.map_or("no mistake", |m| m.name);
    let succeeds = |command: &mut Command| {
        let output = command.output().expect("a compiler");
        assert!(output.status.success(), "{stem}, {name}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let mut compiler = Command::new(words[0]);
    compiler.arg("-I").arg(&folder).args(&words[1..]).args(["-O1", "-g0", "-fPIC", "-c", "-o"]);
    succeeds(compiler.arg(&object).arg(&file));
    // It is to call its own functions, not those of their names in this process.
    let mut linker = Command::new(words[0]);
    succeeds(linker.args(["-shared", "-Wl,-Bsymbolic", "-o"]).arg(&library).arg(&object));
    library
}

/// Changes a mistake's text, which must be there.
fn plant(folder: &Path, mistake: &Mistake) -> io::Result<()> {
    let Mistake { case, name, file, after, sound, wrong, .. } = mistake;
    let path = file.map_or_else(|| folder.join(format!("{case}.cu")), |file| folder.join("common").join(file));
    let text = fs::read_to_string(&path)?;
    let at = text.find(after).and_then(|from| Some(from + text[from..].find(sound)?));
    let at = at.unwrap_or_else(|| panic!("{case}: {name}: {sound:?} is not in {} after {after:?}", path.display()));
    fs::write(&path, format!("{}{wrong}{}", &text[..at], &text[at + sound.len()..]))
}
