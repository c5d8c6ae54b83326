//! `uncouple selftest --small`: every kernel, by the machine code's own sizes.

use crate::device::Device;

fn passes_on(compute_capability: &str) {
    let Some(device) = Device::new() else { return };
    let run = device.with("COMPUTE_CAPABILITY", compute_capability).succeeds(&["selftest", "--small"]);
    assert!(run.stdout.contains(&format!("Software GPU {compute_capability}")), "{}", run.stdout);
    assert!(run.stdout.contains(" checks passed"), "{}", run.stdout);
    // What is called a time here would be taken for a GPU's.
    let checks: Vec<&str> = run.stdout.lines().filter(|line| line.starts_with("ok ")).collect();
    assert!(checks.len() > 20 && checks.iter().all(|line| line.contains(" – µs ")), "{}", run.stdout);
    let modules: Vec<String> = run.trace.of("module").map(|line| line.join(" ")).collect();
    assert!(!modules.is_empty() && modules.iter().all(|m| m.ends_with(" kernels")), "no machine code: {modules:?}");
    // What a kernel declares counts, with what its launch requests, against the 48 KiB that it gets unasked: less alone would do.
    let asked = |kernel: &str| run.trace.of("optin").any(|line| line == [kernel, "32768"]);
    assert!(asked("sampling_sample_f32"), "of the largest vocabulary's sampling");
    // Graphs and events apart, all of the driver is in this.
    let calls = run.trace.calls();
    assert!(calls["cuMemAlloc"] == 1 && calls["cuModuleUnload"] == modules.len() as u64, "{calls:?}");
}

#[test]
fn the_selftest_passes_on_hopper() {
    passes_on("9.0");
}

#[test]
fn the_selftest_passes_on_ampere() {
    passes_on("8.0");
}

/// A block has 99 KiB of shared memory there: less than on an A100.
#[test]
fn the_selftest_passes_on_cards_for_consumers() {
    passes_on("8.9");
}

#[test]
fn a_gpu_older_than_the_kernels_is_refused_by_the_module() {
    let Some(device) = Device::new() else { return };
    let run = device.with("COMPUTE_CAPABILITY", "7.5").run(&["selftest", "--small"]);
    assert!(!run.status.success() && run.stderr.contains(".cu has no image for Software GPU 7.5"), "{}", run.stderr);
}
