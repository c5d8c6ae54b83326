//! `uncouple doctor`: what training will find on this machine, and the mend where something is missing.

use super::{DoctorArgs, output};
use crate::device::Dtype;
use crate::device::cpu::bf16::Unit;
use crate::device::cpu::{self, Mat, Product};
use crate::device::kernels::MODULES;
use crate::device::{cublaslt_version, cuda};
use crate::ops::decode_attention::cuda::has_tiles;
use crate::report::provenance::COMMIT;
use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Works, but worth knowing.
    Note,
    /// Training will fail or crawl.
    Problem,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, status: Status::Ok, found: found.into(), mend: None }
    }

    fn but(name: &'static str, status: Status, found: impl Into<String>, mend: impl Into<String>) -> Check {
        Check { name, status, found: found.into(), mend: Some(mend.into()) }
    }
}

const GIB: u64 = 1 << 30;

pub fn run(args: DoctorArgs) -> Result<ExitCode> {
    let machine = [version(), processor(), simd(), memory(), disk(&args.dir), gpu()];
    let speed = [cublaslt(), kernels(), f32_rate(), bf16_rate()];
    let checks: Vec<Check> = machine.into_iter().chain(chip()).chain(speed).collect();
    if args.json {
        output::print_json(&checks)?;
    } else {
        for c in &checks {
            let status = format!("{:?}", c.status).to_lowercase();
            let mend = c.mend.as_ref().map(|m| format!("\n{:20}→ {m}", "")).unwrap_or_default();
            output::print(&format!("{status:8} {:10} {}{mend}", c.name, c.found))?;
        }
    }
    let problem = checks.iter().any(|c| c.status == Status::Problem);
    Ok(if problem { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn version() -> Check {
    let commit = COMMIT.map(|c| format!(" (commit {c})")).unwrap_or_default();
    Check::ok("version", format!("uncouple {}{commit}", env!("CARGO_PKG_VERSION")))
}

fn processor() -> Check {
    let model = proc_field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    match std::thread::available_parallelism() {
        Ok(cores) => Check::ok("processor", format!("{model}, {cores} cores for this process")),
        Err(e) => Check::but("processor", Status::Note, model, format!("the number of cores is unknown: {e}")),
    }
}

#[cfg(target_arch = "x86_64")]
fn simd() -> Check {
    let found: Vec<&str> = [
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
    ]
    .into_iter()
    .filter_map(|(name, has)| has.then_some(name))
    .collect();
    match found.first() {
        Some(&"avx512f") => Check::ok("simd", found.join(" ")),
        Some(_) => Check::but("simd", Status::Note, found.join(" "), "AVX-512 would be about twice as fast"),
        None => Check::but("simd", Status::Problem, "no AVX2", "training will crawl: use a processor of 2013 or later"),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> Check {
    Check::ok("simd", std::env::consts::ARCH)
}

fn memory() -> Check {
    let Some(cpu::MachineMemory { total, available }) = cpu::memory() else {
        return Check::but("memory", Status::Note, "unknown", "compare `uncouple train --dry-run` with what you have");
    };
    let found = format!("{} available of {}", output::bytes(available), output::bytes(total));
    let mend = "close other programs; `uncouple train --dry-run` says what a run needs";
    if available >= 2 * GIB { Check::ok("memory", found) } else { Check::but("memory", Status::Problem, found, mend) }
}

fn disk(dir: &Path) -> Check {
    // The folder may not be there yet: its nearest ancestor is on the same disk.
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| PathBuf::from("/"));
    let there = absolute.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(there) {
        Ok(disk) => {
            let free = disk.f_bavail * disk.f_frsize;
            let found = format!("{} free for {}", output::bytes(free), dir.display());
            let mend = "free some space, or put runs elsewhere with --dir";
            if free >= GIB { Check::ok("disk", found) } else { Check::but("disk", Status::Problem, found, mend) }
        }
        Err(e) => Check::but("disk", Status::Problem, format!("{}: {e}", dir.display()), "choose another --dir"),
    }
}

/// What the driver says.
fn gpu() -> Check {
    match cuda::describe() {
        Ok(found) => {
            let mend = "`uncouple selftest` checks every kernel on it; then train with --device cuda";
            Check::but("gpu", Status::Note, found, mend)
        }
        Err(e) => Check::but("gpu", Status::Note, e.to_string(), "train on the CPU (--device cpu, the default)"),
    }
}

/// Which kernels the GPU will run; no line where there is none.
fn chip() -> Option<Check> {
    let chip = cuda::first_chip().ok()?;
    let (major, minor) = chip.compute_capability;
    let capability = format!("compute capability {major}.{minor}");
    if major < 8 {
        let mend = "the kernels need 8.0 or newer: train on the CPU (--device cpu, the default)";
        return Some(Check::but("chip", Status::Note, capability, mend));
    }
    let of = if chip.is_hopper() { "Hopper's" } else { "portable" };
    let by = match [64, 128].map(|head_dim| has_tiles(head_dim, chip.shared_memory as usize)) {
        [true, true] => "by tiles",
        [true, false] => "by tiles (heads of 128: row by row)",
        _ => "row by row",
    };
    let kib = chip.shared_memory >> 10;
    Some(Check::ok("chip", format!("{capability}, blocks of {kib} KiB: {of} attention and head, prompts {by}")))
}

/// The library of matrix products, which a GPU needs.
fn cublaslt() -> Check {
    match cuda::find_cublaslt() {
        Ok(found) => Check::ok("cublaslt", format!("release {}", cublaslt_version(found))),
        Err(e) => Check::but("cublaslt", Status::Note, e.to_string(), "only --device cuda needs it"),
    }
}

/// The CUDA kernels in this program.
fn kernels() -> Check {
    if MODULES.is_empty() {
        let mend = "build where nvcc is: UNCOUPLE_CUDA=require says where it looks and how to get one";
        return Check::but("kernels", Status::Note, "none: built without nvcc", mend);
    }
    let usage: Vec<_> = MODULES.iter().flat_map(|m| m.usage()).collect();
    let names: BTreeSet<_> = usage.iter().map(|u| &u.kernel).collect();
    let archs: Vec<_> = usage.iter().map(|u| u.arch.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
    Check::ok("kernels", format!("{} for {} and PTX", names.len(), archs.join(", ")))
}

/// Edge of the products that are timed.
const EDGE: usize = 768;

/// The rate of products on all threads, GFLOP/s, the best of a few.
fn rate(dtype: Dtype) -> f64 {
    const N: usize = EDGE;
    let (a, b, mut c) = (vec![0.5f32; N * N], vec![0.25f32; N * N], vec![0.0f32; N * N]);
    let rows = N.div_ceil(rayon::current_num_threads());
    let mut once = || {
        let began = Instant::now();
        c.par_chunks_mut(rows * N).zip(a.par_chunks(rows * N)).for_each(|(c, a)| {
            let shape = (c.len() / N, N, N);
            Product::new(dtype, shape).run(c, N, Mat::rows(a, N), Mat::rows(&b, N));
        });
        began.elapsed().as_secs_f64()
    };
    let best = (0..5).map(|_| once()).fold(f64::INFINITY, f64::min);
    2.0 * (N as f64).powi(3) / best / 1e9
}

fn f32_rate() -> Check {
    let (rate, threads) = (rate(Dtype::F32), rayon::current_num_threads());
    let found = format!("{rate:.0} GFLOP/s (f32, {EDGE} x {EDGE} x {EDGE}, {threads} threads)");
    if rate >= 20.0 {
        Check::ok("gemm", found)
    } else {
        Check::but(
            "gemm",
            Status::Note,
            found,
            "slow: build with --release, and see that no other program uses the cores",
        )
    }
}

/// What `model.dtype = "bf16"` would give.
fn bf16_rate() -> Check {
    let found = format!("{:.0} GFLOP/s by {}", rate(Dtype::Bf16), Unit::best().name());
    let advice = match faster_in_bf16() {
        true => "train real models with model.dtype = \"bf16\"",
        false => "model.dtype = \"f32\" is about as fast here, or faster",
    };
    Check::ok("bf16", format!("{found}: {advice}"))
}

/// Whether products of bf16 factors are clearly faster than in f32, by measurement.
pub(super) fn faster_in_bf16() -> bool {
    rate(Dtype::Bf16) > 1.2 * rate(Dtype::F32)
}

/// `key : value` of a /proc file.
fn proc_field(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_string())
}
