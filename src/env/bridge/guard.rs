//! Process groups of workers, which never outlive this process.
//!
//! A shell waits for the end of a pipe that only this process holds. However this process ends, the system closes the pipe, and
//! the shell kills the groups that are left: the workers and what they have started.

use rustix::process::{Pid, Signal, getpid, kill_process_group};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Reads `+ GROUP` and `- GROUP`, and kills the groups that are left at the end. `kill -9 -GROUP` is what all shells know.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
groups=' '
while read -r sign group; do
    case $sign in
        +) groups="$groups$group " ;;
        -) groups="${groups%% $group *} ${groups#* $group }" ;;
    esac
done
for group in $groups; do kill -9 "-$group"; done
"#;

static GUARD: Mutex<Guard> = Mutex::new(Guard { shell: None, groups: BTreeSet::new() });

struct Guard {
    shell: Option<Shell>,
    groups: BTreeSet<u32>,
}

struct Shell {
    child: Child,
    pipe: Arc<OwnedFd>,
}

fn guard() -> MutexGuard<'static, Guard> {
    GUARD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts `command` as the leader of a group of its own. The guard knows the group before the command's first instruction.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    let mut guard = guard();
    let pipe = guard.pipe()?;
    command.process_group(0);
    // SAFETY: between fork and exec only system calls are made, nothing is allocated or locked.
    unsafe { command.pre_exec(move || announce(&pipe)) };
    let child = command.spawn();
    match &child {
        Ok(child) => drop(guard.groups.insert(child.id())),
        // What could not be started has announced its group, too, whose number may soon be another's.
        Err(_) => guard.renew(),
    }
    child
}

/// Kills the group of a child of [`spawn`], whether the child itself lives or not, and waits for the child.
pub fn end(child: &mut Child) -> io::Result<ExitStatus> {
    // Until the child is waited for, its number is nobody else's.
    if let Some(group) = Pid::from_raw(child.id() as i32) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    guard().forget(child.id());
    child.wait()
}

/// Tells the guard the group of this process, which has just been forked and leads it.
fn announce(pipe: &OwnedFd) -> io::Result<()> {
    let mut line = [0; 16];
    let mut rest = &mut line[..];
    writeln!(rest, "+ {}", getpid())?;
    let unused = rest.len();
    rustix::io::write(pipe, &line[..line.len() - unused])?;
    Ok(())
}

impl Guard {
    /// The pipe to a shell that lives.
    fn pipe(&mut self) -> io::Result<Arc<OwnedFd>> {
        let ended = |shell: &mut Shell| !matches!(shell.child.try_wait(), Ok(None));
        if self.shell.as_mut().is_none_or(ended) {
            self.shell = Some(Shell::start(&self.groups)?);
        }
        let pipe = self.shell.as_ref().map(|shell| shell.pipe.clone());
        pipe.ok_or_else(|| io::Error::other("its guard has ended"))
    }

    /// Ends the shell before it can act, and starts another for the groups that there are. Where that fails, the next [`spawn`] does.
    fn renew(&mut self) {
        if let Some(Shell { mut child, pipe }) = self.shell.take() {
            let _ = child.kill();
            let _ = child.wait();
            drop(pipe);
        }
        if !self.groups.is_empty() {
            let _ = self.pipe();
        }
    }

    fn forget(&mut self, group: u32) {
        self.groups.remove(&group);
        let told = self.shell.as_ref().map(|shell| write_line(&shell.pipe, '-', group));
        if matches!(told, Some(Err(_))) {
            self.renew();
        }
    }
}

impl Shell {
    fn start(groups: &BTreeSet<u32>) -> io::Result<Shell> {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "uncouple-guard"]).current_dir("/").process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let pipe = child.stdin.take().ok_or_else(|| io::Error::other("its guard has no pipe"))?;
        let shell = Shell { child, pipe: Arc::new(pipe.into()) };
        groups.iter().try_for_each(|group| write_line(&shell.pipe, '+', *group))?;
        Ok(shell)
    }
}

fn write_line(pipe: &OwnedFd, sign: char, group: u32) -> io::Result<()> {
    rustix::io::write(pipe, format!("{sign} {group}\n").as_bytes())?;
    Ok(())
}
