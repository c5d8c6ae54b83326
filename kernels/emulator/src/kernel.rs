//! The table of compiled kernels, as C++ lays it out (`shim.h`).

use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

/// A kernel's parameter.
#[derive(Debug)]
#[repr(C)]
pub struct Parameter {
    size: u32,
    pointer: u32,
}

impl Parameter {
    pub fn bytes(&self) -> usize {
        self.size as usize
    }

    pub fn is_pointer(&self) -> bool {
        self.pointer == 1
    }
}

#[repr(C)]
pub struct Kernel {
    name: *const c_char,
    pub call: unsafe extern "C" fn(*const *mut c_void),
    parameters: *const Parameter,
    count: usize,
}

// Constants.
unsafe impl Sync for Kernel {}

impl Kernel {
    pub fn name(&self) -> &'static str {
        unsafe { CStr::from_ptr(self.name) }.to_str().unwrap_or_default()
    }

    pub fn parameters(&self) -> &'static [Parameter] {
        unsafe { std::slice::from_raw_parts(self.parameters, self.count) }
    }
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

pub fn all() -> impl Iterator<Item = &'static Kernel> {
    files().into_iter().flatten()
}

static REPLACED: OnceLock<&[Kernel]> = OnceLock::new();

/// From here on these kernels run in place of those of their names: what plants mistakes in them.
pub fn replace(kernels: &'static [Kernel]) {
    assert!(REPLACED.set(kernels).is_ok(), "kernels are replaced once");
}

pub fn find(name: &str) -> Option<&'static Kernel> {
    REPLACED.get().copied().into_iter().flatten().chain(all()).find(|k| k.name() == name)
}
