//! Runs the program on a software GPU, and reads the trace of what it asked of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use uncouple::device::kernels::MODULES;

/// Longer than any run here takes, by far.
const DEADLINE: Duration = Duration::from_secs(300);

/// A folder with the library under the names that CUDA's have, and room for a test's files.
pub struct Device {
    folder: Rc<TempDir>,
    settings: Vec<(&'static str, String)>,
}

/// What a run of the program left.
pub struct Run {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub trace: Trace,
}

/// One line a call: see kernels/driver/src/trace.rs.
#[derive(Default)]
pub struct Trace(pub Vec<Vec<String>>);

impl Device {
    /// `None`, and a line that says so, in a build without kernels.
    pub fn new() -> Option<Device> {
        if MODULES.is_empty() {
            // Past the test harness, which would keep it to itself.
            let _ = io::stderr().write_all(
                b"SKIPPED: this build has no CUDA kernels: with UNCOUPLE_CUDA=require it runs on a software GPU\n",
            );
            return None;
        }
        // Cargo builds it beside this test.
        Some(Device::of(&std::env::current_exe().expect("a path").with_file_name("libsoftware_gpu.so")))
    }

    /// Another build of the library.
    pub fn on(&self, library: &Path) -> Device {
        Device { settings: self.settings.clone(), ..Device::of(library) }
    }

    fn of(library: &Path) -> Device {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(library.exists(), "{} is not there", library.display());
        for name in ["libcuda.so.1", "libcublasLt.so.13"] {
            symlink(library, folder.path().join(name)).expect("a link");
        }
        Device { folder: Rc::new(folder), settings: Vec::new() }
    }

    /// The same folder, to be given other settings.
    pub fn again(&self) -> Device {
        Device { folder: Rc::clone(&self.folder), settings: self.settings.clone() }
    }

    /// With one of the variables of kernels/driver/src/settings.rs, named without its beginning.
    pub fn with(mut self, name: &'static str, value: &str) -> Device {
        self.settings.push((name, value.into()));
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uncouple"));
        command.args(args).env("LD_LIBRARY_PATH", self.folder.path()).env_remove("CUDA_VISIBLE_DEVICES");
        command.env("SOFTWARE_GPU_TRACE", self.path("trace"));
        for (name, value) in &self.settings {
            let variable: OsString = format!("SOFTWARE_GPU_{name}").into();
            command.env(variable, value);
        }
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, args: &[&str]) -> Run {
        let trace = self.path("trace");
        let _ = std::fs::remove_file(&trace);
        let mut command = self.command(args);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let (status, stdout, stderr) = finish(child.expect("the program starts"), args);
        Run { status, stdout, stderr, trace: Trace::read(&trace) }
    }

    /// Runs it, and holds it to success without a violation.
    pub fn succeeds(&self, args: &[&str]) -> Run {
        let run = self.run(args);
        assert!(run.status.success(), "{args:?}: {}\n{}\n{}", run.status, run.stdout, run.stderr);
        run.trace.expect_no_violation();
        run
    }
}

fn finish(mut child: Child, args: &[&str]) -> (ExitStatus, String, String) {
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut text = String::new();
            pipe.map(|mut pipe| pipe.read_to_string(&mut text)).transpose().expect("text");
            text
        })
    };
    let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let began = Instant::now();
    let status = loop {
        match child.try_wait().expect("a child") {
            Some(status) => break status,
            None if began.elapsed() > DEADLINE => {
                let _ = child.kill();
                panic!("{args:?} hangs:\n{}", stderr.join().expect("text"));
            }
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    (status, stdout.join().expect("text"), stderr.join().expect("text"))
}

impl Trace {
    /// Empty where the program never reached the driver.
    fn read(file: &Path) -> Trace {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        Trace(text.lines().map(|line| line.split(' ').map(String::from).collect()).collect())
    }

    /// The lines that begin with a word.
    pub fn of<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a [String]> {
        self.0.iter().filter(move |line| line[0] == word).map(|line| &line[1..])
    }

    /// How often each function was called.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        self.of("calls").map(|line| (line[0].clone(), line[1].parse().expect("a number"))).collect()
    }

    pub fn expect_no_violation(&self) {
        let found: Vec<String> = self.of("violation").map(|line| line.join(" ")).collect();
        assert!(found.is_empty(), "{found:#?}");
    }
}
