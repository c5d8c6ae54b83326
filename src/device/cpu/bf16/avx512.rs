//! AVX512-BF16 (Zen 4 and later, Cooper Lake, Sapphire Rapids and later).

use super::{CacheLine, STEP, Side, Source, TILE, Tile};
use std::arch::x86_64::*;

pub(super) fn available() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("avx512bf16")
}

/// Whether `vdpbf16ps` multiplies faster than multiply-adds in f32 do. It does on AMD's Zen 4 and 5. On Intel's processors with AMX it has a
/// quarter of their rate (measured on Emerald Rapids: 1.25 against 5 instructions a ns): a virtual machine from which AMX is hidden
/// multiplies in f32.
pub(super) fn is_fast() -> bool {
    let vendor = __cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

/// Packs a tile of a factor that is contiguous in one direction.
///
/// # Safety
/// The machine has AVX512-BF16, and `source` holds every element (i, k) of the size.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn pack_tile(
    side: Side,
    source: Source<'_>,
    (count, depth): (usize, usize),
    scale: f32,
    tile: &mut Tile,
) {
    let mask = |n: usize| if n >= TILE { u16::MAX } else { (1 << n) - 1 };
    let scale = _mm512_set1_ps(scale);
    // Loads 16 from `at` on, of which `n` exist.
    let load = |at: usize, n: usize| {
        // SAFETY: only existing elements are read: the mask leaves out the rest.
        let x = unsafe { _mm512_maskz_loadu_ps(mask(n), source.data.as_ptr().wrapping_add(at)) };
        _mm512_mul_ps(x, scale)
    };
    let mut lines = [_mm512_setzero_si512(); TILE];
    let by_row = source.along == 1;
    if by_row {
        for (i, line) in lines.iter_mut().enumerate().take(count) {
            let at = i * source.across;
            let (low, high) = (load(at, depth), load(at + TILE, depth.saturating_sub(TILE)));
            *line = bits(_mm512_cvtne2ps_pbh(high, low));
        }
    } else {
        // Pairs (k, k + 1) of 16 rows: the two halves are interleaved.
        let zip = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17,
            1, 16, 0,
        );
        for (pair, line) in lines.iter_mut().enumerate().take(depth.div_ceil(2)) {
            let (low, high) = (load(2 * pair * source.along, count), 2 * pair + 1 < depth);
            let high = if high { load((2 * pair + 1) * source.along, count) } else { _mm512_setzero_ps() };
            *line = _mm512_permutexvar_epi16(zip, bits(_mm512_cvtne2ps_pbh(high, low)));
        }
    }
    if by_row != (side == Side::A) {
        lines = transposed(lines);
    }
    for (to, line) in tile.iter_mut().zip(lines) {
        // SAFETY: a line is 64 bytes, aligned to 64.
        unsafe { _mm512_store_si512(to.0.as_mut_ptr().cast(), line) };
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bits(x: __m512bh) -> __m512i {
    // SAFETY: both are 64 bytes in which every pattern is valid.
    unsafe { std::mem::transmute(x) }
}

/// A 16 x 16 matrix of pairs, transposed.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; TILE]) -> [__m512i; TILE] {
    let (mut a, mut b) = (rows, rows);
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for i in 0..4 {
        for j in 0..2 {
            b[4 * i + 2 * j] = _mm512_unpacklo_epi64(a[4 * i + j], a[4 * i + 2 + j]);
            b[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a[4 * i + j], a[4 * i + 2 + j]);
        }
    }
    // b[4 i + j] holds columns j, 4 + j, 8 + j, 12 + j of rows 4 i ..: four to a lane of 128 bits.
    for j in 0..4 {
        let low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
        let high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
        a[j] = _mm512_shuffle_i32x4(low, high, 0x88);
        a[8 + j] = _mm512_shuffle_i32x4(low, high, 0xdd);
        let low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
        let high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
        a[4 + j] = _mm512_shuffle_i32x4(low, high, 0x88);
        a[12 + j] = _mm512_shuffle_i32x4(low, high, 0xdd);
    }
    a
}

/// Of `rows` rows, by 32 columns.
///
/// # Safety
/// The machine has AVX512-BF16; `c` has `rows` rows of 32, `stride` apart.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn block(
    a: &[[CacheLine; STEP]],
    b: &[[CacheLine; STEP]],
    rows: usize,
    c: *mut f32,
    stride: usize,
    accumulate: bool,
) {
    let mut first = 0;
    while first < rows {
        // SAFETY: the rows from `first` on are some of C's.
        unsafe {
            let c = c.add(first * stride);
            first += match rows - first {
                1 => held::<1>(a, b, first, c, stride, accumulate),
                2..4 => held::<2>(a, b, first, c, stride, accumulate),
                4..8 => held::<4>(a, b, first, c, stride, accumulate),
                _ => held::<8>(a, b, first, c, stride, accumulate),
            };
        }
    }
}

/// `R` rows from `first` on, whose sums stay in registers; `R`.
///
/// # Safety
/// As [`block`]; `c` is the first of these rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn held<const R: usize>(
    a: &[[CacheLine; STEP]],
    b: &[[CacheLine; STEP]],
    first: usize,
    c: *mut f32,
    stride: usize,
    accumulate: bool,
) -> usize {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    // SAFETY: C has these rows and columns; a line is 64 bytes, aligned.
    unsafe {
        if accumulate {
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = [_mm512_loadu_ps(c.add(r * stride)), _mm512_loadu_ps(c.add(r * stride + TILE))];
            }
        }
        for (a, b) in a.iter().zip(b) {
            let a = a[first..first + R].as_ptr();
            for pair in 0..TILE {
                let columns = [pairs(&b[pair]), pairs(&b[TILE + pair])];
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x: __m512bh = std::mem::transmute(_mm512_set1_epi32((*a.add(r)).0[pair] as i32));
                    sum[0] = _mm512_dpbf16_ps(sum[0], x, columns[0]);
                    sum[1] = _mm512_dpbf16_ps(sum[1], x, columns[1]);
                }
            }
        }
        for (r, [low, high]) in sums.into_iter().enumerate() {
            _mm512_storeu_ps(c.add(r * stride), low);
            _mm512_storeu_ps(c.add(r * stride + TILE), high);
        }
    }
    R
}

#[inline]
#[target_feature(enable = "avx512f")]
fn pairs(line: &CacheLine) -> __m512bh {
    // SAFETY: a line is 64 bytes, aligned to 64, and every pattern is valid.
    unsafe { std::mem::transmute(_mm512_load_si512(line.0.as_ptr().cast())) }
}
