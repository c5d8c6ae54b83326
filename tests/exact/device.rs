//! The CPU device: matrix products over strided views, in f32 and accumulated in f64, and the exponential.

use crate::common;

use common::numeric::{assert_close, values};
use uncouple::device::Dtype;
use uncouple::device::cpu::{Mat, Product, exp, simd, use_exact_products};

/// C = alpha A B (+ C) in f64, element by element through the views.
fn product((m, n, k): (usize, usize, usize), c: Option<&[f32]>, alpha: f32, a: Mat<'_>, b: Mat<'_>) -> Vec<f64> {
    let at = |x: Mat<'_>, i: usize, j: usize| f64::from(x.data[i * x.row_stride + j * x.col_stride]);
    let sum = |i: usize, j: usize| (0..k).map(|l| at(a, i, l) * at(b, l, j)).sum::<f64>();
    let element = |i: usize, j: usize| f64::from(alpha) * sum(i, j) + c.map_or(0.0, |c| f64::from(c[i * n + j]));
    (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| element(i, j)).collect()
}

/// Every layout, with C inside wider rows whose other elements must stay.
fn check_products(tolerance: f64) {
    for (m, n, k) in [(1, 1, 1), (1, 33, 8), (257, 17, 64), (64, 64, 129), (16, 100, 0), (31, 1, 300)] {
        for (transposed_a, transposed_b) in [(false, false), (true, false), (false, true), (true, true)] {
            let (pad_a, pad_b, c_stride) = (3, 2, n + 5);
            let (rows_a, cols_a) = if transposed_a { (k, m) } else { (m, k) };
            let (rows_b, cols_b) = if transposed_b { (n, k) } else { (k, n) };
            let (a, b) = (values(1, rows_a * (cols_a + pad_a), 1.0), values(2, rows_b * (cols_b + pad_b), 1.0));
            let view = |x, stride, transposed| match transposed {
                true => Mat::transposed(x, stride),
                false => Mat::rows(x, stride),
            };
            let (a, b) = (view(&a[..], cols_a + pad_a, transposed_a), view(&b[..], cols_b + pad_b, transposed_b));
            for accumulate in [false, true] {
                // The last row ends where C does: nothing beyond it may be touched.
                let before = values(3, (m - 1) * c_stride + n, 1.0);
                let mut c = before.clone();
                Product::new(Dtype::F32, (m, n, k)).accumulate(accumulate).alpha(0.5).run(&mut c, c_stride, a, b);
                let inside = |c: &[f32]| -> Vec<f32> { c.chunks(c_stride).flat_map(|r| &r[..n]).copied().collect() };
                let outside = |c: &[f32]| -> Vec<f32> { c.chunks(c_stride).flat_map(|r| &r[n..]).copied().collect() };
                let old = inside(&before);
                let want = product((m, n, k), accumulate.then_some(&old[..]), 0.5, a, b);
                let what = format!("{m} x {n} x {k}, {transposed_a} {transposed_b}, accumulate {accumulate}");
                assert_close(&what, &inside(&c), &want, tolerance);
                assert_eq!(outside(&c), outside(&before), "{what}");
            }
        }
    }
}

/// One test, since the switch holds for the whole process.
#[test]
fn products_and_exact_products() {
    check_products(1e-6);
    use_exact_products();
    check_products(4e-8);
}

#[test]
#[should_panic(expected = "shorter than its shape")]
fn a_short_matrix_is_refused() {
    Product::new(Dtype::F32, (2, 2, 2)).run(&mut [0.0; 4], 2, Mat::rows(&[0.0; 3], 2), Mat::rows(&[0.0; 4], 2));
}

#[test]
fn exponential_to_two_units_in_the_last_place() {
    let xs: Vec<f32> = (0..=175_000).map(|i| -87.0 + i as f32 * 1e-3).collect();
    let mut ys = xs.clone();
    simd(
        #[inline(always)]
        || ys.iter_mut().for_each(|y| *y = exp(*y)),
    );
    for (x, y) in xs.iter().zip(ys) {
        let want = f64::from(*x).exp();
        assert!((f64::from(y) - want).abs() <= 2.4e-7 * want, "exp({x}) = {y}, not {want}");
    }
    assert_eq!(exp(0.0), 1.0);
    assert_eq!([exp(-87.1), exp(-1e30), exp(f32::NEG_INFINITY)], [0.0; 3]);
    assert!(exp(f32::MAX).is_finite() && exp(f32::MAX) > 1e38);
    assert!(exp(f32::NAN).is_nan());
}
