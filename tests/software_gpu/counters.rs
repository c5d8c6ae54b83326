//! What kernels do, counted: an uncoalesced access, a bank conflict, a byte read twice or a race for shared memory that somebody adds
//! fails here. Kernels are instrumented for it in a build of the software GPU of its own, which UNCOUPLE_COUNTERS names (.ci/run builds it).

use crate::device::Device;
use std::collections::BTreeMap;
use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use uncouple::bench::counters::{Calls, Counters, CountersError, occupancy, parse};
use uncouple::device::kernels::Usage;

/// Kernel, and the most that it may have: sectors / ideal, wavefronts / ideal, bytes read and copied / compulsory.
const BOUNDS: &str = include_str!("counters.txt");

#[test]
fn a_trace_is_added_up() {
    let trace = "launch k 4,1,1 64,2,1 100\nupload 8\nwait 3\nproduct 1 2 3 x1\ncounters k 1 10 20 30 64 32 6 3 8 4 0";
    let Counters { calls, rows } = parse(trace).expect("a trace");
    assert_eq!(calls, Calls { launches: 1, products: 1, uploads: 1, waits: 1, ..Calls::default() });
    assert_eq!((rows[0].compulsory, rows[0].sectors, rows[0].wavefronts), (96, 2.0, 2.0));
    assert_eq!((rows[0].registers, rows[0].occupancy), (None, None), "no kernel of this build");
    assert!((rows[0].bound - 96.0 / 3e12).abs() < 1e-18, "by bandwidth");
    assert_eq!(parse("upload 8"), Err(CountersError::NotCounted));
    assert_eq!(parse("upload 8\ncounters k 1 2"), Err(CountersError::Line(2)));
}

#[test]
fn occupancy_is_that_of_what_runs_out_first() {
    let usage = |registers, shared| Usage {
        kernel: String::new(),
        arch: String::new(),
        registers,
        stack: 0,
        spill_stores: 0,
        spill_loads: 0,
        shared,
    };
    assert_eq!(occupancy(&usage(32, 0), (256, 0)), 1.0);
    assert_eq!(occupancy(&usage(128, 0), (256, 0)), 0.25);
    assert_eq!(occupancy(&usage(32, 0), (256, 100 << 10)), 0.25);
}

#[test]
fn no_kernel_moves_more_than_its_bound() {
    let Some(device) = Device::new() else { return };
    let Some(library) = env::var_os("UNCOUPLE_COUNTERS").map(PathBuf::from) else {
        let _ = io::stderr().write_all(b"SKIPPED: UNCOUPLE_COUNTERS names no software GPU that counts\n");
        return;
    };
    let bounds: BTreeMap<&str, Vec<f64>> = BOUNDS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .map(|(kernel, most)| (kernel, most.split(' ').map(|n| n.parse().expect("a number")).collect()))
        .collect();
    let device = device.on(&library);
    device.succeeds(&["selftest", "--small"]);
    let table = device.command(&["counters", &device.path("trace").display().to_string()]).output().expect("a table");
    let text = std::fs::read_to_string(device.path("trace")).expect("a trace");
    println!("{}", String::from_utf8_lossy(&table.stdout));
    let mut beyond = Vec::new();
    for row in parse(&text).expect("counters").rows {
        let moved = (row.read + row.copied + row.written) as f64 / row.compulsory.max(1) as f64;
        let found = [row.sectors, row.wavefronts, moved];
        let line = format!("{} {:.2} {:.2} {:.2}", row.kernel, found[0], found[1], found[2]);
        match bounds.get(&row.kernel[..]) {
            Some(most) if found.iter().zip(most).all(|(found, most)| found <= most) => {}
            _ => beyond.push(line),
        }
    }
    assert!(beyond.is_empty(), "beyond what counters.txt allows:\n{}", beyond.join("\n"));
}
