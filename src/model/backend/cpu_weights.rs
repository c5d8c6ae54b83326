//! Where the forward pass on the CPU reads its matrices: those of the model, and of the adapters beside them.

use super::packed_weights::PackedWeights;
use crate::device::Dtype;
use crate::model::adapter::{AdapterLayout, Site};
use crate::ops::linear;
use crate::ops::lora::{self, LowRank};
use std::ops::Range;
use std::sync::Arc;

/// Where the forward pass reads its matrices.
#[derive(Clone, Copy)]
pub(in crate::model) struct Weights<'a> {
    pub source: WeightSource<'a>,
    pub adapter: Option<AdapterWeights<'a>>,
    /// Each product on all cores.
    pub spread: bool,
}

#[derive(Clone, Copy)]
pub(in crate::model) enum WeightSource<'a> {
    /// The parameters, in f32.
    Stored(&'a [f32]),
    Packed(&'a PackedWeights),
}

impl<'a> WeightSource<'a> {
    pub fn matrix(&self, range: &Range<usize>, in_features: usize) -> linear::Weight<'a> {
        match self {
            WeightSource::Stored(flat) => linear::Weight::new(Dtype::F32, &flat[range.clone()], in_features),
            WeightSource::Packed(packed) => packed.matrix(range, in_features),
        }
    }
}

impl<'a> Weights<'a> {
    pub fn matrix(&self, range: &Range<usize>, in_features: usize) -> linear::Weight<'a> {
        self.source.matrix(range, in_features).spread(self.spread)
    }
}

/// A model's matrices in the order in which decoding reads them, as they are at one time.
pub(in crate::model) struct PackedModel {
    pub weights: Arc<PackedWeights>,
    pub adapter: Option<(Arc<AdapterLayout>, Arc<PackedWeights>)>,
}

impl PackedModel {
    pub fn weights(&self) -> Weights<'_> {
        let adapter =
            self.adapter.as_ref().map(|(layout, of)| AdapterWeights { layout, source: WeightSource::Packed(of) });
        Weights { source: WeightSource::Packed(&self.weights), adapter, spread: false }
    }
}

/// Where the forward pass reads the adapters' matrices.
#[derive(Clone, Copy)]
pub(in crate::model) struct AdapterWeights<'a> {
    pub layout: &'a AdapterLayout,
    pub source: WeightSource<'a>,
}

impl Weights<'_> {
    /// Adds to the product `y` of layer `l` what its adapters make of its input `x`, row by row.
    pub fn adapt(&self, l: usize, site: Site, x: &[f32], y: &mut [f32]) {
        let Some(AdapterWeights { layout, source }) = self.adapter else { return };
        let (maps, (a, in_features)) = (layout.at(l, site), layout.stacked(l, site));
        if maps.is_empty() {
            return;
        }
        let b: Vec<_> = maps.iter().map(|p| (source.matrix(&p.b, layout.lora.rank), p.first)).collect();
        let of = LowRank { a: source.matrix(&a, in_features), b: &b, scale: layout.lora.scale() };
        lora::forward(x, &of, y, y.len() / (x.len() / in_features).max(1));
    }
}
