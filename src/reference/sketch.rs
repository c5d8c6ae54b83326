//! Sketches: 27 numbers per tensor that stand for a whole gradient.

use crate::model::Params;
use crate::model::params::TensorEntry;
use crate::model::recipe::WeightStream;

/// Random ±1 projections per tensor; projection k takes its signs from bit k of the tensor's hash stream.
pub const PROJECTIONS: usize = 8;
/// Elements copied out as they are.
pub const SAMPLES: usize = 16;
/// Columns: sum, l2 norm, largest magnitude, projections, samples.
pub const COLUMNS: usize = 3 + PROJECTIONS + SAMPLES;

/// The tensors of a model in byte order of their names: the order of every per-tensor array of a golden set.
pub fn by_name(params: &Params) -> Vec<&TensorEntry> {
    let mut entries: Vec<&TensorEntry> = params.layout.entries.iter().collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

/// Sketches of all tensors, `[tensors, COLUMNS]`.
pub fn of(params: &Params) -> Vec<f64> {
    by_name(params).iter().flat_map(|e| of_tensor(&e.name, &params.flat[e.range.clone()])).collect()
}

fn of_tensor(name: &str, values: &[f32]) -> [f64; COLUMNS] {
    let stream = WeightStream::new(name, 0);
    let mut out = [0.0; COLUMNS];
    let mut square = 0.0;
    for (i, value) in values.iter().enumerate() {
        let (g, hash) = (f64::from(*value), stream.hash(i));
        out[0] += g;
        square += g * g;
        out[2] = f64::max(out[2], g.abs());
        for (k, projection) in out[3..3 + PROJECTIONS].iter_mut().enumerate() {
            *projection += if hash >> k & 1 == 1 { g } else { -g };
        }
    }
    out[1] = square.sqrt();
    for (j, sample) in out[3 + PROJECTIONS..].iter_mut().enumerate() {
        *sample = f64::from(values[j * values.len() / SAMPLES]);
    }
    out
}
