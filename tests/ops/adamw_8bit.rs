//! AdamW with 8-bit moments against bitsandbytes (tests/fixtures/adamw_8bit/make.py) and against f64.

use crate::common;

use common::numeric::{assert_close, values, wide};
use safetensors::SafeTensors;
use std::path::Path;
use uncouple::ops::adamw::AdamW;
use uncouple::ops::adamw_8bit::{BLOCK, Quantized, Stochastic, maps, quantize, step};

/// What bitsandbytes computed.
struct Golden(Vec<u8>);

impl Golden {
    fn read() -> Golden {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adamw_8bit/adamw_8bit.safetensors");
        Golden(std::fs::read(file).unwrap())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        self.bytes(name).as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

/// Codes and scales, of 0 to begin with.
#[derive(Clone)]
struct Moment(Vec<u8>, Vec<f32>);

impl Moment {
    fn zeros(n: usize) -> Moment {
        Moment(vec![0; n], vec![0.0; n.div_ceil(BLOCK)])
    }

    fn mutable(&mut self) -> Quantized<'_> {
        Quantized { codes: &mut self.0, absmax: &mut self.1 }
    }

    fn values(&self, map: &[f32; 256]) -> Vec<f32> {
        self.0.iter().enumerate().map(|(i, code)| map[*code as usize] * self.1[i / BLOCK]).collect()
    }
}

/// torch.linspace rounds otherwise by the width of a machine's vectors: a last bit or two.
#[test]
fn the_maps_are_those_of_bitsandbytes_to_the_last_bits() {
    let golden = Golden::read();
    for (map, name) in maps().iter().zip(["map.signed", "map.unsigned"]) {
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 2e-7 * b.abs();
        assert!(map.iter().zip(&golden.f32(name)).all(near), "{name}");
        assert!(map.windows(2).all(|pair| pair[0] < pair[1]), "{name} ascends");
    }
}

#[test]
fn codes_and_scales_are_those_of_bitsandbytes() {
    let golden = Golden::read();
    for (map, name) in maps().iter().zip(["signed", "unsigned"]) {
        let x = golden.f32(&format!("{name}.values"));
        let mut found = Moment::zeros(x.len());
        quantize(map, &x, found.mutable());
        // A block of zeros has a scale of 0 here, of 1 there; its codes are those of 0.
        assert_eq!(found.1[1..], golden.f32(&format!("{name}.absmax"))[1..], "{name}: scales");
        assert_eq!(found.0, golden.bytes(&format!("{name}.codes")), "{name}: codes");
        assert_close(name, &found.values(map), &wide(&golden.f32(&format!("{name}.back"))), 1e-6);
    }
}

#[test]
fn steps_are_those_of_bitsandbytes() {
    let golden = Golden::read();
    let mut p = golden.f32("step.p");
    let [mut m, mut v] = [Moment::zeros(p.len()), Moment::zeros(p.len())];
    let [signed, unsigned] = maps();
    for t in 1..=4 {
        let of = |name: &str| golden.f32(&format!("step{t}.{name}"));
        let o = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.5, step: t };
        step(&o, true, &mut p, &of("g"), [m.mutable(), v.mutable()], None);
        assert_close(&format!("weights after step {t}"), &p, &wide(&of("p")), 1e-6);
        for (moment, name, map) in [(&m, "m", signed), (&v, "v", unsigned)] {
            let want = Moment(golden.bytes(&format!("step{t}.{name}")), of(&format!("absmax_{name}")));
            assert_close(&format!("{name} after step {t}"), &moment.values(map), &wide(&want.values(map)), 1e-3);
            // Formulas differ in their last bit, which decides next to the middle between two codes.
            let off = moment.0[BLOCK..].iter().zip(&want.0[BLOCK..]).map(|(a, b)| a.abs_diff(*b));
            let (most, others) = (off.clone().max().unwrap(), off.filter(|off| *off > 0).count());
            assert!(most <= 1 && others <= 3, "{name} after step {t}: {others} codes are others, by {most} at most");
        }
    }
}

/// The update itself in f64, from what the codes stand for.
#[test]
fn a_step_widens_updates_and_narrows() {
    for (n, decay) in [(8, true), (256, false), (700, true), (64 * BLOCK * 2 + 8, true)] {
        let (start, g) = (values(1, n, 1.0), values(2, n, 0.3));
        let [signed, unsigned] = maps();
        let [mut m, mut v] = [Moment::zeros(n), Moment::zeros(n)];
        quantize(signed, &values(3, n, 0.1), m.mutable());
        quantize(unsigned, &values(4, n, 0.1).iter().map(|v| v * v).collect::<Vec<_>>(), v.mutable());
        let (before_m, before_v) = (wide(&m.values(signed)), wide(&v.values(unsigned)));
        let o = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.7, step: 3 };
        let mut p = start.clone();
        step(&o, decay, &mut p, &g, [m.mutable(), v.mutable()], None);
        let [lr, b1, b2, eps] = [o.lr, o.beta1, o.beta2, o.eps].map(f64::from);
        let (mut want_p, mut want_m, mut want_v) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..n {
            let g = f64::from(g[i]) * f64::from(o.grad_scale);
            let (mean, square) = (b1 * before_m[i] + (1.0 - b1) * g, b2 * before_v[i] + (1.0 - b2) * g * g);
            let keep = if decay { 1.0 - lr * f64::from(o.weight_decay) } else { 1.0 };
            let (m_hat, v_hat) = (mean / (1.0 - b1.powi(3)), square / (1.0 - b2.powi(3)));
            want_p.push(f64::from(start[i]) * keep - lr * m_hat / (v_hat.sqrt() + eps));
            want_m.push(mean);
            want_v.push(square);
        }
        assert_close("weights", &p, &want_p, 1e-6);
        // Two neighbours of the map are at most 1.5 % of the block's largest apart.
        for (what, moment, map, want) in [("m", &m, signed, &want_m), ("v", &v, unsigned, &want_v)] {
            let got = moment.values(map);
            for (at, want) in want.chunks(BLOCK).enumerate() {
                let most = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
                let off =
                    got[at * BLOCK..].iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
                assert!(off <= 0.0076 * most, "{what} of {n}, block {at}: {off} of {most}");
            }
        }
    }
}

/// Weights a third of the way from one number of bf16 to the next, and no step.
#[test]
fn stochastic_rounding_is_right_on_average_and_depends_on_the_element_alone() {
    let (n, third) = (40_000, f32::from_bits(1.0f32.to_bits() + 0x5555));
    let still = AdamW { lr: 0.0, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, grad_scale: 1.0, step: 1 };
    let rounded = |first: usize, n: usize| {
        let (mut p, [mut m, mut v]) = (vec![third; n], [Moment::zeros(n), Moment::zeros(n)]);
        let rounding = Stochastic { seed: 3, stream: 7, first };
        step(&still, true, &mut p, &vec![0.0; n], [m.mutable(), v.mutable()], Some(rounding));
        p
    };
    let p = rounded(0, n);
    assert!(p.iter().all(|p| p.to_bits() & 0xFFFF == 0 && (*p == 1.0 || *p == 1.0078125)));
    let mean = p.iter().map(|p| f64::from(*p)).sum::<f64>() / n as f64;
    // 4 standard deviations of n draws between neighbours 2⁻⁷ apart.
    let allowed = 4.0 * 2f64.powi(-7) * (2.0 / 9.0 / n as f64).sqrt();
    assert!((mean - f64::from(third)).abs() < allowed, "the mean is {mean}, should be {third}");
    assert!(rounded(800, 1000) == p[800..1800], "a tensor that begins elsewhere");
}
