//! The backward pass of adapters beside the products of a layer, on the CPU.

use crate::device::Dtype;
use crate::device::cpu::BLOCK;
use crate::model::adapter::{Adapter, Projection, Site};
use crate::ops::linear::WeightGrad;
use crate::ops::lora;
use std::ops::Range;

/// What the weight gradients of a layer's adapters are products of: u and v of each, `[tokens, rank]`, by [`Site`].
#[derive(Default)]
pub(super) struct LowRankGrads([Vec<[Vec<f32>; 2]>; 4]);

/// The part of them that belongs to a block of rows.
pub(super) type LowRankBlock<'a> = [Vec<[&'a mut [f32]; 2]>; 4];

impl LowRankGrads {
    /// Room for the adapters of a layer.
    pub fn resize(&mut self, tokens: usize, adapter: Option<&Adapter>) {
        for (of, site) in self.0.iter_mut().zip(Site::ALL) {
            of.resize_with(adapter.map_or(0, |adapter| adapter.layout.at(0, site).len()), Default::default);
            let rank = adapter.map_or(0, |adapter| adapter.layout.lora.rank);
            of.iter_mut().flatten().for_each(|buffer| buffer.resize(tokens * rank, 0.0));
        }
    }

    /// By block of [`BLOCK`] of the `tokens` rows.
    pub fn blocks(&mut self, tokens: usize) -> Vec<LowRankBlock<'_>> {
        let mut blocks: Vec<LowRankBlock<'_>> = Vec::new();
        blocks.resize_with(tokens.div_ceil(BLOCK), Default::default);
        for (site, of) in self.0.iter_mut().enumerate() {
            for [u, v] in of {
                let rank = u.len() / tokens.max(1);
                let parts = u.chunks_mut(BLOCK * rank).zip(v.chunks_mut(BLOCK * rank));
                blocks.iter_mut().zip(parts).for_each(|(block, (u, v))| block[site].push([u, v]));
            }
        }
        blocks
    }

    /// The weight gradients of the adapters beside a product of layer `l`, whose own weight gradient would be `whole`.
    pub fn products<'a>(
        &'a self,
        adapter: &'a Adapter,
        (l, site): (usize, Site),
        whole: &WeightGrad<'a>,
    ) -> Vec<(Range<usize>, WeightGrad<'a>)> {
        let (rank, WeightGrad { dy, out, x, .. }) = (adapter.layout.lora.rank, *whole);
        let both = |(p, [u, v]): (&'a Projection, &'a [Vec<f32>; 2])| {
            let of_a = WeightGrad { dy: v, out: rank, first: 0, x, in_features: p.in_features };
            let of_b = WeightGrad { dy, out, first: p.first, x: u, in_features: rank };
            [(p.a.clone(), of_a), (p.b.clone(), of_b)]
        };
        adapter.layout.at(l, site).iter().zip(&self.0[site as usize]).flat_map(both).collect()
    }
}

/// The backward pass of the adapters beside a product of layer `l`, over a block of rows: adds to the gradient `dx` of its input `x`.
pub(super) fn backward(
    adapter: &Adapter,
    (l, site, dtype): (usize, Site, Dtype),
    (x, dy): (&[f32], &[f32]),
    dx: &mut [f32],
    grads: &mut LowRankBlock<'_>,
) {
    for (p, [u, v]) in adapter.layout.at(l, site).iter().zip(&mut grads[site as usize]) {
        let stride = dy.len() / (x.len() / p.in_features).max(1);
        lora::backward(x, &dy[p.first..], stride, adapter.stored(p, dtype), dx, [u, v]);
    }
}
