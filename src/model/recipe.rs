//! Weights by rule: every value is a pure function of (seed, tensor name, flat index), exact in bf16.
//!
//! A `recipe.json` lists the tensors; with it a checkpoint of any size is a few lines that any language can rebuild bit for
//! bit. `key = FNV-1a-64(name) xor seed`, `h(i) = mix(key + (i+1) * GOLDEN)` with splitmix64's mix, and the value comes from
//! the top byte of `h(i)`. The other bits of the same hash give the signs of a gradient sketch.

use serde::Deserialize;

/// The content of `recipe.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct WeightRecipe {
    pub seed: u64,
    pub tensors: Vec<RecipeTensor>,
    /// Digest of all values as little-endian f32, tensors in byte order of their names.
    pub sha256_f32: String,
}

/// One tensor of a recipe.
#[derive(Debug, Deserialize)]
pub(crate) struct RecipeTensor {
    pub name: String,
    pub shape: Vec<usize>,
    #[serde(flatten)]
    pub rule: Rule,
}

/// How a byte becomes a value.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Rule {
    /// Odd integers in [-255, 255] times 2^-exp.
    Sym8 { exp: i32 },
    /// 1 + k/128 with k in [-32, 31]: 0.75 to 1.2421875.
    Norm,
}

/// The hash stream of one tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WeightStream {
    key: u64,
}

impl WeightStream {
    pub fn new(name: &str, seed: u64) -> WeightStream {
        let fnv =
            name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
        WeightStream { key: fnv ^ seed }
    }

    /// The hash of row-major flat index `i`.
    pub fn hash(&self, i: usize) -> u64 {
        let mut z = self.key.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

impl RecipeTensor {
    /// Writes the tensor's values.
    pub fn fill(&self, seed: u64, out: &mut [f32]) {
        let stream = WeightStream::new(&self.name, seed);
        for (i, value) in out.iter_mut().enumerate() {
            let byte = (stream.hash(i) >> 56) as i32;
            *value = match self.rule {
                Rule::Sym8 { exp } => (2 * byte - 255) as f32 * 2f32.powi(-exp),
                Rule::Norm => 1.0 + ((byte >> 2) - 32) as f32 / 128.0,
            };
        }
    }
}
