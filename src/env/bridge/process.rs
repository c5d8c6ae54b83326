//! A child process spoken to by lines, which never blocks us and never outlives us.

use super::Fault;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Longest line in either direction, bytes. What is sent fits into an empty pipe, so that writing never waits.
const LONGEST_SENT: usize = 32 << 10;
const LONGEST_READ: u64 = 16 << 20;
/// Lines read ahead; a child that writes more waits.
const READ_AHEAD: usize = 64;
/// What is kept of stderr, bytes: the last words for the message of an error.
const LAST_WORDS: usize = 400;

/// A running child. Dropping it kills its process group.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    last_words: Arc<Mutex<Vec<u8>>>,
}

impl Process {
    /// Starts `command` with piped stdin, stdout and stderr. It dies with us: by its parent-death signal where the system
    /// has one, and it sees the end of its stdin everywhere.
    pub fn start(mut command: Command) -> Result<Process, Fault> {
        let name = command.get_program().to_string_lossy().into_owned();
        let broken = |e: &dyn std::fmt::Display| Fault::Broken(format!("{name} cannot be started: {e}"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        die_with_parent(&mut command);
        let mut child = spawn(command).map_err(|e| broken(&e))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (sender, lines) = sync_channel(READ_AHEAD);
        let last_words = Arc::new(Mutex::new(Vec::new()));
        // From here on, dropping `process` cleans up.
        let process = Process { child, stdin, lines, last_words: last_words.clone() };
        let reader = move || {
            let mut from = stdout.map(BufReader::new);
            while let Some(line) = from.as_mut().and_then(read_line) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        };
        let listener = move || {
            let mut buffer = [0; 4096];
            let mut from = stderr;
            while let Some(Ok(count @ 1..)) = from.as_mut().map(|from| from.read(&mut buffer)) {
                let mut words = last_words.lock().unwrap_or_else(PoisonError::into_inner);
                words.extend_from_slice(&buffer[..count]);
                let excess = words.len().saturating_sub(LAST_WORDS);
                words.drain(..excess);
            }
        };
        thread::Builder::new().name("worker stdout".into()).spawn(reader).map_err(|e| broken(&e))?;
        thread::Builder::new().name("worker stderr".into()).spawn(listener).map_err(|e| broken(&e))?;
        Ok(process)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends one line. It must have been answered before the next is sent.
    pub fn send(&mut self, line: &str) -> Result<(), Fault> {
        if line.len() >= LONGEST_SENT {
            return Err(Fault::Refused(format!("{} bytes are too many for one message", line.len())));
        }
        let sent = self.stdin.as_mut().map(|stdin| stdin.write_all(format!("{line}\n").as_bytes()));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(self.ended()),
        }
    }

    /// The next line of its stdout, without the line break.
    pub fn receive(&mut self, deadline: Instant) -> Result<String, Fault> {
        let patience = deadline.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(patience).map_err(|e| match e {
            RecvTimeoutError::Timeout => Fault::Broken(format!("no answer within {:.1} s", patience.as_secs_f64())),
            RecvTimeoutError::Disconnected => self.ended(),
        })
    }

    /// Throws away what it has said so far and says from now on.
    pub fn discard_output(&mut self) {
        let (_, nothing) = sync_channel(1);
        let lines = std::mem::replace(&mut self.lines, nothing);
        // Without a thread to read on, the child waits once its pipe is full, and its next call runs into its deadline.
        let _ = thread::Builder::new().name("worker output".into()).spawn(move || lines.iter().for_each(drop));
    }

    /// Closes its stdin and gives it a moment to end by itself.
    pub fn finish(&mut self, patience: Duration) {
        self.stdin = None;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// It closed its pipes: how it ended, and its last words.
    fn ended(&mut self) -> Fault {
        self.finish(Duration::from_millis(200));
        let how = match self.child.try_wait() {
            Ok(Some(status)) => format!("it ended ({status})"),
            _ => "it closed its output".into(),
        };
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        let words = String::from_utf8_lossy(&words).split_whitespace().collect::<Vec<_>>().join(" ");
        Fault::Broken(if words.is_empty() { how } else { format!("{how}, saying: {words}") })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stdin = None;
        // While the child is not waited for, its number is its own. Its group holds what it has started itself.
        if let Ok(None) = self.child.try_wait()
            && let Some(group) = rustix::process::Pid::from_raw(self.child.id() as i32)
        {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// A line as text; `None` at the end, and when it is longer than any honest one.
fn read_line(from: &mut impl BufRead) -> Option<String> {
    let mut bytes = Vec::new();
    from.by_ref().take(LONGEST_READ).read_until(b'\n', &mut bytes).ok()?;
    let whole = bytes.pop_if(|last| *last == b'\n').is_some();
    whole.then(|| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let set = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have died before the signal was asked for.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(std::io::ErrorKind::NotFound.into()) }
    };
    // SAFETY: between fork and exec only system calls are made, nothing is allocated or locked.
    unsafe { command.pre_exec(set) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}

type Order = (Command, Sender<std::io::Result<Child>>);

/// Spawns on a thread that never ends: the death signal comes when the *thread* that spawned the child dies.
fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<Option<Sender<Order>>> = OnceLock::new();
    let start = || {
        let (orders, inbox) = channel::<Order>();
        let serve = move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        };
        thread::Builder::new().name("spawner".into()).spawn(serve).ok().map(|_| orders)
    };
    let gone = || std::io::Error::other("there is no thread to start it from");
    let (reply, answer) = channel();
    let orders = SPAWNER.get_or_init(start).as_ref().ok_or_else(gone)?;
    orders.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
