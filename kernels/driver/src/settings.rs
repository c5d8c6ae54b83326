//! What the environment chooses.

use crate::status::Status;
use kernel_emulator::Schedule;
use std::path::PathBuf;
use std::str::FromStr;

/// Read once, at the first call. Every variable is named `SOFTWARE_GPU_` and what follows; a value that makes no sense ends the process.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `COMPUTE_CAPABILITY`, 9.0 by default.
    pub compute_capability: (u32, u32),
    /// `MULTIPROCESSORS`, 3.
    pub multiprocessors: u32,
    /// `MEMORY_MB`, 4096: the GPU's whole memory. What nobody touches takes none of the host's.
    pub memory: usize,
    /// `DRIVER`, 13000: the release that the driver says it is of.
    pub driver: i32,
    /// `CUBLASLT`, 130000: likewise.
    pub cublaslt: usize,
    /// `EAGER=1`, or CUDA_LAUNCH_BLOCKING=1: runs each command at once, instead of as late as it may.
    pub eager: bool,
    /// `SCHEDULE`: the order of a kernel's threads: `forward`, `reverse`, or the seed of a random one.
    pub schedule: Schedule,
    /// `FAIL=function:n:code`: the n-th call of a function, as the headers name it without its version, answers this code.
    pub fail: Option<Failure>,
    /// `FAULT=n`: the n-th kernel that runs touches memory that is not there.
    pub fault: Option<u64>,
    /// `TRACE`: a file for one line a call (see `trace.rs`).
    pub trace: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub function: String,
    /// From 1.
    pub call: u64,
    pub status: Status,
}

impl Settings {
    /// From variables by name; an error names the variable.
    pub fn read(var: impl Fn(&str) -> Option<String>) -> Result<Settings, String> {
        let blocking = var("CUDA_LAUNCH_BLOCKING").is_some_and(|value| value == "1");
        let var = |name: &str| var(&format!("SOFTWARE_GPU_{name}"));
        Ok(Settings {
            compute_capability: parse(&var, "COMPUTE_CAPABILITY", "a version such as 9.0", (9, 0), |v| {
                let (major, minor) = v.split_once('.')?;
                Some((major.parse().ok()?, minor.parse().ok()?))
            })?,
            multiprocessors: number(&var, "MULTIPROCESSORS", 3)?,
            memory: number::<usize>(&var, "MEMORY_MB", 4096)? << 20,
            driver: number(&var, "DRIVER", 13000)?,
            cublaslt: number(&var, "CUBLASLT", 130_000)?,
            eager: blocking || number(&var, "EAGER", 0u8)? != 0,
            schedule: parse(&var, "SCHEDULE", "forward, reverse or a seed", Schedule::Forward, |v| match v {
                "forward" => Some(Schedule::Forward),
                "reverse" => Some(Schedule::Reverse),
                seed => seed.parse().ok().map(Schedule::Random),
            })?,
            fail: parse(&var, "FAIL", "function:n:code", None, |v| {
                let [function, call, status] = v.split(':').collect::<Vec<_>>()[..] else { return None };
                let (function, call, status) = (function.into(), call.parse().ok()?, status.parse().ok()?);
                Some(Some(Failure { function, call, status }))
            })?,
            fault: parse(&var, "FAULT", "a number", None, |v| v.parse().ok().map(Some))?,
            trace: var("TRACE").map(PathBuf::from),
        })
    }
}

fn number<T: FromStr>(var: &impl Fn(&str) -> Option<String>, name: &str, default: T) -> Result<T, String> {
    parse(var, name, "a number", default, |v| v.parse().ok())
}

fn parse<T>(
    var: &impl Fn(&str) -> Option<String>,
    name: &str,
    wanted: &str,
    default: T,
    of: impl Fn(&str) -> Option<T>,
) -> Result<T, String> {
    match var(name) {
        None => Ok(default),
        Some(value) => of(&value).ok_or_else(|| format!("SOFTWARE_GPU_{name} is \"{value}\": it should be {wanted}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, value: &str) -> Result<Settings, String> {
        Settings::read(|asked| (asked == name).then(|| value.to_string()))
    }

    #[test]
    fn reads_what_is_given_and_refuses_nonsense_by_name() {
        assert_eq!(read("SOFTWARE_GPU_COMPUTE_CAPABILITY", "8.6").unwrap().compute_capability, (8, 6));
        assert_eq!(read("SOFTWARE_GPU_SCHEDULE", "7").unwrap().schedule, Schedule::Random(7));
        let failure = Failure { function: "cuMemAlloc".into(), call: 2, status: 1 };
        assert_eq!(read("SOFTWARE_GPU_FAIL", "cuMemAlloc:2:1").unwrap().fail, Some(failure));
        for (name, value) in [("MEMORY_MB", "much"), ("COMPUTE_CAPABILITY", "9"), ("FAIL", "cuInit:1"), ("FAULT", "-1")]
        {
            let name = format!("SOFTWARE_GPU_{name}");
            assert!(read(&name, value).unwrap_err().contains(&name));
        }
    }
}
