//! LoRA (Hu et al. 2021): beside a frozen product y = x Wᵀ, y += s · (x Aᵀ) Bᵀ, with A `[rank, in]`, B `[out, rank]` and a scale s.
//!
//! Backward, with u = s · x Aᵀ and v = s · dy B: dx += v A, dA = vᵀ x, dB = dyᵀ u. So A and B are two linear maps more, with the
//! weight gradients of any. y and dy may be some columns of wider rows: those of one of several maps whose products are fused. Maps
//! that read one input have one A on the CPU: theirs, one below the other.

pub(crate) mod case;

use super::linear::{self, Weight};
use crate::device::Dtype;
use crate::device::cpu::{Mat, Product};
use std::borrow::Cow;

/// The adapters of maps that read one input, as the forward pass reads them. Their A's are one matrix: a product of a small rank
/// fills no tile.
pub struct LowRank<'a> {
    /// The A's, one below the other: `[maps · rank, in]`.
    pub a: Weight<'a>,
    /// Each map's B, and the first of its columns in the result.
    pub b: &'a [(Weight<'a>, usize)],
    /// The factor of their product.
    pub scale: f32,
}

/// `y += s · (x Aᵀ) Bᵀ`: `x` `[rows, in]`; `y` in rows of `stride`, of which each map has some columns.
pub fn forward(x: &[f32], of: &LowRank<'_>, y: &mut [f32], stride: usize) {
    let rows = x.len() / of.a.in_features();
    let mut u = vec![0.0; rows * of.b.iter().map(|(b, _)| b.in_features()).sum::<usize>()];
    linear::forward(x, of.a, None, &mut u);
    u.iter_mut().for_each(|u| *u *= of.scale);
    for (map, (b, first)) in of.b.iter().enumerate() {
        linear::forward_add_columns(&part(&u, of.b.len(), b.in_features(), map), *b, &mut y[*first..], stride);
    }
}

/// The columns of one of `maps` in u: `[rows, rank]` of `[rows, maps · rank]`.
fn part(u: &[f32], maps: usize, rank: usize, map: usize) -> Cow<'_, [f32]> {
    match maps {
        1 => Cow::Borrowed(u),
        _ => u.chunks_exact(maps * rank).flat_map(|row| &row[map * rank..][..rank]).copied().collect(),
    }
}

/// The same as they are stored, and what their products are of.
pub struct Stored<'a> {
    /// `[maps · rank, in]`
    pub a: &'a [f32],
    /// Each `[out, rank]`, and the first of the map's columns in the result.
    pub b: &'a [(&'a [f32], usize)],
    /// Columns of B.
    pub rank: usize,
    /// The factor of their product.
    pub scale: f32,
    /// What factors are rounded to.
    pub dtype: Dtype,
}

/// Adds v A to `dx` `[rows, in]`, and keeps v `[rows, maps · rank]` and each map's u `[rows, rank]`, of which the weight gradients are
/// products. `dy` in rows of `stride`.
pub fn backward(
    x: &[f32],
    dy: &[f32],
    stride: usize,
    of: &Stored<'_>,
    dx: &mut [f32],
    u: &mut [&mut [f32]],
    v: &mut [f32],
) {
    let Stored { a, b, rank, scale, dtype } = *of;
    let all = b.len() * rank;
    let n_in = a.len() / all;
    let rows = x.len() / n_in;
    let product = |shape| Product::new(dtype, shape);
    product((rows, all, n_in)).alpha(scale).run(v, all, Mat::rows(x, n_in), Mat::transposed(a, n_in));
    for (map, u) in u.iter_mut().enumerate() {
        u.copy_from_slice(&part(v, b.len(), rank, map));
    }
    for (map, (b, first)) in b.iter().enumerate() {
        let shape = (rows, rank, b.len() / rank);
        product(shape).alpha(scale).run(
            &mut v[map * rank..],
            all,
            Mat::rows(&dy[*first..], stride),
            Mat::rows(b, rank),
        );
    }
    product((rows, n_in, all)).accumulate(true).run(dx, n_in, Mat::rows(v, all), Mat::rows(a, n_in));
}

/// Adds s · B A to W `[out, in]`, with A `[rank, in]`: what the two compute together is one product then.
pub fn merge([a, b]: [&[f32]; 2], rank: usize, scale: f32, w: &mut [f32]) {
    let (n_in, out) = (a.len() / rank, b.len() / rank);
    let product = Product::new(Dtype::F32, (out, n_in, rank)).alpha(scale).accumulate(true);
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
