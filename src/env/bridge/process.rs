//! A child process spoken to by lines, which never blocks us and never outlives us.

use super::lines::{End, Lines};
use super::{Fault, guard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use std::io::{ErrorKind, Read, Write};
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What is kept of stderr, bytes: the last words for the message of an error.
const LAST_WORDS: usize = 400;
/// Time to end for one that has closed its output.
const PARTING: Duration = Duration::from_millis(200);
/// Time for its last words to arrive, when all who could say more are dead. Only one that left the group can make us wait.
const SILENCE: Duration = Duration::from_secs(2);

/// A running child. Dropping it kills its process group: what it has started itself, too, unless that has left the group.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Arc<Lines>,
    last_words: Arc<Mutex<Vec<u8>>>,
    /// Listens to its stderr.
    listener: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts `command` with piped stdin, stdout and stderr.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn start(mut command: Command) -> Result<Process, Fault> {
        let name = command.get_program().to_string_lossy().into_owned();
        let broken = |e: &dyn std::fmt::Display| Fault::Broken(format!("{name} cannot be started: {e}"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = guard::spawn(command).map_err(|e| broken(&e))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (lines, last_words) = (Arc::new(Lines::default()), Arc::new(Mutex::new(Vec::new())));
        // From here on, dropping `process` cleans up.
        let mut process =
            Process { child, stdin, lines: lines.clone(), last_words: last_words.clone(), listener: None };
        if let Some(stdin) = &process.stdin {
            rustix::io::ioctl_fionbio(stdin, true).map_err(|e| broken(&e))?;
        }
        let read = move || stdout.into_iter().for_each(|from| lines.fill(from));
        let listen = move || stderr.into_iter().for_each(|from| keep_end(from, &last_words));
        thread::Builder::new().name("worker stdout".into()).spawn(read).map_err(|e| broken(&e))?;
        let listener = thread::Builder::new().name("worker stderr".into()).spawn(listen);
        process.listener = Some(listener.map_err(|e| broken(&e))?);
        Ok(process)
    }

    /// The operating system's number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends one line, though the child may not read.
    ///
    /// # Errors
    /// If the process has ended, has written a line without being asked, or does not read by `deadline`.
    pub fn send(&mut self, line: &str, deadline: Instant) -> Result<(), Fault> {
        if self.lines.has_unread() {
            return Err(Fault::Broken("it spoke before it was asked".into()));
        }
        let line = format!("{line}\n");
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            let Some(stdin) = &mut self.stdin else { return Err(self.ended()) };
            match stdin.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if !becomes_writable(stdin, deadline) {
                        return Err(Fault::Broken("it did not read what it was sent in time".into()));
                    }
                }
                Err(_) => return Err(self.ended()),
            }
        }
        Ok(())
    }

    /// The next line of its stdout, without the line break.
    ///
    /// # Errors
    /// If the process has ended, writes too long a line, or writes none by `deadline`.
    pub fn receive(&mut self, deadline: Instant) -> Result<String, Fault> {
        let patience = deadline.saturating_duration_since(Instant::now());
        self.lines.next(deadline).map_err(|end| match end {
            End::TimedOut if !self.has_exited() => {
                Fault::Broken(format!("no answer within {:.1} s", patience.as_secs_f64()))
            }
            end => end.excess().map_or_else(|| self.ended(), Fault::Broken),
        })
    }

    /// Throws away what it has said so far and says from now on.
    pub fn discard_output(&mut self) {
        self.lines.discard();
    }

    /// Closes its stdin and gives it a moment to end by itself.
    pub fn finish(&mut self, patience: Duration) {
        self.stdin = None;
        wait_until(patience, || self.has_exited());
    }

    /// Whether it has ended, without waiting for it: its number stays its own.
    fn has_exited(&self) -> bool {
        let Some(id) = Pid::from_raw(self.child.id() as i32) else { return true };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        // An error: it has been waited for.
        !matches!(waitid(WaitId::Pid(id), options), Ok(None))
    }

    /// It closed its pipes: how it ended, and its last words.
    fn ended(&mut self) -> Fault {
        self.finish(PARTING);
        let exited = self.has_exited();
        let how = match guard::end(&mut self.child) {
            Ok(status) if exited => format!("it ended ({status})"),
            _ => "it closed its output".into(),
        };
        wait_until(SILENCE, || self.listener.as_ref().is_none_or(JoinHandle::is_finished));
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        let words = String::from_utf8_lossy(&words).split_whitespace().collect::<Vec<_>>().join(" ");
        Fault::Broken(if words.is_empty() { how } else { format!("{how}, saying: {words}") })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = guard::end(&mut self.child);
    }
}

/// Waits until something is so, at most so long.
fn wait_until(patience: Duration, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a pipe takes more before the deadline, or will take nothing ever: then writing tells.
fn becomes_writable(pipe: &ChildStdin, deadline: Instant) -> bool {
    let patience = deadline.saturating_duration_since(Instant::now());
    let patience = Timespec::try_from(patience).ok();
    let mut polled = [PollFd::new(pipe, PollFlags::OUT)];
    match poll(&mut polled, patience.as_ref()) {
        Ok(ready) => ready > 0,
        Err(e) => e == rustix::io::Errno::INTR && Instant::now() < deadline,
    }
}

/// Reads to the end, and keeps the last bytes.
fn keep_end(mut from: ChildStderr, end: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut end = end.lock().unwrap_or_else(PoisonError::into_inner);
        end.extend_from_slice(&buffer[..count]);
        let excess = end.len().saturating_sub(LAST_WORDS);
        end.drain(..excess);
    }
}
