//! Races for shared memory, found by what orders accesses and not by luck. With `--features counters`.
#![cfg(feature = "counters")]

use kernel_emulator::{Arg, Buffer, Fault, Schedule, args, launch_under};

/// Under one schedule, whichever: the race is there in each.
fn races(kernel: &str, block: u32, shared: usize, args: &[Arg]) {
    for schedule in [Schedule::Forward, Schedule::Reverse, Schedule::Random(3), Schedule::Prompt] {
        let fault = launch_under(schedule, kernel, 1, block, shared, args).expect_err(kernel);
        assert!(matches!(fault, Fault::Unordered { .. }), "{kernel}, {schedule:?}: {fault}");
    }
}

fn is_clean(kernel: &str, block: u32, shared: usize, args: &[Arg]) {
    for schedule in [Schedule::Forward, Schedule::Reverse, Schedule::Random(3), Schedule::Prompt] {
        launch_under(schedule, kernel, 1, block, shared, args).unwrap_or_else(|fault| panic!("{schedule:?}: {fault}"));
    }
}

#[test]
fn a_missing_barrier_is_a_race_whatever_the_schedule() {
    let (x, y) = (Buffer::new(&[1.0f32; 128]), Buffer::poisoned::<f32>(128));
    is_clean("planted_reverse", 128, 512, args![&x, &y]);
    races("planted_reverse_race", 128, 512, args![&x, &y]);
}

#[test]
fn copies_and_mbarriers_order_what_they_bring() {
    let (x, y) = (Buffer::new(&[7u32; 128 * 7]), Buffer::poisoned::<u32>(128 * 7));
    is_clean("planted_ring", 64, 0, args![&x, &y, 7]);
    is_clean("planted_bulk", 64, 0, args![&x, &y]);
    is_clean("planted_pair", 32, 0, args![&x, &y]);
    races("planted_ring_early", 64, 0, args![&x, &y, 7]);
    races("planted_bulk_wait", 64, 0, args![&x, &y]);
}

#[test]
fn numbered_barriers_order_those_who_meet() {
    is_clean("planted_named", 64, 0, args![&Buffer::poisoned::<f32>(32)]);
}
