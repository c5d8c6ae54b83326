//! Runs a study on this machine: each task in a process of its own, several at once, a failing one without the others.

use super::plan::{Study, StudyTask};
use super::{StudyError, gate, log, status, task};
use crate::files::{self, FileError};
use crate::report::progress::say;
use crate::train::interrupt;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How tasks are started.
pub struct Launcher {
    /// The program itself.
    pub program: PathBuf,
    /// Tasks at once.
    pub jobs: usize,
    /// Threads of each.
    pub threads: usize,
}

/// What became of the tasks.
#[derive(Debug, Default)]
pub struct StudyOutcome {
    /// Names and reasons.
    pub failed: Vec<(String, String)>,
    pub interrupted: bool,
}

const LOCK: &str = ".lock";
/// Between two looks at the running tasks.
const PAUSE: Duration = Duration::from_millis(20);

enum TaskProgress {
    Waiting,
    Running(Child, Instant),
    /// Whether it succeeded.
    Over(bool),
}

/// The tasks of a run, and where they are.
struct Board<'a> {
    study: &'a Study,
    tasks: Vec<StudyTask>,
    states: Vec<TaskProgress>,
    outcome: StudyOutcome,
}

/// Runs the tasks that are not done, each after its cold start.
pub fn run(study: &Study, launcher: &Launcher, tasks: Vec<StudyTask>) -> Result<StudyOutcome, StudyError> {
    let _lock = open(study)?;
    let over = tasks
        .iter()
        .map(|t| Ok(if task::is_done(study, t)? { TaskProgress::Over(true) } else { TaskProgress::Waiting }));
    let states: Vec<TaskProgress> = over.collect::<Result<_, StudyError>>()?;
    let done = states.iter().filter(|state| matches!(state, TaskProgress::Over(_))).count();
    say(&format!("{}: {done} of {} runs are done", study.name, tasks.len()));
    let mut board = Board { study, tasks, states, outcome: StudyOutcome::default() };
    while board.is_open() {
        if interrupt::interrupted() {
            board.stop();
        }
        board.collect()?;
        while let Some(next) = board.ready(launcher.jobs) {
            let child = start(study, launcher, &board.tasks[next])?;
            say(&format!("{}: begins", study.name_of(&board.tasks[next])));
            board.states[next] = TaskProgress::Running(child, Instant::now());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(board.outcome)
}

/// The study's folder, locked against other launchers, with a copy of the study file.
fn open(study: &Study) -> Result<File, StudyError> {
    let folder = &study.folder;
    let logs = log::folder(study);
    fs::create_dir_all(&logs).map_err(|e| FileError::new("create", logs, e))?;
    let lock = File::create(folder.join(LOCK)).map_err(|e| FileError::new("create", folder.join(LOCK), e))?;
    if lock.try_lock().is_err() {
        return Err(StudyError::Locked(folder.clone()));
    }
    keep_file(study)?;
    Ok(lock)
}

/// Keeps the study file beside its results.
pub fn keep_file(study: &Study) -> Result<(), StudyError> {
    let failed = |cause| StudyError::Read { file: study.file.clone(), cause };
    let text = files::read(&study.file, files::MOST_WRITTEN).map_err(failed)?;
    Ok(files::write_file(&study.folder.join("study.toml"), |w| w.write_all(&text))?)
}

impl Board<'_> {
    fn is_open(&self) -> bool {
        let open = |state: &TaskProgress| match state {
            TaskProgress::Running(..) => true,
            TaskProgress::Waiting => !self.outcome.interrupted,
            TaskProgress::Over(_) => false,
        };
        self.states.iter().any(open)
    }

    /// The next task that can begin, if there is room for one. A cell of a failed cold start fails with it.
    fn ready(&mut self, jobs: usize) -> Option<usize> {
        let running = self.states.iter().filter(|state| matches!(state, TaskProgress::Running(..))).count();
        if running >= jobs || self.outcome.interrupted {
            return None;
        }
        for at in 0..self.tasks.len() {
            // One that an earlier launcher left at work saves and stops.
            let waits = matches!(self.states[at], TaskProgress::Waiting) && !task::is_held(self.study, &self.tasks[at]);
            match self.cold_start_of(at).map(|cold| &self.states[cold]) {
                _ if !waits => {}
                None | Some(TaskProgress::Over(true)) => return Some(at),
                Some(TaskProgress::Over(false)) => self.fail(at, "its cold start failed".into()),
                Some(TaskProgress::Waiting | TaskProgress::Running(..)) => {}
            }
        }
        None
    }

    fn cold_start_of(&self, cell: usize) -> Option<usize> {
        let StudyTask { start, seed, variant } = self.tasks[cell];
        variant?;
        self.tasks.iter().position(|t| (t.start, t.seed, t.variant) == (start, seed, None))
    }

    fn fail(&mut self, at: usize, reason: String) {
        let name = self.study.name_of(&self.tasks[at]);
        let file = log::file(self.study, &self.tasks[at]);
        say(&format!("{name}: failed: {reason} (its log: {})", file.display()));
        self.outcome.failed.push((name, reason));
        self.states[at] = TaskProgress::Over(false);
    }

    /// Takes the results of the tasks that have ended.
    fn collect(&mut self) -> Result<(), StudyError> {
        for at in 0..self.tasks.len() {
            let TaskProgress::Running(child, began) = &mut self.states[at] else { continue };
            let what = || "a look at a child process".to_string();
            let Some(ended) = child.try_wait().map_err(|cause| StudyError::Start { what: what(), cause })? else {
                continue;
            };
            let seconds = began.elapsed().as_secs();
            self.end(at, ended, seconds)?;
        }
        Ok(())
    }

    fn end(&mut self, at: usize, ended: ExitStatus, seconds: u64) -> Result<(), StudyError> {
        let (study, task) = (self.study, self.tasks[at].clone());
        if ended.success() && task::is_done(study, &task)? {
            self.states[at] = TaskProgress::Over(true);
            let short = status::of(study, &task)?.in_short();
            say(&format!("{}: done in {seconds} s: {short}", study.name_of(&task)));
            for line in gate::verdict_of(study, &task)? {
                say(&format!("{}: {line}", study.name_of(&task)));
            }
        } else if interrupt::interrupted() {
            self.states[at] = TaskProgress::Waiting;
        } else {
            self.fail(at, log::last_error(study, &task).unwrap_or_else(|| format!("it ended with {ended}")));
        }
        Ok(())
    }

    /// Begins nothing more, and asks what runs to save and stop.
    fn stop(&mut self) {
        self.outcome.interrupted = true;
        for state in &mut self.states {
            if let TaskProgress::Running(child, _) = state {
                drop(child.stdin.take());
            }
        }
    }
}

/// Starts a task. It holds on to this process by its stdin, which closes with it.
fn start(study: &Study, launcher: &Launcher, task: &StudyTask) -> Result<Child, StudyError> {
    let (path, name) = (log::file(study, task), study.name_of(task));
    let failed = |e| FileError::new("open", &path, e);
    let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    writeln!(file, "{}{name}", log::BEGIN).map_err(failed)?;
    let out = file.try_clone().map_err(failed)?;
    let mut command = Command::new(&launcher.program);
    command.args(arguments(study, &name)).arg("--attached");
    command.env("RAYON_NUM_THREADS", launcher.threads.to_string());
    command.stdin(Stdio::piped()).stdout(out).stderr(file);
    command.spawn().map_err(|cause| StudyError::Start { what: format!("{}", launcher.program.display()), cause })
}

/// The program's arguments for a task of this name.
pub fn arguments(study: &Study, name: &str) -> Vec<String> {
    let mut all = vec!["study".into(), "cell".into(), study.file.display().to_string(), name.into()];
    let device = match study.place() {
        crate::train::memory::Placement::Cpu => "cpu",
        crate::train::memory::Placement::Gpu => "cuda",
    };
    all.extend(["--device".into(), device.into()]);
    all.extend(study.given.dir.iter().flat_map(|dir| ["--dir".into(), dir.clone()]));
    all.extend(study.given.set.iter().flat_map(|set| ["--set".into(), set.clone()]));
    all
}
