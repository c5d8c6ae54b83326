//! The same results, up to the order of a pair's two sums, on any machine: bf16 is the upper half of an f32.

use super::super::simd;
use super::{CacheLine, PANEL, STEP, Side, Source, TILE, Tile, ZERO};
use half::bf16;

/// Rows whose sums are held at a time.
const HELD: usize = 4;

pub(super) fn pack_tile(side: Side, source: Source<'_>, (count, depth): (usize, usize), scale: f32, tile: &mut Tile) {
    *tile = [ZERO; TILE];
    for i in 0..count {
        for k in 0..depth {
            let x = bf16::from_f32(source.data[i * source.across + k * source.along] * scale);
            let bits = u32::from(x.to_bits()) << (16 * (k % 2));
            match side {
                Side::A => tile[i].0[k / 2] |= bits,
                Side::B => tile[k / 2].0[i] |= bits,
            }
        }
    }
}

/// Of `rows` rows, by [`PANEL`] columns.
pub(super) fn block(
    a: &[[CacheLine; STEP]],
    b: &[[CacheLine; STEP]],
    rows: usize,
    c: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    simd(
        #[inline(always)]
        || {
            for first in (0..rows).step_by(HELD) {
                held(a, b, first, (rows - first).min(HELD), &mut c[first * stride..], stride, accumulate);
            }
        },
    )
}

#[inline(always)]
fn held(
    a: &[[CacheLine; STEP]],
    b: &[[CacheLine; STEP]],
    first: usize,
    rows: usize,
    c: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    let mut sums = [[0.0f32; PANEL]; HELD];
    if accumulate {
        sums.iter_mut().zip(c.chunks(stride)).take(rows).for_each(|(sum, c)| sum.copy_from_slice(&c[..PANEL]));
    }
    for (a, b) in a.iter().zip(b) {
        for pair in 0..TILE {
            let (mut low, mut high) = ([0.0f32; PANEL], [0.0f32; PANEL]);
            for (half, line) in [&b[pair], &b[TILE + pair]].into_iter().enumerate() {
                for i in 0..TILE {
                    low[half * TILE + i] = f32::from_bits(line.0[i] << 16);
                    high[half * TILE + i] = f32::from_bits(line.0[i] & 0xffff_0000);
                }
            }
            for (r, sum) in sums.iter_mut().enumerate() {
                // Rows beyond the last are within the panel, and zeros.
                let bits = a[first + r].0[pair];
                let (x, y) = (f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000));
                for i in 0..PANEL {
                    sum[i] = high[i].mul_add(y, low[i].mul_add(x, sum[i]));
                }
            }
        }
    }
    sums.iter().zip(c.chunks_mut(stride)).take(rows).for_each(|(sum, c)| c[..PANEL].copy_from_slice(sum));
}
