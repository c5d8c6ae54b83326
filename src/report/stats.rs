//! The few statistics that tables and curves need.

use serde::{Deserialize, Serialize};

/// z of a two-sided 95 % interval.
const Z: f64 = 1.959_963_984_540_054;

/// Arithmetic mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// Standard deviation with Bessel's correction; 0 of fewer than two values.
pub fn std(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let centre = mean(values);
    let squares: f64 = values.iter().map(|v| (v - centre).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// 95 % Wilson score interval of a success probability; `[0, 1]` when nothing was tried.
pub fn wilson(successes: u64, trials: u64) -> [f64; 2] {
    if trials == 0 {
        return [0.0, 1.0];
    }
    let (n, p, z2) = (trials as f64, successes as f64 / trials as f64, Z * Z);
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    // Exact at the ends, where rounding would leave 1e-17.
    let low = if successes == 0 { 0.0 } else { centre - half };
    let high = if successes == trials { 1.0 } else { centre + half };
    [low, high]
}

/// 95 % interval of a mean by the normal approximation.
pub fn normal(values: &[f64]) -> [f64; 2] {
    let half = Z * std(values) / (values.len().max(1) as f64).sqrt();
    [mean(values) - half, mean(values) + half]
}

/// 97.5 % quantiles of Student's t, by degrees of freedom from 1.
const STUDENT: [f64; 15] =
    [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131];

/// 97.5 % quantile of Student's t; the normal's for many degrees of freedom, or none.
pub fn student_quantile(degrees: usize) -> f64 {
    degrees.checked_sub(1).and_then(|at| STUDENT.get(at)).copied().unwrap_or(Z)
}

/// 95 % interval of a mean of few values by Student's t; `None` of fewer than two.
pub fn student(values: &[f64]) -> Option<[f64; 2]> {
    let t = student_quantile(values.len().checked_sub(1).filter(|degrees| *degrees > 0)?);
    let half = t * std(values) / (values.len() as f64).sqrt();
    Some([mean(values) - half, mean(values) + half])
}

/// A share of parts in wholes: Σ numerators / Σ denominators over clusters (episodes), with its 95 % interval by linearisation.
pub fn ratio(numerators: &[f64], denominators: &[f64]) -> (f64, [f64; 2]) {
    let total: f64 = denominators.iter().sum();
    if total <= 0.0 {
        return (0.0, [0.0, 0.0]);
    }
    let rate = numerators.iter().sum::<f64>() / total;
    let residuals: Vec<f64> = numerators.iter().zip(denominators).map(|(n, d)| n - rate * d).collect();
    let half = Z * std(&residuals) * (residuals.len() as f64).sqrt() / total;
    (rate, [(rate - half).max(0.0), (rate + half).min(1.0)])
}

/// Σ parts / Σ wholes over clusters as they come: a mean where the wholes are counts, a slope where they are squares. Its 95 % interval
/// is that of [`ratio`]: what a cluster holds need not be independent.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Clusters {
    /// Number of clusters.
    pub count: u64,
    /// Σ of the parts.
    pub part: f64,
    /// Σ of the wholes.
    pub whole: f64,
    /// Sums of squares and products of the clusters' own.
    parts: f64,
    products: f64,
    wholes: f64,
}

impl Clusters {
    /// A cluster; one without a whole is none.
    pub fn add(&mut self, part: f64, whole: f64) {
        if whole != 0.0 {
            let (parts, products, wholes) = (part * part, part * whole, whole * whole);
            self.merge(&Clusters { count: 1, part, whole, parts, products, wholes });
        }
    }

    /// All clusters of another.
    pub fn merge(&mut self, other: &Clusters) {
        self.count += other.count;
        self.part += other.part;
        self.whole += other.whole;
        self.parts += other.parts;
        self.products += other.products;
        self.wholes += other.wholes;
    }

    /// `None` of nothing.
    pub fn value(&self) -> Option<f64> {
        (self.count > 0).then(|| self.part / self.whole)
    }

    /// `None` of fewer than two clusters, which cannot differ.
    pub fn interval(&self) -> Option<[f64; 2]> {
        let value = self.value().filter(|_| self.count > 1)?;
        let residuals = (self.parts - 2.0 * value * self.products + value * value * self.wholes).max(0.0);
        let n = self.count as f64;
        let half = Z * (residuals * n / (n - 1.0)).sqrt() / self.whole.abs();
        Some([value - half, value + half])
    }
}
