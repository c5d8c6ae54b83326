//! Changed files of every format that comes from outside: no reader panics, hangs or takes memory without end.
//!
//! The inputs are the same in every run. `UNCOUPLE_FUZZ=1000000 cargo test --release --test fuzz -- --nocapture` reads a million of
//! them, and `UNCOUPLE_FUZZ_TARGET=game` those of one format.

mod known;
#[path = "../common/lift.rs"]
mod lift;
mod mutate;
#[path = "../common/runs.rs"]
#[allow(dead_code)]
mod runs;
mod targets;
mod watch;

use mutate::Random;
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use targets::{Bases, TARGETS, Target};
use uncouple::env::household::Household;
use uncouple::train::run_folder::Existing;

/// Inputs of a usual run.
const USUAL: u64 = 40_000;
/// What the numbers of inputs of all targets add up to.
const INPUTS: u64 = 100_000;
/// A hang: on a busy machine a usual run may stand still for long.
const HANG: Duration = Duration::from_secs(60);
/// A hang in a run of the number of inputs that was requested.
const HANG_BY_HAND: Duration = Duration::from_secs(5);

/// Where and with what words the last panic was.
static PANIC: Mutex<Option<(String, String)>> = Mutex::new(None);

fn note_panics() {
    std::panic::set_hook(Box::new(|info| {
        let at = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        let payload = info.payload();
        let words = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        *PANIC.lock().unwrap() = Some((at, words.unwrap_or_default().to_string()));
    }));
}

/// What came of one format.
#[derive(Default)]
struct Outcome {
    inputs: u64,
    slowest: Duration,
    peak: usize,
    /// By the place of the panic: how many, and the first one in words.
    panics: BTreeMap<String, (u64, String)>,
}

impl Outcome {
    /// Reads one input, which is kept in `file` should it end the process.
    fn read(&mut self, target: &Target, input: &[u8], what: &str, bases: &Bases, file: &Path) {
        fs::write(file, input).unwrap();
        let mut panicked = false;
        let read = || panicked = catch_unwind(AssertUnwindSafe(|| (target.read)(input, bases))).is_err();
        let (time, peak) = watch::measured(file, read);
        (self.slowest, self.peak) = (self.slowest.max(time), self.peak.max(peak));
        self.inputs += 1;
        if panicked {
            let (at, message) = PANIC.lock().unwrap().take().unwrap_or_default();
            let (count, _) = self.panics.entry(at).or_insert_with(|| {
                let kept = file.with_extension(format!("panic-{}", self.inputs));
                fs::write(&kept, input).unwrap();
                (0, format!("{}, {what}: {message} (the input is {})", target.name, kept.display()))
            });
            *count += 1;
        }
    }
}

/// A run of which the files of a run folder come.
fn finished_run(dir: &Path) -> PathBuf {
    let set = [
        "run.iterations=1",
        "sft.steps=2",
        "sft.checkpoint_every=0",
        "run.keep_checkpoints=1",
        "coupling.every=1",
        "coupling.samples=4",
    ];
    let config = runs::tiny(dir, "run", &set);
    uncouple::train::train(config, &Household::new(0), Existing::Refuse).unwrap();
    dir.join("run")
}

#[test]
fn no_input_makes_a_reader_panic_hang_or_take_memory_without_end() {
    let asked =
        std::env::var("UNCOUPLE_FUZZ").ok().map(|count| count.parse::<u64>().expect("UNCOUPLE_FUZZ is a number"));
    let only = std::env::var("UNCOUPLE_FUZZ_TARGET").ok();
    let folder = tempfile::tempdir().unwrap();
    let bases = Bases::new(finished_run(folder.path()), folder.path().join("scratch"));
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    fs::create_dir_all(&kept).unwrap();
    note_panics();
    watch::end_hangs(if asked.is_some() { HANG_BY_HAND } else { HANG });
    let known = known::all(&bases);
    let (mut panics, mut all) = (Vec::new(), 0);
    for target in TARGETS.iter().filter(|target| only.as_deref().is_none_or(|only| only == target.name)) {
        let mut outcome = Outcome::default();
        let file = kept.join(target.name.replace(' ', "-"));
        for (i, known) in known.iter().filter(|known| known.target == target.name).enumerate() {
            outcome.read(target, &known.input, &format!("known input {i}"), &bases, &file);
        }
        for index in 0..target.inputs * asked.unwrap_or(USUAL) / INPUTS {
            let input = (target.make)(&mut Random::new(target.name, index), &bases);
            outcome.read(target, &input, &format!("input {index}"), &bases, &file);
        }
        let Outcome { inputs, slowest, peak, .. } = outcome;
        println!(
            "{:18} {inputs:7} inputs, slowest {:5.2} s, most memory {:4} MiB, {} panics",
            target.name,
            slowest.as_secs_f64(),
            peak >> 20,
            outcome.panics.len()
        );
        panics.extend(outcome.panics.into_iter().map(|(at, (count, first))| format!("{count} times at {at}: {first}")));
        all += inputs;
    }
    _ = std::panic::take_hook();
    assert!(panics.is_empty(), "{} panics in {all} inputs\n{}", panics.len(), panics.join("\n"));
    assert!(all > 0, "no format has this name");
    println!("{all} inputs");
}
