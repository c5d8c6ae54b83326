//! Products in bf16 against f64 sums of the same rounded factors, by every unit of the machine.

use crate::common::numeric::values;
use proptest::prelude::*;
use uncouple::device::Dtype;
use uncouple::device::cpu::bf16::{Packed, Right, Unit, product, round};
use uncouple::device::cpu::{Mat, Product};

/// A matrix `[rows, cols]`, laid out row by row or column by column, with a gap after each.
struct Laid {
    data: Vec<f32>,
    by_rows: bool,
    stride: usize,
}

impl Laid {
    fn new(seed: u64, (rows, cols): (usize, usize), by_rows: bool) -> Laid {
        let (lines, length) = if by_rows { (rows, cols) } else { (cols, rows) };
        let stride = length + 3;
        Laid { data: values(seed, lines * stride, 1.0), by_rows, stride }
    }

    fn mat(&self) -> Mat<'_> {
        if self.by_rows { Mat::rows(&self.data, self.stride) } else { Mat::transposed(&self.data, self.stride) }
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        let at = if self.by_rows { i * self.stride + j } else { j * self.stride + i };
        f64::from(round(self.data[at]))
    }
}

fn check((m, n, k): (usize, usize, usize), accumulate: bool, a_rows: bool, b_rows: bool) {
    let (a, b) = (Laid::new(1, (m, k), a_rows), Laid::new(2, (k, n), b_rows));
    let stride = n + 2;
    let before = values(3, m * stride, 1.0);
    let packed = Packed::new(b.mat(), (k, n));
    let asked = Product::new(Dtype::Bf16, (m, n, k)).accumulate(accumulate).alpha(0.5);
    for unit in Unit::all() {
        for right in [Right::Mat(b.mat()), Right::Packed(packed.columns())] {
            let mut c = before.clone();
            product(unit, asked, (&mut c, stride), a.mat(), right);
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|l| a.at(i, l) * b.at(l, j)).sum();
                    let size: f64 = (0..k).map(|l| (a.at(i, l) * b.at(l, j)).abs()).sum();
                    let start = if accumulate { f64::from(before[i * stride + j]) } else { 0.0 };
                    let (got, want) = (f64::from(c[i * stride + j]), start + 0.5 * sum);
                    assert!((got - want).abs() <= 1e-6 * (1.0 + size), "{unit:?} ({i}, {j}): {got} for {want}");
                }
                // What lies between the rows of C is not C's.
                let gap = i * stride + n..(i + 1) * stride;
                assert_eq!(c[gap.clone()], before[gap]);
            }
        }
    }
}

#[test]
fn shapes_at_the_edges_of_tiles() {
    for (m, n, k) in [(1, 1, 1), (16, 32, 32), (17, 33, 31), (32, 64, 96), (33, 31, 2), (64, 5, 65), (3, 40, 0)] {
        for layout in 0..8 {
            check((m, n, k), layout & 1 == 0, layout & 2 == 0, layout & 4 == 0);
        }
    }
}

/// More than is packed at once, in rows and along k.
#[test]
fn long_products_in_parts() {
    check((530, 40, 70), false, true, false);
    check((20, 33, 2100), true, false, true);
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let (m, n, k) = (45, 70, 1500);
    let (a, b, c) = (values(1, m * k, 1.0), values(2, k * n, 1.0), values(3, m * n, 1.0));
    for unit in Unit::all() {
        let run = |rows: std::ops::Range<usize>| {
            let mut c = c[rows.start * n..rows.end * n].to_vec();
            let asked = Product::new(Dtype::Bf16, (rows.len(), n, k)).accumulate(true);
            let b = Right::Mat(Mat::rows(&b, n));
            product(unit, asked, (&mut c, n), Mat::rows(&a[rows.start * k..], k), b);
            c
        };
        let all = run(0..m);
        for row in 0..m {
            assert_eq!(run(row..row + 1), all[row * n..(row + 1) * n], "{unit:?}, row {row}");
        }
    }
}

#[test]
fn columns_of_a_packed_factor() {
    let (n, k) = (100, 40);
    let b = values(1, k * n, 1.0);
    let packed = Packed::new(Mat::rows(&b, n), (k, n));
    let (first, rest) = packed.columns().split_at(64);
    assert_eq!((first.n(), rest.n(), rest.k()), (64, 36, 40));
    let a = values(2, 3 * k, 1.0);
    let run = |right, n| {
        let mut c = vec![0.0; 3 * n];
        product(Unit::best(), Product::new(Dtype::Bf16, (3, n, k)), (&mut c, n), Mat::rows(&a, k), right);
        c
    };
    let (whole, part) = (run(Right::Packed(packed.columns()), n), run(Right::Packed(rest), 36));
    whole.chunks_exact(n).zip(part.chunks_exact(36)).for_each(|(whole, part)| assert_eq!(whole[64..], *part));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_shape(m in 1usize..70, n in 1usize..70, k in 1usize..130, layout in 0u8..8) {
        check((m, n, k), layout & 1 == 0, layout & 2 == 0, layout & 4 == 0);
    }
}
