//! Every case of every op.

use crate::emulated::{gpu, gpu_without};
use rayon::prelude::*;
use uncouple::bench::ceilings::Ceilings;
use uncouple::device::{Gpu, Result};
use uncouple::ops::case::{Case, Clock, Instance, Size, Verdict, Work};
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

/// Of a device that does not tell the time.
struct Untimed;

impl Clock for Untimed {
    fn cuda(&mut self, _: &Gpu, _: Work, call: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        call()
    }
}

/// A kernel that does nothing is found by a case of its op. The smallest shapes of all its cases come first.
#[test]
fn every_kernel_has_a_case_that_needs_it() {
    let kernels: Vec<&str> = kernel_emulator::kernels().into_iter().filter(|k| !k.starts_with("planted_")).collect();
    assert!(kernels.len() > 50, "{} kernels", kernels.len());
    kernels.into_par_iter().for_each(|kernel| {
        let cases = checks().filter(|case| kernel.starts_with(&format!("{}_", case.op())));
        let mut instances: Vec<_> =
            cases.flat_map(|case| case.instances(Size::Ragged).into_iter().enumerate()).collect();
        instances.sort_by_key(|(at, _)| *at);
        let needs = |instance: &Instance| {
            let mut verdict = Verdict::default();
            let ran = instance.check(&gpu_without(kernel), &mut Untimed, &mut verdict);
            ran.is_err() || verdict.error.is_nan() || verdict.error > 1.0
        };
        assert!(instances.iter().any(|(_, instance)| needs(instance)), "no case needs {kernel}");
    });
}
