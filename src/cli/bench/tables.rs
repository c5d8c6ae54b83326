//! The tables of the benchmarks, at most 80 columns wide.

use crate::bench::decode::DecodeRow;
use crate::bench::step::StepRow;
use crate::bench::{BenchReport, Growth, gcd, kernels, real};
use crate::cli::output::decimals;
use crate::report::results::fitted;

fn ms(seconds: f64) -> String {
    decimals(1e3 * seconds, 1)
}

pub fn report(of: &BenchReport) -> String {
    let ours = ["uncouple".into(), ms(of.seconds), "1.00".into()];
    let peers = of.peers.iter().map(|peer| [peer.name.clone(), ms(peer.seconds), decimals(peer.ratio, 2)]);
    fitted(&[of.name, "median ms", "its time / ours"], [ours].into_iter().chain(peers), &[1, 2])
}

pub fn growth(of: &[Growth]) -> String {
    let row = |g: &Growth| {
        [g.samples.to_string(), g.length.to_string(), ms(g.seconds), g.slab.to_string(), g.ghost.to_string()]
    };
    fitted(&["samples", "tokens of each", "ms", "slabs", "ghosts"], of.iter().map(row), &[0, 1, 2, 3, 4])
}

pub fn real(rows: &[real::WorkRow]) -> String {
    let rows = rows.iter().flat_map(|row| {
        let rate = decimals(row.tokens_per_second, 0);
        let ours = [row.work.clone(), "uncouple".into(), ms(row.seconds), rate, "1.00".into()];
        let peers = row.peers.iter().map(|peer| {
            let rate = decimals(row.tokens_per_second / peer.ratio, 0);
            [String::new(), peer.name.clone(), ms(peer.seconds), rate, decimals(peer.ratio, 2)]
        });
        [ours].into_iter().chain(peers)
    });
    fitted(&["work", "by", "ms", "tokens/s", "its time / ours"], rows, &[2, 3, 4])
}

pub fn gcd(of: &gcd::GcdReport) -> String {
    let headings = ["step", "actions x judgments", "rollout s", "judge s", "gradient s", "packed tokens", "added %"];
    let rollout = decimals(of.rollout_seconds, 2);
    let none = String::new;
    let alone = ["GRPO alone".into(), none(), rollout.clone(), none(), decimals(of.train_seconds, 2), none(), none()];
    let sizes = of.sizes.iter().flat_map(|size| {
        [("GCD, prompts shared", size.shared), ("GCD, unshared", size.unshared)].map(|(name, cost)| {
            [
                name.into(),
                format!("{} x {}", size.pairs, size.judgments),
                rollout.clone(),
                decimals(cost.judge_seconds, 2),
                decimals(cost.train_seconds, 2),
                cost.unique_tokens.to_string(),
                decimals(100.0 * cost.added, 1),
            ]
        })
    });
    fitted(&headings, [alone].into_iter().chain(sizes), &[2, 3, 4, 5, 6])
}

pub fn kernels(rows: &[kernels::KernelRow]) -> String {
    let rate = |row: &kernels::KernelRow| match (row.gbps, row.tflops) {
        (Some(gbps), _) => format!("{} GB/s", decimals(gbps, 0)),
        (_, Some(tflops)) => format!("{} TFLOP/s", decimals(tflops, 0)),
        _ => String::new(),
    };
    let rows = rows
        .iter()
        .map(|row| [row.name.clone(), decimals(1e3 * row.seconds, 3), rate(row), decimals(100.0 * row.share, 0)]);
    fitted(&["kernel", "median ms", "rate", "% of ceiling"], rows, &[1, 2, 3])
}

/// Each step, and the parts of its time.
pub fn step(rows: &[StepRow]) -> String {
    let name = |row: &StepRow| format!("{}{}", row.name, if row.recompute { ", recomputed" } else { "" });
    let whole = rows.iter().map(|row| {
        let (rate, mfu) = (decimals(row.tokens_per_second, 0), decimals(100.0 * row.mfu, 1));
        [name(row), rate, mfu, ms(row.seconds)]
    });
    let parts = rows
        .iter()
        .map(|row| [name(row)].into_iter().chain([row.forward, row.head, row.backward, row.optimizer].map(ms)));
    let whole = fitted(&["step", "tokens/s", "MFU %", "ms"], whole, &[1, 2, 3]);
    let parts = fitted(&["step", "forward ms", "head ms", "backward ms", "optimizer ms"], parts, &[1, 2, 3, 4]);
    format!("{whole}\n{parts}")
}

pub fn decode(rows: &[DecodeRow]) -> String {
    let headings = ["decode", "tokens/s", "% of the floor", "seconds", "prompts ms", "step ms"];
    let rows = rows.iter().map(|row| {
        [
            row.name.clone(),
            decimals(row.tokens_per_second, 0),
            decimals(100.0 * row.share, 0),
            decimals(row.seconds, 3),
            decimals(1e3 * row.prefill, 1),
            decimals(1e3 * row.step, 3),
        ]
    });
    fitted(&headings, rows, &[1, 2, 3, 4, 5])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Peer;
    use crate::bench::gcd::{Cost, Size};
    use crate::cli::output::assert_fits;

    fn peers() -> Vec<Peer> {
        let name = "transformers 5.14.1, torch 2.13.0+cpu, scaled-dot-product attention, eager".to_string();
        vec![Peer { name, seconds: 1234.5678, ratio: 1234.5678 }]
    }

    #[test]
    fn tables_of_the_cpu_fit_eighty_columns() {
        let sizes = vec![Growth { samples: 4096, length: 16384, seconds: 12345.6, slab: 12345, ghost: 12345 }];
        let of = BenchReport {
            name: "gradient-cosine",
            seconds: 12345.6,
            fastest: 0.0,
            slowest: 0.0,
            tokens_per_second: 1e7,
            gemm_share: 0.5,
            gemm_gflops: 200.0,
            peers: peers(),
            growth: sizes,
        };
        assert_fits(&report(&of), &["uncouple", "1234.57"]);
        assert_fits(&growth(&of.growth), &["16384", "12345"]);
        let work = "a prompt of 16384 tokens, 256 continuations of 1024 tokens each".to_string();
        let row = real::WorkRow { work, seconds: 12345.6, tokens_per_second: 1234567.0, peers: peers() };
        assert_fits(&real(&[row]), &["1234567", "12345600.0"]);
        let cost = Cost { judge_seconds: 12345.6, train_seconds: 12345.6, unique_tokens: 123_456_789, added: 12.3456 };
        let sizes = vec![Size { pairs: 1000, judgments: 1000, shared: cost, unshared: cost }];
        let of = gcd::GcdReport { iterations: 100, rollout_seconds: 12345.6, train_seconds: 12345.6, sizes };
        assert_fits(&gcd(&of), &["12345.60", "1234.6"]);
    }

    #[test]
    fn tables_of_a_gpu_fit_eighty_columns() {
        let name = "grouped_logprob backward 16384 tokens x 151936 x 2048, targets of 8 groups".to_string();
        let row = kernels::KernelRow { name, seconds: 12.345678, gbps: Some(12345.0), tflops: None, share: 1.0 };
        assert_fits(&kernels(&[row]), &["12345.678", "12345 GB/s"]);
        let row = StepRow {
            name: "step Qwen2.5-1.5B 16x1024".into(),
            recompute: true,
            seconds: 12.3456,
            forward: 12.3456,
            head: 12.3456,
            backward: 12.3456,
            optimizer: 12.3456,
            tokens_per_second: 1234567.0,
            mfu: 0.5,
        };
        assert_fits(&step(&[row]), &["1234567", "50.0", "optimizer"]);
        let row = DecodeRow {
            name: "decode Qwen2.5-0.5B 256x1024+64".into(),
            seconds: 1234.5678,
            prefill: 12.3456,
            step: 12.3456,
            tokens_per_second: 1234567.0,
            share: 0.5,
        };
        assert_fits(&decode(&[row]), &["1234567", "12345.600"]);
    }
}
