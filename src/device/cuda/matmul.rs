//! Matrix products by cuBLASLt, planned once for each shape.
//!
//! It thinks in columns: a row-major matrix is the transpose of a column-major one, and C = A B is Cᵀ = Bᵀ Aᵀ. So B goes in as its
//! first operand and A as its second, each as it lies in memory.

use crate::device::{Dtype, Error, Matmul, Operand, Result};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use std::collections::HashMap;
use std::ffi::c_void;

/// The least release of cuBLASLt, that of the CUDA release that kernels are built with.
const NEEDED: usize = 130_000;

pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    plans: HashMap<Key, Plan>,
}

/// All that a plan depends on: addresses only by their alignment.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    sizes: [usize; 4],
    operands: [Operand; 3],
    bias: bool,
}

/// How to do the products of one shape.
struct Plan {
    operation: Operation,
    layouts: [Layout; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library's release, as a number: 130002 is 13.0.2. An older one, which is found where there is no newer one, is refused.
///
/// # Errors
/// If the library is not there, or too old.
pub fn find_cublaslt() -> Result<usize> {
    // SAFETY: opens the library, and asks what every release answers.
    let found = unsafe {
        if !sys::is_culib_present() {
            return Err(Error::NoCublasLt);
        }
        sys::cublasLtGetVersion()
    };
    if found < NEEDED { Err(Error::CublasLtTooOld { found }) } else { Ok(found) }
}

impl CublasLt {
    /// Bytes that [`CublasLt::open`] wants: what cuBLAS takes on Hopper.
    pub const WORKSPACE: usize = 32 << 20;

    /// The context must be current; `workspace` is the address of so many bytes of its memory.
    pub fn open(workspace: u64) -> Result<CublasLt> {
        find_cublaslt()?;
        let handle =
            result::create_handle().map_err(|e| Error::Call { what: "start cuBLASLt", problem: e.to_string() })?;
        Ok(CublasLt { handle, workspace, plans: HashMap::new() })
    }

    /// The addresses must be of memory as large as the sizes say, and the stream of the same context.
    pub fn matmul(&mut self, product: &Matmul, stream: cudarc::driver::sys::CUstream) -> Result<(), CublasError> {
        let Matmul { m, n, k, batch, alpha, beta, a, b, c, bias } = *product;
        let key = Key { sizes: [m, n, k, batch], operands: [a, b, c].map(alignment_only), bias: bias.is_some() };
        let plan = match self.plans.entry(key) {
            std::collections::hash_map::Entry::Occupied(plan) => plan.into_mut(),
            std::collections::hash_map::Entry::Vacant(empty) => empty.insert(Plan::new(self.handle, product)?),
        };
        let [first, second, out] = plan.layouts.each_ref().map(|layout| layout.0);
        let pointer = |address: u64| address as *const c_void;
        // SAFETY: the plan's descriptors live as long as it does; the rest is the caller's promise.
        unsafe {
            if let Some(bias) = bias {
                let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
                plan.operation.set(attribute, &bias)?;
            }
            result::matmul(
                self.handle,
                plan.operation.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(b.address),
                first,
                pointer(a.address),
                second,
                pointer(c.address),
                out,
                c.address as *mut c_void,
                out,
                &plan.algorithm,
                self.workspace as *mut c_void,
                Self::WORKSPACE,
                stream.cast(),
            )
        }
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: nobody else has the handle.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// The largest power of two that divides the address, up to the 256 of an allocation.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

fn alignment_only(operand: Operand) -> Operand {
    Operand { address: alignment(operand.address).into(), ..operand }
}

fn kind(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
    }
}

/// What a product is, but for the matrices.
struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new() -> Result<Operation, CublasError> {
        // Sums in f32, f32 factors not cut to TF32.
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        result::create_matmul_desc(compute, scale).map(Operation)
    }

    /// # Safety
    /// The attribute is of type T.
    unsafe fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), CublasError> {
        // SAFETY: the caller's word.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, (&raw const *value).cast(), size_of::<T>()) }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: created once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// Of a row-major `[rows, columns]` matrix, as cuBLASLt sees it: columns first.
    fn new(operand: Operand, rows: usize, columns: usize, batch: usize) -> Result<Layout, CublasError> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let (rows, columns) = if operand.transposed { (columns, rows) } else { (rows, columns) };
        let (dtype, stride) = (kind(operand.dtype), operand.stride as i64);
        let layout = Layout(result::create_matrix_layout(dtype, columns as u64, rows as u64, stride)?);
        let (count, stride) = (batch as i32, operand.batch_stride as i64);
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: each attribute is set to a value of its type.
            unsafe { result::set_matrix_layout_attribute(layout.0, attribute, value, bytes) }
        };
        set(Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (&raw const count).cast(), size_of::<i32>())?;
        set(Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, (&raw const stride).cast(), size_of::<i64>())?;
        Ok(layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm may do.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new([a, b, c]: [Operand; 3]) -> Result<Preference, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Preference(result::create_matmul_pref()?);
        let workspace = CublasLt::WORKSPACE;
        // Parts of a sum are added up in f32, or in one go: any other way rounds in between.
        let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        // SAFETY: each attribute is set to a value of its type.
        unsafe {
            preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace)?;
            preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction)?;
            for (attribute, operand) in [
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
            ] {
                preference.set(attribute, &alignment(operand.address))?;
            }
        }
        Ok(preference)
    }

    /// # Safety
    /// The attribute is of type T.
    unsafe fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), CublasError> {
        // SAFETY: the caller's word.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, (&raw const *value).cast(), size_of::<T>()) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, wanted: &Matmul) -> Result<Plan, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let Matmul { m, n, k, batch, a, b, c, bias, .. } = *wanted;
        let operation = Operation::new()?;
        // CUBLAS_OP_N and CUBLAS_OP_T.
        let turn = |operand: Operand| i32::from(operand.transposed);
        // SAFETY: each attribute is set to a value of its type.
        unsafe {
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &turn(b))?;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &turn(a))?;
            if bias.is_some() {
                let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
                operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
                operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &kind(c.dtype))?;
            }
        }
        let layouts = [Layout::new(b, k, n, batch)?, Layout::new(a, m, k, batch)?, Layout::new(c, m, n, batch)?];
        let [first, second, out] = layouts.each_ref().map(|layout| layout.0);
        let preference = Preference::new([a, b, c])?;
        // SAFETY: all of these were just made.
        let best =
            unsafe { result::get_matmul_algo_heuristic(handle, operation.0, first, second, out, out, preference.0)? };
        Ok(Plan { operation, layouts, algorithm: best.algo })
    }
}
