//! RoPE against f64: the tables, the rotation and its inverse.

use crate::common;

use common::numeric::{assert_close, assert_gradient, below, dot, values, wide};
use uncouple::ops::rope::{Tables, rotate};

const POSITIONS: usize = 300;

/// heads that are rotated, heads that are not, head_dim, rows
const SHAPES: [(usize, usize, usize, usize); 5] =
    [(1, 0, 2, 1), (2, 1, 8, 257), (3, 2, 64, 17), (8, 1, 16, 5), (1, 1, 128, 3)];

/// The rotation as a linear map in f64, with the f32 frequencies of the tables (which have their own test).
fn reference(x: &[f64], row_len: usize, heads: usize, position: &[u32], t: &Tables, sign: f64) -> Vec<f64> {
    let mut y = x.to_vec();
    for (row, p) in y.chunks_mut(row_len).zip(position) {
        for head in row[..heads * 2 * t.half].chunks_mut(2 * t.half) {
            for j in 0..t.half {
                let (sin, cos) = (sign * f64::from(*p as f32 * t.inv_freq[j])).sin_cos();
                let (a, b) = (head[j], head[j + t.half]);
                (head[j], head[j + t.half]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }
    y
}

#[test]
fn tables_hold_the_angles() {
    for (theta, head_dim) in [(10_000.0f32, 8), (1e6, 64), (1e6, 128)] {
        let t = Tables::new(theta, head_dim, POSITIONS);
        let half = head_dim / 2;
        assert_eq!((t.half, t.cos.len(), t.sin.len()), (half, POSITIONS * half, POSITIONS * half));
        for i in 0..half {
            let frequency = f64::from(theta).powf(-2.0 * i as f64 / head_dim as f64);
            assert!((f64::from(t.inv_freq[i]) / frequency - 1.0).abs() < 1e-6, "frequency {i}");
            for p in 0..POSITIONS {
                let (sin, cos) = (p as f64 * frequency).sin_cos();
                let (s, c) = (f64::from(t.sin[p * half + i]), f64::from(t.cos[p * half + i]));
                let tolerance = 1e-7 + 1e-6 * p as f64 * frequency;
                assert!((s - sin).abs() < tolerance && (c - cos).abs() < tolerance, "position {p}, frequency {i}");
            }
        }
    }
}

#[test]
fn rotates_forward_and_back() {
    for (heads, other, head_dim, rows) in SHAPES {
        let t = Tables::new(10_000.0, head_dim, POSITIONS);
        let row_len = (heads + other) * head_dim;
        let position: Vec<u32> = (0..rows).map(|i| below(7, i, POSITIONS) as u32).collect();
        let (x, dy) = (values(1, rows * row_len, 1.0), values(2, rows * row_len, 1.0));
        let mut y = x.clone();
        rotate(&mut y, row_len, heads, &position, &t, false);
        assert_close("y", &y, &reference(&wide(&x), row_len, heads, &position, &t, 1.0), 1e-6);
        for (y, x) in y.chunks(row_len).zip(x.chunks(row_len)) {
            assert_eq!(y[heads * head_dim..], x[heads * head_dim..], "values are not rotated");
        }

        let mut dx = dy.clone();
        rotate(&mut dx, row_len, heads, &position, &t, true);
        let want = reference(&wide(&dy), row_len, heads, &position, &t, -1.0);
        assert_close("dx", &dx, &want, 1e-6);
        let objective = |x: &[f64]| dot(&reference(x, row_len, heads, &position, &t, 1.0), &wide(&dy));
        assert_gradient("x", objective, &wide(&x), &want);

        rotate(&mut y, row_len, heads, &position, &t, true);
        assert_close("forwards and backwards", &y, &wide(&x), 1e-6);
    }
}

#[test]
fn scores_depend_on_distance_alone() {
    let t = Tables::new(10_000.0, 16, POSITIONS);
    let (q, k) = (values(3, 16, 1.0), values(4, 16, 1.0));
    let score = |p: u32, s: u32| {
        let (mut q, mut k) = (q.clone(), k.clone());
        rotate(&mut q, 16, 1, &[p], &t, false);
        rotate(&mut k, 16, 1, &[s], &t, false);
        dot(&wide(&q), &wide(&k))
    };
    assert!((score(20, 13) - score(220, 213)).abs() < 1e-4);
    assert!((score(20, 13) - score(20, 12)).abs() > 1e-2);
}
