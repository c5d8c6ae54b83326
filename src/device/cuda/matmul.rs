//! Matrix products by cuBLASLt, planned once for each shape.
//!
//! It thinks in columns: a row-major matrix is the transpose of a column-major one, and C = A B is Cᵀ = Bᵀ Aᵀ. So B goes in as its
//! first operand and A as its second, each as it lies in memory.

use crate::device::{Dtype, Error, Matmul, Operand, Result};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use std::collections::HashMap;
use std::ffi::c_void;

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
    product: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl CublasLt {
    /// Bytes that [`CublasLt::open`] wants: what cuBLAS takes on Hopper.
    pub const WORKSPACE: usize = 32 << 20;

    /// The context must be current; `workspace` is the address of so many bytes of its memory.
    pub fn open(workspace: u64) -> Result<CublasLt> {
        // SAFETY: only opens the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoCublasLt);
        }
        let handle =
            result::create_handle().map_err(|e| Error::Call { what: "start cuBLASLt", problem: e.to_string() })?;
        Ok(CublasLt { handle, workspace, plans: HashMap::new() })
    }

    /// The addresses must be of memory as large as the sizes say, and the stream of the same context.
    pub fn matmul(&mut self, product: &Matmul, stream: cudarc::driver::sys::CUstream) -> Result<()> {
        let Matmul { m, n, k, batch, alpha, beta, a, b, c, bias } = *product;
        let wrong = |e: CublasError| Error::Matmul { sizes: product.sizes(), problem: e.to_string() };
        let key = Key { sizes: [m, n, k, batch], operands: [a, b, c].map(alignment_only), bias: bias.is_some() };
        let plan = match self.plans.entry(key) {
            std::collections::hash_map::Entry::Occupied(plan) => plan.into_mut(),
            std::collections::hash_map::Entry::Vacant(empty) => {
                empty.insert(Plan::new(self.handle, product).map_err(wrong)?)
            }
        };
        let [first, second, out] = plan.layouts;
        let pointer = |address: u64| address as *const c_void;
        // SAFETY: the plan's descriptors live as long as it does; the rest is the caller's promise.
        unsafe {
            if let Some(bias) = bias {
                let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
                set(plan.product, attribute, &bias).map_err(wrong)?;
            }
            result::matmul(
                self.handle,
                plan.product,
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
            .map_err(wrong)
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

unsafe fn set<T>(
    product: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<(), CublasError> {
    // SAFETY: the attribute is of type T, by the caller's word.
    unsafe { result::set_matmul_desc_attribute(product, attribute, (&raw const *value).cast(), size_of::<T>()) }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, wanted: &Matmul) -> Result<Plan, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let Matmul { m, n, k, batch, a, b, c, bias, .. } = *wanted;
        // Sums in f32, f32 factors not cut to TF32.
        let product =
            result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F)?;
        // CUBLAS_OP_N and CUBLAS_OP_T.
        let turn = |operand: Operand| i32::from(operand.transposed);
        // SAFETY: each attribute is set to a value of its type.
        unsafe {
            set(product, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &turn(b))?;
            set(product, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &turn(a))?;
            if bias.is_some() {
                let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
                set(product, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
                set(product, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &kind(c.dtype))?;
            }
        }
        let layouts = [layout(b, k, n, batch)?, layout(a, m, k, batch)?, layout(c, m, n, batch)?];
        let [first, second, out] = layouts;
        let wishes = result::create_matmul_pref()?;
        use sys::cublasLtMatmulPreferenceAttributes_t as Wish;
        let wish = |attribute, value: *const c_void, bytes| {
            // SAFETY: each value is of its attribute's type.
            unsafe { result::set_matmul_pref_attribute(wishes, attribute, value, bytes) }
        };
        let workspace = CublasLt::WORKSPACE;
        wish(Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), size_of::<usize>())?;
        for (attribute, operand) in [
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ] {
            let alignment = alignment(operand.address);
            wish(attribute, (&raw const alignment).cast(), size_of::<u32>())?;
        }
        // SAFETY: all of these were just made.
        let best = unsafe {
            let best = result::get_matmul_algo_heuristic(handle, product, first, second, out, out, wishes);
            result::destroy_matmul_pref(wishes)?;
            best?
        };
        Ok(Plan { product, layouts, algorithm: best.algo })
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nobody else has them.
        unsafe {
            let _ = result::destroy_matmul_desc(self.product);
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

/// Of a row-major `[rows, columns]` matrix, as cuBLASLt sees it: columns first.
fn layout(
    operand: Operand,
    rows: usize,
    columns: usize,
    batch: usize,
) -> Result<sys::cublasLtMatrixLayout_t, CublasError> {
    use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
    let (rows, columns) = if operand.transposed { (columns, rows) } else { (rows, columns) };
    let layout = result::create_matrix_layout(kind(operand.dtype), columns as u64, rows as u64, operand.stride as i64)?;
    let (count, stride) = (batch as i32, operand.batch_stride as i64);
    // SAFETY: each attribute is set to a value of its type.
    unsafe {
        let set = |attribute, value: *const c_void, bytes| {
            result::set_matrix_layout_attribute(layout, attribute, value, bytes)
        };
        set(Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (&raw const count).cast(), size_of::<i32>())?;
        set(Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, (&raw const stride).cast(), size_of::<i64>())?;
    }
    Ok(layout)
}
