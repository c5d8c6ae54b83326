//! What a product is described by, and whether it can be.

use crate::driver::Gpu;
use std::ffi::c_int;

/// cublasStatus_t.
pub mod status {
    use std::ffi::c_int;
    pub const SUCCESS: c_int = 0;
    pub const NOT_INITIALIZED: c_int = 1;
    pub const INVALID_VALUE: c_int = 7;
    pub const EXECUTION_FAILED: c_int = 13;
    pub const NOT_SUPPORTED: c_int = 15;
    /// The largest there is.
    pub const LAST: c_int = 16;
}

/// cudaDataType_t.
pub const F32: c_int = 0;
pub const BF16: c_int = 14;
/// CUBLASLT_EPILOGUE_DEFAULT and _BIAS.
pub const NO_EPILOGUE: u32 = 1;
pub const BIAS: u32 = 4;
/// CUBLASLT_REDUCTION_SCHEME_MASK: any way to add up parts of a sum, in bf16 too.
pub const ANY_REDUCTION: u32 = 7;

/// A column-major matrix, or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub dtype: c_int,
    pub rows: u64,
    pub columns: u64,
    pub leading: i64,
    pub batch: i32,
    /// Elements from one matrix of a batch to the next.
    pub batch_stride: i64,
}

/// A cublasLtMatmulDesc_t.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub transposed: [i32; 2],
    pub epilogue: u32,
    pub bias: usize,
    pub bias_dtype: c_int,
}

/// A cublasLtMatmulPreference_t.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preference {
    pub workspace: usize,
    pub alignment: [u32; 4],
    pub reduction: u32,
}

pub fn bytes(dtype: c_int) -> usize {
    if dtype == BF16 { 2 } else { 4 }
}

impl Layout {
    /// Bytes from the first element to past the last.
    pub fn extent(&self) -> usize {
        let one = (self.columns as usize - 1) * self.leading as usize + self.rows as usize;
        (one + (self.batch as usize - 1) * self.batch_stride.max(0) as usize) * bytes(self.dtype)
    }
}

/// `[m, n, k]` of a product A B = D, or why there is none.
pub fn sizes(operation: &Operation, [a, b, c, d]: [Layout; 4]) -> Result<[usize; 3], String> {
    let as_used = |l: &Layout, transposed: i32| match transposed {
        0 => (l.rows as usize, l.columns as usize),
        _ => (l.columns as usize, l.rows as usize),
    };
    let [ta, tb] = operation.transposed;
    let ((m, k), (other_k, n)) = (as_used(&a, ta), as_used(&b, tb));
    let layouts = || format!("{a:?} {b:?} {c:?} {d:?}");
    if ![ta, tb].iter().all(|t| (0..=1).contains(t)) {
        Err(format!("operations {ta} and {tb} are not implemented"))
    } else if k != other_k || (d.rows as usize, d.columns as usize) != (m, n) || c != d {
        Err(format!("layouts that do not fit: {}", layouts()))
    } else if [a, b, d].iter().any(|l| l.leading < l.rows as i64 || l.batch != a.batch || l.batch < 1) {
        Err(format!("a leading dimension below the rows, or batches that differ: {}", layouts()))
    } else if d.batch > 1 && d.batch_stride < d.rows as i64 {
        Err(format!("the results of a batch overlap: {d:?}"))
    } else if a.dtype != b.dtype || a.dtype == F32 && d.dtype == BF16 {
        Err(format!("data types that do not go together: {}", layouts()))
    } else if ![NO_EPILOGUE, BIAS].contains(&operation.epilogue)
        || operation.epilogue == BIAS && operation.bias_dtype != d.dtype
    {
        Err(format!("an epilogue that is not implemented, or a bias of another data type: {operation:?}"))
    } else {
        Ok([m, n, k])
    }
}

/// cublasLtMatmulAlgo_t: here, what it was chosen for, so that it is used for nothing else.
pub type Algorithm = [u64; 8];

/// cublasLtMatmulHeuristicResult_t.
#[repr(C)]
pub struct Heuristic {
    pub algorithm: Algorithm,
    pub workspace: usize,
    pub state: c_int,
    pub waves: f32,
    pub reserved: [c_int; 4],
}

/// Numbers that differ where products do.
pub fn algorithm(operation: &Operation, [a, b, _, d]: [Layout; 4], preference: &Preference) -> Algorithm {
    let number = |l: Layout| {
        let parts = [l.rows, l.columns, l.leading as u64, l.dtype as u64, l.batch as u64, l.batch_stride as u64];
        parts.iter().fold(0u64, |sum, part| (sum ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29))
    };
    let Operation { transposed: [ta, tb], epilogue, .. } = *operation;
    let how = u64::from(epilogue) << 2 | (ta as u64) << 1 | tb as u64;
    let alignment = preference.alignment.iter().fold(0, |sum, n| sum << 16 | u64::from(*n));
    [number(a), number(b), number(d), how, alignment, preference.workspace as u64, 0, 0]
}

/// Bytes that operand `i` must be aligned to, and the workspace must have.
pub fn alignment(algorithm: &Algorithm, i: usize) -> usize {
    (algorithm[4] >> (16 * (3 - i)) & 0xFFFF) as usize
}

pub fn workspace(algorithm: &Algorithm) -> usize {
    algorithm[5] as usize
}

impl Gpu {
    pub fn plan(&mut self, operation: usize, layouts: [usize; 4], preference: usize) -> Result<Algorithm, c_int> {
        let layouts = self.layouts(layouts)?;
        let operation = *self.blas.operations.get(operation).map_err(|_| status::INVALID_VALUE)?;
        let preference = *self.blas.preferences.get(preference).map_err(|_| status::INVALID_VALUE)?;
        let [m, n, k] = match sizes(&operation, layouts) {
            Ok(sizes) => sizes,
            Err(problem) => {
                return self.refuse(status::NOT_SUPPORTED, format!("cublasLtMatmulAlgoGetHeuristic: {problem}"));
            }
        };
        if preference.reduction == ANY_REDUCTION && layouts[3].dtype == BF16 {
            self.violation("a product whose parts may be added up in bf16: say which reduction schemes will do".into());
        }
        self.trace.line(|| format!("plan {m} {n} {k} x{}", layouts[0].batch));
        Ok(algorithm(&operation, layouts, &preference))
    }

    pub fn layouts(&self, handles: [usize; 4]) -> Result<[Layout; 4], c_int> {
        let mut layouts = [None; 4];
        for (layout, handle) in layouts.iter_mut().zip(handles) {
            *layout = Some(*self.blas.layouts.get(handle).map_err(|_| status::INVALID_VALUE)?);
        }
        let [Some(a), Some(b), Some(c), Some(d)] = layouts else { return Err(status::INVALID_VALUE) };
        Ok([a, b, c, d])
    }
}
