//! Ctrl-C: the first asks training to save and stop, the second ends the process at once.

use crate::report::progress::say;
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Installs the handler of Ctrl-C (and of SIGTERM and SIGHUP). Call it once, before training.
pub fn install() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            // 128 + SIGINT, as shells report it.
            std::process::exit(130);
        }
        say("stopping at the next safe point and saving; press Ctrl-C again to stop at once");
    })
}

/// Whether the user has asked to stop. Every phase looks at it between steps.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}
