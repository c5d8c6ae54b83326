//! Inputs that no random numbers are.

use crate::emulated::gpu;
use uncouple::ops::case::randoms;
use uncouple::ops::sampling::SamplingParams;
use uncouple::ops::{adamw, pcgrad, sampling};

#[test]
fn a_broken_gradient_shows_in_its_norm() {
    let (gpu, mut g) = (gpu(), vec![1.0f32; 8000]);
    g[7001] = f32::NAN;
    let norm = gpu.uninit::<f32>(2).unwrap();
    adamw::cuda::grad_norm(&gpu, &*gpu.tensor(&g).unwrap(), 1.0, &norm).unwrap();
    let found = gpu.read(&norm).unwrap();
    assert!(found[0].is_nan() && found[1].is_nan(), "{found:?}");
}

#[test]
fn a_gradient_of_zeros_is_left_alone() {
    let (gpu, p) = (gpu(), randoms(1, 64));
    for [positive, negative] in [[&p, &vec![0.0; 64]], [&vec![0.0; 64], &p]] {
        let (positive, sum) = (gpu.tensor(positive).unwrap(), gpu.tensor(negative).unwrap());
        assert_eq!(pcgrad::cuda::combine(&gpu, &positive, &sum).unwrap(), None);
        assert_eq!(gpu.read(&sum).unwrap(), p);
    }
}

const ROWS: usize = 40;
const VOCAB: usize = 16;

/// Draws from 16 equal tokens, at numbers from all over (0, 1).
fn draw(params: SamplingParams) -> (Vec<u32>, Vec<f32>) {
    let (gpu, numbers) = (gpu(), (0..ROWS).map(|r| (r as f32 + 0.5) / ROWS as f32).collect::<Vec<f32>>());
    let logits = sampling::cuda::Logits::new(&gpu, ROWS, VOCAB).unwrap();
    gpu.write(&logits.values, &[1.5; ROWS * VOCAB]).unwrap();
    let (uniform, token, logprob) =
        (gpu.tensor(&numbers).unwrap(), gpu.uninit(ROWS).unwrap(), gpu.uninit(ROWS).unwrap());
    sampling::cuda::sample(&gpu, &logits, None, &params, &uniform, &token, &logprob).unwrap();
    (gpu.read(&token).unwrap(), gpu.read(&logprob).unwrap())
}

/// Of equal tokens, top-p 0.6 drops the first 6; top-k keeps all that equal the k-th.
#[test]
fn ties() {
    let plain = SamplingParams::default();
    let (token, logprob) = draw(SamplingParams { top_p: 0.6, ..plain });
    assert!(token.iter().all(|t| *t >= 6) && token.contains(&6) && token.contains(&15), "{token:?}");
    assert!(logprob.iter().all(|lp| (lp + (VOCAB as f32).ln()).abs() < 1e-5), "{logprob:?}");
    let (token, _) = draw(SamplingParams { top_k: 3, ..plain });
    assert!(token.contains(&0) && token.contains(&15), "{token:?}");
    let (token, _) = draw(SamplingParams { top_p: 0.0, ..plain });
    assert_eq!(token, [15; ROWS]);
    let (token, _) = draw(SamplingParams { temperature: 0.0, ..plain });
    assert_eq!(token, [0; ROWS]);
}
