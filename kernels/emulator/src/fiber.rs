//! Fibers: a stack each, and a switch from one to another.

use std::arch::naked_asm;

/// Bytes of a stack: pages never touched cost nothing.
const SIZE: usize = 256 << 10;
/// Words at the far end that a healthy fiber leaves alone.
const SPARE: usize = 128;
const CANARY: u64 = 0x5AFE_57AC_5AFE_57AC;

/// Grows down from its end.
pub struct Stack(Box<[u64]>);

impl Stack {
    pub fn new() -> Stack {
        // Zeroed by the allocator, hence not touched.
        let mut words = vec![0; SIZE / 8].into_boxed_slice();
        words[..SPARE].fill(CANARY);
        Stack(words)
    }

    /// The stack pointer of a fiber that is about to run `entry`.
    pub fn start(&mut self, entry: extern "C" fn() -> !) -> *mut u8 {
        let end = self.0.as_mut_ptr_range().end.cast::<usize>();
        // As `switch` leaves it: saved registers (zero), then the address to return to; 16-byte aligned.
        unsafe {
            let sp = end.sub(FRAME_WORDS + end as usize % 16 / 8);
            sp.write_bytes(0, FRAME_WORDS);
            sp.add(ENTRY_WORD).write(entry as usize);
            sp.cast()
        }
    }

    pub fn overrun(&self) -> bool {
        self.0[..SPARE].iter().any(|&word| word != CANARY)
    }
}

/// Six registers and the return address, after which the stack pointer is 8 off a multiple of 16, as after a call.
#[cfg(target_arch = "x86_64")]
const FRAME_WORDS: usize = 8;
#[cfg(target_arch = "x86_64")]
const ENTRY_WORD: usize = 6;

/// Saves the stack pointer in `*save` and continues on the stack `to`.
///
/// # Safety
/// `to` comes from [`Stack::start`] or from `*save` of an earlier switch, and its stack lives.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub unsafe extern "sysv64" fn switch(save: *mut *mut u8, to: *mut u8) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// x19 to x30 (the last is the return address) and d8 to d15.
#[cfg(target_arch = "aarch64")]
const FRAME_WORDS: usize = 20;
#[cfg(target_arch = "aarch64")]
const ENTRY_WORD: usize = 11;

/// Saves the stack pointer in `*save` and continues on the stack `to`.
///
/// # Safety
/// `to` comes from [`Stack::start`] or from `*save` of an earlier switch, and its stack lives.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub unsafe extern "C" fn switch(save: *mut *mut u8, to: *mut u8) {
    naked_asm!(
        "sub sp, sp, #160",
        "stp x19, x20, [sp, #0]",
        "stp x21, x22, [sp, #16]",
        "stp x23, x24, [sp, #32]",
        "stp x25, x26, [sp, #48]",
        "stp x27, x28, [sp, #64]",
        "stp x29, x30, [sp, #80]",
        "stp d8, d9, [sp, #96]",
        "stp d10, d11, [sp, #112]",
        "stp d12, d13, [sp, #128]",
        "stp d14, d15, [sp, #144]",
        "mov x9, sp",
        "str x9, [x0]",
        "mov sp, x1",
        "ldp x19, x20, [sp, #0]",
        "ldp x21, x22, [sp, #16]",
        "ldp x23, x24, [sp, #32]",
        "ldp x25, x26, [sp, #48]",
        "ldp x27, x28, [sp, #64]",
        "ldp x29, x30, [sp, #80]",
        "ldp d8, d9, [sp, #96]",
        "ldp d10, d11, [sp, #112]",
        "ldp d12, d13, [sp, #128]",
        "ldp d14, d15, [sp, #144]",
        "add sp, sp, #160",
        "ret",
    )
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the emulator knows how to switch fibers on x86-64 and aarch64 only");
