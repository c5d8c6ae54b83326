//! LoRA against f64 sums.

use crate::common;

use common::numeric::{added, assert_close, assert_gradient, values, wide};
use uncouple::device::Dtype;
use uncouple::ops::linear::{self, RightFactor, Weight};
use uncouple::ops::lora::{self, LowRank, Stored};

/// rows, in, out, rank; columns of the whole result, and the first of the map's.
const SHAPES: [([usize; 4], [usize; 2]); 4] =
    [([1, 3, 5, 1], [5, 0]), ([13, 17, 40, 4], [60, 20]), ([70, 64, 33, 16], [40, 7]), ([300, 24, 16, 8], [48, 16])];
const SCALE: f64 = 0.75;

/// s · (x Aᵀ) Bᵀ.
fn reference(x: &[f64], a: &[f64], b: &[f64], rank: usize) -> Vec<f64> {
    let dots = |x: &[f64], w: &[f64], n: usize| -> Vec<f64> {
        let row = |x: &[f64]| w.chunks(n).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()).collect::<Vec<_>>();
        x.chunks(n).flat_map(row).collect()
    };
    dots(&dots(x, a, a.len() / rank), b, rank).iter().map(|y| SCALE * y).collect()
}

/// The map's columns of a wider matrix.
fn columns(of: &[f32], [stride, first]: [usize; 2], out: usize) -> Vec<f32> {
    of.chunks(stride).flat_map(|row| &row[first..first + out]).copied().collect()
}

#[test]
fn the_product_is_added_to_its_columns_and_to_no_other() {
    for ([rows, n_in, out, rank], [stride, first]) in SHAPES {
        let (x, a, b) = (values(1, rows * n_in, 1.0), values(2, rank * n_in, 1.0), values(3, out * rank, 1.0));
        let before = values(4, rows * stride, 1.0);
        let want = reference(&wide(&x), &wide(&a), &wide(&b), rank);
        let [mut packed_a, mut packed_b] = [a.clone(), b.clone()];
        linear::pack(&a, n_in, &mut packed_a);
        linear::pack(&b, rank, &mut packed_b);
        let (bf16_a, bf16_b) = (linear::pack_bf16(&a, n_in), linear::pack_bf16(&b, rank));
        let weights = [
            ([Weight::new(Dtype::F32, &a, n_in), Weight::new(Dtype::F32, &b, rank)], 1e-6),
            ([Weight::packed(&packed_a, n_in), Weight::packed(&packed_b, rank)], 1e-6),
            // Two roundings of each factor: 2⁻⁹ each.
            ([Weight::packed_bf16(bf16_a.columns()), Weight::packed_bf16(bf16_b.columns())], 8e-3),
        ];
        for ([a, b], tolerance) in weights {
            let mut y = before.clone();
            lora::forward(&x, &LowRank { a, b: &[(b, first)], scale: SCALE as f32 }, &mut y, stride);
            let own = |of: &[f32]| columns(of, [stride, first], out);
            assert_close("y", &added(&own(&y), &own(&before)), &want, tolerance);
            let others = |of: &[f32]| {
                [columns(of, [stride, 0], first), columns(of, [stride, first + out], stride - first - out)]
            };
            assert!(others(&y) == others(&before), "columns that are none of the map's changed");
        }
    }
}

#[test]
fn gradients_of_input_and_of_both_matrices() {
    for ([rows, n_in, out, rank], [stride, first]) in SHAPES {
        let (x, a, b) = (values(5, rows * n_in, 1.0), values(6, rank * n_in, 1.0), values(7, out * rank, 1.0));
        let (dy, before) = (values(8, rows * stride, 1.0), values(9, rows * n_in, 0.1));
        let b_at = [(&b[..], first)];
        let stored = Stored { a: &a, b: &b_at, rank, scale: SCALE as f32, dtype: Dtype::F32 };
        let (mut dx, mut u, mut v) = (before.clone(), vec![f32::NAN; rows * rank], vec![f32::NAN; rows * rank]);
        lora::backward(&x, &dy, stride, &stored, &mut dx, &mut [&mut u], &mut v);
        let (mut da, mut db) = (vec![0.0; a.len()], vec![0.0; b.len()]);
        linear::backward_weight(&v, rank, 0, &RightFactor::new(Dtype::F32, &x, n_in), &mut da);
        linear::backward_weight(&dy, stride, first, &RightFactor::new(Dtype::F32, &u, rank), &mut db);

        let own = wide(&columns(&dy, [stride, first], out));
        let (x, a, b) = (wide(&x), wide(&a), wide(&b));
        let objective = |x: &[f64], a: &[f64], b: &[f64]| {
            reference(x, a, b, rank).iter().zip(&own).map(|(y, g)| y * g).sum::<f64>()
        };
        // By definition: dA[r, i] = s Σ_t (Σ_o dy[t, o] B[o, r]) x[t, i], dB[o, r] = s Σ_t dy[t, o] (Σ_i x[t, i] A[r, i]).
        let (mut want_x, mut want_a, mut want_b) = (vec![0.0; x.len()], vec![0.0; a.len()], vec![0.0; b.len()]);
        for t in 0..rows {
            for r in 0..rank {
                let v: f64 = (0..out).map(|o| SCALE * own[t * out + o] * b[o * rank + r]).sum();
                let u: f64 = (0..n_in).map(|i| SCALE * x[t * n_in + i] * a[r * n_in + i]).sum();
                (0..n_in).for_each(|i| want_a[r * n_in + i] += v * x[t * n_in + i]);
                (0..n_in).for_each(|i| want_x[t * n_in + i] += v * a[r * n_in + i]);
                (0..out).for_each(|o| want_b[o * rank + r] += u * own[t * out + o]);
            }
        }
        assert_close("dx", &added(&dx, &before), &want_x, 3e-6);
        assert_close("dA", &da, &want_a, 3e-6);
        assert_close("dB", &db, &want_b, 3e-6);
        assert_gradient("x", |x| objective(x, &a, &b), &x, &want_x);
        assert_gradient("A", |a| objective(&x, a, &b), &a, &want_a);
        assert_gradient("B", |b| objective(&x, &a, b), &b, &want_b);
    }
}

#[test]
fn what_is_merged_computes_the_same() {
    for ([rows, n_in, out, rank], _) in SHAPES {
        let (x, a, b) = (values(1, rows * n_in, 1.0), values(2, rank * n_in, 1.0), values(3, out * rank, 1.0));
        let (mut w, mut y) = (vec![0.0; out * n_in], vec![f32::NAN; rows * out]);
        lora::merge([&a, &b], rank, SCALE as f32, &mut w);
        linear::forward(&x, Weight::new(Dtype::F32, &w, n_in), None, &mut y);
        assert_close("merged", &y, &reference(&wide(&x), &wide(&a), &wide(&b), rank), 2e-6);
    }
}

/// Maps that read one input have one A, and some columns of the result each.
#[test]
fn several_maps_are_as_each_by_itself() {
    let (rows, n_in, rank, outs) = (21, 40, 5, [17, 8, 8]);
    let (firsts, stride) = ([0, 20, 28], 40);
    let (x, a) = (values(11, rows * n_in, 1.0), values(12, outs.len() * rank * n_in, 1.0));
    let b: Vec<Vec<f32>> = outs.iter().zip(13..).map(|(out, seed)| values(seed, out * rank, 1.0)).collect();
    let weight = |w, n| Weight::new(Dtype::F32, w, n);
    let (mut y, mut want_y) = (values(21, rows * stride, 1.0), values(21, rows * stride, 1.0));
    let (dy, mut dx) = (values(22, rows * stride, 1.0), values(23, rows * n_in, 1.0));
    let mut want_dx = dx.clone();
    let all: Vec<_> = b.iter().zip(firsts).map(|(b, first)| (weight(b, rank), first)).collect();
    lora::forward(&x, &LowRank { a: weight(&a, n_in), b: &all, scale: SCALE as f32 }, &mut y, stride);

    let stored: Vec<(&[f32], usize)> = b.iter().zip(firsts).map(|(b, first)| (&b[..], first)).collect();
    let of = |a, b| Stored { a, b, rank, scale: SCALE as f32, dtype: Dtype::F32 };
    let (mut u, mut v) = (vec![vec![f32::NAN; rows * rank]; 3], vec![f32::NAN; rows * 3 * rank]);
    let mut u_rows: Vec<&mut [f32]> = u.iter_mut().map(|u| &mut u[..]).collect();
    lora::backward(&x, &dy, stride, &of(&a, &stored), &mut dx, &mut u_rows, &mut v);

    for (map, a) in a.chunks(rank * n_in).enumerate() {
        let own = LowRank { a: weight(a, n_in), b: &all[map..=map], scale: SCALE as f32 };
        lora::forward(&x, &own, &mut want_y, stride);
        let (mut want_u, mut want_v) = (vec![f32::NAN; rows * rank], vec![f32::NAN; rows * rank]);
        let stored = &stored[map..=map];
        lora::backward(&x, &dy, stride, &of(a, stored), &mut want_dx, &mut [&mut want_u], &mut want_v);
        assert_close("u", &u[map], &wide(&want_u), 2e-6);
        assert_close("v", &columns(&v, [3 * rank, map * rank], rank), &wide(&want_v), 2e-6);
    }
    assert_close("y", &y, &wide(&want_y), 2e-6);
    assert_close("dx", &dx, &wide(&want_dx), 2e-6);
}
