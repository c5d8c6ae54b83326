//! AdamW and clipping against f64 loops.

use crate::common;

use common::numeric::{added, assert_close, values, wide};
use uncouple::ops::adamw::{AdamW, clip_scale, grad_norm, step};

/// The update from its definition, one tensor in f64.
struct Reference {
    p: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
}

impl Reference {
    fn step(&mut self, o: &AdamW, decay: bool, grads: &[f32]) {
        let [lr, b1, b2] = [o.lr, o.beta1, o.beta2].map(f64::from);
        let [eps, weight_decay, scale] = [o.eps, o.weight_decay, o.grad_scale].map(f64::from);
        for (i, g) in grads.iter().enumerate() {
            let g = f64::from(*g) * scale;
            if decay {
                self.p[i] *= 1.0 - lr * weight_decay;
            }
            self.m[i] = b1 * self.m[i] + (1.0 - b1) * g;
            self.v[i] = b2 * self.v[i] + (1.0 - b2) * g * g;
            let m_hat = self.m[i] / (1.0 - b1.powi(o.step as i32));
            let v_hat = self.v[i] / (1.0 - b2.powi(o.step as i32));
            self.p[i] -= lr * m_hat / (v_hat.sqrt() + eps);
        }
    }
}

/// Sizes around the lanes of a vector and over two tasks.
#[test]
fn several_steps_with_and_without_decay() {
    for n in [1, 17, 257, 2 * (1 << 14) + 5] {
        for (decay, clip) in [(true, 0.0), (false, 0.0), (true, 0.5), (false, 1e6)] {
            let start = values(1, n, 1.0);
            let (mut p, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
            let mut want = Reference { p: wide(&start), m: vec![0.0; n], v: vec![0.0; n] };
            for t in 1..=5 {
                let g = values(10 + u64::from(t), n, 0.3);
                let o = AdamW {
                    lr: 0.01 / t as f32,
                    beta1: 0.9,
                    beta2: 0.99,
                    eps: 1e-8,
                    weight_decay: 0.1,
                    grad_scale: clip_scale(grad_norm(&g), clip),
                    step: t,
                };
                step(&o, decay, &mut p, &g, &mut m, &mut v);
                want.step(&o, decay, &g);
            }
            let what = format!("{n} elements, decay {decay}, clip {clip}");
            let update: Vec<f64> = want.p.iter().zip(&start).map(|(p, s)| p - f64::from(*s)).collect();
            // Each step rounds p, which is about 1, while the update is about 0.02.
            assert_close(&format!("{what}: update"), &added(&p, &start), &update, 3e-5);
            assert_close(&format!("{what}: m"), &m, &want.m, 1e-6);
            assert_close(&format!("{what}: v"), &v, &want.v, 1e-6);
        }
    }
}

/// Without a gradient only decay moves a parameter, and the first step is lr against the gradient's sign whatever its size.
#[test]
fn decay_alone_and_the_first_step() {
    let o = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.5, grad_scale: 1.0, step: 1 };
    let (mut p, mut m, mut v) = ([2.0f32, 2.0, 2.0], [0.0; 3], [0.0; 3]);
    step(&o, true, &mut p, &[0.0, 1e-3, -1e3], &mut m, &mut v);
    for (p, want) in p.iter().zip([1.9, 1.8, 2.0]) {
        assert!((p - want).abs() < 1e-5, "{p} is not {want}");
    }
    let (mut p, mut m, mut v) = ([2.0f32], [0.0], [0.0]);
    step(&o, false, &mut p, &[0.0], &mut m, &mut v);
    assert_eq!(p, [2.0]);
}

#[test]
fn eps_is_added_to_the_corrected_root() {
    let o = AdamW { lr: 1.0, beta1: 0.9, beta2: 0.99, eps: 1.0, weight_decay: 0.0, grad_scale: 1.0, step: 1 };
    let (mut p, mut m, mut v) = ([0.0f32], [0.0], [0.0]);
    step(&o, true, &mut p, &[3.0], &mut m, &mut v);
    assert!((p[0] + 0.75).abs() < 1e-6, "{}", p[0]);
}

#[test]
fn norm_and_clip() {
    for n in [0, 1, 9, 3 * (1 << 14) + 1] {
        let g = values(2, n, 1.0);
        let want = wide(&g).iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!((grad_norm(&g) - want).abs() <= 1e-12 * want, "{n} elements");
    }
    assert!(grad_norm(&[1e30, 1e30]).is_finite(), "squares do not overflow");
    assert!(!grad_norm(&[1.0, f32::NAN]).is_finite());
    assert!(!grad_norm(&[1.0, f32::INFINITY]).is_finite());
    assert_eq!(clip_scale(0.5, 1.0), 1.0);
    assert_eq!(clip_scale(0.0, 1.0), 1.0);
    assert!((clip_scale(4.0, 1.0) - 0.25).abs() < 1e-6);
    assert_eq!(clip_scale(1e9, 0.0), 1.0, "0 switches clipping off");
}
