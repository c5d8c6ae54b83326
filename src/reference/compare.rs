//! Distances between what was computed and what is stored, each in units of a noise floor.

use super::sketch;
use super::tensors::Tensor;
use serde::Serialize;

/// How many noise floors an error may have.
pub const TOLERANCE: f64 = 10.0;

/// Spacing of f32 numbers near 1: the floor where a set has none, or one of exactly 0, which only says that two roundings
/// happened to agree.
pub const EPS: f64 = f32::EPSILON as f64;

/// A noise floor: distances of a float32 reference from the same computation in float64. `None`: not judged by this measure.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Floor {
    pub rel_l2: Option<f64>,
    pub max_abs: Option<f64>,
}

impl Floor {
    pub fn abs(max_abs: f64) -> Floor {
        Floor { rel_l2: None, max_abs: Some(max_abs) }
    }
}

/// One line of a check: the measure of a quantity that came closest to (or went furthest beyond) its limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QuantityRow {
    /// What is compared, e.g. `logits`.
    pub quantity: String,
    /// `rel_l2`, `max_abs`, or `differences` (a count, which must be 0).
    pub measure: &'static str,
    /// The error, in the measure's unit.
    pub error: f64,
    /// The noise floor: the error that is expected of rounding alone.
    pub floor: f64,
    /// error / floor
    pub ratio: f64,
    /// Whether the error is within the limit.
    pub pass: bool,
}

impl QuantityRow {
    fn judged(quantity: &str, measure: &'static str, error: f64, floor: f64) -> QuantityRow {
        let ratio = if error == 0.0 { 0.0 } else { error / floor };
        // Written so that NaN fails.
        QuantityRow { quantity: quantity.into(), measure, error, floor, ratio, pass: ratio <= TOLERANCE }
    }

    /// A quantity that must agree exactly.
    pub fn exact(quantity: &str, differences: usize) -> QuantityRow {
        QuantityRow {
            quantity: quantity.into(),
            measure: "differences",
            error: differences as f64,
            floor: 0.0,
            ratio: if differences == 0 { 0.0 } else { f64::INFINITY },
            pass: differences == 0,
        }
    }

    /// A stored quantity that was not computed, or not in the same shape.
    pub fn absent(quantity: &str) -> QuantityRow {
        QuantityRow::exact(quantity, 1)
    }
}

/// The worse of the measures that `floor` has.
pub fn values(quantity: &str, ours: &[f64], golden: &[f64], floor: Floor) -> QuantityRow {
    if ours.len() != golden.len() {
        return QuantityRow::absent(quantity);
    }
    let difference: Vec<f64> = ours.iter().zip(golden).map(|(a, b)| a - b).collect();
    let largest = |x: &[f64]| x.iter().fold(0.0, |m: f64, v| if v.abs() <= m { m } else { v.abs() });
    let (norm, magnitude) = (l2(golden), largest(golden));
    let positive = |floor: f64, otherwise: f64| if floor > 0.0 { floor } else { otherwise };
    let rows = [
        floor.rel_l2.map(|f| {
            let error = if norm > 0.0 { l2(&difference) / norm } else { l2(&difference) };
            QuantityRow::judged(quantity, "rel_l2", error, positive(f, EPS))
        }),
        floor.max_abs.map(|f| {
            QuantityRow::judged(quantity, "max_abs", largest(&difference), positive(f, EPS * positive(magnitude, 1.0)))
        }),
    ];
    worse(quantity, rows)
}

/// Sketches of a set of tensors. The difference of two ±1 projections of the same tensor has the squared difference of the
/// tensors as its mean square, so the eight projections (and the sum) of all tensors estimate the relative l2 error of the
/// whole set; `scale` is the set's l2 norm. The 16 samples per tensor are values like any others.
pub fn sketches(quantity: &str, ours: &Tensor, golden: &Tensor, scale: f64, floor: Floor) -> QuantityRow {
    let (ours, golden) = (ours.to_f64(), golden.to_f64());
    if ours.len() != golden.len() {
        return QuantityRow::absent(quantity);
    }
    let (first, last) = (3, 3 + sketch::PROJECTIONS);
    let (mut projected, mut norms, mut sampled) = (0.0, 0.0, 0.0f64);
    for (a, b) in ours.chunks(sketch::COLUMNS).zip(golden.chunks(sketch::COLUMNS)) {
        let square = |i: usize| (a[i] - b[i]).powi(2);
        projected += ((first..last).map(square).sum::<f64>() + square(0)) / (sketch::PROJECTIONS + 1) as f64;
        norms += square(1);
        let largest = (last..sketch::COLUMNS).chain([2]).map(|i| (a[i] - b[i]).abs());
        sampled = largest.fold(sampled, |m, v| if v <= m { m } else { v });
    }
    let rel = |square: f64| floor.rel_l2.map(|f| QuantityRow::judged(quantity, "rel_l2", square.sqrt() / scale, f));
    let samples = floor.max_abs.map(|f| QuantityRow::judged(quantity, "max_abs", sampled, f));
    worse(quantity, [rel(projected), rel(norms), samples])
}

/// l2 norm of the whole set that a sketch stands for.
pub fn sketch_norm(sketch: &Tensor) -> f64 {
    l2(&sketch.to_f64().chunks(sketch::COLUMNS).map(|c| c[1]).collect::<Vec<_>>())
}

pub fn l2(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// The row with the largest ratio; one that fails (NaN included) goes before any that passes.
fn worse<const N: usize>(quantity: &str, rows: [Option<QuantityRow>; N]) -> QuantityRow {
    let rows = rows.into_iter().flatten();
    rows.reduce(|a, b| if !a.pass || (b.pass && b.ratio <= a.ratio) { a } else { b })
        .unwrap_or_else(|| QuantityRow::absent(quantity))
}
