//! Files that are either whole or not there: written to a temporary name, fsynced, renamed.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A file operation that failed: what, where, why, and for a full disk the mend.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {}", .path.display(), reason(.cause))]
pub struct FileError {
    /// E.g. `write`.
    pub action: &'static str,
    pub path: PathBuf,
    pub cause: io::Error,
}

impl FileError {
    pub fn new(action: &'static str, path: impl Into<PathBuf>, cause: io::Error) -> FileError {
        FileError { action, path: path.into(), cause }
    }

    /// Whether freeing disk space would mend it.
    pub fn is_disk_full(&self) -> bool {
        is_disk_full(&self.cause)
    }
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn reason(cause: &io::Error) -> String {
    if is_disk_full(cause) {
        "the disk is full; what was saved before is whole: free some space, then go on with --resume".into()
    } else {
        cause.to_string()
    }
}

/// The name under which `path` is written until it is whole. Starts with a dot: never taken for a finished one.
fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.unfinished"))
}

/// Makes a rename in the folder survive a power cut.
fn sync_folder(folder: &Path) -> Result<(), FileError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| FileError::new("sync", folder, e))
}

/// The folder that holds `path`.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Replaces `path` by what `fill` writes; on any error the old file stays as it was.
pub fn write_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), FileError> {
    let temporary = unfinished(path);
    let written = File::create(&temporary).and_then(|file| {
        let mut writer = io::BufWriter::new(file);
        fill(&mut writer)?;
        writer.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        fs::rename(&temporary, path)
    });
    written.map_err(|e| {
        let _ = fs::remove_file(&temporary);
        FileError::new("write", path, e)
    })?;
    sync_folder(parent(path))
}

/// Replaces the folder `path` by one that `fill` filled under a temporary name; on any error the old folder stays.
pub fn write_folder<E: From<FileError>>(path: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let temporary = unfinished(path);
    let made = remove_tree(&temporary)
        .and_then(|()| fs::create_dir_all(&temporary))
        .map_err(|e| FileError::new("create", &temporary, e));
    let filled = made.map_err(E::from).and_then(|()| fill(&temporary));
    let done = filled.and_then(|()| {
        sync_files(&temporary)?;
        let old = retire(path)?;
        fs::rename(&temporary, path).map_err(|e| {
            // Best effort: what was there goes back to its place.
            let _ = fs::rename(&old, path);
            FileError::new("write", path, e)
        })?;
        sync_folder(parent(path))?;
        Ok(remove_tree(&old).map_err(|e| FileError::new("remove", old, e))?)
    });
    if done.is_err() {
        let _ = remove_tree(&temporary);
    }
    done
}

/// Removes a folder and all in it; a half-removed folder is never seen under its name. Absent is fine.
pub fn remove_folder(path: &Path) -> Result<(), FileError> {
    let old = retire(path)?;
    remove_tree(&old).map_err(|e| FileError::new("remove", old, e))
}

/// Moves a folder (if there is one) to the name under which it is deleted.
fn retire(path: &Path) -> Result<PathBuf, FileError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let retired = path.with_file_name(format!(".{name}.removed"));
    let moved = remove_tree(&retired).and_then(|()| match fs::rename(path, &retired) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    });
    moved.map_err(|e| FileError::new("remove", path, e))?;
    Ok(retired)
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn sync_files(folder: &Path) -> Result<(), FileError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |e| FileError::new("sync", path, e)
    };
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let path = entry.map_err(failed(folder))?.path();
        if path.is_dir() {
            sync_files(&path)?;
        } else {
            File::open(&path).and_then(|f| f.sync_all()).map_err(failed(&path))?;
        }
    }
    sync_folder(folder)
}
