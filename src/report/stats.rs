//! The few statistics that tables and curves need.

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
