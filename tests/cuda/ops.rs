//! What ops refuse, and the benchmarks of a GPU, on the emulated device. tests/kernels has what ops compute.

use crate::emulated;

use emulated::{gpu, quick_gpu};
use half::bf16;
use uncouple::bench::ceilings::Ceilings;
use uncouple::bench::{decode, kernels, step};
use uncouple::device::{Error, Gpu, Result, Tensor};
use uncouple::ops::CASES;
use uncouple::ops::adamw::{self, AdamW};
use uncouple::ops::advantage::Scale;
use uncouple::ops::sampling::{self, SamplingParams};
use uncouple::ops::{advantage, attention, decode_attention, embedding, linear, pcgrad, rmsnorm, rope, swiglu};

/// Times and shares mean nothing here.
const CEILINGS: Ceilings = Ceilings { copy_gbps: 1.0, matmul_tflops: 1.0 };

#[test]
fn sizes_that_do_not_fit_are_refused_by_name() {
    let gpu = &gpu();
    let b = |n: usize| -> Tensor<bf16> { gpu.zeros(n).unwrap() };
    let f = |n: usize| -> Tensor<f32> { gpu.zeros(n).unwrap() };
    let step = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.9, eps: 1e-8, weight_decay: 0.0, grad_scale: 1.0, step: 1 };
    let state = |n: usize| (f(n), f(8), f(8), b(8));
    let (p, m, v, copy) = state(16);
    let bad_state = adamw::cuda::OptimizerState { p: &p, m: &m, v: &v, copy: &copy };
    let tokens = embedding::cuda::Tokens::new(gpu, &[1, 2], 4).unwrap();
    let tables = rope::cuda::Tables::new(gpu, &rope::Tables::new(1e4, 16, 8)).unwrap();
    let position = gpu.zeros::<u32>(2).unwrap();
    let (plain, logits) = (SamplingParams::default(), sampling::cuda::Logits::new(gpu, 1, 6).unwrap());
    let penalty = SamplingParams { repetition_penalty: 1.1, ..plain };
    let token = gpu.zeros::<u32>(1).unwrap();
    let decays = adamw::cuda::Decays::new(gpu, [(8, true)]).unwrap();
    let nearest = adamw::cuda::Rounding::Nearest;
    let narrow = attention::Shape { heads: 1, kv_heads: 1, head_dim: 32 };
    let cache = decode_attention::cuda::Cache::new(gpu, attention::Shape { head_dim: 64, ..narrow }, 1, 1).unwrap();
    let row = decode_attention::cuda::Rows::new(gpu, &cache, &[(0, 3)], &[&[0]]).unwrap();
    let refused: [(&str, Result<()>); 25] = [
        ("rmsnorm", rmsnorm::cuda::forward(gpu, &b(24), &b(12), 1e-6, &b(24), &f(2))),
        ("rmsnorm", rmsnorm::cuda::forward(gpu, &b(16), &b(8), 1e-6, &b(24), &f(2))),
        ("rmsnorm", rmsnorm::cuda::forward(gpu, &b(8200), &b(8200), 1e-6, &b(8200), &f(1))),
        ("rmsnorm", rmsnorm::cuda::backward(gpu, &b(16), &b(16), &b(8), &f(2), &b(16), Some(&*f(16)))),
        ("swiglu forward", swiglu::cuda::forward(gpu, &b(24), 12, &b(12))),
        ("swiglu backward", swiglu::cuda::backward(gpu, &b(8), 8, &b(24))),
        ("rope", rope::cuda::rotate(gpu, &b(32), 16, 2, &position, &tables, false)),
        ("rope", rope::cuda::Tables::new(gpu, &rope::Tables::new(1e4, 8, 8)).map(|_| ())),
        ("embedding", embedding::cuda::forward(gpu, &tokens, &b(40), 8, &b(16))),
        ("embedding", embedding::cuda::Tokens::new(gpu, &[1, 4], 4).map(|_| ())),
        ("embedding", embedding::cuda::Moves::new(gpu, &[(0, 2)], [1, 2]).map(|_| ())),
        ("adamw", adamw::cuda::step(gpu, &step, &decays, &bad_state, &b(8), &f(1), nearest)),
        ("gradient norm", adamw::cuda::grad_norm(gpu, &b(12), 1.0, &f(2))),
        ("pcgrad", pcgrad::cuda::combine(gpu, &f(12), &f(12)).map(|_| ())),
        ("pcgrad", pcgrad::cuda::combine(gpu, &f(16), &f(8)).map(|_| ())),
        ("linear", linear::cuda::forward(gpu, &b(16), &b(24), Some(&*b(2)), 8, &b(6))),
        ("linear", linear::cuda::backward_input(gpu, &b(6), &b(24), 8, &b(24))),
        ("decode attention", decode_attention::cuda::Cache::new(gpu, narrow, 1, 1).map(|_| ())),
        ("decode attention", decode_attention::cuda::Rows::new(gpu, &cache, &[(0, 32)], &[&[0]]).map(|_| ())),
        ("decode attention", decode_attention::cuda::append(gpu, &b(192), &row, &tables, &cache, 0)),
        ("advantages", advantage::cuda::advantages(gpu, &f(4), &position, Scale::Group, 1e-4, &f(5))),
        ("logits", logits.compute(gpu, &b(8), &b(40), 8)),
        ("sampling", sampling::cuda::sample(gpu, &logits, None, &plain, &f(2), &token, &f(1))),
        ("sampling", sampling::cuda::sample(gpu, &logits, None, &penalty, &f(1), &token, &f(1))),
        ("sampling", sampling::cuda::Seen::new(gpu, &[&[1, 6]], 6).map(|_| ())),
    ];
    for (i, (op, result)) in refused.into_iter().enumerate() {
        match result {
            Err(Error::Shape { op: named, sizes }) => {
                assert!(named.starts_with(op) && sizes.chars().any(|c| c.is_ascii_digit()), "{named}: {sizes}");
            }
            other => panic!("{op} ({i}): {other:?}"),
        }
    }
}

#[test]
fn nothing_to_do_is_done() {
    let gpu: Gpu = gpu();
    let (none, w) = (gpu.zeros::<bf16>(0).unwrap(), gpu.zeros::<bf16>(8).unwrap());
    let rstd = gpu.zeros::<f32>(0).unwrap();
    rmsnorm::cuda::forward(&gpu, &none, &w, 1e-6, &none, &rstd).unwrap();
    swiglu::cuda::forward(&gpu, &none, 8, &none).unwrap();
    linear::cuda::forward(&gpu, &none, &w, None, 8, &none).unwrap();
}

/// The benchmark's every call, on shapes that an emulator gets through; its times mean nothing here.
#[test]
fn the_benchmark_of_kernels_runs() {
    let report = kernels::run(&quick_gpu(), true).unwrap();
    assert!(report.rows.iter().all(|r| r.seconds > 0.0 && r.share > 0.0 && (r.gbps.is_some() != r.tflops.is_some())));
    for cases in CASES {
        let named = format!("{} ", cases[0].op());
        assert!(report.rows.iter().any(|row| row.name.starts_with(&named)), "{named} in {:?}", report.rows);
    }
}

#[test]
fn the_benchmarks_of_training_and_decoding_run() {
    let report = step::run(&quick_gpu(), CEILINGS, &step::StepSettings::small()).unwrap();
    assert_eq!(report.rows.iter().map(|r| r.recompute).collect::<Vec<_>>(), [false, true]);
    for row in &report.rows {
        assert_eq!(row.name, "step tiny 2x4");
        let phases = [row.forward, row.head, row.backward, row.optimizer];
        assert!(phases.iter().all(|t| *t > 0.0) && row.mfu > 0.0 && row.tokens_per_second > 0.0);
        assert!((row.seconds - phases.iter().sum::<f64>()).abs() < 1e-9);
        // Thrice: 25088 weights and 8 tokens, and 4 flops for each of 64 columns and 20 pairs.
        assert!((row.mfu * row.seconds * 1e12 - 3.0 * (2.0 * 25088.0 * 8.0 + 4.0 * 64.0 * 20.0)).abs() < 1.0);
    }
    let report = decode::run(&quick_gpu(), CEILINGS, &decode::DecodeSettings::small()).unwrap();
    let names: Vec<&str> = report.rows.iter().map(|r| &r.name[..]).collect();
    assert_eq!(names, ["decode tiny 1x5+3", "decode tiny 3x5+3"]);
    for (row, batch) in report.rows.iter().zip([1.0, 3.0]) {
        assert!(row.prefill > 0.0 && row.step > 0.0 && row.seconds > row.prefill);
        // The weights, and 64 columns of keys and of values for each token of the contexts.
        assert!((row.share * row.step * 1e9 - 2.0 * (25088.0 + batch * 6.0 * 128.0)).abs() < 1.0);
    }
}
