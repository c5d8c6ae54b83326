//! What kernels call (`shim.h`): each ends in the scheduler. A call that fails does not return to its kernel.

use crate::block::{Line, Part, Runner, current, suspend};
use crate::bulk::TensorMap;
use crate::fault::{Fault, Site};
use crate::wgmma::Product;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;

impl Line {
    pub fn site(self) -> Site {
        let path = unsafe { CStr::from_ptr(self.0) }.to_string_lossy().replace('\\', "/");
        // From the last `kernels/` on, as people know the files.
        let file = path.rsplit_once("kernels/").map_or(&*path, |(_, file)| file);
        Site { file: file.to_string(), line: self.1 as u32 }
    }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_barrier(file: *const c_char, line: c_int) {
    unsafe {
        (*current()).arrive_at_barrier(Line(file, line));
        suspend();
    }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_warp(
    mask: u32,
    what: *const c_char,
    lane: *mut c_void,
    body: unsafe extern "C" fn(*const *mut c_void, u32),
    file: *const c_char,
    line: c_int,
) {
    unsafe {
        (*current()).arrive_at_collective(Part { mask, what, line: Line(file, line), lane, body });
        suspend();
    }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_shared(file: *const c_char, line: c_int, bytes: usize) -> *mut u8 {
    unsafe { or_suspend((*current()).shared_array(Line(file, line), bytes, 16)) }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_dynamic_shared() -> *mut u8 {
    unsafe { or_suspend((*current()).dynamic_shared()) }
}

unsafe fn or_suspend(memory: Option<*mut u8>) -> *mut u8 {
    memory.unwrap_or_else(|| {
        unsafe { suspend() };
        null_mut()
    })
}

#[unsafe(no_mangle)]
extern "C" fn emulator_access(p: *const c_void, bytes: usize, file: *const c_char, line: c_int) {
    #[cfg(feature = "counters")]
    crate::counters::announce(p, bytes, file as usize + line as usize);
    unsafe {
        (*current()).check_access(p as usize, bytes, Line(file, line));
        if (*current()).failed() {
            suspend();
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_async_copy(to: *mut u8, from: *const u8, valid: usize, file: *const c_char, line: c_int) {
    emulator_access(to.cast(), 16, file, line);
    if valid > 0 {
        emulator_access(from.cast(), 16, file, line);
    }
    unsafe { (*current()).async_copy(to, from, valid == 0) }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_async_commit() {
    unsafe { (*current()).async_commit() }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_async_wait(pending: u32) {
    unsafe { (*current()).async_wait(pending) }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_broken_promise(condition: *const c_char, file: *const c_char, line: c_int) {
    unsafe {
        let condition = CStr::from_ptr(condition).to_string_lossy().into_owned();
        let (place, site) = ((*current()).here(), Line(file, line).site());
        (*current()).fail(Fault::BrokenPromise { place, site, condition });
        suspend();
    }
}

/// Does what a thread requests, and does not return to it if that was wrong.
unsafe fn ask<T>(f: impl FnOnce(&mut Runner) -> T) -> T {
    unsafe {
        let result = f(&mut *current());
        if (*current()).failed() {
            suspend();
        }
        result
    }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_mbarrier_init(p: *mut u64, count: u32, file: *const c_char, line: c_int) {
    unsafe { ask(|runner| runner.mbarrier_init(p, count, Line(file, line))) }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_mbarrier_invalidate(p: *mut u64, file: *const c_char, line: c_int) {
    unsafe { ask(|runner| runner.mbarrier_invalidate(p, Line(file, line))) }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_mbarrier_arrive(p: *mut u64, bytes: u32, file: *const c_char, line: c_int) {
    unsafe {
        ask(|runner| runner.mbarrier_arrive(p, bytes, Line(file, line)));
        if (*current()).hesitates() {
            suspend();
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_mbarrier_wait(p: *mut u64, parity: u32, file: *const c_char, line: c_int) {
    unsafe {
        while !ask(|runner| runner.mbarrier_passed(p, parity, Line(file, line))) {
            suspend();
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_named_barrier(id: u32, threads: u32, wait: u32, file: *const c_char, line: c_int) {
    unsafe {
        ask(|runner| runner.named_barrier(id, threads, wait != 0, Line(file, line)));
        if wait != 0 {
            suspend();
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_bulk_copy(
    to: *mut u8,
    from: *const u8,
    bytes: u32,
    barrier: *const u64,
    file: *const c_char,
    line: c_int,
) {
    unsafe { ask(|runner| runner.bulk_copy(to, from, bytes as usize, barrier, Line(file, line))) }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_tensor_copy(
    to: *mut u8,
    map: *const TensorMap,
    at: *const i32,
    rank: u32,
    barrier: *const u64,
    file: *const c_char,
    line: c_int,
) {
    unsafe {
        let at = std::slice::from_raw_parts(at, rank as usize);
        ask(|runner| runner.tensor_copy(to, &*map, at, barrier, Line(file, line)))
    }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_shared_address(p: *const u8) -> u32 {
    unsafe { (*current()).shared_address(p) as u32 }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_product(product: *const Product, file: *const c_char, line: c_int) {
    unsafe {
        (*current()).arrive_at_product(*product, Line(file, line));
        suspend();
    }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_product_commit() {
    unsafe { (*current()).product_commit() }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_product_wait(pending: u32) {
    unsafe { ask(|runner| runner.product_wait(pending)) }
}

/// Of `counter.cpp`, at each access of a kernel's code.
#[cfg(feature = "counters")]
#[unsafe(no_mangle)]
extern "C" fn emulator_accessed(p: *const c_void, bytes: u32, write: u32) {
    unsafe { (*current()).accessed(p as usize, bytes as usize, write != 0) }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_show_stores() {
    unsafe { (*current()).show_stores() }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_show_mbarriers() {
    unsafe { (*current()).show_mbarriers() }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_registers(count: u32, more: u32, file: *const c_char, line: c_int) {
    unsafe { ask(|runner| runner.set_registers(count, more != 0, Line(file, line))) }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_mistake(problem: *const c_char, file: *const c_char, line: c_int) {
    unsafe {
        let problem = CStr::from_ptr(problem).to_string_lossy().into_owned();
        ask(|runner| runner.blame(Line(file, line), problem));
    }
}
