//! Inputs for the tests of single ops, and the two ways of judging a result: against f64, and against a difference quotient.

use uncouple::ops::philox;

/// `n` uniform numbers in ±`scale`.
pub fn values(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    (0..n).map(|i| (philox::uniform(philox::block(seed, 3, i as u64)[0]) * 2.0 - 1.0) * scale).collect()
}

/// The `i`-th random whole number below `n`.
pub fn below(seed: u64, i: usize, n: usize) -> usize {
    philox::block(seed, 4, i as u64)[0] as usize % n
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// ‖got − want‖ ≤ tolerance · ‖want‖.
pub fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let difference: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum::<f64>().sqrt();
    let norm = dot(want, want).sqrt();
    assert!(difference <= tolerance * norm, "{what}: off by {difference:e} of {norm:e}");
}

/// What an op that adds to its output has added, in f32 (`before` is small next to it, so that little is lost).
pub fn added(after: &[f32], before: &[f32]) -> Vec<f32> {
    after.iter().zip(before).map(|(a, b)| a - b).collect()
}

/// The analytic `gradient` of `f` at `x` against the central difference along one random direction.
pub fn assert_gradient(what: &str, f: impl Fn(&[f64]) -> f64, x: &[f64], gradient: &[f64]) {
    let direction = wide(&values(x.len() as u64 + 99, x.len(), 1.0));
    let h = 1e-5;
    let moved = |h: f64| -> Vec<f64> { x.iter().zip(&direction).map(|(x, d)| x + h * d).collect() };
    let (ahead, behind) = (f(&moved(h)), f(&moved(-h)));
    let quotient = (ahead - behind) / (2.0 * h);
    let slope = dot(gradient, &direction);
    // Rounding leaves about |f| · 1e-16 / h in the quotient.
    let scale = dot(gradient, gradient).sqrt() + ahead.abs() * 1e-4;
    assert!((quotient - slope).abs() <= 1e-6 * scale, "{what}: slope {slope} against the quotient {quotient}");
}

/// ‖got − want‖ / ‖want‖.
pub fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f64| x * x;
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(*g) - f64::from(*w))).sum();
    (error / want.iter().map(|w| square(f64::from(*w))).sum::<f64>()).sqrt()
}
