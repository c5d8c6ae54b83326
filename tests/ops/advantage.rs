//! Group advantages: the formula, its edge cases, and what no reward scheme may change.

use proptest::prelude::*;
use uncouple::ops::advantage::{Scale, advantages};

const EPS: f64 = 1e-4;
const SCALES: [Scale; 3] = [Scale::Group, Scale::Batch, Scale::None];

fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() < 1e-12, "{a:?} is not {b:?}");
    }
}

#[test]
fn values_by_hand() {
    // Group 1: mean 1/2, squared deviations sum to 1, std sqrt(1/3). All four and the pair: mean 2/3, std sqrt(4/15).
    let rewards = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
    let third = (1.0f64 / 3.0).sqrt() + EPS;
    let batch = (4.0f64 / 15.0).sqrt() + EPS;
    let with = |d: f64| [0.5 / d, -0.5 / d, -0.5 / d, 0.5 / d, 0.0, 0.0];
    close(&advantages(&rewards, &[4, 2], Scale::Group, EPS), &with(third));
    close(&advantages(&rewards, &[4, 2], Scale::Batch, EPS), &with(batch));
    close(&advantages(&rewards, &[4, 2], Scale::None, EPS), &with(1.0));
}

#[test]
fn nothing_to_learn_is_exactly_zero() {
    for scale in SCALES {
        // 0.1 has no exact mean over three values; the advantage must not be the rounding error over eps.
        assert_eq!(advantages(&[0.1, 0.1, 0.1, 7.0], &[3, 1], scale, 0.0), [0.0; 4]);
        assert_eq!(advantages(&[5.0], &[1], scale, EPS), [0.0]);
        assert_eq!(advantages(&[], &[], scale, EPS), [0.0; 0]);
    }
}

#[test]
#[should_panic(expected = "group sizes")]
fn sizes_must_cover_the_rewards() {
    advantages(&[1.0, 2.0], &[1], Scale::Group, EPS);
}

proptest! {
    #[test]
    fn centred_and_blind_to_a_shift(
        groups in prop::collection::vec(prop::collection::vec(-5.0f64..5.0, 1..6), 1..5),
        shift in -10.0f64..10.0,
    ) {
        let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
        let rewards = groups.concat();
        let shifted: Vec<f64> = rewards.iter().map(|r| r + shift).collect();
        for scale in SCALES {
            let a = advantages(&rewards, &sizes, scale, EPS);
            let b = advantages(&shifted, &sizes, scale, EPS);
            let mut from = 0;
            for &n in &sizes {
                prop_assert!(a[from..from + n].iter().sum::<f64>().abs() < 1e-9 * n as f64);
                if scale == Scale::Group && n > 1 {
                    let variance = a[from..from + n].iter().map(|x| x * x).sum::<f64>() / (n - 1) as f64;
                    prop_assert!(variance < 1.0 + 1e-9);
                }
                from += n;
            }
            for (x, y) in a.iter().zip(&b) {
                prop_assert!((x - y).abs() < 1e-6, "{x} and {y}");
            }
        }
    }
}
