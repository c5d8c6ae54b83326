//! Names the kernel that touched memory which is not there, before the process ends of it.

use std::ffi::{CString, c_char, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The kernel that runs now.
static RUNNING: AtomicPtr<c_char> = AtomicPtr::new(null_mut());

/// Keeps a kernel's name for the handler while it lives.
pub struct Running(#[expect(dead_code, reason = "owns what RUNNING points to")] CString);

pub fn running(kernel: &str) -> Running {
    let name = CString::new(kernel).unwrap_or_default();
    RUNNING.store(name.as_ptr().cast_mut(), Ordering::Relaxed);
    Running(name)
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.store(null_mut(), Ordering::Relaxed);
    }
}

/// On a stack of its own: fibers' are small.
pub fn install() {
    const STACK: usize = 64 << 10;
    // SAFETY: the stack is never freed; the handler only writes and exits.
    unsafe {
        let stack = libc::stack_t { ss_sp: libc::malloc(STACK), ss_flags: 0, ss_size: STACK };
        libc::sigaltstack(&stack, null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &action, null_mut());
    }
}

/// Only calls that a signal handler may make.
extern "C" fn on_fault(_: i32, _: *mut libc::siginfo_t, _: *mut c_void) {
    let say = |text: *const c_char| unsafe { libc::write(2, text.cast(), libc::strlen(text)) };
    let kernel = RUNNING.load(Ordering::Relaxed);
    say(c"software GPU: memory that is not there was touched by ".as_ptr());
    say(if kernel.is_null() { c"the host".as_ptr() } else { kernel });
    say(c"\n".as_ptr());
    unsafe { libc::_exit(139) }
}
