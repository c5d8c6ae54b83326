use crate::*;
use bytemuck::{Pod, Zeroable};
use kernel_emulator::{args, launch};
use uncouple::ops::adamw::{AdamW, clip_scale, grad_norm, step};

/// The kernel's `Step`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Step {
    rate: f32,
    inv_root: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
}

const OPTIMIZER: AdamW =
    AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.5, step: 1 };

fn scalars(o: &AdamW, decay: bool) -> Step {
    let correction = |beta: f32| 1.0 - f64::from(beta).powi(o.step as i32);
    Step {
        rate: (f64::from(o.lr) / correction(o.beta1)) as f32,
        inv_root: (1.0 / correction(o.beta2).sqrt()) as f32,
        keep: if decay { 1.0 - o.lr * o.weight_decay } else { 1.0 },
        beta1: o.beta1,
        beta2: o.beta2,
        eps: o.eps,
    }
}

#[test]
fn three_steps_are_those_of_the_cpu() {
    for (n, decay) in [(8, true), (2048, false), (20_008, true)] {
        let (mut p, mut m, mut v) = (randoms(1, n), vec![0.0; n], vec![0.0; n]);
        for kernel in ["adamw_step_bf16", "adamw_step_f32"] {
            let (gpu_p, gpu_m, gpu_v) = (Buffer::new(&p), Buffer::new(&m), Buffer::new(&v));
            let (copy, scale) = (Buffer::poisoned::<u16>(n), Buffer::new(&[OPTIMIZER.grad_scale]));
            for number in 1..=3 {
                let o = AdamW { step: number, ..OPTIMIZER };
                let (g, wide) = randoms_bf16(10 + u64::from(number), n);
                step(&o, decay, &mut p, &wide, &mut m, &mut v);
                let g = if kernel.ends_with("bf16") { Buffer::new(&g) } else { Buffer::new(&wide) };
                let args = args![&gpu_p, &g, &gpu_m, &gpu_v, &copy, &scale, n as u64, scalars(&o, decay)];
                launch(kernel, blocks(n / 8), 256, 0, args).unwrap();
            }
            let p_read = gpu_p.read::<f32>().unwrap();
            assert_close(&format!("{kernel}, p of {n}"), &p_read, &p, F32);
            assert_close("m", &gpu_m.read::<f32>().unwrap(), &m, F32);
            assert_close("v", &gpu_v.read::<f32>().unwrap(), &v, F32);
            let rounded: Vec<f32> = p_read.iter().map(|&p| bf16::from_f32(p).to_f32()).collect();
            assert_eq!(read_bf16(&copy), rounded, "the copy is p to the nearest bf16");
        }
    }
}

#[test]
fn the_copy_rounds_at_random_by_the_stream_of_the_cpu() {
    let (n, seed, stream) = (4096, 77u64 << 33, 5u64);
    // A third of the way from one bf16 to the next; no step, so that the copy is of p itself.
    let third = f32::from_bits(1.0f32.to_bits() + 0x5555);
    let still = Step { rate: 0.0, inv_root: 1.0, keep: 1.0, beta1: 0.9, beta2: 0.95, eps: 1e-8 };
    for kernel in ["adamw_step_stochastic_bf16", "adamw_step_stochastic_f32"] {
        let g = if kernel.ends_with("bf16") { Buffer::new(&vec![0u16; n]) } else { Buffer::new(&vec![0.0f32; n]) };
        let (p, m, v) = (Buffer::new(&vec![third; n]), Buffer::new(&vec![0.0f32; n]), Buffer::new(&vec![0.0f32; n]));
        let (copy, scale) = (Buffer::poisoned::<u16>(n), Buffer::new(&[1.0f32]));
        let args = args![&p, &g, &m, &v, &copy, &scale, n as u64, still, seed, stream];
        launch(kernel, blocks(n / 8), 256, 0, args).unwrap();
        let bits = |i: usize| block(seed, stream, i as u64 / 8)[i % 8 / 2] >> (16 * (i % 2)) & 0xFFFF;
        let want: Vec<f32> =
            (0..n).map(|i| bf16::from_bits(((third.to_bits() + bits(i)) >> 16) as u16).to_f32()).collect();
        let got = read_bf16(&copy);
        assert_eq!(got, want);
        let mean = got.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        assert!((mean - f64::from(third)).abs() < 2e-4, "unbiased: {mean} for {third}");
    }
}

/// `[norm, scale]` by both stages.
fn norm(g: &Buffer, dtype: &str, n: usize, grid: u32, clip: f32) -> Vec<f32> {
    let (partial, norm) = (Buffer::poisoned::<f32>(grid as usize), Buffer::poisoned::<f32>(2));
    launch(&format!("adamw_grad_norm_partial_{dtype}"), grid, 256, 0, args![g, &partial, n as u64]).unwrap();
    launch("adamw_grad_norm_finish_f32", 1, 256, 0, args![&partial, &norm, grid as i32, clip]).unwrap();
    norm.read().unwrap()
}

#[test]
fn the_gradient_norm_and_its_clip_are_those_of_the_cpu() {
    for (n, grid) in [(8, 1), (5000, 3), (40_000, 40)] {
        let (g, wide) = randoms_bf16(6, n);
        let want = grad_norm(&wide);
        for clip in [1.0, 1e6, 0.0] {
            let want = [want as f32, clip_scale(want, clip)];
            assert_close("bf16", &norm(&Buffer::new(&g), "bf16", n, grid, clip), &want, F32);
            assert_close("f32", &norm(&Buffer::new(&wide), "f32", n, grid, clip), &want, F32);
        }
    }
}

#[test]
fn a_broken_gradient_shows_in_its_norm() {
    let mut g = vec![1.0f32; 800];
    g[701] = f32::NAN;
    let found = norm(&Buffer::new(&g), "f32", 800, 2, 1.0);
    assert!(found[0].is_nan() && found[1].is_nan(), "{found:?}");
}
