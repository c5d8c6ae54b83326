use crate::*;
use kernel_emulator::{Swizzle, TensorMap, Tiling, args, launch};
use uncouple::config::{Aggregation, Grpo, RatioLevel};
use uncouple::device::Dtype;
use uncouple::forest::Forest;
use uncouple::grpo::{LossNormalizer, PolicyLoss, Sample};
use uncouple::ops::grouped_logprob::{self as op, Head, HeadGrads, Target, TokenGrad};

const SHARED: usize = 48 << 10;
const HOPPER_SHARED: usize = 196672;

/// A matrix as one kind of kernels takes it, or as Hopper's do.
fn matrix(buffer: &Buffer, width: usize, hopper: bool) -> Arg<'_> {
    if !hopper {
        return buffer.into();
    }
    let (address, sizes, strides) = (buffer.address(), vec![width, buffer.size() / (2 * width)], vec![2 * width]);
    let map = Tiling { address, element_bytes: 2, sizes, strides, tile: vec![64, 64], swizzle: Swizzle::B128 };
    Arg::Map(buffer, TensorMap::new(&map).unwrap())
}

/// A head, what it reads, and 0 to 3 targets a row.
struct Case {
    rows: usize,
    vocab: usize,
    width: usize,
    temperature: f32,
    hidden: (Vec<bf16>, Vec<f32>),
    weight: (Vec<bf16>, Vec<f32>),
    targets: Vec<Target>,
    start: Vec<u32>,
}

/// What the forward pass and its finish leave on the device.
struct Scored {
    max: Buffer,
    log_sum: Buffer,
    entropy: Buffer,
    logprob: Buffer,
}

impl Case {
    fn new(rows: usize, vocab: usize, width: usize, temperature: f32) -> Case {
        let (mut targets, mut start) = (Vec::new(), vec![0]);
        for row in 0..rows as u32 {
            let random = block(5, 0, row.into());
            // The last entry of the vocabulary is in it, and a token twice in a row.
            let count = if row == 0 { 3 } else { random[3] as usize % 4 };
            let tokens = if row == 0 { [vocab as u32 - 1, 0, 0] } else { [0, 1, 2].map(|i| random[i] % vocab as u32) };
            targets.extend(tokens[..count].iter().map(|&token| Target { row, token }));
            start.push(targets.len() as u32);
        }
        let scale = |(_, wide): (Vec<bf16>, Vec<f32>), by: f32| {
            let narrow: Vec<bf16> = wide.iter().map(|x| bf16::from_f32(x * by)).collect();
            let wide = widen(&narrow);
            (narrow, wide)
        };
        let weight = scale(randoms_bf16(2, vocab * width), 2.0 / (width as f32).sqrt());
        Case { rows, vocab, width, temperature, hidden: randoms_bf16(1, rows * width), weight, targets, start }
    }

    fn head(&self) -> Head<'_> {
        Head {
            weight: &self.weight.1,
            hidden: &self.hidden.1,
            width: self.width,
            temperature: self.temperature,
            dtype: Dtype::F32,
        }
    }

    fn scale(&self) -> f32 {
        1.0 / self.temperature
    }

    fn tokens(&self) -> Buffer {
        Buffer::new(&self.targets.iter().map(|t| t.token).collect::<Vec<_>>())
    }

    fn score(&self, splits: usize, hopper: bool) -> Scored {
        let buffers = [Buffer::new(&self.hidden.0), Buffer::new(&self.weight.0)];
        let [hidden, weight] = [0, 1].map(|i| matrix(&buffers[i], self.width, hopper));
        // Hopper's tiles are twice as wide: a block has several.
        let splits = if hopper { splits.div_ceil(2) } else { splits };
        let (start, tokens) = (Buffer::new(&self.start), self.tokens());
        let (rows, vocab, width) = (self.rows as i32, self.vocab as i32, self.width as i32);
        let partial = Buffer::poisoned::<f32>(3 * splits * self.rows);
        let logit = Buffer::poisoned::<f32>(self.targets.len());
        let args = args![hidden, weight, &start, &tokens, &partial, &logit, rows, vocab, width, self.scale()];
        let grid = (self.rows.div_ceil(128) as u32, splits as u32);
        match hopper {
            true => launch("grouped_logprob_hopper_forward_bf16", grid, 384, HOPPER_SHARED, args).unwrap(),
            false => launch("grouped_logprob_forward_bf16", grid, 256, SHARED, args).unwrap(),
        }
        let new = || Buffer::poisoned::<f32>(self.rows);
        let logprob = Buffer::poisoned::<f32>(self.targets.len());
        let out = Scored { max: new(), log_sum: new(), entropy: new(), logprob };
        let args =
            args![&partial, &logit, &start, &out.max, &out.log_sum, &out.entropy, &out.logprob, rows, splits as i32];
        launch("grouped_logprob_finish_f32", blocks(self.rows), 256, 0, args).unwrap();
        out
    }
}

/// Ragged rows and vocabularies, all temperatures; (case, splits).
fn cases() -> [(Case, usize); 4] {
    [
        (Case::new(1, 8, 8, 1.0), 1),
        (Case::new(65, 300, 40, 0.7), 2),
        (Case::new(130, 257, 104, 2.0), 3),
        (Case::new(3, 640, 72, 0.1), 2),
    ]
}

#[test]
fn forward() {
    for ((case, splits), hopper) in cases().into_iter().zip([false; 4]).chain(cases().into_iter().zip([true; 4])) {
        let (want, want_entropy) = op::forward(case.head(), &case.targets);
        let got = case.score(splits, hopper);
        let what = format!("{} x {} by {splits}", case.rows, case.vocab);
        assert_close(&format!("logprob of {what}"), &got.logprob.read::<f32>().unwrap(), &want, F32);
        let entropy = got.entropy.read::<f32>().unwrap();
        let entropy: Vec<f32> = case.targets.iter().map(|t| entropy[t.row as usize]).collect();
        assert_close(&format!("entropy of {what}"), &entropy, &want_entropy, F32);
    }
}

/// d_logits, multiplied out on the host, against the gradients of the CPU op.
#[test]
fn grad() {
    for hopper in [false, true] {
        grad_by(hopper);
    }
}

fn grad_by(hopper: bool) {
    for ((case, splits), with_entropy) in cases().into_iter().zip([false, true, true, true]) {
        let n = case.targets.len();
        let d_logprob = randoms(3, n);
        let d_entropy = if with_entropy { randoms(4, n) } else { vec![0.0; n] };
        let (vocab, width, stride) = (case.vocab, case.width, case.vocab.next_multiple_of(8) + 8);
        let (mut want_dw, mut want_dh) = (vec![0.0; vocab * width], vec![0.0; case.rows * width]);
        let grads = HeadGrads { weight: &mut want_dw, hidden: &mut want_dh };
        op::forward_backward(case.head(), &case.targets, grads, &mut |i, _, _| TokenGrad {
            logprob: d_logprob[i],
            entropy: d_entropy[i],
        });

        let scored = case.score(splits, hopper);
        let d_logits = Buffer::poisoned::<u16>(case.rows * stride);
        let buffers = [Buffer::new(&case.hidden.0), Buffer::new(&case.weight.0)];
        let [hidden, weight] = [0, 1].map(|i| matrix(&buffers[i], width, hopper));
        let (start, tokens) = (Buffer::new(&case.start), case.tokens());
        let (by_logprob, by_entropy) = (Buffer::new(&d_logprob), Buffer::new(&d_entropy));
        let args = args![
            hidden,
            weight,
            &start,
            &tokens,
            &scored.max,
            &scored.log_sum,
            &scored.entropy,
            &by_logprob,
            &by_entropy,
            &d_logits,
            case.rows as i32,
            vocab as i32,
            width as i32,
            stride as i32,
            case.scale()
        ];
        let grid = (case.rows.div_ceil(128) as u32, stride.div_ceil(128) as u32);
        match hopper {
            // Two blocks, for all tiles.
            true => launch("grouped_logprob_hopper_grad_bf16", 2, 384, HOPPER_SHARED, args).unwrap(),
            false => launch("grouped_logprob_grad_bf16", grid, 256, SHARED, args).unwrap(),
        }

        let d = read_bf16(&d_logits);
        let (mut dw, mut dh) = (vec![0.0f32; vocab * width], vec![0.0f32; case.rows * width]);
        // Sums of |terms|: what the rounding of d_logits is relative to.
        let (mut unit_w, mut unit_h) = (dw.clone(), dh.clone());
        for row in 0..case.rows {
            assert!(d[row * stride + vocab..][..stride - vocab].iter().all(|&x| x == 0.0), "padding");
            for v in 0..vocab {
                let g = d[row * stride + v];
                for k in 0..width {
                    let (h, w) = (case.hidden.1[row * width + k], case.weight.1[v * width + k]);
                    dw[v * width + k] += g * h;
                    dh[row * width + k] += g * w;
                    unit_w[v * width + k] += (g * h).abs();
                    unit_h[row * width + k] += (g * w).abs();
                }
            }
        }
        for (what, got, want, unit) in [("dW", &dw, &want_dw, &unit_w), ("dh", &dh, &want_dh, &unit_h)] {
            for i in 0..got.len() {
                let (g, w) = (got[i], want[i]);
                assert!((g - w).abs() <= BF16 * unit[i] + 1e-5, "{what} of {} rows: {i} is {g}, not {w}", case.rows);
            }
        }
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
            launch("grouped_logprob_loss_f32", blocks(n), 256, 0, args).unwrap();
            let [d_logprob, d_entropy, found] = out.map(|b| b.read::<f32>().unwrap());
            let found: Vec<Vec<f32>> = found.chunks_exact(uses.len()).map(<[f32]>::to_vec).collect();
            [vec![d_logprob, d_entropy], found].concat()
        };
        let [d_logprob, d_entropy, term, kl, clipped] = &run(Arg::Null, Arg::Null)[..] else { panic!() };
        assert_close("d_logprob", d_logprob, &want.iter().map(|g| g.logprob).collect::<Vec<_>>(), F32);
        assert_close("d_entropy", d_entropy, &want.iter().map(|g| g.entropy).collect::<Vec<_>>(), F32);
        let total = |x: &[f32]| x.iter().map(|&x| f64::from(x)).sum::<f64>();
        let count = |which: f32| clipped.iter().filter(|&&c| c == which).count() as f64;
        let m = uses.len() as f64;
        let got = [total(term), total(kl) / m, count(-1.0) / m, count(1.0) / m].map(|x| x as f32);
        let want = [report.loss, report.kl, report.clip_ratio_low_mean, report.clip_ratio_high_mean].map(|x| x as f32);
        assert_close("report", &got, &want, F32);

        let [by_sequence, _, again, ..] = &run(Arg::from(&given), Arg::from(&through))[..] else { panic!() };
        assert_close("terms by given ratios", again, term, F32);
        if config.beta == 0.0 {
            let uses_of = start.read::<u32>().unwrap();
            let want: Vec<f32> = uses_of.windows(2).map(|s| 0.25 * (s[1] - s[0]) as f32).collect();
            assert_close("gradient through the sequence", by_sequence, &want, F32);
        }
    }
}
