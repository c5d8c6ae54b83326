use crate::*;
use kernel_emulator::{args, launch};

const SHARED: usize = 48 << 10;

/// Adds the parts to a Gram matrix that holds `before` everywhere.
fn finish(partial: &Buffer, samples: usize, parts: usize, before: f64) -> Vec<f64> {
    let gram = Buffer::new(&vec![before; samples * samples]);
    let args = args![partial, &gram, samples as i32, parts as i32];
    launch("gradient_cosine_gram_finish_f64", blocks(samples * samples), 256, 0, args).unwrap();
    gram.read().unwrap()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Errors are in units of the vectors' lengths, of which `norm` gives the square.
fn assert_gram(what: &str, got: &[f64], want: impl Fn(usize, usize) -> f64, samples: usize) {
    for i in 0..samples {
        for j in 0..samples {
            let (g, w, unit) = (got[i * samples + j], want(i, j), (want(i, i) * want(j, j)).sqrt());
            assert!((g - w).abs() <= 2e-6 * unit, "{what}: element ({i}, {j}) is {g}, should be {w}");
        }
    }
}

#[test]
fn gram() {
    // More parts than steps, ragged last steps, and enough steps for the sums to change hands.
    for (samples, n, parts) in [(1, 8, 3), (5, 200, 2), (16, 1096, 1), (33, 72, 1), (64, 640, 3)] {
        let (g, wide) = randoms_bf16(7, samples * n);
        let partial = Buffer::poisoned::<f32>(parts * samples * samples);
        let g = Buffer::new(&g);
        let args = args![&g, &partial, samples as i32, n as u64];
        launch("gradient_cosine_gram_bf16", parts as u32, 128, 32 << 10, args).unwrap();
        let got = finish(&partial, samples, parts, 0.0);
        let row = |i: usize| &wide[i * n..][..n];
        assert_gram(&format!("{samples} x {n}"), &got, |i, j| dot(row(i), row(j)), samples);
    }
}

#[test]
fn gram_adds_to_what_is_there() {
    let got = finish(&Buffer::new(&[1.0f32, 2.0, 3.0, 4.0, 0.5, 0.25, 0.0, -4.0]), 2, 2, 10.0);
    assert_eq!(got, [11.5, 12.25, 13.0, 10.0]);
}

#[test]
fn ghost() {
    for (sizes, a, b, stride, parts) in
        [(&[1][..], 8, 16, 16, 1), (&[130, 0, 5], 40, 8, 24, 2), (&[3, 129, 260], 24, 72, 72, 3)]
    {
        let samples = sizes.len();
        let start: Vec<u32> = (0..=samples).map(|i| sizes[..i].iter().sum()).collect();
        let n = start[samples] as usize;
        let ((x, x_wide), (d, d_wide)) = (randoms_bf16(8, n * a), randoms_bf16(9, n * stride));
        // The gradients themselves: g_i = Σ_t d_t x_tᵀ.
        let gradients: Vec<Vec<f64>> = start
            .windows(2)
            .map(|s| {
                let mut g = vec![0.0; a * b];
                for t in s[0] as usize..s[1] as usize {
                    for (row, d) in g.chunks_exact_mut(a).zip(&d_wide[t * stride..]) {
                        row.iter_mut().zip(&x_wide[t * a..]).for_each(|(g, x)| *g += f64::from(*d) * f64::from(*x));
                    }
                }
                g
            })
            .collect();
        let partial = Buffer::poisoned::<f32>(parts * samples * samples);
        let (x, d, start) = (Buffer::new(&x), Buffer::new(&d), Buffer::new(&start));
        let args = args![&x, &d, &start, &partial, samples as i32, a as i32, b as i32, stride as i32];
        let pairs = (samples * (samples + 1) / 2) as u32;
        launch("gradient_cosine_ghost_bf16", (pairs, parts as u32), 256, SHARED, args).unwrap();
        let got = finish(&partial, samples, parts, 0.0);
        let want = |i: usize, j: usize| gradients[i].iter().zip(&gradients[j]).map(|(a, b)| a * b).sum();
        assert_gram(&format!("ghost of {sizes:?}"), &got, want, samples);
    }
}

#[test]
fn refused_sizes() {
    let b = &Buffer::new(&[0u32; 64]);
    for (samples, n) in [(2i32, 12u64), (65, 8), (0, 8)] {
        let fault = launch("gradient_cosine_gram_bf16", 1, 128, 32 << 10, args![b, b, samples, n]).unwrap_err();
        assert!(matches!(fault, Fault::BrokenPromise { .. }), "{samples} x {n}: {fault}");
    }
    // A pair beyond the last.
    let args = args![b, b, b, b, 1i32, 8i32, 8i32, 8i32];
    let fault = launch("gradient_cosine_ghost_bf16", 2, 256, SHARED, args).unwrap_err();
    assert!(matches!(fault, Fault::BrokenPromise { .. }), "{fault}");
}
