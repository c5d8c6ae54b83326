//! Where a run came from: program, command, machine, dates, games. Kept in `provenance.json` from the beginning, in `summary.json` at the end.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name of the file in a run folder.
pub const FILE: &str = "provenance.json";

/// The commit that the program was built from, with `+` where files had been changed since; where it is known.
pub const COMMIT: Option<&str> = option_env!("UNCOUPLE_COMMIT");

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Provenance {
    pub games: GameHashes,
    /// The processes that trained in the folder, oldest first.
    pub sessions: Vec<ProcessRecord>,
}

/// What is played.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GameHashes {
    pub suite: String,
    /// SHA-256 of the suite's files, where it has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// SHA-256 of the evaluation games of each split: runs that have the same one were asked the same.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub panels: BTreeMap<String, String>,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessRecord {
    pub version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    pub command: Vec<String>,
    pub host: String,
    pub system: String,
    /// What it trained on.
    pub device: String,
    /// Dates in UTC; `seen` is that of the last checkpoint or of the end.
    pub began: String,
    pub seen: String,
    /// Files of the user that it read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<UserFile>,
}

/// A file of the user as it was when training began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserFile {
    /// The key of the configuration that names it, or the folder it is in.
    pub key: String,
    /// As the configuration names it.
    pub path: String,
    /// In hex.
    pub sha256: String,
}

impl ProcessRecord {
    /// This process, which begins to train from `files`; on the CPU where no `device` is given.
    pub fn this(device: Option<String>, files: Vec<UserFile>) -> ProcessRecord {
        let unknown = || "unknown".to_string();
        let system = sysinfo::System::long_os_version().unwrap_or_else(unknown);
        let began = now();
        ProcessRecord {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: COMMIT.map(String::from),
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
            host: sysinfo::System::host_name().unwrap_or_else(unknown),
            system: format!("{system}, {}", std::env::consts::ARCH),
            device: device.unwrap_or_else(processor),
            seen: began.clone(),
            began,
            files,
        }
    }

    /// The command as a shell takes it.
    pub fn command_line(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
        let quoted = |arg: &String| match !arg.is_empty() && arg.chars().all(plain) {
            true => arg.clone(),
            false => format!("'{}'", arg.replace('\'', r"'\''")),
        };
        self.command.iter().map(quoted).collect::<Vec<_>>().join(" ")
    }
}

/// The time, to the second, in UTC.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim()));
    let cores = std::thread::available_parallelism().map_or_else(|_| "?".into(), |n| n.to_string());
    format!("{}, {cores} cores", model.unwrap_or(std::env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_quoted_for_a_shell() {
        let command = ["uncouple", "train", "--set", "env.worker.command=[\"a b\", 'c']"].map(String::from).to_vec();
        let process = ProcessRecord { command, ..ProcessRecord::default() };
        assert_eq!(process.command_line(), r#"uncouple train --set 'env.worker.command=["a b", '\''c'\'']'"#);
    }

    #[test]
    fn this_process_says_when_it_began_and_where() {
        let this = ProcessRecord::this(None, Vec::new());
        assert!(this.began.len() == 20 && this.began.ends_with('Z') && this.began.starts_with("20"), "{this:?}");
        assert!(!this.host.is_empty() && this.device.ends_with("cores"), "{this:?}");
        assert_eq!(ProcessRecord::this(Some("a GPU".into()), Vec::new()).device, "a GPU");
    }
}
