//! Linear: y = x Wᵀ + b, W stored `[out, in]`.
//!
//! Backward: dx = dy W, dW = dyᵀ x, db = Σ_rows dy.

pub(crate) mod case;

use crate::device::Dtype;
use crate::device::cpu::bf16::{self, Columns};
use crate::device::cpu::{Mat, Product, exact_products, prefetch, simd};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// A weight matrix as the forward pass reads it.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    matrix: Matrix<'a>,
    in_features: usize,
    spread: bool,
}

#[derive(Clone, Copy)]
enum Matrix<'a> {
    /// `[out, in]`, and what products round it to.
    Stored(&'a [f32], Dtype),
    /// As [`pack`] leaves it.
    Panels(&'a [f32]),
    Bf16(Columns<'a>),
}

/// Output features of a panel: a cache line.
const PANEL: usize = 16;
/// Rows of a tile: with `PANEL` columns, as many sums as AVX2 has registers for.
const TILE: usize = 6;
/// Rows of a tile where a panel is one vector wide: fewer sums would wait for each other.
const TALL: usize = 2 * TILE;
/// Rows that are taken through all packed weights together: they stay in the second-level cache.
const ROWS: usize = 16 * TILE;
/// Tasks for each thread of a product that is spread.
const SHARES: usize = 2;

impl<'a> Weight<'a> {
    /// W as it is stored, `[out, in]`; products are of factors in `dtype`.
    pub fn new(dtype: Dtype, data: &'a [f32], in_features: usize) -> Weight<'a> {
        Weight { matrix: Matrix::Stored(data, dtype), in_features, spread: false }
    }

    /// W as [`pack`] leaves it: a product of few rows spends much of its time bringing W into such an order.
    pub fn packed(data: &'a [f32], in_features: usize) -> Weight<'a> {
        Weight { matrix: Matrix::Panels(data), in_features, spread: false }
    }

    /// W as [`pack_bf16`] leaves it.
    pub fn packed_bf16(columns: Columns<'a>) -> Weight<'a> {
        Weight { in_features: columns.k(), matrix: Matrix::Bf16(columns), spread: false }
    }

    /// Splits products with packed weights over all cores by output features: for few rows and a W that no cache holds. Changes no result.
    pub fn spread(self, spread: bool) -> Weight<'a> {
        Weight { spread, ..self }
    }

    /// Width of the inputs.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    fn out_features(&self) -> usize {
        match self.matrix {
            Matrix::Stored(w, _) | Matrix::Panels(w) => w.len() / self.in_features,
            Matrix::Bf16(w) => w.n(),
        }
    }

    /// `y` begins with the first column of the result, in rows of `stride`.
    fn product(&self, x: &[f32], accumulate: bool, y: &mut [f32], stride: usize) {
        let (n_in, out) = (self.in_features, self.out_features());
        let product = |dtype| Product::new(dtype, (x.len() / n_in, out, n_in)).accumulate(accumulate);
        match self.matrix {
            Matrix::Stored(w, dtype) => {
                product(dtype).run(y, stride, Mat::rows(x, n_in), Mat::transposed(w, n_in));
            }
            Matrix::Panels(w) => {
                let mut y: Vec<&mut [f32]> = y.chunks_mut(stride).map(|row| &mut row[..out]).collect();
                match self.spread {
                    true => spread_panels(x, w, n_in, accumulate, y),
                    false => panel_product(x, w, n_in, accumulate, &mut y),
                }
            }
            Matrix::Bf16(w) if self.spread => spread_columns(x, w, accumulate, y, stride),
            Matrix::Bf16(w) => product(Dtype::Bf16).run_packed(y, stride, Mat::rows(x, n_in), w),
        }
    }
}

/// Output features of each task of a product that is spread.
fn share(out: usize, panel: usize) -> usize {
    out.div_ceil(SHARES * rayon::current_num_threads()).next_multiple_of(panel)
}

/// `y` row by row.
fn spread_panels(x: &[f32], w: &[f32], in_features: usize, accumulate: bool, mut y: Vec<&mut [f32]>) {
    let out = w.len() / in_features;
    let mut columns = Vec::new();
    for w in w.chunks(share(out, PANEL) * in_features) {
        let split = y.into_iter().map(|y| y.split_at_mut(w.len() / in_features));
        let (own, rest): (Vec<&mut [f32]>, Vec<&mut [f32]>) = split.unzip();
        y = rest;
        columns.push((w, own));
    }
    columns.into_par_iter().for_each(|(w, mut y)| panel_product(x, w, in_features, accumulate, &mut y));
}

/// Each task has a result of its own: a few rows, which are copied to their place.
fn spread_columns(x: &[f32], w: Columns<'_>, accumulate: bool, y: &mut [f32], stride: usize) {
    let (rows, out, each) = (x.len() / w.k(), w.n(), share(w.n(), bf16::PANEL));
    let starts: Vec<usize> = (0..out).step_by(each).collect();
    let part = |&start: &usize| {
        let own = w.split_at(start).1.split_at(each.min(out - start)).0;
        let mut part: Vec<f32> = y.chunks(stride).flat_map(|y| &y[start..start + own.n()]).copied().collect();
        let product = Product::new(Dtype::Bf16, (rows, own.n(), own.k())).accumulate(accumulate);
        product.run_packed(&mut part, own.n(), Mat::rows(x, own.k()), own);
        part
    };
    let parts: Vec<Vec<f32>> = starts.par_iter().with_max_len(1).map(part).collect();
    for (start, part) in starts.into_iter().zip(parts) {
        let width = each.min(out - start);
        let rows = y.chunks_mut(stride).zip(part.chunks_exact(width));
        rows.for_each(|(y, part)| y[start..start + width].copy_from_slice(part));
    }
}

/// `y = x Wᵀ`, or `y += x Wᵀ`, with packed W; `y` row by row.
fn panel_product(x: &[f32], w: &[f32], in_features: usize, accumulate: bool, y: &mut [&mut [f32]]) {
    let out = w.len() / in_features;
    let tiled = if exact_products() { 0 } else { out / PANEL * PANEL };
    let (w, rest) = w.split_at(tiled * in_features);
    for (x, y) in x.chunks(ROWS * in_features).zip(y.chunks_mut(ROWS)) {
        pulp::Arch::new().dispatch(Tiles { x, w, in_features, accumulate, y });
    }
    // Row by row: the order of a product's sums depends on its rows, and a row's must not depend on the others.
    let rows = if exact_products() { y.len().max(1) } else { 1 };
    for (i, panel) in rest.chunks(PANEL * in_features).enumerate() {
        let (width, at) = (panel.len() / in_features, tiled + i * PANEL);
        for (x, y) in x.chunks(rows * in_features).zip(y.chunks_mut(rows)) {
            let mut part: Vec<f32> = y.iter().flat_map(|y| &y[at..at + width]).copied().collect();
            let (x, w) = (Mat::rows(x, in_features), Mat::rows(panel, width));
            let product = Product::new(Dtype::F32, (y.len(), width, in_features)).accumulate(accumulate);
            product.run(&mut part, width, x, w);
            y.iter_mut().zip(part.chunks_exact(width)).for_each(|(y, part)| y[at..at + width].copy_from_slice(part));
        }
    }
}

/// The product with whole panels of packed weights; `y` row by row. While a panel is used, the next one is fetched: with few rows,
/// W comes from memory about as slowly as it is multiplied.
struct Tiles<'a, 'b> {
    x: &'a [f32],
    w: &'a [f32],
    in_features: usize,
    accumulate: bool,
    y: &'a mut [&'b mut [f32]],
}

impl WithSimd for Tiles<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run::<S, 1>(simd),
            8 => self.run::<S, 2>(simd),
            4 => self.run::<S, 4>(simd),
            _ => self.run::<S, PANEL>(simd),
        }
    }
}

impl Tiles<'_, '_> {
    /// With panels `V` vectors wide.
    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let Tiles { x, w, in_features, accumulate, y } = self;
        let share = in_features.div_ceil((x.len() / in_features).div_ceil(TILE)) * PANEL;
        let packed = w.chunks_exact(PANEL * in_features);
        let mut ahead = packed.clone().skip(1);
        for (i, panel) in packed.enumerate() {
            let mut ahead = ahead.next().unwrap_or_default().chunks(share);
            let panel = S::as_simd_f32s(panel).0.as_chunks().0;
            let tall = if V == 1 { y.len() / TALL * TALL } else { 0 };
            let (x_tall, x) = x.split_at(tall * in_features);
            let (y_tall, y) = y.split_at_mut(tall);
            for (x, y) in x_tall.chunks(TALL * in_features).zip(y_tall.chunks_mut(TALL)) {
                ahead.by_ref().take(TALL / TILE).for_each(prefetch);
                tile::<S, V, TALL>(simd, x, panel, accumulate, y, i * PANEL);
            }
            for (x, y) in x.chunks(TILE * in_features).zip(y.chunks_mut(TILE)) {
                prefetch(ahead.next().unwrap_or_default());
                match y.len() {
                    1 => tile::<S, V, 1>(simd, x, panel, accumulate, y, i * PANEL),
                    2 => tile::<S, V, 2>(simd, x, panel, accumulate, y, i * PANEL),
                    3 => tile::<S, V, 3>(simd, x, panel, accumulate, y, i * PANEL),
                    4 => tile::<S, V, 4>(simd, x, panel, accumulate, y, i * PANEL),
                    5 => tile::<S, V, 5>(simd, x, panel, accumulate, y, i * PANEL),
                    _ => tile::<S, V, TILE>(simd, x, panel, accumulate, y, i * PANEL),
                }
            }
        }
    }
}

/// The columns of `y` `[R, out]` from `first` on, from `x` `[R, in]` and `panel` `[in, PANEL]`.
#[inline(always)]
fn tile<S: Simd, const V: usize, const R: usize>(
    simd: S,
    x: &[f32],
    panel: &[[S::f32s; V]],
    accumulate: bool,
    y: &mut [&mut [f32]],
    first: usize,
) {
    let rows: [&[f32]; R] = std::array::from_fn(|r| &x[r * panel.len()..][..panel.len()]);
    let mut sum = [[simd.splat_f32s(0.0); V]; R];
    for (k, w) in panel.iter().enumerate() {
        for r in 0..R {
            let x = simd.splat_f32s(rows[r][k]);
            for v in 0..V {
                sum[r][v] = simd.mul_add_f32s(w[v], x, sum[r][v]);
            }
        }
    }
    for (y, sum) in y.iter_mut().zip(&sum) {
        for (y, sum) in S::as_mut_simd_f32s(&mut y[first..first + PANEL]).0.iter_mut().zip(sum) {
            *y = if accumulate { simd.add_f32s(*y, *sum) } else { *sum };
        }
    }
}

/// Copies W, `[out, in]`, into panels of 16 output features, each `[in, 16]` (the last may be narrower).
pub fn pack(w: &[f32], in_features: usize, packed: &mut [f32]) {
    for (w, panel) in w.chunks(PANEL * in_features).zip(packed.chunks_mut(PANEL * in_features)) {
        let width = w.len() / in_features;
        for (i, row) in w.chunks_exact(in_features).enumerate() {
            for (j, x) in row.iter().enumerate() {
                panel[j * width + i] = *x;
            }
        }
    }
}

/// W, `[out, in]`, for products in bf16, packed by the calling thread.
pub fn pack_bf16(w: &[f32], in_features: usize) -> bf16::Packed {
    bf16::Packed::new(Mat::transposed(w, in_features), (in_features, w.len() / in_features))
}

/// `y` `[rows, out]` from `x` `[rows, in]`.
pub fn forward(x: &[f32], w: Weight<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
    if let Some(bias) = bias {
        for row in y.chunks_exact_mut(bias.len()) {
            row.copy_from_slice(bias);
        }
    }
    w.product(x, bias.is_some(), y, w.out_features());
}

/// `y += x Wᵀ`: a projection that writes straight into the residual stream.
pub fn forward_add(x: &[f32], w: Weight<'_>, y: &mut [f32]) {
    w.product(x, true, y, w.out_features());
}

/// The same where the result is some columns of wider rows: `y` begins with the first of them, in rows of `stride`.
pub fn forward_add_columns(x: &[f32], w: Weight<'_>, y: &mut [f32], stride: usize) {
    w.product(x, true, y, stride);
}

/// The right factor of a gradient, stored row by row: W of dx = dy W, or x of dW = dyᵀ x.
pub struct RightFactor<'a> {
    stored: &'a [f32],
    width: usize,
    packed: Option<bf16::Packed>,
}

impl<'a> RightFactor<'a> {
    /// Rows of `width`, multiplied in `dtype`. In bf16 they are packed here, on all cores, for all products that read them.
    pub fn new(dtype: Dtype, stored: &'a [f32], width: usize) -> RightFactor<'a> {
        let pack = || bf16::Packed::new(Mat::rows(stored, width), (stored.len() / width, width));
        RightFactor { stored, width, packed: (dtype == Dtype::Bf16).then(pack) }
    }

    fn rows(&self) -> usize {
        self.stored.len() / self.width
    }

    /// `c = left · self`, or added to what is there.
    fn product(&self, left: Mat<'_>, accumulate: bool, c: &mut [f32]) {
        let shape = (c.len() / self.width, self.width, self.rows());
        let product = |dtype| Product::new(dtype, shape).accumulate(accumulate);
        match &self.packed {
            Some(packed) => product(Dtype::Bf16).run_packed(c, self.width, left, packed.columns()),
            None => product(Dtype::F32).run(c, self.width, left, Mat::rows(self.stored, self.width)),
        }
    }
}

/// `dx = dy W`; `dy` `[rows, out]`, W `[out, in]`, `dx` `[rows, in]`.
pub fn backward_input(dy: &[f32], w: &RightFactor<'_>, dx: &mut [f32]) {
    w.product(Mat::rows(dy, w.rows()), false, dx);
}

/// The factors of a weight's gradient dW = dyᵀ x: `dy` `[tokens, out]`, `x` `[tokens, in]`.
#[derive(Clone, Copy)]
pub struct WeightGrad<'a> {
    /// Gradient of the outputs.
    pub dy: &'a [f32],
    /// Outputs.
    pub out: usize,
    /// The first of the outputs that the weight computes: all of them, or one of several fused maps'.
    pub first: usize,
    /// Inputs.
    pub x: &'a [f32],
    /// Width of the inputs.
    pub in_features: usize,
}

/// One output tile of `dW += dyᵀ x`: `dw` holds the rows of dW that belong to columns `first ..` of `dy`.
/// `dy` `[tokens, out]`, `x` `[tokens, in]`.
pub fn backward_weight(dy: &[f32], out: usize, first: usize, x: &RightFactor<'_>, dw: &mut [f32]) {
    x.product(Mat::transposed(&dy[first..], out), true, dw);
}

/// `db += Σ_rows dy`.
pub fn backward_bias(dy: &[f32], db: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for row in dy.chunks_exact(db.len()) {
                for (d, g) in db.iter_mut().zip(row) {
                    *d += g;
                }
            }
        },
    )
}

/// On a GPU: activations and weights in bf16, sums in f32, gradients of weights in bf16 or f32.
pub mod cuda {
    use crate::device::{Gpu, Matmul, Operand, Real, Result, Slice, expect};
    use half::bf16;

    /// As [`super::WeightGrad`].
    #[derive(Clone, Copy)]
    pub struct WeightGrad<'a> {
        /// Gradient of the outputs.
        pub dy: &'a Slice<bf16>,
        /// Outputs.
        pub out: usize,
        /// The first of the outputs that the weight computes.
        pub first: usize,
        /// Inputs.
        pub x: &'a Slice<bf16>,
        /// Width of the inputs.
        pub in_features: usize,
    }

    /// A row-major matrix.
    pub(in crate::ops) fn rows<T: Real>(x: &Slice<T>, stride: usize) -> Operand {
        Operand { address: x.address(), dtype: T::DTYPE, stride, transposed: false, batch_stride: 0 }
    }

    /// The matrix without its first columns; without its first rows, where it is transposed.
    pub(in crate::ops) fn columns(of: Operand, first: usize) -> Operand {
        Operand { address: of.address + (first * of.dtype.bytes()) as u64, ..of }
    }

    /// The transpose of one.
    pub(in crate::ops) fn transposed<T: Real>(x: &Slice<T>, stride: usize) -> Operand {
        Operand { transposed: true, ..rows(x, stride) }
    }

    /// Rows and outputs of `x` `[rows, in]`, `w` `[out, in]` and `y` `[rows, out]`.
    fn sizes(op: &'static str, x: usize, w: usize, y: usize, n_in: usize) -> Result<(usize, usize)> {
        let (rows, out) = (x / n_in.max(1), w / n_in.max(1));
        expect(op, n_in > 0 && rows * n_in == x && out * n_in == w && rows * out == y, || {
            format!("{x} inputs in rows of {n_in}, {w} weights, {y} outputs")
        })?;
        Ok((rows, out))
    }

    /// `y = x Wᵀ + b`: `x` `[rows, in]`, `w` `[out, in]`, `bias` `[out]`, `y` `[rows, out]` (without a bias also in f32).
    ///
    /// # Errors
    /// If the sizes do not fit together, or the product is refused.
    pub fn forward<T: Real>(
        gpu: &Gpu,
        x: &Slice<bf16>,
        w: &Slice<bf16>,
        bias: Option<&Slice<T>>,
        in_features: usize,
        y: &Slice<T>,
    ) -> Result<()> {
        let (m, n) = sizes("linear forward", x.len(), w.len(), y.len(), in_features)?;
        let wrong_bias = bias.filter(|b| b.len() != n).map(Slice::len);
        expect("linear forward", wrong_bias.is_none(), || format!("a bias of {wrong_bias:?} for {n} outputs"))?;
        let (a, b, c) = (rows(x, in_features), transposed(w, in_features), rows(y, n));
        let bias = bias.map(Slice::address);
        gpu.matmul(&Matmul { m, n, k: in_features, batch: 1, alpha: 1.0, beta: 0.0, a, b, c, bias })
    }

    /// `dx = dy W`.
    ///
    /// # Errors
    /// If the sizes do not fit together, or the product is refused.
    pub fn backward_input(
        gpu: &Gpu,
        dy: &Slice<bf16>,
        w: &Slice<bf16>,
        in_features: usize,
        dx: &Slice<bf16>,
    ) -> Result<()> {
        let (m, k) = sizes("linear backward (input)", dx.len(), w.len(), dy.len(), in_features)?;
        let (a, b, c) = (rows(dy, k), rows(w, in_features), rows(dx, in_features));
        gpu.matmul(&Matmul { m, n: in_features, k, batch: 1, alpha: 1.0, beta: 0.0, a, b, c, bias: None })
    }

    /// `dW += dyᵀ x`.
    ///
    /// # Errors
    /// If the sizes do not fit together, or the product is refused.
    pub fn backward_weight<T: Real>(gpu: &Gpu, g: WeightGrad<'_>, dw: &Slice<T>) -> Result<()> {
        let (op, WeightGrad { dy, out, first, x, in_features }) = ("linear backward (weight)", g);
        let (k, m) = (x.len() / in_features.max(1), dw.len() / in_features.max(1));
        let whole = in_features > 0 && k * in_features == x.len() && m * in_features == dw.len();
        expect(op, whole && dy.len() == k * out && first + m <= out, || {
            let (x, dw, dy) = (x.len(), dw.len(), dy.len());
            format!(
                "{x} inputs in rows of {in_features}, {dw} weights of the outputs from {first} on of {out}, {dy} gradients"
            )
        })?;
        let (b, c) = (rows(x, in_features), rows(dw, in_features));
        let a = columns(transposed(dy, out), first);
        gpu.matmul(&Matmul { m, n: in_features, k, batch: 1, alpha: 1.0, beta: 1.0, a, b, c, bias: None })
    }

    /// `db += Σ_rows dy`, as a product with `ones` `[rows]`; `dy` `[rows, out]`, `db` `[out]`.
    ///
    /// # Errors
    /// If the sizes do not fit together, or the product is refused.
    pub fn backward_bias<T: Real>(gpu: &Gpu, dy: &Slice<bf16>, ones: &Slice<bf16>, db: &Slice<T>) -> Result<()> {
        let (k, n) = (ones.len(), db.len());
        expect("linear backward (bias)", dy.len() == k * n, || {
            format!("{} gradients for {k} rows of {n} outputs", dy.len())
        })?;
        let (a, b, c) = (rows(ones, k), rows(dy, n), rows(db, n));
        gpu.matmul(&Matmul { m: 1, n, k, batch: 1, alpha: 1.0, beta: 1.0, a, b, c, bias: None })
    }
}
