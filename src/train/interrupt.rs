//! Ctrl-C: the first asks training to save and stop, the second ends the process at once.

use crate::report::progress::say;
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Installs the handler of Ctrl-C (and of SIGTERM and SIGHUP). Call it once, before training.
pub fn install() -> Result<(), ctrlc::Error> {
    install_with(|| say("stopping at the next safe point and saving; press Ctrl-C again to stop at once"))
}

/// As [`install`], for what does not look at [`interrupted`]: the first Ctrl-C calls `first`.
pub fn install_with(first: impl Fn() + Send + 'static) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            // 128 + SIGINT, as shells report it.
            std::process::exit(130);
        }
        first();
    })
}

/// Asks for the same as the first Ctrl-C.
pub fn request() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Whether the user has asked to stop. Every phase looks at it between steps.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}
