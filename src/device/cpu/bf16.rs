//! Matrix products in bf16 with sums in f32: what `model.dtype = "bf16"` computes with.
//!
//! Both factors are brought into *tiles* of 16 rows (of A) or columns (of B) by 32 along k, two of which side by side make a
//! [`Panel`](PANEL). A tile is 16 cache lines of 16 pairs along k: a line of A is one row's pairs, a line of B is one pair of all 16
//! columns. That is what AMX multiplies, and what AVX512-BF16 and plain loops read as well. Factors in f32 are rounded to nearest even
//! on the way; a weight can be packed once ([`Packed`]).
//!
//! A sum runs along k in one order, whatever the number of rows: a row's result does not depend on what is computed beside it.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::{Mat, Product};
use bytemuck::{Pod, Zeroable};
use half::bf16;
use rayon::prelude::*;
use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows or columns of a tile.
const TILE: usize = 16;
/// Values along k of a tile.
const DEPTH: usize = 32;
/// Rows or columns of a panel.
pub const PANEL: usize = 2 * TILE;
/// Lines of a panel for each `DEPTH` along k.
const STEP: usize = 2 * TILE;
/// Most of A that is packed at once, in rows and in steps along k: it stays in the second-level cache, and a panel of B in the first.
const ROWS: usize = 512;
const STEPS: usize = 24;

/// A cache line: 16 pairs of bf16, the pair's first in the low half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct CacheLine([u32; TILE]);

const ZERO: CacheLine = CacheLine([0; TILE]);

type Tile = [CacheLine; TILE];

/// What multiplies tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Tiles of Intel's AMX: 1024 multiply-adds a cycle and core.
    Amx,
    /// `vdpbf16ps`.
    Avx512,
    /// Rounding by AVX512-BF16, products in f32.
    Widening,
    /// Products in f32, with whatever vectors there are.
    Portable,
}

/// What [`use_unit`] chose, as a place in [`Unit::all`], from 1.
static CHOSEN: AtomicUsize = AtomicUsize::new(0);

/// From now on (in the whole process) products in bf16 are computed by `unit`: to see what another machine would compute.
///
/// # Panics
/// If this machine does not have it.
pub fn use_unit(unit: Unit) {
    let at = Unit::all().iter().position(|have| *have == unit).expect("the machine has the unit");
    CHOSEN.store(at + 1, Ordering::Relaxed);
}

impl Unit {
    /// The fastest this machine has, or what [`use_unit`] chose.
    pub fn best() -> Unit {
        static ALL: OnceLock<Vec<Unit>> = OnceLock::new();
        ALL.get_or_init(Unit::all)[CHOSEN.load(Ordering::Relaxed).saturating_sub(1)]
    }

    /// The unit's name, as `doctor` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Amx => "AMX",
            Unit::Avx512 => "AVX512-BF16",
            Unit::Widening => "AVX512-BF16 and products in f32",
            Unit::Portable => "products in f32",
        }
    }

    /// All that this machine has, fastest first.
    pub fn all() -> Vec<Unit> {
        #[cfg(target_arch = "x86_64")]
        if avx512::available() {
            let mut with_avx512 = vec![Unit::Avx512, Unit::Widening];
            if !avx512::is_fast() {
                with_avx512.reverse();
            }
            let amx = amx::available().then_some(Unit::Amx);
            return amx.into_iter().chain(with_avx512).chain([Unit::Portable]).collect();
        }
        vec![Unit::Portable]
    }
}

/// A factor B `[k, n]` in tiles.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Packed {
    lines: Vec<CacheLine>,
    k: usize,
    n: usize,
}

impl Packed {
    /// Packs `b` `[k, n]` on all cores.
    pub fn new(b: Mat<'_>, (k, n): (usize, usize)) -> Packed {
        let mut packed = Packed { lines: vec![ZERO; lines(n, k)], k, n };
        let each = packed.panel_lines().max(1);
        packed.lines.par_chunks_exact_mut(each).enumerate().for_each(|(panel, lines)| {
            pack_panel(Unit::best(), Side::B, b, panel * PANEL..n, 0..k, 1.0, lines);
        });
        packed
    }

    fn panel_lines(&self) -> usize {
        lines(PANEL, self.k)
    }

    /// All of it.
    pub fn columns(&self) -> Columns<'_> {
        Columns { lines: &self.lines, k: self.k, n: self.n }
    }
}

/// Some columns of a packed factor.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    lines: &'a [CacheLine],
    k: usize,
    n: usize,
}

impl<'a> Columns<'a> {
    /// Rows of the factor, over which products sum.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the factor.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The first `n` of them, a multiple of [`PANEL`] or all, and the rest.
    pub fn split_at(self, n: usize) -> (Columns<'a>, Columns<'a>) {
        let (first, rest) = self.lines.split_at(lines(n, self.k));
        (Columns { lines: first, n, ..self }, Columns { lines: rest, n: self.n - n, ..self })
    }
}

/// The right factor of a product.
#[derive(Clone, Copy)]
pub enum Right<'a> {
    /// A view, packed in the course of the product.
    Mat(Mat<'a>),
    /// Packed before.
    Packed(Columns<'a>),
}

/// Lines that `n` rows or columns of length `k` take.
fn lines(n: usize, k: usize) -> usize {
    n.div_ceil(PANEL) * k.div_ceil(DEPTH) * STEP
}

/// x rounded to bf16.
pub fn round(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// As [`Product::run`], by `unit`, which the machine must have.
///
/// # Panics
/// If a matrix is shorter than its shape, or a packed B is of another.
pub fn product(unit: Unit, product: Product, (c, c_stride): (&mut [f32], usize), a: Mat<'_>, b: Right<'_>) {
    let Product { shape: (m, n, k), accumulate, alpha, .. } = product;
    if m == 0 || n == 0 {
        return;
    }
    let whole = match b {
        Right::Mat(b) => b.holds(k, n),
        Right::Packed(b) => (b.k, b.n) == (k, n),
    };
    assert!(whole && a.holds(m, k) && (m - 1) * c_stride + n <= c.len(), "product: a matrix is not of its shape");
    thread_local! {
        static SCRATCH: RefCell<[Vec<CacheLine>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
    }
    if k == 0 && !accumulate {
        c.chunks_mut(c_stride).take(m).for_each(|row| row[..n].fill(0.0));
    }
    SCRATCH.with_borrow_mut(|[a_lines, b_lines]| {
        let session = Session::begin(unit);
        // Parts of about the same length.
        let steps = k.div_ceil(DEPTH);
        let part = steps.div_ceil(steps.div_ceil(STEPS).max(1)).max(1) * DEPTH;
        for row in (0..m).step_by(ROWS) {
            let rows = row..(row + ROWS).min(m);
            for depth in (0..k).step_by(part) {
                let depth = depth..(depth + part).min(k);
                a_lines.resize(lines(ROWS.min(m), depth.len()).max(a_lines.len()), ZERO);
                b_lines.resize(lines(PANEL, depth.len()).max(b_lines.len()), ZERO);
                let each = lines(PANEL, depth.len());
                for (i, panel) in a_lines.chunks_exact_mut(each).take(rows.len().div_ceil(PANEL)).enumerate() {
                    pack_panel(unit, Side::A, a, rows.start + i * PANEL..rows.end, depth.clone(), alpha, panel);
                }
                for column in (0..n).step_by(PANEL) {
                    let b_panel = match b {
                        Right::Mat(b) => {
                            pack_panel(unit, Side::B, b, column..n, depth.clone(), 1.0, &mut b_lines[..each]);
                            &b_lines[..each]
                        }
                        Right::Packed(b) => {
                            let panel = &b.lines[column / PANEL * lines(PANEL, b.k)..];
                            &panel[depth.start / DEPTH * STEP..][..each]
                        }
                    };
                    for (i, a_panel) in a_lines.chunks_exact(each).take(rows.len().div_ceil(PANEL)).enumerate() {
                        let at = rows.start + i * PANEL;
                        let size = (PANEL.min(rows.end - at), PANEL.min(n - column));
                        let add = accumulate || depth.start > 0;
                        session.block(a_panel, b_panel, size, &mut c[at * c_stride + column..], c_stride, add);
                    }
                }
            }
        }
    });
}

/// A unit at work on this thread.
struct Session(Unit);

impl Session {
    fn begin(unit: Unit) -> Session {
        #[cfg(target_arch = "x86_64")]
        if unit == Unit::Amx {
            amx::begin();
        }
        Session(unit)
    }

    /// `C = A B` or `C += A B` of two panels; C is `size` (rows, columns) of `c`.
    fn block(
        &self,
        a: &[CacheLine],
        b: &[CacheLine],
        (rows, columns): (usize, usize),
        c: &mut [f32],
        stride: usize,
        accumulate: bool,
    ) {
        if columns == PANEL && (rows == PANEL || self.0 != Unit::Amx) {
            assert!((rows - 1) * stride + PANEL <= c.len(), "a block of C is longer than its rows");
            return self.whole(a, b, rows, c, stride, accumulate);
        }
        let mut block = [0.0; PANEL * PANEL];
        if accumulate {
            block.chunks_exact_mut(PANEL).zip(c.chunks(stride)).take(rows).for_each(|(to, from)| {
                to[..columns].copy_from_slice(&from[..columns]);
            });
        }
        self.whole(a, b, rows, &mut block, PANEL, accumulate);
        block.chunks_exact(PANEL).zip(c.chunks_mut(stride)).take(rows).for_each(|(from, to)| {
            to[..columns].copy_from_slice(&from[..columns]);
        });
    }

    /// The same with all 32 columns there, and all 32 rows where AMX multiplies; `rows` of them matter.
    fn whole(&self, a: &[CacheLine], b: &[CacheLine], rows: usize, c: &mut [f32], stride: usize, accumulate: bool) {
        let (a, b) = (a.as_chunks::<STEP>().0, b.as_chunks::<STEP>().0);
        match self.0 {
            // SAFETY: the unit is there, its tiles were set up, and C has room for 32 rows and columns: checked by `block`.
            #[cfg(target_arch = "x86_64")]
            Unit::Amx if rows <= TILE => unsafe { amx::low_block(a, b, c.as_mut_ptr(), stride, accumulate) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Unit::Amx => unsafe { amx::block(a, b, c.as_mut_ptr(), stride, accumulate) },
            // SAFETY: the unit is there, and C has room for so many rows of 32 columns.
            #[cfg(target_arch = "x86_64")]
            Unit::Avx512 => unsafe { avx512::block(a, b, rows, c.as_mut_ptr(), stride, accumulate) },
            _ => portable::block(a, b, rows, c, stride, accumulate),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Unit::Amx {
            amx::end();
        }
    }
}

/// Which factor a panel belongs to: how its tiles lie.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    A,
    B,
}

/// A factor, read with its rows (of A) or columns (of B) first: element (i, k) is `data[i * across + k * along]`.
#[derive(Clone, Copy)]
struct Source<'a> {
    data: &'a [f32],
    across: usize,
    along: usize,
}

/// Packs the first `PANEL` of `across` by `depth` along k of a factor, times `scale`; what is missing becomes 0.
fn pack_panel(
    unit: Unit,
    side: Side,
    mat: Mat<'_>,
    across: std::ops::Range<usize>,
    depth: std::ops::Range<usize>,
    scale: f32,
    panel: &mut [CacheLine],
) {
    let (across_stride, along) = match side {
        Side::A => (mat.row_stride, mat.col_stride),
        Side::B => (mat.col_stride, mat.row_stride),
    };
    for (step, tiles) in panel.as_chunks_mut::<STEP>().0.iter_mut().enumerate() {
        let k = depth.start + step * DEPTH;
        let depth = DEPTH.min(depth.end - k);
        for (half, tile) in tiles.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
            let i = across.start + half * TILE;
            let count = across.end.saturating_sub(i).min(TILE);
            if count == 0 {
                *tile = [ZERO; TILE];
                continue;
            }
            let data = &mat.data[i * across_stride + k * along..];
            let source = Source { data, across: across_stride, along };
            pack_tile(unit, side, source, (count, depth), scale, tile);
        }
    }
}

fn pack_tile(unit: Unit, side: Side, source: Source<'_>, size: (usize, usize), scale: f32, tile: &mut Tile) {
    #[cfg(target_arch = "x86_64")]
    if unit != Unit::Portable && (source.along == 1 || source.across == 1) {
        // SAFETY: all other units have AVX512-BF16, and the source holds an element for every (i, k) of its size.
        return unsafe { avx512::pack_tile(side, source, size, scale, tile) };
    }
    let _ = unit;
    portable::pack_tile(side, source, size, scale, tile);
}
