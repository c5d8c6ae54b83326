//! build.rs: where it looks for nvcc and how it reads depfiles; and what it made, when nvcc was there.

#[allow(dead_code)]
#[path = "../../build.rs"]
mod script;

use script::{dependencies, find_nvcc};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use uncouple::device::kernels::{MODULES, Usage, module_of, parse_report};

#[test]
fn nvcc_is_looked_for_in_order() {
    let root = tempfile::tempdir().unwrap();
    let wheel = "lib/python3.12/site-packages/nvidia/cu13";
    let places = [
        ("UNCOUPLE_NVCC", "mine/nvcc-13".to_string(), "mine/nvcc-13"),
        ("NVCC", "yours/nvcc".to_string(), "yours/nvcc"),
        ("CUDA_HOME", "home/bin/nvcc".to_string(), "home"),
        ("CUDA_PATH", "path/bin/nvcc".to_string(), "path"),
        ("PATH", "tools/nvcc".to_string(), "tools"),
        ("VIRTUAL_ENV", format!("env/{wheel}/bin/nvcc"), "env"),
        ("", format!(".venv/{wheel}/bin/nvcc"), ""),
    ];
    for (_, file, _) in &places {
        let file = root.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "").unwrap();
    }
    for (i, (_, file, _)) in places.iter().enumerate() {
        // Earlier places are not set, or lead nowhere.
        let var = |name: &str| -> Option<OsString> {
            let at = places.iter().position(|(var, ..)| *var == name)?;
            let value = if at < i { "nowhere" } else { places[at].2 };
            (i % 2 == 0 || at >= i).then(|| root.path().join(value).into_os_string())
        };
        assert_eq!(find_nvcc(root.path(), var), Some(root.path().join(file)));
    }
}

#[test]
fn depfiles_are_read() {
    let text = "/out/a.fatbin : kernels/a.cu \\\n    /usr/include/x.h \\\n    /with\\ space/y.h\n";
    assert_eq!(dependencies(text), ["kernels/a.cu", "/usr/include/x.h", "/with space/y.h"]);
    assert!(dependencies("").is_empty());
}

#[test]
fn reports_of_ptxas_are_read() {
    let report = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'op_a_bf16' for 'sm_90a'\n\
        ptxas info    : Function properties for op_a_bf16\n    \
            16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n\
        ptxas info    : Used 32 registers, used 1 barriers, 256 bytes smem, 376 bytes cmem[0]\n\
        ptxas info    : Compiling entry function 'op_b_f32' for 'sm_80'\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 7 registers, used 0 barriers\n";
    let usage = |kernel: &str, arch: &str, [registers, stack, spill_stores, spill_loads, shared]: [u32; 5]| Usage {
        kernel: kernel.into(),
        arch: arch.into(),
        registers,
        stack,
        spill_stores,
        spill_loads,
        shared,
    };
    let found = parse_report(report);
    assert_eq!(found, [usage("op_a_bf16", "sm_90a", [32, 16, 8, 4, 256]), usage("op_b_f32", "sm_80", [7, 0, 0, 0, 0])]);
    assert!(!found[0].in_registers() && found[1].in_registers());
}

/// Without nvcc (CI has it) there is nothing to check but that.
#[test]
fn every_kernel_is_built_and_stays_in_registers() {
    if MODULES.is_empty() {
        assert_ne!(option_env!("UNCOUPLE_CUDA"), Some("require"), "the build should have failed");
        println!("not checked: this program was built without nvcc");
        return;
    }
    let usage: Vec<Usage> = MODULES.iter().flat_map(|m| m.usage()).collect();
    let on =
        |arch: &str| -> BTreeSet<&str> { usage.iter().filter(|u| u.arch == arch).map(|u| u.kernel.as_str()).collect() };
    // The emulator reads the names from the sources.
    let emulated = kernel_emulator::kernels();
    let written: BTreeSet<&str> = emulated.into_iter().filter(|k| !k.starts_with("planted_")).collect();
    assert_eq!(on("sm_90a"), written);
    let portable = written.into_iter().filter(|k| !k.contains("_hopper_")).collect();
    assert_eq!(on("sm_80"), portable);
    for u in &usage {
        println!("{:32} {:7} {:3} registers, {:5} bytes shared", u.kernel, u.arch, u.registers, u.shared);
        assert!(u.arch != "sm_90a" || u.in_registers(), "{u:?} spills, or keeps an array in local memory");
        assert!(module_of(&u.kernel).is_some_and(|m| u.kernel.starts_with(m.name)), "{}: named after its op", u.kernel);
    }
    for m in MODULES {
        // ptxas waits for products of its own accord, or one after the other: C7510 to C7519.
        let notes: Vec<&str> = m.report.lines().filter(|line| line.contains("(C75")).collect();
        assert!(notes.is_empty(), "{}: {notes:?}", m.name);
    }
    // A fat binary's magic number.
    assert!(MODULES.iter().all(|m| m.image.starts_with(&0xBA55_ED50u32.to_le_bytes())));
    assert!(module_of("no_such_kernel").is_none());
}
