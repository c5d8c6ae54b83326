//! cuBLASLt's C functions, as cublasLt.h declares them.

// SAFETY of every function: pointers are what cublasLt.h says, which is the caller's word.
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments, non_snake_case, unsafe_op_in_unsafe_fn)]

use super::plan::{ANY_REDUCTION, Algorithm, BF16, F32, Heuristic, Layout, NO_EPILOGUE, Operation, Preference, status};
use super::{Product, call_blas};
use crate::api::put;
use crate::driver::{Gpu, Needs, call};
use std::ffi::{c_int, c_void};

/// CUBLAS_COMPUTE_32F.
const COMPUTE_F32: c_int = 68;

/// An attribute's value, of the size that it must have.
unsafe fn get<T: Copy>(value: *const c_void, bytes: usize) -> Result<T, c_int> {
    if bytes == size_of::<T>() && !value.is_null() {
        Ok(value.cast::<T>().read_unaligned())
    } else {
        Err(status::INVALID_VALUE)
    }
}

fn invalid<T>(gpu: &mut Gpu, problem: String) -> Result<T, c_int> {
    gpu.refuse(status::INVALID_VALUE, problem)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtGetVersion() -> usize {
    let mut version = 0;
    call("cublasLtGetVersion", Needs::Nothing, |gpu| {
        version = gpu.settings.cublaslt;
        Ok(())
    });
    version
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtCreate(to: *mut usize) -> c_int {
    call_blas("cublasLtCreate", Needs::Context, |gpu| put(to, gpu.blas.handles.insert(())))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtDestroy(handle: usize) -> c_int {
    call_blas("cublasLtDestroy", Needs::Nothing, |gpu| {
        gpu.blas.handles.remove(handle).map_err(|_| status::INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    to: *mut usize,
    dtype: c_int,
    rows: u64,
    columns: u64,
    leading: i64,
) -> c_int {
    call_blas("cublasLtMatrixLayoutCreate", Needs::Nothing, |gpu| {
        if ![BF16, F32].contains(&dtype) || rows == 0 || columns == 0 {
            return invalid(gpu, format!("cublasLtMatrixLayoutCreate of {rows} x {columns}, data type {dtype}"));
        }
        let layout = Layout { dtype, rows, columns, leading, batch: 1, batch_stride: 0 };
        put(to, gpu.blas.layouts.insert(layout))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutSetAttribute(
    layout: usize,
    attribute: c_int,
    value: *const c_void,
    bytes: usize,
) -> c_int {
    call_blas("cublasLtMatrixLayoutSetAttribute", Needs::Nothing, |gpu| {
        let layout = gpu.blas.layouts.get_mut(layout).map_err(|_| status::INVALID_VALUE)?;
        match attribute {
            5 => layout.batch = get(value, bytes)?,
            6 => layout.batch_stride = get(value, bytes)?,
            other => return invalid(gpu, format!("attribute {other} of a layout is not implemented")),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutDestroy(layout: usize) -> c_int {
    call_blas("cublasLtMatrixLayoutDestroy", Needs::Nothing, |gpu| {
        gpu.blas.layouts.remove(layout).map(drop).map_err(|_| status::INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescCreate(to: *mut usize, compute: c_int, scale: c_int) -> c_int {
    call_blas("cublasLtMatmulDescCreate", Needs::Nothing, |gpu| {
        if (compute, scale) != (COMPUTE_F32, F32) {
            return gpu
                .refuse(status::NOT_SUPPORTED, format!("products of compute type {compute} are not implemented"));
        }
        let operation = Operation { transposed: [0; 2], epilogue: NO_EPILOGUE, bias: 0, bias_dtype: -1 };
        put(to, gpu.blas.operations.insert(operation))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    operation: usize,
    attribute: c_int,
    value: *const c_void,
    bytes: usize,
) -> c_int {
    call_blas("cublasLtMatmulDescSetAttribute", Needs::Nothing, |gpu| {
        let operation = gpu.blas.operations.get_mut(operation).map_err(|_| status::INVALID_VALUE)?;
        match attribute {
            3 => operation.transposed[0] = get(value, bytes)?,
            4 => operation.transposed[1] = get(value, bytes)?,
            7 => operation.epilogue = get(value, bytes)?,
            8 => operation.bias = get(value, bytes)?,
            26 => operation.bias_dtype = get(value, bytes)?,
            other => return invalid(gpu, format!("attribute {other} of a product is not implemented")),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescDestroy(operation: usize) -> c_int {
    call_blas("cublasLtMatmulDescDestroy", Needs::Nothing, |gpu| {
        gpu.blas.operations.remove(operation).map(drop).map_err(|_| status::INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceCreate(to: *mut usize) -> c_int {
    call_blas("cublasLtMatmulPreferenceCreate", Needs::Nothing, |gpu| {
        let preference = Preference { workspace: 0, alignment: [256; 4], reduction: ANY_REDUCTION };
        put(to, gpu.blas.preferences.insert(preference))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: usize,
    attribute: c_int,
    value: *const c_void,
    bytes: usize,
) -> c_int {
    call_blas("cublasLtMatmulPreferenceSetAttribute", Needs::Nothing, |gpu| {
        let preference = gpu.blas.preferences.get_mut(preference).map_err(|_| status::INVALID_VALUE)?;
        match attribute {
            1 => preference.workspace = get(value, bytes)?,
            3 => preference.reduction = get(value, bytes)?,
            operand @ 5..=8 => preference.alignment[operand as usize - 5] = get(value, bytes)?,
            other => return invalid(gpu, format!("attribute {other} of a preference is not implemented")),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceDestroy(preference: usize) -> c_int {
    call_blas("cublasLtMatmulPreferenceDestroy", Needs::Nothing, |gpu| {
        gpu.blas.preferences.remove(preference).map(drop).map_err(|_| status::INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    handle: usize,
    operation: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    preference: usize,
    room: c_int,
    results: *mut Heuristic,
    found: *mut c_int,
) -> c_int {
    call_blas("cublasLtMatmulAlgoGetHeuristic", Needs::Nothing, |gpu| {
        put(found, 0)?;
        if gpu.blas.handles.get(handle).is_err() || room < 1 {
            return invalid(gpu, "cublasLtMatmulAlgoGetHeuristic without a handle, or room for a result".into());
        }
        let algorithm = gpu.plan(operation, [a, b, c, d], preference)?;
        let workspace = super::plan::workspace(&algorithm);
        put(results, Heuristic { algorithm, workspace, state: 0, waves: 1.0, reserved: [0; 4] })?;
        put(found, 1)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmul(
    handle: usize,
    operation: usize,
    alpha: *const f32,
    a: usize,
    a_layout: usize,
    b: usize,
    b_layout: usize,
    beta: *const f32,
    c: usize,
    c_layout: usize,
    d: usize,
    d_layout: usize,
    algorithm: *const Algorithm,
    workspace: usize,
    workspace_bytes: usize,
    stream: usize,
) -> c_int {
    call_blas("cublasLtMatmul", Needs::Context, |gpu| {
        if gpu.blas.handles.get(handle).is_err() || alpha.is_null() || beta.is_null() || algorithm.is_null() {
            return invalid(gpu, "cublasLtMatmul without a handle, factors or an algorithm".into());
        }
        let layouts = gpu.layouts([a_layout, b_layout, c_layout, d_layout])?;
        let operation = *gpu.blas.operations.get(operation).map_err(|_| status::INVALID_VALUE)?;
        let (addresses, workspace) = ([a, b, c, d], (workspace, workspace_bytes));
        let product = Product { operation, layouts, addresses, alpha: *alpha, beta: *beta, workspace };
        gpu.product(product, &*algorithm, stream)
    })
}
