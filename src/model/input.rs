//! What protects from the files of a stranger's model folder: only regular files of bounded size are read, and a parser that panics
//! is an error.

use crate::files;
use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

/// How a file begins that Git LFS left in the place of the real one.
const POINTER: &[u8] = b"version https://git-lfs";

/// Refuses what stands in the place of a file that was not fetched.
pub fn check_fetched(content: &[u8]) -> io::Result<()> {
    if content.starts_with(POINTER) {
        return Err(io::Error::other("it is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"));
    }
    Ok(())
}

/// The content of a regular file of at most `most` bytes.
pub fn read(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    let content = files::read(file, most)?;
    check_fetched(&content)?;
    Ok(content)
}

/// Runs code of others on input of others: a panic in it is an error, and nothing is printed.
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    thread_local!(static GUARDED: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                usual(info);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    done.map_err(|cause| {
        let text = cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref::<&str>().copied());
        format!("the parser gave up ({})", text.unwrap_or("it did not say why"))
    })
}
