//! What goes wrong on a GPU is named: the call that failed or the kernel, the cause in CUDA's words; nothing is left behind, nothing hangs.

use crate::device::{Device, Run};
use std::collections::BTreeSet;
use std::fs;

/// CUDA's and cuBLASLt's functions, and what a message says that the GPU failed to do.
const CALLS: [(&str, &str); 31] = [
    ("cuDriverGetVersion", "tell the driver's version"),
    ("cuInit", "start"),
    ("cuDeviceGetCount", "count GPUs"),
    ("cuDeviceGet", "open the first GPU"),
    ("cuDeviceGetName", "tell its name"),
    ("cuDeviceGetAttribute", "tell its kind"),
    ("cuDevicePrimaryCtxRetain", "give a context"),
    ("cuCtxSetCurrent", "take a context"),
    ("cuStreamCreate", "make a stream"),
    ("cuMemHostAlloc", "pin memory"),
    ("cuMemGetInfo", "tell its free memory"),
    ("cuMemAlloc", "give memory"),
    ("cuMemsetD8Async", "zero memory"),
    ("cuMemcpyHtoDAsync", "copy to the GPU"),
    ("cuMemcpyDtoHAsync", "copy from the GPU"),
    ("cuMemcpyDtoDAsync", "copy memory"),
    ("cuModuleLoadData", "load kernels: kernels/"),
    ("cuModuleGetFunction", "find a kernel: "),
    ("cuFuncGetAttribute", "tell a kernel's shared memory: "),
    ("cuFuncSetAttribute", "give a kernel more shared memory: "),
    ("cuLaunchKernel", "the kernel "),
    ("cuTensorMapEncodeTiled", "make a tensor map"),
    ("cuStreamSynchronize", "finish"),
    ("cuEventCreate", "make an event"),
    ("cuEventRecord", "record an event"),
    ("cuEventElapsedTime", "read the time"),
    ("cuStreamBeginCapture", "begin a graph"),
    ("cuStreamEndCapture", "end a graph"),
    ("cuGraphInstantiate", "prepare a graph"),
    ("cuGraphLaunch", "replay a graph"),
    ("cublasLtCreate", "start cuBLASLt"),
];
/// Functions that give something back, whose failure harms nobody and goes by.
const FREEING: [&str; 9] = [
    "cuMemFree",
    "cuMemFreeHost",
    "cuStreamDestroy",
    "cuEventDestroy",
    "cuModuleUnload",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuDevicePrimaryCtxRelease",
    "cublasLtDestroy",
];
/// What cuBLASLt's version says cannot fail.
const INFALLIBLE: &str = "cublasLtGetVersion";

/// What the message of a function's failure says.
fn message(function: &str) -> &'static str {
    let of_a_product = function.starts_with("cublasLtM").then_some("the matrix product [");
    let known = CALLS.iter().find(|(name, _)| *name == function).map(|(_, said)| *said);
    known.or(of_a_product).unwrap_or_else(|| panic!("what does {function} do?"))
}

fn is_freeing(function: &str) -> bool {
    FREEING.contains(&function) || function.starts_with("cublasLt") && function.ends_with("Destroy")
}

/// A clear end: one line for people, and no panic.
fn expect_plain_failure(what: &str, run: &Run) {
    assert_eq!(run.status.code(), Some(1), "{what}: {}\n{}", run.status, run.stderr);
    assert!(run.stderr.contains("error: ") && !run.stderr.contains("panicked"), "{what}: {}", run.stderr);
}

/// Every function that a benchmark calls fails at its first call and at its last.
fn each_call_fails(bench: &str) {
    let Some(device) = Device::new() else { return };
    let args = ["bench", bench, "--small", "--device", "cuda"];
    let calls = device.succeeds(&args).trace.calls();
    assert!(calls.len() > 40, "{calls:?}");
    for (function, count) in calls.iter().filter(|(function, _)| *function != INFALLIBLE) {
        for call in BTreeSet::from([1, *count]) {
            let what = format!("call {call} of {count} of {function}");
            let run = device.again().with("FAIL", &format!("{function}:{call}:1")).run(&args);
            assert!(run.stderr.contains(&format!("call {call} of {function} fails")), "{what}: {}", run.stderr);
            if is_freeing(function) {
                assert!(run.status.success(), "{what}: {}", run.stderr);
                continue;
            }
            // A capture that could not be ended goes on, and forbids to give anything back.
            if function != "cuStreamEndCapture" {
                run.trace.expect_no_violation();
            }
            // The last wait is that of the end, after which nothing is read.
            let at_the_end = call == *count && ["cuStreamSynchronize", "cuCtxSetCurrent"].contains(&&function[..]);
            if at_the_end && run.status.success() {
                continue;
            }
            expect_plain_failure(&what, &run);
            assert!(run.stderr.contains(message(function)), "{what}: {}", run.stderr);
            let cause =
                if function.starts_with("cublas") { "CUBLAS_STATUS_NOT_INITIALIZED" } else { "invalid argument" };
            assert!(run.stderr.contains(cause), "{what}: {}", run.stderr);
        }
    }
}

#[test]
fn each_call_of_a_training_step_fails_by_name() {
    each_call_fails("step");
}

#[test]
fn each_call_of_decoding_fails_by_name() {
    each_call_fails("decode");
}

/// A fault shows up at a later call, whichever that is: the message names a launch that may have caused it, and launch by launch the
/// very one.
#[test]
fn a_kernel_that_faults_is_named() {
    let Some(device) = Device::new() else { return };
    for bench in ["step", "decode"] {
        let args = ["bench", bench, "--small", "--device", "cuda"];
        let eager = device.again().with("EAGER", "1").succeeds(&args);
        let launched: Vec<String> = eager.trace.of("launch").map(|line| line[0].clone()).collect();
        let replayed = eager.trace.of("replay").next().is_some();
        for number in [1, 2, 9, launched.len() / 2, launched.len()] {
            let faulty = device.again().with("FAULT", &number.to_string());
            let run = faulty.again().run(&args);
            expect_plain_failure("a fault", &run);
            assert!(run.stderr.contains("the kernel ") || run.stderr.contains("the matrix product "), "{}", run.stderr);
            assert!(run.stderr.contains("an illegal memory access"), "{}", run.stderr);
            run.trace.expect_no_violation();
            let run = faulty.with("EAGER", "1").run(&args);
            expect_plain_failure("a fault at once", &run);
            // Of a graph the kernels are not told apart.
            if !replayed {
                let name = format!("the kernel {} failed", launched[number - 1]);
                assert!(run.stderr.contains(&name), "kernel {number}, {name}: {}", run.stderr);
            }
        }
    }
}

#[test]
fn memory_that_does_not_suffice_is_told_with_numbers() {
    let Some(device) = Device::new() else { return };
    let run = device.again().with("MEMORY_MB", "500").run(&["selftest", "--small"]);
    expect_plain_failure("little memory", &run);
    assert!(run.stderr.contains("out of GPU memory: 268435456 bytes were requested"), "{}", run.stderr);
    // Another failure of the same call is none of memory.
    let run = device.with("FAIL", "cuMemAlloc:1:719").run(&["selftest", "--small"]);
    assert!(run.stderr.contains("give memory: unspecified launch failure"), "{}", run.stderr);
}

#[test]
fn libraries_that_are_too_old_or_not_there_are_told() {
    let Some(device) = Device::new() else { return };
    let run = device.again().with("DRIVER", "12040").run(&["selftest", "--small"]);
    assert!(run.stderr.contains("knows CUDA 12.4") && run.stderr.contains("580 or newer"), "{}", run.stderr);
    let old = device.again().with("CUBLASLT", "120805");
    let run = old.run(&["selftest", "--small"]);
    assert!(run.stderr.contains("libcublasLt is of release 12.8.5"), "{}", run.stderr);
    let doctor = old.run(&["doctor"]).stdout;
    assert!(doctor.contains("cublaslt   libcublasLt is of release 12.8.5"), "{doctor}");
    let doctor = device.run(&["doctor"]).stdout;
    assert!(doctor.contains("cublaslt   release 13.0.0"), "{doctor}");
    assert!(doctor.contains("gpu        Software GPU 9.0, 4 GiB, driver for CUDA 13.0"), "{doctor}");
    assert!(!doctor.contains("for now"), "a GPU trains: {doctor}");
    for (capability, uses) in [
        ("9.0", "compute capability 9.0, blocks of 227 KiB: Hopper's attention and head, prompts by tiles"),
        ("8.9", "8.9, blocks of 99 KiB: portable attention and head, prompts by tiles (heads of 128: row by row)"),
        ("7.5", "compute capability 7.5\n"),
    ] {
        let doctor = device.again().with("COMPUTE_CAPABILITY", capability).run(&["doctor"]).stdout;
        assert!(doctor.contains(uses), "{capability}: {doctor}");
    }
    fs::remove_file(device.path("libcublasLt.so.13")).expect("a link");
    let run = device.run(&["selftest", "--small"]);
    assert!(run.stderr.contains("there is no libcublasLt.so.13: pip install"), "{}", run.stderr);
    fs::remove_file(device.path("libcuda.so.1")).expect("a link");
    let run = device.run(&["selftest", "--small"]);
    assert!(run.stderr.contains("this machine has no NVIDIA driver (libcuda.so.1)"), "{}", run.stderr);
}

/// CUDA's own numbers for what has a mend of its own.
#[test]
fn a_gpu_or_a_kernel_that_is_not_there_is_told() {
    let Some(device) = Device::new() else { return };
    let run = device.again().with("FAIL", "cuInit:1:100").run(&["selftest", "--small"]);
    expect_plain_failure("no device", &run);
    assert!(run.stderr.contains("the NVIDIA driver finds no GPU: see `nvidia-smi`"), "{}", run.stderr);
    let run = device.with("FAIL", "cuModuleGetFunction:1:500").run(&["selftest", "--small"]);
    expect_plain_failure("not found", &run);
    assert!(run.stderr.contains("no kernel is named "), "{}", run.stderr);
}

/// cuBLASLt calls it a failure of its own when a kernel before it has faulted; the fault is what is told.
#[test]
fn a_fault_that_a_product_meets_is_told_as_a_fault() {
    let Some(device) = Device::new() else { return };
    let args = ["bench", "step", "--small", "--device", "cuda"];
    let trace = device.succeeds(&args).trace.0;
    // A product that a kernel comes right before.
    let at = trace.windows(2).position(|pair| [&pair[0][0][..], &pair[1][0]] == ["launch", "product"]).expect("a pair");
    let before = |word: &str| trace[..at + 2].iter().filter(|line| line[0] == word).count();
    let failing = device.with("FAIL", &format!("cublasLtMatmul:{}:14", before("product")));
    let alone = failing.again().run(&args);
    expect_plain_failure("a product", &alone);
    assert!(alone.stderr.contains("CUBLAS_STATUS_INTERNAL_ERROR"), "{}", alone.stderr);
    let run = failing.with("FAULT", &before("launch").to_string()).run(&args);
    expect_plain_failure("a product after a fault", &run);
    assert!(run.stderr.contains("an illegal memory access"), "{}", run.stderr);
    assert!(run.stderr.contains("seen on the attempt to multiply matrices"), "{}", run.stderr);
}

/// The GPU's memory is taken when all that can be refused without it was looked at.
#[test]
fn nothing_is_asked_of_the_gpu_before_the_configuration_is_right() {
    let Some(device) = Device::new() else { return };
    let dir = device.path("runs").display().to_string();
    let wrong = device.run(&["train", "--device", "cuda", "--dir", &dir, "--set", "run.iteration=1"]);
    assert!(!wrong.status.success() && wrong.trace.0.is_empty(), "{}", wrong.stderr);
    let dry = device.run(&["train", "--device", "cuda", "--dir", &dir, "--dry-run"]);
    assert!(dry.status.success() && dry.trace.0.is_empty(), "{}", dry.stderr);
}

/// In a capture nothing is loaded, planned or opted in for: that happened in a pass before it.
#[test]
fn graphs_are_captured_after_one_eager_pass() {
    let Some(device) = Device::new() else { return };
    let run = device.succeeds(&["bench", "decode", "--small", "--device", "cuda"]);
    let mut capturing = false;
    for line in &run.trace.0 {
        match &line[0][..] {
            "capture" => capturing = true,
            "graph" => capturing = false,
            word => assert!(!capturing || ["launch", "product", "copy", "zero"].contains(&word), "captured: {line:?}"),
        }
    }
    assert!(run.trace.of("graph").count() > 1);
}

/// So that what is known of a function above is not in vain.
#[test]
fn the_benchmarks_call_every_function() {
    let Some(device) = Device::new() else { return };
    let calls = |bench: &str| device.succeeds(&["bench", bench, "--small", "--device", "cuda"]).trace.calls();
    let called: BTreeSet<String> =
        [calls("step"), calls("decode")].into_iter().flatten().map(|(name, _)| name).collect();
    let missing: Vec<&str> =
        CALLS.iter().map(|(name, _)| *name).chain(FREEING).filter(|n| !called.contains(*n)).collect();
    assert!(missing.is_empty(), "never called: {missing:?}");
}
