//! The policy loss's kernel against `grpo`'s own loss, in all its settings: the op's case holds it to the plain formula.

use crate::*;
use kernel_emulator::{args, launch};
use uncouple::config::{Aggregation, Grpo, RatioLevel};
use uncouple::forest::Forest;
use uncouple::grpo::{LossNormalizer, PolicyLoss, Sample};
use uncouple::ops::case::randoms;
use uncouple::ops::grouped_logprob::TokenGrad;

/// Every `|got - want| <= 1e-5 (|want| + 1)`.
fn assert_close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-5 * w.abs() + 1e-5, "{what}: element {i} is {g}, should be {w}");
    }
}

/// Two sequences that share their first tokens, so that a target has two uses.
fn samples() -> Vec<Sample> {
    let sample = |seed: u64, tokens: [u32; 7], advantage: f32| {
        let noise = randoms(seed, 14);
        Sample {
            tokens: tokens.to_vec(),
            mask: vec![false, true, true, true, false, true, true],
            advantage: vec![advantage; 7],
            old_logprobs: Some(noise[..7].iter().map(|x| x * 0.6 - 1.5).collect()),
            ref_logprobs: Some(noise[7..].iter().map(|x| x * 0.6 - 1.5).collect()),
            ..Sample::default()
        }
    };
    vec![
        sample(1, [1, 2, 3, 4, 5, 6, 7], 1.5),
        sample(2, [1, 2, 3, 9, 5, 6, 7], -0.8),
        sample(3, [2, 2, 2, 2, 2, 2, 2], -2.0),
    ]
}

#[test]
fn loss() {
    let samples = samples();
    let forest = Forest::new(&samples.iter().map(|s| &s.tokens).collect::<Vec<_>>());
    let plain = Grpo { aggregation: Aggregation::TokenMean, ratio: RatioLevel::Token, ..Grpo::default() };
    let full =
        Grpo { epsilon_low: 0.1, epsilon_high: 0.3, dual_clip: 1.5, beta: 0.2, entropy_coef: 0.05, ..plain.clone() };
    for config in [plain.clone(), full.clone(), Grpo { kl_ratio: true, ..full }, Grpo { dual_clip: 3.0, ..plain }] {
        let norm = LossNormalizer::new(&samples, 1);
        let mut cpu = PolicyLoss::new(&config, &forest, &samples, norm);
        let nodes = cpu.nodes().to_vec();
        let n = nodes.len();
        let (logprob, entropy): (Vec<f32>, Vec<f32>) =
            randoms(6, 2 * n).chunks_exact(2).map(|x| (x[0] * 0.6 - 1.5, x[1].abs())).unzip();
        let want: Vec<TokenGrad> = (0..n).map(|i| cpu.token(i, logprob[i], entropy[i])).collect();
        let report = cpu.finish();

        let (mut start, mut uses) = (vec![0u32], Vec::new());
        for node in &nodes {
            for (s, path) in samples.iter().zip(&forest.paths) {
                uses.extend(s.loss_positions().filter(|&t| path[t] == *node).map(|t| (s, t)));
            }
            start.push(uses.len() as u32);
        }
        assert!(uses.len() > n, "no token is shared");
        let each =
            |f: &dyn Fn(&Sample, usize) -> f32| Buffer::new(&uses.iter().map(|&(s, t)| f(s, t)).collect::<Vec<f32>>());
        let advantage = each(&|s, t| s.advantage[t]);
        let old = each(&|s, t| s.old_logprobs.as_ref().unwrap()[t]);
        let reference = each(&|s, t| s.ref_logprobs.as_ref().unwrap()[t]);
        let weight = each(&|_, _| 1.0 / norm.tokens() as f32);
        // Sequence level, given the ratios of the tokens themselves and no gradient through them.
        let ratios: Vec<f32> = (0..n)
            .flat_map(|i| (start[i]..start[i + 1]).map(move |u| (i, u as usize)))
            .map(|(i, u)| (logprob[i] - uses[u].0.old_logprobs.as_ref().unwrap()[uses[u].1]).exp())
            .collect();
        let (given, through) = (Buffer::new(&ratios), Buffer::new(&vec![0.25f32; uses.len()]));

        let (lp, h, start) = (Buffer::new(&logprob), Buffer::new(&entropy), Buffer::new(&start));
        let rows = Buffer::new(&(0..n as u32).collect::<Vec<_>>());
        let options: [u32; 6] = [
            config.epsilon_low.to_bits(),
            config.epsilon_high.to_bits(),
            config.dual_clip.to_bits(),
            config.beta.to_bits(),
            config.entropy_coef.to_bits(),
            config.kl_ratio.into(),
        ];
        let run = |ratio: Arg, through: Arg| {
            let new = |n: usize| Buffer::poisoned::<f32>(n);
            let out = [new(n), new(n), new(3 * uses.len())];
            let args = args![
                &lp,
                &h,
                &rows,
                &start,
                &advantage,
                &old,
                &reference,
                &weight,
                ratio,
                through,
                &out[0],
                &out[1],
                &out[2],
                n as i32,
                uses.len() as i32,
                options
            ];
            launch("grouped_logprob_loss_f32", n.div_ceil(256) as u32, 256, 0, args).unwrap();
            let [d_logprob, d_entropy, found] = out.map(|b| b.read::<f32>().unwrap());
            let found: Vec<Vec<f32>> = found.chunks_exact(uses.len()).map(<[f32]>::to_vec).collect();
            [vec![d_logprob, d_entropy], found].concat()
        };
        let [d_logprob, d_entropy, term, kl, clipped] = &run(Arg::Null, Arg::Null)[..] else { panic!() };
        assert_close("d_logprob", d_logprob, &want.iter().map(|g| g.logprob).collect::<Vec<_>>());
        assert_close("d_entropy", d_entropy, &want.iter().map(|g| g.entropy).collect::<Vec<_>>());
        let total = |x: &[f32]| x.iter().map(|&x| f64::from(x)).sum::<f64>();
        let count = |which: f32| clipped.iter().filter(|&&c| c == which).count() as f64;
        let m = uses.len() as f64;
        let got = [total(term), total(kl) / m, count(-1.0) / m, count(1.0) / m].map(|x| x as f32);
        let want = [report.loss, report.kl, report.clip_ratio_low_mean, report.clip_ratio_high_mean].map(|x| x as f32);
        assert_close("report", &got, &want);

        let [by_sequence, _, again, ..] = &run(Arg::from(&given), Arg::from(&through))[..] else { panic!() };
        assert_close("terms by given ratios", again, term);
        if config.beta == 0.0 {
            let uses_of = start.read::<u32>().unwrap();
            let want: Vec<f32> = uses_of.windows(2).map(|s| 0.25 * (s[1] - s[0]) as f32).collect();
            assert_close("gradient through the sequence", by_sequence, &want);
        }
    }
}
