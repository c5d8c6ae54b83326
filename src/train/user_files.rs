//! Hashes of the files that a user brings to a run: a worker's program, demonstrations, a prompt's template, and what a model's folder
//! says of itself beside its weights.

use crate::agent::is_built_in;
use crate::config::Config;
use crate::files::FileError;
use crate::report::provenance::UserFile;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Files of a model's folder that decide how it is read and prompted.
const OF_A_MODEL: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// The files that `config` names, as they are now.
///
/// # Errors
/// One of them cannot be read.
pub fn of(config: &Config) -> Result<Vec<UserFile>, FileError> {
    let named = |key: &'static str, path: &str| (key, PathBuf::from(path));
    let mut files: Vec<(&str, PathBuf)> = Vec::new();
    if !config.model.path.is_empty() {
        files.extend(OF_A_MODEL.map(|name| ("model.path", Path::new(&config.model.path).join(name))));
    }
    files.extend(config.env.worker.command.iter().map(|part| named("env.worker.command", part)));
    files.push(named("env.demonstrations", &config.env.demonstrations));
    if !is_built_in(&config.prompt.template) {
        files.push(named("prompt.template", &config.prompt.template));
    }
    files.retain(|(_, path)| path.is_file());
    files.into_iter().map(|(key, path)| hashed(key, &path)).collect()
}

fn hashed(key: &str, path: &Path) -> Result<UserFile, FileError> {
    let mut hash = Sha256::new();
    let read = fs::File::open(path).and_then(|mut file| io::copy(&mut file, &mut hash));
    read.map_err(|e| FileError::new("read", path, e))?;
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(UserFile { key: key.into(), path: path.display().to_string(), sha256 })
}
