//! The same results, up to the order of a pair's two sums, on any machine: bf16 is the upper half of an f32.

use super::{CacheLine, DEPTH, PANEL, STEP, Side, Source, TILE, Tile, ZERO};
use half::bf16;
use pulp::{Simd, WithSimd};

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
    pulp::Arch::new().dispatch(Block { a, b, rows, c, stride, accumulate });
}

struct Block<'a> {
    a: &'a [[CacheLine; STEP]],
    b: &'a [[CacheLine; STEP]],
    rows: usize,
    c: &'a mut [f32],
    stride: usize,
    accumulate: bool,
}

/// The low and the high halves of pairs.
const HIGH: u32 = 0xffff_0000;
const LOW: u32 = 16;

impl WithSimd for Block<'_> {
    type Output = ();

    /// As many sums in registers as hide the latency of a multiply-add.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run::<S, 8>(simd),
            _ => self.run::<S, 4>(simd),
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn run<S: Simd, const R: usize>(mut self, simd: S) {
        for first in (0..self.rows).step_by(R) {
            for column in (0..PANEL).step_by(2 * S::F32_LANES) {
                self.held::<S, R>(simd, first, column);
            }
        }
    }

    /// `R` rows from `first` on, by two vectors of columns, whose sums stay in registers.
    #[inline(always)]
    fn held<S: Simd, const R: usize>(&mut self, simd: S, first: usize, column: usize) {
        let columns = [column, column + S::F32_LANES];
        let rows = (self.rows - first).min(R);
        let mut sums = [[simd.splat_f32s(0.0); 2]; R];
        if self.accumulate {
            for (r, sums) in sums.iter_mut().enumerate().take(rows) {
                let c = &self.c[(first + r) * self.stride..];
                *sums = columns.map(|at| S::as_simd_f32s(&c[at..at + S::F32_LANES]).0[0]);
            }
        }
        let (shift, mask) = (simd.splat_u32s(LOW), simd.splat_u32s(HIGH));
        for (a, b) in self.a.iter().zip(self.b) {
            // Rows beyond the last are within the panel, and zeros.
            let mut wide = [[0.0; DEPTH]; R];
            for (r, row) in wide.iter_mut().enumerate() {
                widen(&a[first + r], row);
            }
            for pair in 0..TILE {
                let lines = columns.map(|at| {
                    let line = &b[at / TILE * TILE + pair].0;
                    S::as_simd_u32s(&line[at % TILE..][..S::F32_LANES]).0[0]
                });
                let low = lines.map(|x| simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(x, shift)));
                let high = lines.map(|x| simd.transmute_f32s_u32s(simd.and_u32s(x, mask)));
                for (sums, row) in sums.iter_mut().zip(&wide) {
                    let (x, y) = (simd.splat_f32s(row[pair]), simd.splat_f32s(row[TILE + pair]));
                    for v in 0..2 {
                        sums[v] = simd.mul_add_f32s(high[v], y, simd.mul_add_f32s(low[v], x, sums[v]));
                    }
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate().take(rows) {
            let c = &mut self.c[(first + r) * self.stride..];
            for (at, sum) in columns.into_iter().zip(sums) {
                S::as_mut_simd_f32s(&mut c[at..at + S::F32_LANES]).0[0] = sum;
            }
        }
    }
}

/// The low halves of a line's pairs, then the high ones.
#[inline(always)]
fn widen(line: &CacheLine, row: &mut [f32; DEPTH]) {
    for (i, pair) in line.0.into_iter().enumerate() {
        row[i] = f32::from_bits(pair << LOW);
        row[TILE + i] = f32::from_bits(pair & HIGH);
    }
}
