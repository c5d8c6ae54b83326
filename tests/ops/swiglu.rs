//! SwiGLU against f64.

use crate::common;

use common::numeric::{assert_close, assert_gradient, dot, values, wide};
use uncouple::ops::swiglu;

fn reference(gate_up: &[f64], ffn: usize) -> Vec<f64> {
    let row = |r: &[f64]| -> Vec<f64> { (0..ffn).map(|j| r[j] / (1.0 + (-r[j]).exp()) * r[ffn + j]).collect() };
    gate_up.chunks(2 * ffn).flat_map(row).collect()
}

fn reference_gradient(dy: &[f64], gate_up: &[f64], ffn: usize) -> Vec<f64> {
    let mut d = vec![0.0; gate_up.len()];
    for ((d, r), dy) in d.chunks_mut(2 * ffn).zip(gate_up.chunks(2 * ffn)).zip(dy.chunks(ffn)) {
        for j in 0..ffn {
            let (g, u, sigma) = (r[j], r[ffn + j], 1.0 / (1.0 + (-r[j]).exp()));
            d[j] = dy[j] * u * sigma * (1.0 + g * (1.0 - sigma));
            d[ffn + j] = dy[j] * g * sigma;
        }
    }
    d
}

#[test]
fn forward_and_backward() {
    for (rows, ffn) in [(1, 1), (1, 8), (257, 24), (31, 100), (3, 129)] {
        let (x, dy) = (values(1, rows * 2 * ffn, 8.0), values(2, rows * ffn, 1.0));
        let mut y = vec![f32::NAN; rows * ffn];
        swiglu::forward(&x, ffn, &mut y);
        let (x64, dy64) = (wide(&x), wide(&dy));
        assert_close("y", &y, &reference(&x64, ffn), 1e-6);

        let mut d = x.clone();
        swiglu::backward(&dy, ffn, &mut d);
        let want = reference_gradient(&dy64, &x64, ffn);
        assert_close("gradient", &d, &want, 1e-6);
        assert_gradient("gate and up", |x| dot(&reference(x, ffn), &dy64), &x64, &want);
    }
}

#[test]
fn gates_far_from_zero() {
    let gates = [-1e30, -1000.0, -100.0, -88.0, 88.0, 100.0, 1000.0, 1e30f32];
    let (mut y, ones) = ([f32::NAN; 8], [1.0; 8]);
    let mut d: Vec<f32> = gates.into_iter().chain(ones).collect();
    swiglu::forward(&d, 8, &mut y);
    swiglu::backward(&ones, 8, &mut d);
    for (i, gate) in gates.into_iter().enumerate() {
        let (want, slope) = if gate > 0.0 { (gate, 1.0) } else { (0.0, 0.0) };
        assert!((y[i] - want).abs() <= 1e-7 + 1e-6 * want, "silu({gate}) = {}", y[i]);
        assert!((d[i] - slope).abs() <= 1e-6, "silu'({gate}) = {}", d[i]);
        assert!((d[8 + i] - want).abs() <= 1e-7 + 1e-6 * want, "{}", d[8 + i]);
    }
}
