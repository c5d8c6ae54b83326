//! Low-rank adapters beside a model's linear maps (LoRA, [`crate::ops::lora`]): which there are, where their numbers lie, and how they
//! begin. The names of the tensors are those of Hugging Face's PEFT.
//!
//! With B = 0 an adapter adds nothing: a fresh one leaves the model as it was.

use super::params::{LayerLayout, Layout};
use super::recipe::WeightStream;
use super::{Architecture, Params};
use crate::config::{LORA_TARGETS, Lora};
use crate::ops::lora;
use crate::ops::philox;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Rows of a matrix that one task merges.
const MERGED_ROWS: usize = 64;

/// The products of a layer that adapters stand beside. A fused one has several linear maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    /// Queries, keys and values.
    Qkv,
    /// Attention's output.
    O,
    /// The MLP's gate, and what it gates.
    GateUp,
    /// The MLP's output.
    Down,
}

impl Site {
    pub const ALL: [Site; 4] = [Site::Qkv, Site::O, Site::GateUp, Site::Down];

    /// The linear maps of the product, of [`LORA_TARGETS`].
    fn targets(self) -> Range<usize> {
        match self {
            Site::Qkv => 0..3,
            Site::O => 3..4,
            Site::GateUp => 4..6,
            Site::Down => 6..7,
        }
    }

    /// Where the product's matrix is among the model's weights.
    pub fn weights(self, layer: &LayerLayout) -> &Range<usize> {
        match self {
            Site::Qkv => &layer.qkv,
            Site::O => &layer.o,
            Site::GateUp => &layer.gate_up,
            Site::Down => &layer.down,
        }
    }
}

/// The adapter of one linear map.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Projection {
    /// Where A `[rank, in]` is in the flat buffer: behind that of the map before it beside the same product.
    pub a: Range<usize>,
    /// Where B `[out, rank]` is.
    pub b: Range<usize>,
    pub in_features: usize,
    /// The first of the product's outputs that the map computes.
    pub first: usize,
}

/// The table of a model's adapters.
#[derive(Debug)]
pub(crate) struct AdapterLayout {
    pub lora: Lora,
    /// Of each layer and [`Site`].
    layers: Vec<[Vec<Projection>; 4]>,
    /// PEFT's names, and places in a flat buffer.
    pub tensors: Arc<Layout>,
}

impl AdapterLayout {
    /// The adapters of a model of this shape, by rank and targets.
    pub fn new(shape: &Architecture, lora: &Lora) -> AdapterLayout {
        let (mut names, mut sizes, mut at) = (Vec::new(), Vec::new(), 0);
        let mut add = |name: String, size: [usize; 2]| -> Range<usize> {
            let range = at..at + size[0] * size[1];
            at = range.end;
            names.push(name);
            sizes.push(size);
            range
        };
        let features = features(shape);
        let layers = (0..shape.num_hidden_layers).map(|l| {
            Site::ALL.map(|site| -> Vec<Projection> {
                let part = if matches!(site, Site::Qkv | Site::O) { "self_attn" } else { "mlp" };
                let name = |t: usize, which| {
                    format!("{PREFIX}model.layers.{l}.{part}.{}.lora_{which}.weight", LORA_TARGETS[t])
                };
                let adapted = site.targets().filter(|t| lora.adapts(LORA_TARGETS[*t]));
                let a: Vec<_> = adapted.clone().map(|t| add(name(t, 'A'), [lora.rank, features[t][1]])).collect();
                let projection = |(t, a): (usize, Range<usize>)| {
                    let [out, in_features] = features[t];
                    let b = add(name(t, 'B'), [out, lora.rank]);
                    Projection { a, b, in_features, first: (site.targets().start..t).map(|t| features[t][0]).sum() }
                };
                adapted.zip(a).map(projection).collect()
            })
        });
        let layers = layers.collect();
        let tensors: Vec<_> = names.iter().zip(&sizes).map(|(name, size)| (&name[..], &size[..], true)).collect();
        AdapterLayout { lora: lora.clone(), layers, tensors: Arc::new(Layout::of(&tensors)) }
    }

    /// The adapters beside a product of layer `l`.
    pub fn at(&self, l: usize, site: Site) -> &[Projection] {
        &self.layers[l][site as usize]
    }

    /// Layers that the adapters stand in.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Where the A's beside a product of layer `l` are, one below the other, and their input features; nowhere without adapters.
    pub fn stacked(&self, l: usize, site: Site) -> (Range<usize>, usize) {
        let maps = self.at(l, site);
        match (maps.first(), maps.last()) {
            (Some(first), Some(last)) => (first.a.start..last.a.end, first.in_features),
            _ => (0..0, 0),
        }
    }

    /// Place and input features of every matrix that the forward pass multiplies by.
    pub fn matrices(&self) -> Vec<(Range<usize>, usize)> {
        let products = (0..self.layers()).flat_map(|l| Site::ALL.map(|site| (l, site)));
        let adapted = products.filter(|(l, site)| !self.at(*l, *site).is_empty());
        let of = |(l, site)| {
            let b = self.at(l, site).iter().map(|p| (p.b.clone(), self.lora.rank));
            [self.stacked(l, site)].into_iter().chain(b)
        };
        adapted.flat_map(of).collect()
    }
}

/// What PEFT puts before a tensor's name.
pub(crate) const PREFIX: &str = "base_model.model.";

/// Outputs and inputs of each of [`LORA_TARGETS`].
fn features(shape: &Architecture) -> [[usize; 2]; 7] {
    let (h, f) = (shape.hidden_size, shape.intermediate_size);
    let (q, kv) = (shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim);
    [[q, h], [kv, h], [kv, h], [h, q], [f, h], [f, h], [h, f]]
}

/// The adapters of a model in memory: what is trained, while the model's own weights stay as they are.
#[derive(Clone)]
pub struct Adapter {
    pub(crate) layout: Arc<AdapterLayout>,
    /// The matrices, in f32.
    pub params: Params,
}

impl Adapter {
    /// Adapters of these numbers, for a model of this shape.
    ///
    /// # Panics
    /// If `params` are none of such adapters.
    pub fn new(shape: &Architecture, lora: &Lora, params: Params) -> Adapter {
        let layout = AdapterLayout::new(shape, lora);
        assert_eq!(*layout.tensors, *params.layout, "the adapters' layout");
        Adapter { layout: Arc::new(layout), params }
    }

    /// Fresh adapters as PEFT begins them: A uniform in ±1/√in (Kaiming's with a = √5), B 0. A pure function of shape and seed.
    pub fn random(shape: &Architecture, lora: &Lora, seed: u64) -> Adapter {
        let layout = Arc::new(AdapterLayout::new(shape, lora));
        let mut params = Params::zeros(layout.tensors.clone());
        for p in layout.layers.iter().flatten().flatten() {
            let entry = &layout.tensors.entries[layout.tensors.within(&p.a).start];
            let (stream, bound) = (WeightStream::new(&entry.name, 0).hash(0), 1.0 / (p.in_features as f32).sqrt());
            for (index, quad) in params.flat[p.a.clone()].chunks_mut(4).enumerate() {
                let words = philox::block(seed, stream, index as u64);
                quad.iter_mut().zip(words).for_each(|(a, word)| *a = bound * (2.0 * philox::uniform(word) - 1.0));
            }
        }
        Adapter { layout, params }
    }

    /// Rank, scale and targets.
    pub fn lora(&self) -> &Lora {
        &self.layout.lora
    }

    /// Adds what the adapters compute to the weights of their model.
    pub fn merge_into(&self, weights: &mut Params) {
        for (l, layer) in weights.layout.clone().layers.iter().enumerate() {
            for site in Site::ALL {
                self.merge_at(l, site, &mut weights.flat[site.weights(layer).clone()]);
            }
        }
    }

    /// Adds what the adapters beside a product of layer `l` compute to its matrix.
    pub(super) fn merge_at(&self, l: usize, site: Site, w: &mut [f32]) {
        let Lora { rank, .. } = self.layout.lora;
        for p in self.layout.at(l, site) {
            let [a, b] = [&p.a, &p.b].map(|range| &self.params.flat[range.clone()]);
            let w = &mut w[p.first * p.in_features..][..b.len() / rank * p.in_features];
            let rows = w.par_chunks_mut(MERGED_ROWS * p.in_features).zip(b.par_chunks(MERGED_ROWS * rank));
            rows.for_each(|(w, b)| lora::merge([a, b], rank, self.layout.lora.scale(), w));
        }
    }
}
