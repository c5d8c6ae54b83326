//! The emulator against planted mistakes: each must be found, and the sound kernel beside it must pass.

use kernel_emulator::{Buffer, Dim, Fault, Schedule, args, launch, launch_under};

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

/// A poisoned buffer and what a launch on it says.
fn on_floats(kernel: &str, threads: u32) -> Fault {
    launch(kernel, 1, threads, 0, args![&Buffer::poisoned::<f32>(threads as usize)]).unwrap_err()
}

#[test]
fn a_missing_barrier_makes_schedules_differ() {
    let x = Buffer::new(&ramp(128));
    let y = Buffer::poisoned::<f32>(128);
    launch("planted_reverse", 2, 64, 256, args![&x, &y]).unwrap();
    let want: Vec<f32> = (0..64).rev().chain((64..128).rev()).map(|i| i as f32).collect();
    assert_eq!(y.read::<f32>().unwrap(), want);
    let fault = launch("planted_reverse_race", 2, 64, 256, args![&x, &y]).unwrap_err();
    assert!(matches!(fault, Fault::Race { kernel: "planted_reverse_race", argument: 1, .. }), "{fault}");
}

#[test]
fn shared_memory_reused_too_early_makes_schedules_differ() {
    let x = Buffer::new(&ramp(3 * 96));
    let y = Buffer::poisoned::<f32>(3 * 96);
    launch("planted_sums", 1, 96, 0, args![&x, &y]).unwrap();
    let sums = ramp(3 * 96).chunks(96).map(|c| c.iter().sum::<f32>()).collect::<Vec<_>>();
    assert_eq!(y.read::<f32>().unwrap().chunks(96).map(|c| c[17]).collect::<Vec<_>>(), sums);
    let fault = launch("planted_sums_race", 1, 96, 0, args![&x, &y]).unwrap_err();
    assert!(matches!(fault, Fault::Race { .. }), "{fault}");
}

#[test]
fn blocks_that_depend_on_each_other_make_schedules_differ() {
    let fault = launch("planted_blocks_race", 4, 1, 0, args![&Buffer::new(&ramp(4))]).unwrap_err();
    assert!(matches!(fault, Fault::Race { .. }), "{fault}");
}

#[test]
fn a_barrier_reached_by_part_of_a_block_is_named() {
    let fault = on_floats("planted_partial_barrier", 64);
    let text = fault.to_string();
    let Fault::PartialBarrier { place, site, arrived: 48, threads: 64, .. } = fault else { panic!("{text}") };
    assert_eq!((place.kernel, place.block, place.thread), ("planted_partial_barrier", [0, 0, 0], 48));
    let line = include_str!("planted.cu").lines().nth(site.line as usize - 1).unwrap();
    assert!(line.contains("__syncthreads") && text.contains("planted.cu:"), "{text}: {line}");
    let fault = on_floats("planted_divergent_barrier", 64);
    assert!(matches!(fault, Fault::DivergentBarrier { .. }), "{fault}");
}

#[test]
fn collectives_without_all_their_lanes_are_named() {
    for schedule in [Schedule::Forward, Schedule::Reverse, Schedule::Random(3)] {
        let y = Buffer::poisoned::<u32>(32);
        let fault = launch_under(schedule, "planted_partial_vote", 1, 32, 0, args![&y]).unwrap_err();
        let Fault::Collective { what: "__ballot_sync", problem, .. } = &fault else { panic!("{fault}") };
        assert!(problem.contains("lane 5"), "{fault}");
    }
    let fault = on_floats("planted_torn_warp", 32);
    assert!(matches!(fault, Fault::PartialBarrier { arrived: 16, .. }), "{fault}");
    let fault = launch("planted_partial_vote", 1, 20, 0, args![&Buffer::poisoned::<u32>(32)]).unwrap_err();
    assert!(fault.to_string().contains("lane"), "a warp of 20 lanes: {fault}");
}

#[test]
fn writes_outside_of_buffers_are_found() {
    let y = Buffer::poisoned::<f32>(32);
    let fault = launch("planted_write_past_end", 1, 32, 0, args![&y, 32]).unwrap_err();
    assert!(matches!(fault, Fault::Guard { argument: 0, bytes: 0, side: "after", .. }), "{fault}");
    let y = Buffer::poisoned::<f32>(32);
    let fault = launch("planted_write_past_end", 1, 32, 0, args![&y, -1]).unwrap_err();
    assert!(matches!(fault, Fault::Guard { argument: 0, side: "before", .. }), "{fault}");
    let fault = on_floats("planted_shared_past_end", 32);
    assert!(matches!(fault, Fault::SharedGuard { .. }), "{fault}");
}

#[test]
fn wide_accesses_must_be_aligned_and_inside() {
    let (x, y) = (Buffer::new(&ramp(16)), Buffer::poisoned::<f32>(8));
    launch("planted_load", 1, 1, 0, args![&x, &y, 8]).unwrap();
    assert_eq!(y.read::<f32>().unwrap(), ramp(16)[8..]);
    for (offset, problem) in [(9, "not aligned"), (12, "not given"), (1 << 20, "not given"), (-4, "not given")] {
        let fault = launch("planted_load", 1, 1, 0, args![&x, &y, offset]).unwrap_err();
        assert!(matches!(fault, Fault::Access { .. }) && fault.to_string().contains(problem), "{fault}");
        assert!(fault.to_string().contains("planted.cu:"), "the kernel's own line: {fault}");
    }
}

#[test]
fn elements_never_written_are_found() {
    let y = Buffer::poisoned::<f32>(8);
    launch("planted_unwritten", 1, 32, 0, args![&y, 8]).unwrap();
    assert_eq!(y.read::<f32>().unwrap_err(), Fault::Unwritten { element: 3 });
    assert_eq!(Buffer::poisoned::<u16>(2).read::<u16>().unwrap_err(), Fault::Unwritten { element: 0 });
}

#[test]
fn a_stack_overrun_and_a_broken_promise_are_found() {
    let fault = on_floats("planted_large_frame", 2);
    assert!(matches!(fault, Fault::Stack { .. }), "{fault}");
    let y = Buffer::poisoned::<f32>(8);
    let fault = launch("planted_promise", 1, 8, 0, args![&y, 12]).unwrap_err();
    assert!(fault.to_string().contains("n % 8 == 0"), "{fault}");
    launch("planted_promise", 1, 8, 0, args![&y, 16]).unwrap();
}

#[test]
fn arguments_and_dimensions_are_checked() {
    let (x, y) = (Buffer::new(&ramp(40)), Buffer::poisoned::<f32>(40));
    let says = |result: Result<(), Fault>, what: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(what), "{text}");
    };
    says(launch("planted_nothing", 1, 1, 0, args![]), "planted_nothing");
    says(launch("planted_copy", 1, 32, 0, args![&x, &y]), "takes 3 arguments");
    says(launch("planted_copy", 1, 32, 0, args![&x, &y, 40u64]), "argument 2 has 8 bytes");
    says(launch("planted_copy", 1, 32, 0, args![&x, 40u64, 40]), "argument 1 should be a buffer");
    says(launch("planted_copy", 1, 32, 0, args![&x, &y, &y]), "argument 2 should not be a buffer");
    says(launch("planted_copy", 1, 1025, 0, args![&x, &y, 40]), "1025");
    says(launch("planted_copy", (1, 70000), 32, 0, args![&x, &y, 40]), "70000");
    says(launch("planted_reverse", 1, 32, 300 << 10, args![&x, &y]), "shared memory");
}

#[test]
fn shuffles_and_votes_do_as_on_a_gpu() {
    let y = Buffer::poisoned::<i32>(9 * 32);
    launch("planted_collectives", 1, 32, 0, args![&y]).unwrap();
    let got = y.read::<i32>().unwrap();
    let thirds = (0..32).filter(|i| i % 3 == 0).fold(0u32, |bits, i| bits | 1 << i) as i32;
    for lane in 0..32 {
        let row: Vec<i32> = (0..9).map(|r| got[32 * r + lane as usize]).collect();
        let down = if lane % 16 < 13 { lane + 3 } else { lane };
        let up = if lane % 16 < 3 { lane } else { lane - 3 };
        let halves = if lane < 16 { lane ^ 1 } else { lane ^ 2 };
        assert_eq!(row, [7, lane / 8 * 8 + 1, lane ^ 5, down, up, thirds, 1, 1, halves], "lane {lane}");
    }
}

#[test]
fn coordinates_and_atomics() {
    let count = Buffer::new(&[0i32]);
    launch("planted_count", 3, 70, 0, args![&count]).unwrap();
    assert_eq!(count.read::<i32>().unwrap(), [210]);
    let y = Buffer::poisoned::<u32>(6 * 40);
    launch("planted_coordinates", Dim([2, 3, 1]), Dim([10, 2, 2]), 0, args![&y]).unwrap();
    let got = y.read::<u32>().unwrap();
    assert_eq!(got[3 * 40 + 15], 100 + 10, "block (1, 1, 0), thread (5, 1, 0)");
}

#[test]
fn bf16_rounds_to_nearest_even_and_stochastically_by_the_bits_given() {
    // bf16 has 8 bits of precision: 1 + 2⁻⁸ is a tie, to 1; 1 + 3 · 2⁻⁸ a tie, to 1 + 4 · 2⁻⁸.
    let tie = |k: f32| 1.0 + k / 256.0;
    let x = [1.0, tie(1.0), tie(3.0), tie(1.001), -tie(0.25), f32::MAX, f32::INFINITY, f32::NAN];
    let want = [1.0, 1.0, tie(4.0), tie(2.0), -1.0, f32::INFINITY, f32::INFINITY, f32::NAN];
    // Rounds away from zero when the bits reach what is missing: 7/8 of the way, for the fifth.
    let random = [0xFFFFu32, 0x8000, 0x7FFF, 0, 0xE000, 0, 0xFFFF, 0xFFFF];
    let want_stochastic = [1.0, tie(2.0), tie(2.0), 1.0, -tie(2.0), f32::MAX, f32::INFINITY, f32::NAN];
    let [nearest, both, stochastic] = [8, 16, 8].map(Buffer::poisoned::<u16>);
    launch("planted_bf16", 1, 8, 0, args![&Buffer::new(&x), &Buffer::new(&random), &nearest, &both, &stochastic])
        .unwrap();
    let widen = |b: &Buffer| -> Vec<f32> {
        b.read::<u16>().unwrap().into_iter().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect()
    };
    let same = |a: f32, b: f32| a == b || a.is_nan() && b.is_nan();
    let agree = |got: Vec<f32>, want: &[f32]| {
        assert!(got.len() == want.len() && got.iter().zip(want).all(|(a, b)| same(*a, *b)), "{got:?} is not {want:?}");
    };
    agree(widen(&nearest), &want);
    agree(widen(&both), &want.iter().flat_map(|&x| [x, -x]).collect::<Vec<_>>());
    // The largest f32 lies past the largest bf16: cut off, not rounded.
    let largest = f32::from_bits(0x7F7F_0000);
    agree(widen(&stochastic), &want_stochastic.map(|x| if x == f32::MAX { largest } else { x }));
}

#[test]
fn asynchronous_copies_arrive_when_waited_for_and_no_sooner() {
    let stages = 3;
    let data: Vec<u32> = (0..stages * 256).collect();
    let (x, y) = (Buffer::new(&data), Buffer::poisoned::<u32>(4 * 256));
    launch("planted_async", 1, 64, 0, args![&x, &y, stages]).unwrap();
    let got = y.read::<u32>().unwrap();
    for (i, &word) in got.iter().enumerate() {
        let (stage, at) = (i / 256, (i + 4) % 256);
        assert_eq!(word, if stage < 3 { 256 * stage as u32 + at as u32 } else { 0 }, "word {i}");
    }
    for mistake in ["planted_async_wait", "planted_async_commit", "planted_async_barrier"] {
        let fault = launch(mistake, 1, 64, 0, args![&x, &y, stages]).unwrap_err();
        assert!(matches!(fault, Fault::Race { .. }), "{mistake}: {fault}");
    }
    // A copy from past the end is found when it is issued.
    let y = Buffer::poisoned::<u32>(5 * 256);
    let fault = launch("planted_async", 1, 64, 0, args![&x, &y, stages + 1]).unwrap_err();
    assert!(matches!(fault, Fault::Access { .. }), "{fault}");
}

#[test]
fn tiles_multiply() {
    // Small whole numbers: every sum is exact.
    let bits = |x: f32| (x.to_bits() >> 16) as u16;
    let a: Vec<f32> = (0..256).map(|i| ((i * 7 + i / 16 * 3) % 23) as f32 - 11.0).collect();
    let b: Vec<f32> = (0..128).map(|i| ((i * 5 + i / 8 * 2) % 19) as f32 - 9.0).collect();
    let transpose: Vec<f32> = (0..128).map(|i| b[i % 16 * 8 + i / 16]).collect();
    let want: Vec<f32> =
        (0..128).map(|i| 1.0 + (0..16).map(|k| a[i / 8 * 16 + k] * b[k * 8 + i % 8]).sum::<f32>()).collect();
    let a = Buffer::new(&a.iter().map(|&x| bits(x)).collect::<Vec<_>>());
    for (kernel, b) in [("planted_product", b), ("planted_product_transposed", transpose)] {
        let (b, d) = (Buffer::new(&b.iter().map(|&x| bits(x)).collect::<Vec<_>>()), Buffer::poisoned::<f32>(128));
        launch(kernel, 1, 32, 0, args![&a, &b, &d]).unwrap();
        assert_eq!(d.read::<f32>().unwrap(), want, "{kernel}");
    }
}

/// A line of layouts.txt: where NVIDIA's own layout algebra says that the values of all lanes are.
fn places(kind: &str) -> Vec<usize> {
    let line = include_str!("layouts.txt").lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '));
    line.expect(kind).split(' ').map(|word| word.parse().expect("a number")).collect()
}

#[test]
fn registers_of_products_and_tiles_hold_what_they_should() {
    // Small whole numbers: every sum is exact.
    let a: Vec<f32> = (0..256).map(|i| ((i * 7 + i / 16 * 3) % 23) as f32 - 11.0).collect();
    let b: Vec<f32> = (0..128).map(|i| ((i * 5 + i / 8 * 2) % 19) as f32 - 9.0).collect();
    let registers = |kind: &str, of: &[f32]| {
        Buffer::new(&places(kind).iter().map(|&at| (of[at].to_bits() >> 16) as u16).collect::<Vec<_>>())
    };
    let (left, right, d) = (registers("mma_left", &a), registers("mma_right", &b), Buffer::poisoned::<f32>(128));
    launch("planted_fragments", 1, 32, 0, args![&left, &right, &d]).unwrap();
    let sum = |at: usize| (0..16).map(|k| a[at % 16 + 16 * k] * b[at / 16 + 8 * k]).sum::<f32>();
    assert_eq!(d.read::<f32>().unwrap(), places("mma_sums").into_iter().map(sum).collect::<Vec<_>>());

    let x = Buffer::new(&(0..256u16).collect::<Vec<_>>());
    for kind in ["tiles", "tiles_transposed"] {
        let y = Buffer::poisoned::<u16>(256);
        launch(&format!("planted_{kind}"), 1, 32, 0, args![&x, &y]).unwrap();
        assert_eq!(y.read::<u16>().unwrap().into_iter().map(usize::from).collect::<Vec<_>>(), places(kind), "{kind}");
    }
}
