//! Linear against f64 sums.

use crate::common;

use common::numeric::{added, assert_close, assert_gradient, values, wide};
use uncouple::device::Dtype;
use uncouple::ops::linear::{self, RightFactor, Weight};

/// rows, in, out: one row, sizes that no vector width divides, more rows than a block.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (1, 64, 3), (13, 17, 257), (257, 24, 40), (64, 129, 31), (300, 8, 1)];

fn reference(x: &[f64], w: &[f64], b: &[f64], n_in: usize) -> Vec<f64> {
    let row = |x: &[f64]| -> Vec<f64> {
        w.chunks(n_in).zip(b).map(|(w, b)| b + w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()).collect()
    };
    x.chunks(n_in).flat_map(row).collect()
}

#[test]
fn forward_with_and_without_bias_and_adding() {
    for (rows, n_in, out) in SHAPES {
        let (x, w, b) = (values(1, rows * n_in, 1.0), values(2, out * n_in, 1.0), values(3, out, 1.0));
        let mut y = vec![f32::NAN; rows * out];
        linear::forward(&x, Weight::new(Dtype::F32, &w, n_in), Some(&b), &mut y);
        assert_close("biased", &y, &reference(&wide(&x), &wide(&w), &wide(&b), n_in), 1e-6);

        let plain = reference(&wide(&x), &wide(&w), &vec![0.0; out], n_in);
        let mut y = vec![f32::NAN; rows * out];
        linear::forward(&x, Weight::new(Dtype::F32, &w, n_in), None, &mut y);
        assert_close("plain", &y, &plain, 1e-6);

        let mut y = values(4, rows * out, 1.0);
        let want: Vec<f64> = plain.iter().zip(&y).map(|(p, y)| p + f64::from(*y)).collect();
        linear::forward_add(&x, Weight::new(Dtype::F32, &w, n_in), &mut y);
        assert_close("added", &y, &want, 1e-6);
    }
}

#[test]
fn forward_from_panels() {
    for (rows, n_in, out) in SHAPES {
        let (x, w, b) = (values(1, rows * n_in, 1.0), values(2, out * n_in, 1.0), values(3, out, 1.0));
        let (mut packed, mut y) = (vec![f32::NAN; w.len()], vec![f32::NAN; rows * out]);
        linear::pack(&w, n_in, &mut packed);
        linear::forward(&x, Weight::packed(&packed, n_in), Some(&b), &mut y);
        assert_close("packed", &y, &reference(&wide(&x), &wide(&w), &wide(&b), n_in), 1e-6);

        // Spread over threads: the same to the bit.
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut spread = vec![f32::NAN; rows * out];
            let w = Weight::packed(&packed, n_in).spread(true);
            pool.install(|| linear::forward(&x, w, Some(&b), &mut spread));
            assert!(spread == y, "{rows} rows, {n_in} to {out}, {threads} threads");
        }
    }
}

#[test]
fn gradients_of_input_weight_and_bias() {
    for (rows, n_in, out) in SHAPES {
        let (x, w, b) = (values(5, rows * n_in, 1.0), values(6, out * n_in, 1.0), values(7, out, 1.0));
        let dy = values(8, rows * out, 1.0);
        let (mut want_x, mut want_w, mut want_b) = (vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; out]);
        for r in 0..rows {
            for o in 0..out {
                let g = f64::from(dy[r * out + o]);
                want_b[o] += g;
                for i in 0..n_in {
                    want_x[r * n_in + i] += g * f64::from(w[o * n_in + i]);
                    want_w[o * n_in + i] += g * f64::from(x[r * n_in + i]);
                }
            }
        }

        let mut dx = vec![f32::NAN; x.len()];
        linear::backward_input(&dy, &RightFactor::new(Dtype::F32, &w, n_in), &mut dx);
        assert_close("dx", &dx, &want_x, 1e-6);

        // Tiles of seven rows, the last one ragged, as the head does it.
        let before = values(9, w.len(), 0.1);
        let mut dw = before.clone();
        for (tile, dw) in dw.chunks_mut(7 * n_in).enumerate() {
            linear::backward_weight(&dy, out, tile * 7, &RightFactor::new(Dtype::F32, &x, n_in), dw);
        }
        assert_close("dw", &added(&dw, &before), &want_w, 2e-6);

        let before = values(10, out, 0.1);
        let mut db = before.clone();
        linear::backward_bias(&dy, &mut db);
        assert_close("db", &added(&db, &before), &want_b, 2e-6);

        let (x, w, b, dy) = (wide(&x), wide(&w), wide(&b), wide(&dy));
        let objective =
            |x: &[f64], w: &[f64], b: &[f64]| reference(x, w, b, n_in).iter().zip(&dy).map(|(y, g)| y * g).sum::<f64>();
        assert_gradient("x", |x| objective(x, &w, &b), &x, &want_x);
        assert_gradient("w", |w| objective(&x, w, &b), &w, &want_w);
        assert_gradient("b", |b| objective(&x, &w, b), &b, &want_b);
    }
}
