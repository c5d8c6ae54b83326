//! The CPU device: threads by rayon, matrix products in f32 by the `gemm` crate (AVX-512, AVX2/FMA or NEON, chosen at run time), or
//! of factors rounded to bf16 ([`bf16`]).

pub mod bf16;

use super::Dtype;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows of a token block: one task of a parallel loop. Large enough for efficient matrix products, small enough that a
/// block's activations stay in the second-level cache.
pub const BLOCK: usize = 512;

/// A strided read-only matrix view: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Row-major, `stride` elements from one row to the next.
    pub fn rows(data: &'a [f32], stride: usize) -> Mat<'a> {
        Mat { data, row_stride: stride, col_stride: 1 }
    }

    /// The transpose of a row-major matrix whose rows are `stride` elements apart.
    pub fn transposed(data: &'a [f32], stride: usize) -> Mat<'a> {
        Mat { data, row_stride: 1, col_stride: stride }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row_stride + (cols - 1) * self.col_stride < self.data.len()
    }
}

/// `C = alpha A B`, or `C += alpha A B` with `accumulate`; C is `[m, n]` row-major, A `[m, k]`, B `[k, n]`, `shape` (m, n, k).
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// (m, n, k).
    pub shape: (usize, usize, usize),
    /// What A and B are rounded to; sums are in f32.
    pub dtype: Dtype,
    /// Whether the product is added to C.
    pub accumulate: bool,
    /// The factor of the product.
    pub alpha: f32,
}

impl Product {
    /// `C = A B`.
    pub fn new(dtype: Dtype, shape: (usize, usize, usize)) -> Product {
        Product { shape, dtype, accumulate: false, alpha: 1.0 }
    }

    /// Sets whether the product is added to C.
    pub fn accumulate(self, accumulate: bool) -> Product {
        Product { accumulate, ..self }
    }

    /// Sets the factor of the product.
    pub fn alpha(self, alpha: f32) -> Product {
        Product { alpha, ..self }
    }

    /// With rows of `c` that are `c_stride` apart. Runs on the calling thread: parallelism is over blocks of rows or tiles of the
    /// result, never inside a product.
    ///
    /// # Panics
    /// If a matrix is shorter than its shape.
    pub fn run(self, c: &mut [f32], c_stride: usize, a: Mat<'_>, b: Mat<'_>) {
        match self.dtype {
            Dtype::F32 => in_f32(self, c, c_stride, a, b),
            Dtype::Bf16 => bf16::product(bf16::Unit::best(), self, (c, c_stride), a, bf16::Right::Mat(b)),
        }
    }

    /// The same, in bf16, with a B that was packed before.
    ///
    /// # Panics
    /// If a matrix is shorter than its shape, or B is of another.
    pub fn run_packed(self, c: &mut [f32], c_stride: usize, a: Mat<'_>, b: bf16::Columns<'_>) {
        bf16::product(bf16::Unit::best(), self, (c, c_stride), a, bf16::Right::Packed(b));
    }
}

fn in_f32(product: Product, c: &mut [f32], c_stride: usize, a: Mat<'_>, b: Mat<'_>) {
    let Product { shape: (m, n, k), accumulate, alpha, .. } = product;
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        a.holds(m, k) && b.holds(k, n) && (m - 1) * c_stride + n <= c.len(),
        "product: a matrix is shorter than its shape"
    );
    if exact_products() {
        return exact(product, c, c_stride, a, b);
    }
    // SAFETY: every index the product touches lies inside its slice: checked just above.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            c_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        )
    }
}

static EXACT_PRODUCTS: AtomicBool = AtomicBool::new(false);

/// From now on (in the whole process) matrix products accumulate in f64 and round once. For reference numbers only: an f32
/// product of length k errs by about √k roundings, which AdamW then magnifies wherever a gradient is nearly 0.
pub fn use_exact_products() {
    EXACT_PRODUCTS.store(true, Ordering::Relaxed);
}

/// Whether [`use_exact_products`] was called.
pub fn exact_products() -> bool {
    EXACT_PRODUCTS.load(Ordering::Relaxed)
}

fn exact(product: Product, c: &mut [f32], c_stride: usize, a: Mat<'_>, b: Mat<'_>) {
    let Product { shape: (m, n, k), accumulate, alpha, .. } = product;
    let widen = |x: Mat<'_>, rows: usize, cols: usize| -> Vec<f64> {
        let at = |i: usize, j: usize| f64::from(x.data[i * x.row_stride + j * x.col_stride]);
        (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect()
    };
    let (a, b, mut product) = (widen(a, m, k), widen(b, k, n), vec![0.0f64; m * n]);
    let (out, a, b) = (product.as_mut_ptr(), a.as_ptr(), b.as_ptr());
    let (n_stride, k_stride, alpha) = (n as isize, k as isize, f64::from(alpha));
    // SAFETY: the three matrices were just made, contiguous, of exactly these shapes.
    unsafe {
        let serial = gemm::Parallelism::None;
        gemm::gemm(
            m, n, k, out, 1, n_stride, false, a, 1, k_stride, b, 1, n_stride, 0.0, alpha, false, false, false, serial,
        )
    }
    for (c, product) in c.chunks_mut(c_stride).zip(product.chunks_exact(n)) {
        for (c, p) in c.iter_mut().zip(product) {
            *c = if accumulate { (f64::from(*c) + p) as f32 } else { *p as f32 };
        }
    }
}

/// Runs `f` compiled for the best instruction set of this machine, so that its plain loops vectorise.
#[inline(always)]
pub fn simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Asks for `data` to be brought into the first-level cache while something else is computed.
#[inline(always)]
pub fn prefetch<T>(data: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in data.chunks(64 / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint; the address is one of a live slice.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}

/// e^x to about one unit in the last place, written so that loops over it vectorise. Below -87 the result is 0.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.3);
    // Adding 1.5·2^23 leaves round(x / ln 2) in the low mantissa bits.
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, 12_582_912.0);
    let n = shifted - 12_582_912.0;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, clamped));
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = p.mul_add(r, c);
    }
    let value = p.mul_add(r * r, r) + 1.0;
    let scaled = f32::from_bits((value.to_bits() as i32).wrapping_add((shifted.to_bits() as i32) << 23) as u32);
    if x < -87.0 { 0.0 } else { scaled }
}

/// Lets the allocator keep what is freed for what comes next: a training step frees the same large buffers and needs them again, and
/// pages fresh from the system cost faults and zeroing. For the start of a program. Does nothing where the C library is not
/// glibc.
pub fn keep_freed_memory() {
    // SAFETY: they only set how the allocator gets and returns memory; no other thread runs yet.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

/// Memory of the machine, or of the control group this process is confined to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineMemory {
    /// Bytes in all.
    pub total: u64,
    /// What programs can still take without swapping.
    pub available: u64,
}

/// `None` where the system does not say.
pub fn memory() -> Option<MachineMemory> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let machine = MachineMemory { total: system.total_memory(), available: system.available_memory() };
    let group = system
        .cgroup_limits()
        .map(|limits| MachineMemory { total: limits.total_memory, available: limits.free_memory });
    let narrower = |group: &MachineMemory| group.total > 0 && group.total < machine.total;
    Some(group.filter(narrower).unwrap_or(machine)).filter(|memory| memory.total > 0)
}
