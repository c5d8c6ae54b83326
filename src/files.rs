//! Files that are either whole or not there: written to a temporary name, fsynced, renamed.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

mod read;
pub use read::{MOST_KEPT, MOST_WRITTEN, check_regular, open, read, read_text};

/// A file operation that failed: what, where, why, and for a full disk the mend.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {}", .path.display(), reason(.cause))]
pub struct FileError {
    /// E.g. `write`.
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// What the operating system said.
    pub cause: io::Error,
}

impl FileError {
    /// The failure to `action` the file at `path`.
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

const UNFINISHED: &str = ".unfinished";
const REMOVED: &str = ".removed";

/// The name under which `path` is written until it is whole. Starts with a dot: never taken for a finished one.
fn unfinished(path: &Path) -> PathBuf {
    hidden(path, UNFINISHED)
}

/// The name under which the folder `path` is deleted.
pub fn removed(path: &Path) -> PathBuf {
    hidden(path, REMOVED)
}

fn hidden(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{suffix}"))
}

/// Whether a name is one that files and folders have only while they are written or deleted.
pub fn is_leftover(name: &str) -> bool {
    name.starts_with('.') && [UNFINISHED, REMOVED].iter().any(|suffix| name.ends_with(suffix))
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
///
/// # Errors
/// If `fill` fails, or the file cannot be written, flushed or renamed.
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
///
/// # Errors
/// If `fill` fails, or the folder cannot be written, flushed or renamed.
pub fn write_folder<E: From<FileError>>(path: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let temporary = unfinished(path);
    let made = remove_tree(&temporary)
        .and_then(|()| fs::create_dir_all(&temporary))
        .map_err(|e| FileError::new("create", &temporary, e));
    let filled = made.map_err(E::from).and_then(|()| fill(&temporary));
    let done = filled.and_then(|()| {
        sync_files(&temporary)?;
        replace(&temporary, path, exchange).map_err(|e| FileError::new("write", path, e))?;
        Ok(sync_folder(parent(path))?)
    });
    let swept = |old: PathBuf| remove_tree(&old).map_err(|e| FileError::new("remove", old, e));
    match done {
        // What was there before has one of these names.
        Ok(()) => Ok(swept(temporary).and_then(|()| swept(removed(path)))?),
        Err(e) => {
            let _ = swept(temporary);
            Err(e)
        }
    }
}

/// Gives the folder `new` the name `path`; a folder that had it is then called as `new` was, or [`removed`]. Killed at any moment,
/// it leaves the old folder or the new one, whole: under its name, or where there is no `exchange`, the old one as [`removed`].
fn replace(new: &Path, path: &Path, exchange: impl Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    if fs::symlink_metadata(path).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
        return fs::rename(new, path);
    }
    match exchange(new, path) {
        Err(e) if e.kind() == ErrorKind::Unsupported => {
            let old = removed(path);
            remove_tree(&old)?;
            fs::rename(path, &old)?;
            fs::rename(new, path).inspect_err(|_| {
                // Best effort: what was there goes back to its place.
                let _ = fs::rename(&old, path);
            })
        }
        other => other,
    }
}

/// Swaps two names at once. [`ErrorKind::Unsupported`] where the file system cannot.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).map_err(|e| match e {
        Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP => ErrorKind::Unsupported.into(),
        other => other.into(),
    })
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Removes a folder and all in it; a half-removed folder is never seen under its name. Absent is fine.
///
/// # Errors
/// If it cannot be moved away or removed.
pub fn remove_folder(path: &Path) -> Result<(), FileError> {
    let old = removed(path);
    let moved = remove_tree(&old).and_then(|()| match fs::rename(path, &old) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    });
    moved.map_err(|e| FileError::new("remove", path, e))?;
    remove_tree(&old).map_err(|e| FileError::new("remove", old, e))
}

/// Deletes what killed processes left half-written or half-deleted in `folder`; only for who alone may write there. Links stay:
/// nothing here makes one.
///
/// # Errors
/// If the folder cannot be listed, or something in it cannot be removed.
pub fn sweep(folder: &Path) -> Result<(), FileError> {
    let failed = |e| FileError::new("read", folder, e);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !is_leftover(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
        let swept = match (kind.is_dir(), kind.is_file()) {
            (true, _) => remove_tree(&path),
            (_, true) => fs::remove_file(&path),
            _ => Ok(()),
        };
        swept.map_err(|e| FileError::new("remove", path, e))?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(dir: &Path, name: &str, content: &str) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), content).unwrap();
        path
    }

    fn content(folder: &Path) -> String {
        fs::read_to_string(folder.join("file")).unwrap()
    }

    #[test]
    fn where_nothing_can_be_exchanged_the_old_folder_waits_until_the_new_one_stands() {
        let dir = tempfile::tempdir().unwrap();
        let (new, old) = (folder(dir.path(), ".a.unfinished", "new"), folder(dir.path(), "a", "old"));
        let unsupported = |_: &Path, _: &Path| Err(ErrorKind::Unsupported.into());
        replace(&new, &old, unsupported).unwrap();
        assert_eq!((content(&old), content(&removed(&old))), ("new".into(), "old".into()));
        // The new folder cannot be moved: the old one is back.
        let gone = dir.path().join("gone");
        replace(&gone, &old, unsupported).unwrap_err();
        assert_eq!(content(&old), "new");
        // Any other failure is told, and nothing is moved.
        let new = folder(dir.path(), ".a.unfinished", "third");
        let error = replace(&new, &old, |_, _| Err(ErrorKind::PermissionDenied.into())).unwrap_err();
        assert_eq!(
            (error.kind(), content(&old), content(&new)),
            (ErrorKind::PermissionDenied, "new".into(), "third".into())
        );
    }

    #[test]
    fn an_exchange_swaps_or_says_that_it_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (folder(dir.path(), "a", "a"), folder(dir.path(), "b", "b"));
        match exchange(&a, &b) {
            Ok(()) => assert_eq!((content(&a), content(&b)), ("b".into(), "a".into())),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Unsupported),
        }
        let error = exchange(&a, &dir.path().join("gone")).unwrap_err();
        assert!([ErrorKind::NotFound, ErrorKind::Unsupported].contains(&error.kind()), "{error}");
    }
}
