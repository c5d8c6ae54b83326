//! Residual: a sum, element by element.

use crate::common;

use common::numeric::values;
use uncouple::ops::residual;

#[test]
fn adds_each_element() {
    for n in [0, 1, 16, 257] {
        let (before, delta) = (values(1, n, 1.0), values(2, n, 1.0));
        let mut x = before.clone();
        residual::forward(&mut x, &delta);
        assert!(x.iter().zip(&before).zip(&delta).all(|((x, b), d)| *x == b + d));
    }
}
