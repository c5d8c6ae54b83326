//! Adapters beside the products of a layer, on a GPU.

use super::Sink;
use super::cuda_sink::{Cuda, part};
use crate::device::{Gpu, Result, Slice, SubSlice, Tensor};
use crate::model::adapter::{Adapter, AdapterLayout, Projection, Site};
use crate::ops::linear::cuda::WeightGrad;
use crate::ops::lora::cuda::{self as lora, Columns, LowRank};
use half::bf16;
use std::sync::Arc;

/// The adapters of a model in device memory.
pub struct CudaAdapter {
    pub(crate) layout: Arc<AdapterLayout>,
    /// Flat, as [`Adapter::params`]: the copy that the optimizer rounds from its master weights.
    pub weights: Tensor<bf16>,
}

impl CudaAdapter {
    /// A copy of `adapter` on the device, rounded to bf16.
    ///
    /// # Errors
    /// If there is too little device memory.
    pub fn new(gpu: &Gpu, adapter: &Adapter) -> Result<CudaAdapter> {
        let weights: Vec<bf16> = adapter.params.flat.iter().map(|w| bf16::from_f32(*w)).collect();
        Ok(CudaAdapter { layout: adapter.layout.clone(), weights: gpu.tensor(&weights)? })
    }

    /// Elements of u, or of v, of so many tokens.
    pub(super) fn low_rank(&self, tokens: usize) -> usize {
        tokens * self.layout.lora.rank
    }

    fn matrices(&self, p: &Projection) -> [SubSlice<'_, bf16>; 2] {
        [part(&self.weights, &p.a), part(&self.weights, &p.b)]
    }

    fn of<'a>(&self, [a, b]: &'a [SubSlice<'_, bf16>; 2]) -> LowRank<'a> {
        LowRank { a, b, rank: self.layout.lora.rank, scale: self.layout.lora.scale() }
    }

    /// Adds to the product `y` of layer `l` what its adapters make of its input `x`; `u` is scratch.
    pub(super) fn forward(
        &self,
        gpu: &Gpu,
        (l, site): (usize, Site),
        x: &Slice<bf16>,
        y: &Slice<bf16>,
        u: &Slice<bf16>,
    ) -> Result<()> {
        for p in self.layout.at(l, site) {
            let stride = y.len() / (x.len() / p.in_features).max(1);
            lora::forward(gpu, x, self.of(&self.matrices(p)), u, Columns { of: y, stride, first: p.first })?;
        }
        Ok(())
    }

    /// Adds to the gradient `dx` of the product's input `x`, and hands the adapters' own to `sink`.
    pub(super) fn backward(
        &self,
        gpu: &Gpu,
        (l, site): (usize, Site),
        whole: WeightGrad<'_>,
        dx: &Slice<bf16>,
        ([u, v], sink): ([&Slice<bf16>; 2], &mut dyn Sink<Cuda>),
    ) -> Result<()> {
        let WeightGrad { dy, out, x, .. } = whole;
        for p in self.layout.at(l, site) {
            let rank = self.layout.lora.rank;
            let columns = Columns { of: dy, stride: out, first: p.first };
            lora::backward(gpu, x, columns, self.of(&self.matrices(p)), dx, [u, v])?;
            let of_a = WeightGrad { dy: v, out: rank, first: 0, x, in_features: p.in_features };
            let of_b = WeightGrad { first: p.first, x: u, in_features: rank, ..whole };
            sink.matrices(&[(p.a.clone(), of_a), (p.b.clone(), of_b)])?;
        }
        Ok(())
    }
}
