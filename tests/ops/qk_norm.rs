//! QK-norm against f64: each head by itself, values untouched, gradients by finite differences.

use crate::common;

use common::numeric::{added, assert_close, dot, values, wide};
use uncouple::ops::attention::Shape;
use uncouple::ops::qk_norm;

const SHAPE: Shape = Shape { heads: 3, kv_heads: 2, head_dim: 6 };
const EPS: f32 = 1e-6;

fn reference(qkv: &[f64], w: &[f64]) -> Vec<f64> {
    let (d, normed) = (SHAPE.head_dim, SHAPE.heads + SHAPE.kv_heads);
    let mut out = qkv.to_vec();
    for row in out.chunks_mut(SHAPE.qkv_dim()) {
        for (head, x) in row.chunks_mut(d).enumerate().take(normed) {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / d as f64;
            let w = &w[usize::from(head >= SHAPE.heads) * d..][..d];
            x.iter_mut().zip(w).for_each(|(x, w)| *x *= w / (mean + f64::from(EPS)).sqrt());
        }
    }
    out
}

#[test]
fn forward_and_backward() {
    let (d, normed, rows) = (SHAPE.head_dim, SHAPE.heads + SHAPE.kv_heads, 7);
    let (x, w) = (values(1, rows * SHAPE.qkv_dim(), 2.0), values(2, 2 * d, 1.0));
    let (mut y, mut raw) = (x.clone(), vec![f32::NAN; rows * normed * d]);
    qk_norm::forward(&mut y, SHAPE, &w, EPS, Some(&mut raw));
    assert_close("qkv", &y, &reference(&wide(&x), &wide(&w)), 1e-6);
    let mut without_raw = x.clone();
    qk_norm::forward(&mut without_raw, SHAPE, &w, EPS, None);
    assert_eq!(y, without_raw);
    for (raw, x) in raw.chunks(normed * d).zip(x.chunks(SHAPE.qkv_dim())) {
        assert_eq!(raw, &x[..normed * d]);
    }

    let (dy, before) = (values(3, x.len(), 1.0), values(4, 2 * d, 0.1));
    let (mut dx, mut dw) = (dy.clone(), before.clone());
    qk_norm::backward(&mut dx, SHAPE, &raw, &w, EPS, Some(&mut dw));
    let (x, w, dy) = (wide(&x), wide(&w), wide(&dy));
    assert_slope("x", |x| dot(&reference(x, &w), &dy), &x, &wide(&dx));
    assert_slope("w", |w| dot(&reference(&x, w), &dy), &w, &wide(&added(&dw, &before)));
    for (dx, dy) in dx.chunks(SHAPE.qkv_dim()).zip(dy.chunks(SHAPE.qkv_dim())) {
        assert_eq!(wide(&dx[normed * d..]), dy[normed * d..], "values");
    }
}

/// The `gradient`, computed in f32, of `f` at `x` against the central difference along several random directions.
fn assert_slope(what: &str, f: impl Fn(&[f64]) -> f64, x: &[f64], gradient: &[f64]) {
    for seed in 0..5 {
        let direction = wide(&values(seed + 50, x.len(), 1.0));
        let h = 1e-5;
        let moved = |h: f64| -> Vec<f64> { x.iter().zip(&direction).map(|(x, d)| x + h * d).collect() };
        let quotient = (f(&moved(h)) - f(&moved(-h))) / (2.0 * h);
        let (slope, scale) = (dot(gradient, &direction), dot(gradient, gradient).sqrt());
        assert!((quotient - slope).abs() <= 3e-6 * scale, "{what}: slope {slope} against the quotient {quotient}");
    }
}
