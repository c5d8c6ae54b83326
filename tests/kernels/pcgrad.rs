use crate::*;
use uncouple::ops::pcgrad::combine;

/// The sum that the kernels leave in `n`, and the cosine.
fn on_gpu(p: &[f32], n: &[f32], grid: u32) -> (Vec<f32>, f64) {
    let (positive, negative, len) = (Buffer::new(p), Buffer::new(n), p.len() as u64);
    let partial = Buffer::poisoned::<f64>(3 * grid as usize);
    let factors = Buffer::poisoned::<f64>(3);
    launch("pcgrad_dots_f32", grid, 256, 0, args![&positive, &negative, &partial, len]).unwrap();
    launch("pcgrad_finish_f64", 1, 256, 0, args![&partial, &factors, grid as i32]).unwrap();
    launch("pcgrad_combine_f32", blocks(p.len() / 8), 256, 0, args![&positive, &negative, &factors, len]).unwrap();
    (negative.read::<f32>().unwrap(), factors.read::<f64>().unwrap()[2])
}

#[test]
fn the_sum_and_the_cosine_are_those_of_the_cpu() {
    for (len, grid) in [(8, 1), (2048, 1), (20_008, 3)] {
        let p = randoms(1, len);
        // At odds, in agreement, and hardly related.
        let at_odds: Vec<f32> = p.iter().zip(randoms(2, len)).map(|(p, x)| 0.3 * x - p).collect();
        let agreeing: Vec<f32> = p.iter().zip(randoms(3, len)).map(|(p, x)| 0.3 * x + 2.0 * p).collect();
        for n in [at_odds, agreeing, randoms(4, len)] {
            let mut want = n.clone();
            let cosine = combine(&p, &mut want).unwrap();
            let (got, on_gpu) = on_gpu(&p, &n, grid);
            assert!((cosine - on_gpu).abs() < 1e-12, "{len}: {cosine} and {on_gpu}");
            assert_close(&format!("the sum of {len}"), &got, &want, F32);
        }
    }
}

#[test]
fn a_gradient_of_zeros_is_left_alone() {
    let (p, zeros) = (randoms(1, 64), vec![0.0; 64]);
    let (sum, cosine) = on_gpu(&p, &zeros, 1);
    assert_eq!(sum, p);
    assert!(cosine.is_nan());
    assert_eq!(on_gpu(&zeros, &p, 1).0, p);
}
