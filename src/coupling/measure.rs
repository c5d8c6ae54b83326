//! What the Gram matrices say: means over pairs within and across classes, by stratum, layer and kind, with a permutation test.

use super::gram::{Grams, SampleError, cosines, projections};
use super::permutation;
use super::strata::{Means, Strata, Traits};
use crate::report::results::CouplingSummary;
use serde::Serialize;

/// Why there is nothing to measure.
#[derive(Debug, thiserror::Error, PartialEq)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum CouplingError {
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error("{samples} samples, but traits of {traits}: give those of each")]
    Lengths { samples: usize, traits: usize },
    #[error("sample {0}: its advantage is not a finite number")]
    NotFinite(usize),
    #[error(
        "all {0} advantages are equal, so that no action is better than another: take samples of groups that differ"
    )]
    AllEqual(usize),
    #[error("{found} samples are {class}; pairs need at least 2: take more samples")]
    FewOf { class: &'static str, found: usize },
}

/// What a sample's gradient is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SampleWeights {
    /// A = 1: how alike the log-probs' gradients are. What positive samples teach, negative ones unteach as far as they agree.
    One,
    /// Its advantage: whether two updates help each other.
    Advantage,
}

/// The cosines of a part of the parameters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ParameterGroup {
    /// The layer or the kind of weight.
    pub name: String,
    /// Mean cosines of its gradients, by class of pair.
    pub cosine: Means,
    /// Samples whose gradient is zero here; their cosines are 0.
    pub zero: usize,
}

/// The coupling of a set of samples. Matrices are `[samples, samples]` in the order given.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    /// What gradients are weighted by.
    pub weights: SampleWeights,
    /// Number of samples.
    pub samples: usize,
    /// Indices of the positive samples.
    pub positive: Vec<usize>,
    /// Indices of the negative samples.
    pub negative: Vec<usize>,
    /// Samples whose gradient is zero; their cosines are 0.
    pub zero: usize,
    /// Mean cosines over all parameters, by class of pair.
    pub cosine: Means,
    /// ⟨g_i, g_j⟩ / ⟨g_i, g_i⟩.
    pub projection: Means,
    /// Cosines and projections by what the samples of a pair share.
    pub strata: Strata,
    /// How far the gradients add up.
    pub sums: Sums,
    /// Cosine of the hidden states that the counted tokens begin from.
    pub state: Means,
    /// Chance that labels drawn at random within each state set the classes as far apart (cosines with A = 1, within classes less
    /// across them). `None` where no state holds samples of both classes: then nothing can be drawn.
    pub p_value: Option<f64>,
    /// Samples whose label the test draws.
    pub permuted: usize,
    /// The embedding, each layer, the final norm, the head.
    pub layers: Vec<ParameterGroup>,
    /// Attention, MLP, norm, bias, embedding, head.
    pub kinds: Vec<ParameterGroup>,
    /// Inner products.
    #[serde(skip)]
    pub inner_matrix: Vec<f64>,
    /// Cosines.
    #[serde(skip)]
    pub cosine_matrix: Vec<f64>,
    /// Asymmetric projections ⟨g_i, g_j⟩ / ⟨g_i, g_i⟩.
    #[serde(skip)]
    pub projection_matrix: Vec<f64>,
}

/// The sum of all gradients (A = 1) against them one by one: |Σ g|² / Σ |g|². 1 when they share nothing, the number of samples when
/// they are one; not a number where all are zero.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sums {
    /// Those of negative samples subtracted: what is left of a step that teaches one class and unteaches the other.
    pub signed: f64,
    /// With all weights 1.
    pub unsigned: f64,
}

impl Measurement {
    /// The three means of `summary.json`.
    pub fn summary(&self) -> CouplingSummary {
        CouplingSummary { pp: self.cosine.pp.mean, nn: self.cosine.nn.mean, pn: self.cosine.pn.mean }
    }
}

/// Measures the coupling of samples with these traits.
///
/// # Errors
/// If a side has fewer than 2 samples, an advantage is not finite, or samples and traits differ in number.
pub fn measure(
    grams: &Grams,
    traits: &[Traits],
    weights: SampleWeights,
    seed: u64,
) -> Result<Measurement, CouplingError> {
    let n = grams.samples;
    let sides: Vec<f64> = traits.iter().map(|t| t.side).collect();
    let [positive, negative] = classes(n, &sides)?;
    let weighted = match weights {
        SampleWeights::One => None,
        SampleWeights::Advantage => Some(grams.weighted(&sides)),
    };
    let all = weighted.as_ref().unwrap_or(grams);
    let means = |m: &[f64]| Means::symmetric(m, n, &positive, &negative, &|_, _| true);
    let inner = all.sum(|_| true);
    let plain = grams.sum(|_| true);
    let (cosine, projection) = (cosines(&inner, n), projections(&inner, n));
    let group = |name: &str, of: &dyn Fn(&str) -> String| {
        let inner = all.sum(|tensor| of(tensor) == name);
        ParameterGroup { name: name.into(), cosine: means(&cosines(&inner, n)), zero: zeros(&inner, n) }
    };
    let groups = |of: &dyn Fn(&str) -> String| -> Vec<ParameterGroup> {
        let mut names: Vec<String> = Vec::new();
        all.tensors.iter().map(|t| of(&t.name)).for_each(|name| {
            if !names.contains(&name) {
                names.push(name);
            }
        });
        names.iter().map(|name| group(name, of)).collect()
    };
    let test = permutation::test(&cosines(&plain, n), traits, seed);
    Ok(Measurement {
        weights,
        samples: n,
        zero: zeros(&inner, n),
        cosine: means(&cosine),
        projection: Means::ordered(&projection, n, &positive, &negative, &|_, _| true),
        strata: Strata::of(&cosine, &projection, traits, &positive, &negative),
        sums: Sums::of(&plain, &sides),
        state: means(&grams.state),
        p_value: test.p_value,
        permuted: test.permuted,
        layers: groups(&layer_of),
        kinds: groups(&|name| kind_of(name).into()),
        positive,
        negative,
        inner_matrix: inner,
        cosine_matrix: cosine,
        projection_matrix: projection,
    })
}

/// Positive and negative samples.
fn classes(samples: usize, sides: &[f64]) -> Result<[Vec<usize>; 2], CouplingError> {
    if sides.len() != samples {
        return Err(CouplingError::Lengths { samples, traits: sides.len() });
    }
    if let Some(at) = sides.iter().position(|a| !a.is_finite()) {
        return Err(CouplingError::NotFinite(at));
    }
    if sides.len() > 1 && sides.windows(2).all(|pair| pair[0] == pair[1]) {
        return Err(CouplingError::AllEqual(samples));
    }
    let class = |keep: fn(f64) -> bool| (0..samples).filter(|i| keep(sides[*i])).collect::<Vec<_>>();
    let both = [class(|a| a > 0.0), class(|a| a < 0.0)];
    for (class, members) in ["positive", "negative"].into_iter().zip(&both) {
        if members.len() < 2 {
            return Err(CouplingError::FewOf { class, found: members.len() });
        }
    }
    Ok(both)
}

fn zeros(inner: &[f64], n: usize) -> usize {
    (0..n).filter(|i| inner[i * (n + 1)] <= 0.0).count()
}

impl Sums {
    /// Of the samples of either class.
    fn of(inner: &[f64], sides: &[f64]) -> Sums {
        let n = sides.len();
        let sign = |i: usize| if sides[i] == 0.0 { 0.0 } else { sides[i].signum() };
        let sum =
            |of: &dyn Fn(usize, usize) -> f64| -> f64 { (0..n * n).map(|ij| of(ij / n, ij % n) * inner[ij]).sum() };
        let single: f64 = (0..n).map(|i| sign(i).abs() * inner[i * (n + 1)]).sum();
        Sums {
            signed: sum(&|i, j| sign(i) * sign(j)) / single,
            unsigned: sum(&|i, j| (sign(i) * sign(j)).abs()) / single,
        }
    }
}

/// E.g. `layer 3`.
fn layer_of(name: &str) -> String {
    // PEFT's names begin with a prefix of their own.
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    match name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()) {
        Some(layer) => format!("layer {layer}"),
        None if name == "model.norm.weight" => "final norm".into(),
        None => kind_of(name).into(),
    }
}

fn kind_of(name: &str) -> &'static str {
    match name {
        "model.embed_tokens.weight" => "embedding",
        "lm_head.weight" => "head",
        _ if name.ends_with(".bias") => "bias",
        _ if name.ends_with("norm.weight") => "norm",
        _ if name.contains(".self_attn.") => "attention",
        _ => "mlp",
    }
}
