//! AMX (Sapphire Rapids and later): eight registers of 16 rows of 64 bytes, and an instruction that multiplies two of them. Its
//! intrinsics are not stable in Rust, so the instructions are written as they are.

use super::{CacheLine, STEP, TILE};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

/// Whether the processor has AMX in bf16, and the system lets this process use it.
pub(super) fn available() -> bool {
    /// Bits of `cpuid(7, 0).edx`: amx-bf16 and amx-tile.
    const NEEDED: u32 = 1 << 22 | 1 << 24;
    super::avx512::available() && __cpuid_count(7, 0).edx & NEEDED == NEEDED && permitted()
}

/// Asks Linux for the tiles' share of a thread's state: a process must, once.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let answer: i64;
    // SAFETY: the call changes nothing but what this process may use; the kernel overwrites rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => answer, in("rdi") REQUEST_PERMISSION, in("rsi") TILE_DATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

#[repr(C, align(64))]
struct Config([u8; 64]);

/// Palette 1, and eight tiles of 16 rows of 64 bytes.
const CONFIG: Config = {
    let mut config = [0; 64];
    config[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        config[16 + 2 * tile] = 64;
        config[48 + tile] = TILE as u8;
        tile += 1;
    }
    Config(config)
};

/// Sets up this thread's tiles. The compiler uses none, so they keep what they hold from one `asm!` to the next.
pub(super) fn begin() {
    // SAFETY: AMX is there, else no session begins.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly)) }
}

pub(super) fn end() {
    // SAFETY: as above.
    unsafe { asm!("tilerelease", options(nostack)) }
}

/// 32 rows by 32 columns.
///
/// # Safety
/// After [`begin`]; `c` has 32 rows of 32, `stride` apart.
pub(super) unsafe fn block(
    a: &[[CacheLine; STEP]],
    b: &[[CacheLine; STEP]],
    c: *mut f32,
    stride: usize,
    accumulate: bool,
) {
    let steps = a.len().min(b.len());
    if steps == 0 {
        return;
    }
    // SAFETY: each step reads 32 lines of A and of B; C's four tiles are its own.
    unsafe {
        let below = c.add(TILE * stride);
        if accumulate {
            asm!(
                "tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 64]",
                "tileloadd tmm2, [{d} + {s}]", "tileloadd tmm3, [{d} + {s} + 64]",
                c = in(reg) c, d = in(reg) below, s = in(reg) 4 * stride, options(nostack, readonly)
            );
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
        asm!(
            "2:",
            "tileloadd tmm4, [{a} + {s}]",
            "tileloadd tmm6, [{b} + {s}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {s} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {s} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            a = inout(reg) a.as_ptr() => _, b = inout(reg) b.as_ptr() => _, n = inout(reg) steps => _,
            s = in(reg) 64usize, options(nostack, readonly)
        );
        asm!(
            "tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 64], tmm1",
            "tilestored [{d} + {s}], tmm2", "tilestored [{d} + {s} + 64], tmm3",
            c = in(reg) c, d = in(reg) below, s = in(reg) 4 * stride, options(nostack)
        );
    }
}

/// As [`block`], of the upper 16 rows only.
///
/// # Safety
/// As [`block`].
pub(super) unsafe fn low_block(
    a: &[[CacheLine; STEP]],
    b: &[[CacheLine; STEP]],
    c: *mut f32,
    stride: usize,
    accumulate: bool,
) {
    let steps = a.len().min(b.len());
    if steps == 0 {
        return;
    }
    // SAFETY: as above.
    unsafe {
        if accumulate {
            asm!(
                "tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 64]",
                c = in(reg) c, s = in(reg) 4 * stride, options(nostack, readonly)
            );
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
        }
        // B comes from memory here as often as not: it is prefetched some steps ahead.
        asm!(
            "2:",
            "tileloadd tmm4, [{a} + {s}]",
            "tileloadd tmm6, [{b} + {s}]",
            "tileloadd tmm7, [{b} + {s} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            a = inout(reg) a.as_ptr() => _, b = inout(reg) b.as_ptr() => _, n = inout(reg) steps => _,
            s = in(reg) 64usize, options(nostack, readonly)
        );
        asm!(
            "tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 64], tmm1",
            c = in(reg) c, s = in(reg) 4 * stride, options(nostack)
        );
    }
}
