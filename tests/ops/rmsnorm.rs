//! RMSNorm against f64.

use crate::common;

use common::numeric::{added, assert_close, assert_gradient, dot, values, wide};
use uncouple::ops::rmsnorm;

const EPS: f32 = 1e-6;

/// rows, hidden
const SHAPES: [(usize, usize); 6] = [(1, 8), (257, 24), (5, 1), (3, 128), (31, 100), (2, 896)];

fn reciprocal(x: &[f64]) -> f64 {
    1.0 / (dot(x, x) / x.len() as f64 + f64::from(EPS)).sqrt()
}

fn reference(x: &[f64], w: &[f64]) -> Vec<f64> {
    let row = |x: &[f64]| -> Vec<f64> { x.iter().zip(w).map(|(x, w)| x * w).collect() };
    x.chunks(w.len()).flat_map(|x| row(x).into_iter().map(|y| y * reciprocal(x)).collect::<Vec<_>>()).collect()
}

/// dx and dw.
fn reference_gradient(dy: &[f64], x: &[f64], w: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let n = w.len();
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; n]);
    for (t, (dy, x)) in dy.chunks(n).zip(x.chunks(n)).enumerate() {
        let r = reciprocal(x);
        let c = (0..n).map(|j| dy[j] * w[j] * x[j]).sum::<f64>() / n as f64;
        for j in 0..n {
            dx[t * n + j] = r * (w[j] * dy[j] - x[j] * r * r * c);
            dw[j] += dy[j] * x[j] * r;
        }
    }
    (dx, dw)
}

#[test]
fn forward_and_backward() {
    for (rows, hidden) in SHAPES {
        let (x, w, dy) = (values(1, rows * hidden, 2.0), values(2, hidden, 1.0), values(3, rows * hidden, 1.0));
        let (mut y, mut rstd) = (vec![f32::NAN; x.len()], vec![f32::NAN; rows]);
        rmsnorm::forward(&x, &w, EPS, &mut y, &mut rstd);
        let (x64, w64, dy64) = (wide(&x), wide(&w), wide(&dy));
        assert_close("y", &y, &reference(&x64, &w64), 1e-6);
        assert_close("rstd", &rstd, &x64.chunks(hidden).map(reciprocal).collect::<Vec<_>>(), 1e-6);

        let (before_x, before_w) = (values(4, x.len(), 0.1), values(5, hidden, 0.1));
        let (mut dx, mut dw) = (before_x.clone(), before_w.clone());
        rmsnorm::backward(&dy, &x, &w, &rstd, &mut dx, Some(&mut dw));
        let (want_x, want_w) = reference_gradient(&dy64, &x64, &w64);
        assert_close("dw", &added(&dw, &before_w), &want_w, 2e-6);
        if hidden > 1 {
            // With one element y is ±w: its gradient is all cancellation.
            assert_close("dx", &added(&dx, &before_x), &want_x, 2e-6);
        }

        assert_gradient("x", |x| dot(&reference(x, &w64), &dy64), &x64, &want_x);
        assert_gradient("w", |w| dot(&reference(&x64, w), &dy64), &w64, &want_w);
    }
}

#[test]
fn a_row_of_zeros_stays_finite() {
    let (mut y, mut rstd) = ([f32::NAN; 8], [f32::NAN]);
    rmsnorm::forward(&[0.0; 8], &[1.0; 8], EPS, &mut y, &mut rstd);
    assert_eq!(y, [0.0; 8]);
    assert!((rstd[0] - 1000.0).abs() < 0.01);
}
