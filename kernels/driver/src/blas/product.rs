//! A product, on the CPU: factors widened to f32, sums in f32, rounded once.

use super::plan::{self, Algorithm, BF16, BIAS, Layout, Operation, bytes, status};
use crate::command::Command;
use crate::driver::Gpu;
use crate::memory;
use crate::status::{LAUNCH_FAILED, Status};
use half::bf16;
use std::ffi::c_int;

#[derive(Clone, Debug)]
pub struct Product {
    pub operation: Operation,
    /// Of A, B, C and D.
    pub layouts: [Layout; 4],
    pub addresses: [usize; 4],
    pub alpha: f32,
    pub beta: f32,
    /// Address and bytes.
    pub workspace: (usize, usize),
}

impl Product {
    /// Why it cannot be, by what it is given and the plan it follows.
    fn problem(&self, gpu: &Gpu, algorithm: &Algorithm) -> Option<String> {
        let Product { operation, layouts, addresses, workspace, .. } = self;
        let planned =
            plan::algorithm(operation, *layouts, &plan::Preference { workspace: 0, alignment: [0; 4], reduction: 0 });
        if algorithm[..4] != planned[..4] {
            return Some("an algorithm that was chosen for another product".into());
        }
        for (i, (layout, address)) in layouts.iter().zip(addresses).enumerate() {
            let alignment = plan::alignment(algorithm, i);
            if !address.is_multiple_of(alignment) {
                return Some(format!("operand {i} at {address:#x}, which was to be a multiple of {alignment}"));
            }
            if !gpu.memory.is_device(*address, layout.extent()) {
                return Some(format!("operand {i} {layout:?} at {address:#x}, outside of device memory"));
            }
        }
        let rows = layouts[3].rows as usize;
        if workspace.1 < plan::workspace(algorithm) || !gpu.memory.is_device(workspace.0, workspace.1) {
            return Some(format!("a workspace of {} bytes at {:#x}", workspace.1, workspace.0));
        }
        let bias = operation.bias;
        let outside = operation.epilogue == BIAS && !gpu.memory.is_device(bias, rows * bytes(operation.bias_dtype));
        outside.then(|| format!("a bias at {bias:#x}, outside of device memory"))
    }
}

impl Gpu {
    pub fn product(&mut self, product: Product, algorithm: &Algorithm, stream: usize) -> Result<(), c_int> {
        let sizes = plan::sizes(&product.operation, product.layouts);
        let [m, n, k] = match (sizes, product.problem(self, algorithm)) {
            (Ok(sizes), None) => sizes,
            (Err(problem), _) | (_, Some(problem)) => {
                return self.refuse(status::INVALID_VALUE, format!("cublasLtMatmul with {problem}"));
            }
        };
        self.trace.line(|| format!("product {m} {n} {k} x{}", product.layouts[0].batch));
        self.submit(stream, Command::Product(Box::new(product))).map_err(|_| status::EXECUTION_FAILED)
    }

    pub fn run_product(&mut self, product: &Product) -> Result<(), Status> {
        let Product { operation, layouts, addresses, alpha, beta, workspace } = product;
        let [a, b, c, d] = *layouts;
        let sizes = plan::sizes(operation, *layouts).map_err(|_| LAUNCH_FAILED)?;
        // As a real product would leave it.
        memory::poison(workspace.0, workspace.1.min(1 << 16));
        let bias = (operation.epilogue == BIAS).then(|| {
            let layout = Layout { dtype: operation.bias_dtype, columns: 1, batch: 1, leading: d.rows as i64, ..d };
            // SAFETY: checked when it was submitted.
            unsafe { widen(&layout, operation.bias) }
        });
        for i in 0..a.batch as usize {
            let at = |l: &Layout, operand: usize| addresses[operand] + i * l.batch_stride as usize * bytes(l.dtype);
            // SAFETY: as above.
            unsafe {
                let (x, y) = (widen(&a, at(&a, 0)), widen(&b, at(&b, 1)));
                let sums = multiply(operation, sizes, (&a, &x), (&b, &y), *alpha);
                let old = (*beta != 0.0).then(|| widen(&c, at(&c, 2)));
                let value = |row: usize, column: usize| {
                    let at = column * sizes[0] + row;
                    let bias = bias.as_ref().map_or(0.0, |bias| bias[row]);
                    sums[at] + bias + old.as_ref().map_or(0.0, |old| beta * old[at])
                };
                store(&d, at(&d, 3), value);
            }
        }
        Ok(())
    }
}

/// alpha A B, packed in columns; the factors as [`widen`] gives them.
fn multiply(
    operation: &Operation,
    [m, n, k]: [usize; 3],
    (a, x): (&Layout, &[f32]),
    (b, y): (&Layout, &[f32]),
    alpha: f32,
) -> Vec<f32> {
    // Steps from a column to the next, and from a row.
    let steps = |l: &Layout, transposed: i32| match transposed {
        0 => (l.rows as isize, 1),
        _ => (1, l.rows as isize),
    };
    let ((a_column, a_row), (b_column, b_row)) = (steps(a, operation.transposed[0]), steps(b, operation.transposed[1]));
    let mut sums = vec![0.0f32; m * n];
    // SAFETY: the vectors are as large as the sizes and steps say.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            sums.as_mut_ptr(),
            m as isize,
            1,
            false,
            x.as_ptr(),
            a_column,
            a_row,
            y.as_ptr(),
            b_column,
            b_row,
            0.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
    sums
}

/// A matrix, packed column after column.
///
/// # Safety
/// `address` holds as much as the layout says.
unsafe fn widen(layout: &Layout, address: usize) -> Vec<f32> {
    let (rows, columns, leading) = (layout.rows as usize, layout.columns as usize, layout.leading as usize);
    let mut packed = vec![0.0; rows * columns];
    for (column, to) in packed.chunks_exact_mut(rows).enumerate() {
        // SAFETY: the caller's word.
        unsafe {
            if layout.dtype == BF16 {
                let from = std::slice::from_raw_parts((address as *const bf16).add(column * leading), rows);
                to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32());
            } else {
                to.copy_from_slice(std::slice::from_raw_parts((address as *const f32).add(column * leading), rows));
            }
        }
    }
    packed
}

/// # Safety
/// As of [`widen`].
unsafe fn store(layout: &Layout, address: usize, value: impl Fn(usize, usize) -> f32) {
    for column in 0..layout.columns as usize {
        for row in 0..layout.rows as usize {
            let at = column * layout.leading as usize + row;
            // SAFETY: the caller's word.
            unsafe {
                if layout.dtype == BF16 {
                    *(address as *mut bf16).add(at) = bf16::from_f32(value(row, column));
                } else {
                    *(address as *mut f32).add(at) = value(row, column);
                }
            }
        }
    }
}
