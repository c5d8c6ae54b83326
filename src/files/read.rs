//! Reading what others wrote: regular files only, and only up to a size.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes of the longest file that a person writes, such as a configuration.
pub const MOST_WRITTEN: u64 = 1 << 20;
/// Bytes of the longest file that a program writes and that is read whole.
pub const MOST_KEPT: u64 = 1 << 28;

/// Opens a regular file to be read. A folder, a pipe or a device is refused, and no pipe is waited for.
///
/// # Errors
/// If there is no file, it is no regular one, or it may not be read.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// The content of a regular file of at most `most` bytes; nothing is held of a longer one.
///
/// # Errors
/// As [`open`], and if the file is longer than `most`.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let size = file.metadata()?.len();
    let mut content = Vec::new();
    if size <= most {
        content.reserve_exact(size as usize);
        // It may have grown since.
        file.take(most + 1).read_to_end(&mut content)?;
    }
    let found = size.max(content.len() as u64);
    if found > most {
        let reason = format!("it has {found} bytes, more than the {most} that are read");
        return Err(io::Error::new(ErrorKind::FileTooLarge, reason));
    }
    Ok(content)
}

/// [`read`] for a file that holds text.
///
/// # Errors
/// As [`read`], and if the content is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let invalid = |_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8 text");
    String::from_utf8(read(path, most)?).map_err(invalid)
}

/// Whether a file that is opened by others is a regular one, or is not there yet.
///
/// # Errors
/// If it is another kind of file, or may not be read.
pub fn check_regular(path: &Path) -> io::Result<()> {
    match open(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_regular_files_are_read_and_no_pipe_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        for path in [folder.path(), &pipe, Path::new("/dev/zero")] {
            for refused in [read(path, 10).map(|_| ()), read_text(path, 10).map(|_| ()), check_regular(path)] {
                assert_eq!(refused.unwrap_err().to_string(), "it is not a regular file", "{}", path.display());
            }
        }
        assert!(check_regular(&folder.path().join("absent")).is_ok());
        assert_eq!(read(&folder.path().join("absent"), 10).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "0123456789").unwrap();
        assert_eq!(read(&path, 10).unwrap(), b"0123456789");
        let error = read(&path, 9).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (ErrorKind::FileTooLarge, "it has 10 bytes, more than the 9 that are read".into())
        );
        // Its length is told without reading it.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(read(&path, MOST_KEPT).unwrap_err().to_string().contains("1099511627776 bytes"));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert_eq!(read_text(&path, 10).unwrap_err().to_string(), "it is not UTF-8 text");
        // Files of /proc have no length until they are read.
        assert!(read(Path::new("/proc/self/status"), 1 << 20).unwrap().len() > 10);
        assert!(read(Path::new("/proc/self/status"), 10).unwrap_err().to_string().contains("more than the 10"));
    }
}
