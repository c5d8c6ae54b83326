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
pub fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// The content of a regular file of at most `most` bytes; nothing is held of a longer one.
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
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let invalid = |_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8 text");
    String::from_utf8(read(path, most)?).map_err(invalid)
}

/// Whether a file that is opened by others is a regular one, or is not there yet.
pub fn check_regular(path: &Path) -> io::Result<()> {
    match open(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
