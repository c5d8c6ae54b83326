//! Every case of every op.

use crate::emulated::{gpu, gpu_without};
use rayon::prelude::*;
use uncouple::bench::ceilings::Ceilings;
use uncouple::ops::case::Case;
use uncouple::selftest::{checks, run};

/// Times and shares mean nothing here.
const CEILINGS: Ceilings = Ceilings { copy_gbps: 1.0, matmul_tflops: 1.0 };

#[test]
fn every_case_passes() {
    let all: Vec<&dyn Case> = checks().collect();
    assert!(all.len() > 25, "{} cases", all.len());
    all.into_par_iter().for_each(|case| {
        let outcome = run(case, &gpu(), false, &CEILINGS).unwrap_or_else(|e| panic!("{}: {e}", case.name()));
        println!("{:22} {:.3} of 1: {}", outcome.name, outcome.error, outcome.worst);
        assert!(outcome.share > 0.0 && outcome.seconds > 0.0, "{} is not timed", outcome.name);
        assert!(outcome.passed(), "{}: {} ({})", outcome.name, outcome.worst, outcome.error);
    });
}

/// A kernel that does nothing is found by a case of its op.
#[test]
fn every_kernel_has_a_case_that_needs_it() {
    let kernels: Vec<&str> = kernel_emulator::kernels().into_iter().filter(|k| !k.starts_with("planted_")).collect();
    assert!(kernels.len() > 50, "{} kernels", kernels.len());
    kernels.into_par_iter().for_each(|kernel| {
        let mut cases = checks().filter(|case| kernel.starts_with(&format!("{}_", case.op())));
        let needs =
            |case: &dyn Case| !run(case, &gpu_without(kernel), false, &CEILINGS).is_ok_and(|outcome| outcome.passed());
        assert!(cases.any(needs), "no case needs {kernel}");
    });
}
