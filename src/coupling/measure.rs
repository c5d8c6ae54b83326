//! What the Gram matrices say: means over pairs within and across classes, by layer and kind, with a permutation test.

use super::gram::{Grams, SampleError, cosines, projections};
use crate::ops::philox;
use crate::report::results::Coupling;
use crate::report::stats;
use serde::Serialize;

/// Why there is nothing to measure.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum CouplingError {
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error("{samples} samples, but {advantages} advantages: give one for each")]
    Lengths { samples: usize, advantages: usize },
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
pub enum Weights {
    /// A = 1: how alike the log-probs' gradients are. What positive samples teach, negative ones unteach as far as they agree.
    One,
    /// Its advantage: whether two updates help each other.
    Advantage,
}

/// Mean and standard deviation over pairs of samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub mean: f64,
    pub std: f64,
    pub pairs: usize,
}

/// By the classes of a pair: both positive, both negative, one of each (`pn` and `np` differ for projections).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Means {
    pub pp: Spread,
    pub nn: Spread,
    pub pn: Spread,
    pub np: Spread,
}

/// The cosines of a part of the parameters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    pub name: String,
    pub cosine: Means,
    /// Samples whose gradient is zero here; their cosines are 0.
    pub zero: usize,
}

/// The coupling of a set of samples. Matrices are `[samples, samples]` in the order given.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    pub weights: Weights,
    pub samples: usize,
    pub positive: Vec<usize>,
    pub negative: Vec<usize>,
    /// Samples whose gradient is zero; their cosines are 0.
    pub zero: usize,
    pub cosine: Means,
    /// ⟨g_i, g_j⟩ / ⟨g_i, g_i⟩.
    pub projection: Means,
    /// Cosine of the hidden states that the actions begin from.
    pub state: Means,
    /// Chance that classes drawn at random lie as far apart (cosines with A = 1, within classes less across them).
    pub p_value: f64,
    /// The embedding, each layer, the final norm, the head.
    pub layers: Vec<Group>,
    /// Attention, MLP, norm, bias, embedding, head.
    pub kinds: Vec<Group>,
    #[serde(skip)]
    pub inner_matrix: Vec<f64>,
    #[serde(skip)]
    pub cosine_matrix: Vec<f64>,
    #[serde(skip)]
    pub projection_matrix: Vec<f64>,
}

impl Measurement {
    /// The three means of `summary.json`.
    pub fn summary(&self) -> Coupling {
        Coupling { pp: self.cosine.pp.mean, nn: self.cosine.nn.mean, pn: self.cosine.pn.mean }
    }
}

/// Permutations of the test.
const PERMUTATIONS: u32 = 999;

/// Measures the coupling of samples whose classes are the signs of `advantages`: of a label, give +1 or −1. 0 is in neither class.
pub fn measure(grams: &Grams, advantages: &[f64], weights: Weights, seed: u64) -> Result<Measurement, CouplingError> {
    let n = grams.samples;
    let [positive, negative] = classes(n, advantages)?;
    let weighted = match weights {
        Weights::One => None,
        Weights::Advantage => Some(grams.weighted(advantages)),
    };
    let all = weighted.as_ref().unwrap_or(grams);
    let means = |m: &[f64]| Means::of(m, n, &positive, &negative);
    let inner = all.sum(|_| true);
    let (cosine, projection) = (cosines(&inner, n), projections(&inner, n));
    let group = |name: &str, of: &dyn Fn(&str) -> String| {
        let inner = all.sum(|tensor| of(tensor) == name);
        Group { name: name.into(), cosine: means(&cosines(&inner, n)), zero: zeros(&inner, n) }
    };
    let groups = |of: &dyn Fn(&str) -> String| -> Vec<Group> {
        let mut names: Vec<String> = Vec::new();
        all.tensors.iter().map(|t| of(&t.name)).for_each(|name| {
            if !names.contains(&name) {
                names.push(name);
            }
        });
        names.iter().map(|name| group(name, of)).collect()
    };
    Ok(Measurement {
        weights,
        samples: n,
        zero: zeros(&inner, n),
        cosine: means(&cosine),
        projection: means(&projection),
        state: means(&grams.state),
        p_value: p_value(&cosines(&grams.sum(|_| true), n), n, &positive, &negative, seed),
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
fn classes(samples: usize, advantages: &[f64]) -> Result<[Vec<usize>; 2], CouplingError> {
    if advantages.len() != samples {
        return Err(CouplingError::Lengths { samples, advantages: advantages.len() });
    }
    if let Some(at) = advantages.iter().position(|a| !a.is_finite()) {
        return Err(CouplingError::NotFinite(at));
    }
    if advantages.windows(2).all(|pair| pair[0] == pair[1]) {
        return Err(CouplingError::AllEqual(samples));
    }
    let class = |keep: fn(f64) -> bool| (0..samples).filter(|i| keep(advantages[*i])).collect::<Vec<_>>();
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

impl Means {
    fn of(matrix: &[f64], n: usize, positive: &[usize], negative: &[usize]) -> Means {
        let spread = |rows: &[usize], columns: &[usize]| {
            let pairs = |i: &usize| columns.iter().filter(|j| *j != i).map(|j| matrix[i * n + j]).collect::<Vec<_>>();
            let values: Vec<f64> = rows.iter().flat_map(pairs).collect();
            Spread { mean: stats::mean(&values), std: stats::std(&values), pairs: values.len() }
        };
        Means {
            pp: spread(positive, positive),
            nn: spread(negative, negative),
            pn: spread(positive, negative),
            np: spread(negative, positive),
        }
    }
}

/// By how much pairs of a class are more alike than pairs of two classes, against classes of the same sizes drawn at random.
fn p_value(cosine: &[f64], n: usize, positive: &[usize], negative: &[usize], seed: u64) -> f64 {
    let gap = |members: &[usize]| {
        let (mut within, mut across) = ((0.0, 0usize), (0.0, 0usize));
        for (a, i) in members.iter().enumerate() {
            for (b, j) in members.iter().enumerate().skip(a + 1) {
                let same = (a < positive.len()) == (b < positive.len());
                let sum = if same { &mut within } else { &mut across };
                *sum = (sum.0 + cosine[i * n + j], sum.1 + 1);
            }
        }
        within.0 / within.1.max(1) as f64 - across.0 / across.1.max(1) as f64
    };
    let mut members = [positive, negative].concat();
    let observed = gap(&members);
    let mut as_far = 0;
    for permutation in 0..PERMUTATIONS {
        for at in (1..members.len()).rev() {
            let word = philox::block(seed, u64::from(permutation), at as u64)[0];
            members.swap(at, word as usize % (at + 1));
        }
        as_far += u32::from(gap(&members) >= observed);
    }
    f64::from(1 + as_far) / f64::from(1 + PERMUTATIONS)
}

/// E.g. `layer 3`.
fn layer_of(name: &str) -> String {
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
