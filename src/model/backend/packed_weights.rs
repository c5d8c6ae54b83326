//! Matrices in the order in which products read them.

use crate::device::Dtype;
use crate::device::cpu::bf16;
use crate::model::Params;
use crate::model::adapter::{Adapter, Site};
use crate::model::params::Layout;
use crate::ops::linear::{self, Weight};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

/// The matrices of a model, or of its adapters.
pub(in crate::model) enum PackedWeights {
    /// A buffer of the parameters' layout.
    F32(Vec<f32>),
    /// By place in the parameters.
    Bf16(BTreeMap<usize, bf16::Packed>),
}

impl PackedWeights {
    /// Packs `matrices`, each by its place in `params` and its input features, on all cores.
    pub fn new(params: &Params, matrices: Vec<(Range<usize>, usize)>, dtype: Dtype) -> PackedWeights {
        PackedWeights::of(params, matrices, dtype, |range| Cow::Borrowed(&params.flat[range.clone()]))
    }

    /// The matrices of a model in f32, with what its adapters add to them: a product of both takes no longer than one without an adapter.
    pub fn merged(params: &Params, adapter: &Adapter) -> PackedWeights {
        let layers = params.layout.layers.iter().enumerate();
        let site = |(l, layer)| Site::ALL.map(|site: Site| (site.weights(layer).start, (l, site)));
        let sites: BTreeMap<usize, (usize, Site)> = layers.flat_map(site).collect();
        PackedWeights::of(params, matrices(&params.layout), Dtype::F32, |range| {
            let mut w = Cow::Borrowed(&params.flat[range.clone()]);
            if let Some(&(l, site)) = sites.get(&range.start) {
                adapter.merge_at(l, site, w.to_mut());
            }
            w
        })
    }

    fn of<'a>(
        params: &Params,
        matrices: Vec<(Range<usize>, usize)>,
        dtype: Dtype,
        numbers: impl Fn(&Range<usize>) -> Cow<'a, [f32]> + Sync,
    ) -> PackedWeights {
        match dtype {
            Dtype::F32 => {
                let mut flat = params.flat.clone();
                for (range, in_features) in matrices {
                    linear::pack(&numbers(&range), in_features, &mut flat[range]);
                }
                PackedWeights::F32(flat)
            }
            Dtype::Bf16 => {
                let pack = |(range, in_features): (Range<usize>, usize)| {
                    (range.start, linear::pack_bf16(&numbers(&range), in_features))
                };
                PackedWeights::Bf16(matrices.into_par_iter().with_max_len(1).map(pack).collect())
            }
        }
    }

    /// The matrix whose place in the parameters is `range`.
    pub fn matrix(&self, range: &Range<usize>, in_features: usize) -> Weight<'_> {
        match self {
            PackedWeights::F32(flat) => Weight::packed(&flat[range.clone()], in_features),
            PackedWeights::Bf16(matrices) => Weight::packed_bf16(matrices[&range.start].columns()),
        }
    }
}

/// The place and the input features of each matrix that a model's forward pass multiplies by: the layers' and the head.
pub(in crate::model) fn matrices(layout: &Layout) -> Vec<(Range<usize>, usize)> {
    let hidden = layout.norm.len();
    let features = |matrix: &Range<usize>| matrix.len() / hidden;
    let layer = layout.layers.iter().flat_map(|l| {
        [
            (l.qkv.clone(), hidden),
            (l.o.clone(), features(&l.o)),
            (l.gate_up.clone(), hidden),
            (l.down.clone(), features(&l.down)),
        ]
    });
    layer.chain([(layout.head.clone(), hidden)]).collect()
}
