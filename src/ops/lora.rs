//! LoRA (Hu et al. 2021): beside a frozen product y = x Wᵀ, y += s · (x Aᵀ) Bᵀ, with A `[rank, in]`, B `[out, rank]` and a scale s.
//!
//! Backward, with u = s · x Aᵀ and v = s · dy B: dx += v A, dA = vᵀ x, dB = dyᵀ u. So A and B are two linear maps more, with the
//! weight gradients of any. y and dy may be some columns of wider rows: those of one of several maps whose products are fused.

pub(crate) mod case;

use super::linear::{self, Weight};
use crate::device::Dtype;
use crate::device::cpu::{Mat, Product};

/// A and B as the forward pass reads them, and the scale of their product.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    /// A.
    pub a: Weight<'a>,
    /// B.
    pub b: Weight<'a>,
    /// The factor of their product.
    pub scale: f32,
}

/// `y += s · (x Aᵀ) Bᵀ`: `x` `[rows, in]`; `y` begins with the first column of the result, in rows of `stride`.
pub fn forward(x: &[f32], of: LowRank<'_>, y: &mut [f32], stride: usize) {
    let mut u = vec![0.0; x.len() / of.a.in_features() * of.b.in_features()];
    linear::forward(x, of.a, None, &mut u);
    u.iter_mut().for_each(|u| *u *= of.scale);
    linear::forward_add_columns(&u, of.b, y, stride);
}

/// A and B as they are stored, and what their products are of.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// `[rank, in]`
    pub a: &'a [f32],
    /// `[out, rank]`
    pub b: &'a [f32],
    /// Columns of B.
    pub rank: usize,
    /// The factor of their product.
    pub scale: f32,
    /// What factors are rounded to.
    pub dtype: Dtype,
}

/// Adds v A to `dx` `[rows, in]`, and keeps u and v `[rows, rank]`, of which the weight gradients are products. `dy` begins with the
/// first column of the result's gradient, in rows of `stride`.
pub fn backward(x: &[f32], dy: &[f32], stride: usize, of: Stored<'_>, dx: &mut [f32], [u, v]: [&mut [f32]; 2]) {
    let Stored { a, b, rank, scale, dtype } = of;
    let (n_in, out) = (a.len() / rank, b.len() / rank);
    let rows = x.len() / n_in;
    let product = |shape| Product::new(dtype, shape);
    product((rows, rank, n_in)).alpha(scale).run(u, rank, Mat::rows(x, n_in), Mat::transposed(a, n_in));
    product((rows, rank, out)).alpha(scale).run(v, rank, Mat::rows(dy, stride), Mat::rows(b, rank));
    product((rows, n_in, rank)).accumulate(true).run(dx, n_in, Mat::rows(v, rank), Mat::rows(a, n_in));
}

/// Adds s · B A to W `[out, in]`: what the two compute together is one product then.
pub fn merge(of: Stored<'_>, w: &mut [f32]) {
    let Stored { a, b, rank, scale, dtype } = of;
    let (n_in, out) = (a.len() / rank, b.len() / rank);
    let product = Product::new(dtype, (out, n_in, rank)).alpha(scale).accumulate(true);
    product.run(w, n_in, Mat::rows(b, rank), Mat::rows(a, n_in));
}

/// On a GPU, in bf16: the rank is a multiple of 8.
pub mod cuda {
    use crate::device::{Gpu, Matmul, Operand, Result, Slice, expect};
    use crate::ops::linear::cuda::{columns, rows, transposed};
    use half::bf16;

    /// A `[rank, in]` and B `[out, rank]`, and the scale of their product.
    #[derive(Clone, Copy)]
    pub struct LowRank<'a> {
        /// A.
        pub a: &'a Slice<bf16>,
        /// B.
        pub b: &'a Slice<bf16>,
        /// Columns of B.
        pub rank: usize,
        /// The factor of their product.
        pub scale: f32,
    }

    /// Some columns of a matrix: those of one of several linear maps whose products are fused.
    #[derive(Clone, Copy)]
    pub struct Columns<'a> {
        /// `[rows, stride]`
        pub of: &'a Slice<bf16>,
        /// Columns of the whole matrix.
        pub stride: usize,
        /// The first of the map's.
        pub first: usize,
    }

    impl LowRank<'_> {
        /// Rows, inputs and outputs.
        fn sizes(&self, x: usize, y: &Columns<'_>, kept: &[usize]) -> Result<[usize; 3]> {
            let (n_in, out) = (self.a.len() / self.rank.max(1), self.b.len() / self.rank.max(1));
            let rows = x / n_in.max(1);
            let whole = n_in * self.rank == self.a.len() && out * self.rank == self.b.len() && rows * n_in == x;
            let inside = y.first + out <= y.stride && y.of.len() == rows * y.stride;
            let fits = self.rank > 0 && self.rank.is_multiple_of(8) && kept.iter().all(|n| *n == rows * self.rank);
            expect("lora", whole && inside && fits, || {
                format!(
                    "{x} inputs, A of {} and B of {} elements of rank {} (a multiple of 8), {kept:?} kept, outputs from {} on in \
                     rows of {}, {} in all",
                    self.a.len(),
                    self.b.len(),
                    self.rank,
                    y.first,
                    y.stride,
                    y.of.len()
                )
            })?;
            Ok([rows, n_in, out])
        }
    }

    impl Columns<'_> {
        fn operand(&self) -> Operand {
            columns(rows(self.of, self.stride), self.first)
        }
    }

    /// As [`super::forward`]; `u` `[rows, rank]` is scratch.
    ///
    /// # Errors
    /// If the sizes do not fit together, or a product is refused.
    pub fn forward(gpu: &Gpu, x: &Slice<bf16>, of: LowRank<'_>, u: &Slice<bf16>, y: Columns<'_>) -> Result<()> {
        let [m, n_in, out] = of.sizes(x.len(), &y, &[u.len()])?;
        let (rank, batch, bias) = (of.rank, 1, None);
        let (a, b, c) = (rows(x, n_in), transposed(of.a, n_in), rows(u, rank));
        gpu.matmul(&Matmul { m, n: rank, k: n_in, batch, alpha: of.scale, beta: 0.0, a, b, c, bias })?;
        let (a, b, c) = (rows(u, rank), transposed(of.b, rank), y.operand());
        gpu.matmul(&Matmul { m, n: out, k: rank, batch, alpha: 1.0, beta: 1.0, a, b, c, bias })
    }

    /// As [`super::backward`].
    ///
    /// # Errors
    /// If the sizes do not fit together, or a product is refused.
    pub fn backward(
        gpu: &Gpu,
        x: &Slice<bf16>,
        dy: Columns<'_>,
        of: LowRank<'_>,
        dx: &Slice<bf16>,
        [u, v]: [&Slice<bf16>; 2],
    ) -> Result<()> {
        let [m, n_in, out] = of.sizes(x.len(), &dy, &[u.len(), v.len()])?;
        expect("lora backward", dx.len() == x.len(), || format!("{} gradients of {} inputs", dx.len(), x.len()))?;
        let (rank, batch, bias) = (of.rank, 1, None);
        let (a, b, c) = (rows(x, n_in), transposed(of.a, n_in), rows(u, rank));
        gpu.matmul(&Matmul { m, n: rank, k: n_in, batch, alpha: of.scale, beta: 0.0, a, b, c, bias })?;
        let (a, b, c) = (dy.operand(), rows(of.b, rank), rows(v, rank));
        gpu.matmul(&Matmul { m, n: rank, k: out, batch, alpha: of.scale, beta: 0.0, a, b, c, bias })?;
        let (a, b, c) = (rows(v, rank), rows(of.a, n_in), rows(dx, n_in));
        gpu.matmul(&Matmul { m, n: n_in, k: rank, batch, alpha: 1.0, beta: 1.0, a, b, c, bias })
    }
}
