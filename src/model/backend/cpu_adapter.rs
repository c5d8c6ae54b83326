//! The backward pass of adapters beside the products of a layer, on the CPU.

use crate::device::Dtype;
use crate::device::cpu::BLOCK;
use crate::model::adapter::{Adapter, Projection, Site};
use crate::ops::linear::WeightGrad;
use crate::ops::lora::{self, Stored};
use std::ops::Range;

/// What the weight gradients of the adapters beside a product are products of: each map's u `[tokens, rank]`, and v `[tokens, maps · rank]`.
#[derive(Default)]
struct Factors {
    u: Vec<Vec<f32>>,
    v: Vec<f32>,
}

/// The factors of a layer, by [`Site`].
#[derive(Default)]
pub(super) struct LowRankGrads([Factors; 4]);

/// The part of [`Factors`] that belongs to a block of rows.
#[derive(Default)]
pub(super) struct FactorRows<'a> {
    u: Vec<&'a mut [f32]>,
    v: &'a mut [f32],
}

/// The part of a layer's factors that belongs to a block of rows.
pub(super) type LowRankBlock<'a> = [FactorRows<'a>; 4];

impl LowRankGrads {
    /// Room for the adapters of a layer.
    pub fn resize(&mut self, tokens: usize, adapter: Option<&Adapter>) {
        for (Factors { u, v }, site) in self.0.iter_mut().zip(Site::ALL) {
            let maps = adapter.map_or(0, |adapter| adapter.layout.at(0, site).len());
            let rank = adapter.map_or(0, |adapter| adapter.layout.lora.rank);
            u.resize_with(maps, Vec::new);
            u.iter_mut().for_each(|u| u.resize(tokens * rank, 0.0));
            v.resize(tokens * maps * rank, 0.0);
        }
    }

    /// By block of [`BLOCK`] of the `tokens` rows.
    pub fn blocks(&mut self, tokens: usize) -> Vec<LowRankBlock<'_>> {
        let mut blocks: Vec<LowRankBlock<'_>> = Vec::new();
        blocks.resize_with(tokens.div_ceil(BLOCK), Default::default);
        let rows = |of: &[f32]| (BLOCK * of.len() / tokens.max(1)).max(1);
        for (site, Factors { u, v }) in self.0.iter_mut().enumerate() {
            for u in u {
                let each = rows(u);
                blocks.iter_mut().zip(u.chunks_mut(each)).for_each(|(block, u)| block[site].u.push(u));
            }
            let each = rows(v);
            blocks.iter_mut().zip(v.chunks_mut(each)).for_each(|(block, v)| block[site].v = v);
        }
        blocks
    }

    /// The weight gradients of the adapters beside a product of layer `l`, whose own weight gradient would be `whole`: of all A's one.
    pub fn products<'a>(
        &'a self,
        adapter: &Adapter,
        (l, site): (usize, Site),
        whole: &WeightGrad<'a>,
    ) -> Vec<(Range<usize>, WeightGrad<'a>)> {
        let (layout, Factors { u, v }) = (&adapter.layout, &self.0[site as usize]);
        let (rank, (a, in_features)) = (layout.lora.rank, layout.stacked(l, site));
        let of_a = WeightGrad { dy: v, out: u.len() * rank, first: 0, x: whole.x, in_features };
        let of_b = |(p, u): (&Projection, &'a Vec<f32>)| {
            (p.b.clone(), WeightGrad { first: p.first, x: u, in_features: rank, ..*whole })
        };
        let of_b = layout.at(l, site).iter().zip(u).map(of_b);
        std::iter::once((a, of_a)).filter(|(a, _)| !a.is_empty()).chain(of_b).collect()
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
    let (layout, flat, FactorRows { u, v }) = (&adapter.layout, &adapter.params.flat, &mut grads[site as usize]);
    let (maps, (a, in_features)) = (layout.at(l, site), layout.stacked(l, site));
    if maps.is_empty() {
        return;
    }
    let b: Vec<(&[f32], usize)> = maps.iter().map(|p| (&flat[p.b.clone()], p.first)).collect();
    let of = Stored { a: &flat[a], b: &b, rank: layout.lora.rank, scale: layout.lora.scale(), dtype };
    lora::backward(x, dy, dy.len() / (x.len() / in_features).max(1), &of, dx, u, v);
}
