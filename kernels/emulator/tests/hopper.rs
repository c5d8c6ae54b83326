//! The emulator's asynchronous parts of sm_90 against plain references, and against planted mistakes, each of which must be found.

use kernel_emulator::{Arg, Buffer, Fault, Swizzle, TensorMap, Tiling, args, launch};

fn ramp(n: usize) -> Vec<u32> {
    (1..=n as u32).collect()
}

/// Fails with a fault that names the kernel and a line of a kernel's source, and says so.
fn finds(kernel: &str, block: u32, shared: usize, args: &[Arg], what: &str) {
    let text = launch(kernel, 1, block, shared, args).expect_err(kernel).to_string();
    assert!(text.contains(kernel) && text.contains(what), "{kernel}: {text}");
    assert!(text.contains("planted_hopper.cu:") || text.contains("wgmma.cuh:"), "{kernel}: {text}");
}

/// Fails because schedules differ.
fn races(kernel: &str, block: u32, args: &[Arg]) {
    let fault = launch(kernel, 1, block, 0, args).expect_err(kernel);
    assert!(matches!(fault, Fault::Race { .. }), "{kernel}: {fault}");
}

#[test]
fn bulk_copies_arrive_with_their_phase() {
    let (x, y) = (Buffer::new(&ramp(512)), Buffer::poisoned::<u32>(512));
    let args = args![&x, &y];
    launch("planted_bulk", 1, 64, 0, args).unwrap();
    let got = y.read::<u32>().unwrap();
    assert!((0..512).all(|i| got[i] == (i / 256 * 256 + (i + 4) % 256) as u32 + 1));
    races("planted_bulk_wait", 64, args);
    // Passed at once, and the block is through before the copy.
    finds("planted_bulk_parity", 64, 0, args, "still under way");
    finds("planted_bulk_more", 64, 0, args, "lacks 0 arrivals and 16 bytes");
    finds("planted_bulk_fewer", 64, 0, args, "-16 bytes");
    finds("planted_bulk_arrivals", 64, 0, args, "arrivals");
    finds("planted_bulk_nothing", 64, 0, args, "never initialised");
    finds("planted_bulk_invalid", 64, 0, args, "invalidated");
    finds("planted_bulk_abandoned", 64, 0, args, "still under way");
    finds("planted_bulk_hidden", 64, 0, args, "has not shown it");
    finds("planted_bulk", 64, 0, args![&Buffer::new(&ramp(511)), &y], "was not given");
}

#[test]
fn a_wait_for_a_phase_that_never_ends_is_named() {
    let y = Buffer::poisoned::<f32>(32);
    let fault = launch("planted_parity", 1, 32, 0, args![&y]).unwrap_err();
    let Fault::Asynchronous { place, site, problem } = &fault else { panic!("{fault}") };
    let line = include_str!("planted_hopper.cu").lines().nth(site.line as usize - 1).unwrap();
    assert!(place.kernel == "planted_parity" && line.contains("mbarrier_wait(full, 1)"), "{fault}: {line}");
    assert!(problem.contains("parity 1") && problem.contains("1 phases are complete"), "{fault}");
}

#[test]
fn a_ring_of_stages_is_filled_and_emptied() {
    let steps = 7;
    let (x, y) = (Buffer::new(&ramp(128 * steps)), Buffer::poisoned::<u32>(128 * steps));
    let args = args![&x, &y, steps as i32];
    launch("planted_ring", 1, 64, 0, args).unwrap();
    assert_eq!(y.read::<u32>().unwrap(), ramp(128 * steps));
    finds("planted_ring_full", 64, 0, args, "more arrivals");
    races("planted_ring_early", 64, args);
}

/// What a box should look like in shared memory: rows of consecutive elements, zero outside, chunks of 16 bytes permuted.
fn boxed(of: &Tiling, at: &[i64], data: &[u32]) -> Vec<u32> {
    let (wide, rows) = (of.tile[0], of.tile[1..].iter().product::<usize>());
    let mut words = vec![0; wide * rows];
    for row in 0..rows {
        for column in 0..wide {
            let index = [column, row % of.tile[1], row / of.tile[1]];
            let inside = |d: usize| (0..of.sizes[d] as i64).contains(&(at[d] + index[d] as i64));
            if !(0..at.len()).all(inside) {
                continue;
            }
            let of_dim = |d: usize| (at[d] + index[d] as i64) as usize;
            let bytes = 4 * of_dim(0) + (1..at.len()).map(|d| of_dim(d) * of.strides[d - 1]).sum::<usize>();
            let (chunks, chunk) = (wide / 4, column / 4);
            let to = match of.swizzle {
                Swizzle::None => chunk,
                Swizzle::B64 => chunk ^ (row / 2 % 4),
                Swizzle::B128 => chunk ^ (row % 8),
            };
            words[4 * (row * chunks + to) + column % 4] = data[bytes / 4];
        }
    }
    words
}

#[test]
fn boxes_of_tensors_are_loaded_swizzled_and_zero_outside() {
    // 3 matrices of 21 rows of 50 columns, rows 52 apart.
    let data = ramp(3 * 21 * 52);
    let x = Buffer::new(&data);
    for (swizzle, wide) in [(Swizzle::None, 12), (Swizzle::B64, 16), (Swizzle::B128, 32)] {
        for at in [[0, 0, 0], [32, 8, 1], [48, 19, 2], [-4, -3, -1], [16, 5, 2], [60, 30, 0]] {
            let of = Tiling {
                address: x.address(),
                element_bytes: 4,
                sizes: vec![50, 21, 3],
                strides: vec![4 * 52, 4 * 52 * 21],
                tile: vec![wide, 9, 2],
                swizzle,
            };
            let bytes = 4 * wide * 18;
            let y = Buffer::poisoned::<u32>(wide * 18);
            let map = Arg::Map(&x, TensorMap::new(&of).unwrap());
            let [i, j, k] = at;
            let args = &[map, (&y).into(), (bytes as i32).into(), i.into(), j.into(), k.into()];
            launch("planted_tensor_3d", 1, 32, bytes, args).unwrap();
            assert_eq!(y.read::<u32>().unwrap(), boxed(&of, &at.map(i64::from), &data), "{of:?} at {at:?}");

            let flat = Tiling { sizes: vec![50, 21], strides: vec![4 * 52], tile: vec![wide, 9], ..of.clone() };
            let y = Buffer::poisoned::<u32>(wide * 9);
            let map = Arg::Map(&x, TensorMap::new(&flat).unwrap());
            let args = &[map, (&y).into(), (bytes as i32 / 2).into(), i.into(), j.into()];
            launch("planted_tensor_2d", 1, 32, bytes, args).unwrap();
            let want = boxed(&flat, &[i64::from(i), i64::from(j)], &data);
            assert_eq!(y.read::<u32>().unwrap(), want, "{flat:?} at {at:?}");

            // A map of the other rank, and one of more memory than there is.
            let map = || Arg::Map(&x, TensorMap::new(&of).unwrap());
            let args = &[map(), (&y).into(), 16.into(), 0.into(), 0.into()];
            finds("planted_tensor_2d", 32, bytes, args, "2 coordinates for a tensor map of 3");
            let past = Tiling { sizes: vec![50, 22, 3], strides: vec![4 * 52, 4 * 52 * 22], ..of };
            let map = Arg::Map(&x, TensorMap::new(&past).unwrap());
            let args = &[map, (&y).into(), (bytes as i32).into(), 0.into(), 13.into(), 1.into()];
            finds("planted_tensor_3d", 32, bytes, args, "was not given");
        }
    }
}

#[test]
fn tensor_maps_that_the_driver_refuses_are_refused() {
    let sound = Tiling {
        address: 256,
        element_bytes: 2,
        sizes: vec![100, 7],
        strides: vec![208],
        tile: vec![64, 64],
        swizzle: Swizzle::B128,
    };
    assert!(TensorMap::new(&sound).is_ok());
    let refused = [
        Tiling { address: 264, ..sound.clone() },
        Tiling { strides: vec![200], ..sound.clone() },
        Tiling { tile: vec![64, 257], ..sound.clone() },
        Tiling { tile: vec![32, 64], ..sound.clone() },
        Tiling { sizes: vec![0, 7], ..sound.clone() },
        Tiling { sizes: vec![100], ..sound },
    ];
    for tiling in refused {
        assert!(TensorMap::new(&tiling).is_err(), "{tiling:?}");
    }
}

/// a (64 × 32) · bᵀ (b: n × 32), small whole numbers, so that every sum is exact.
fn operands(n: usize) -> (Buffer, Buffer, Vec<f32>) {
    let bits = |x: &f32| (x.to_bits() >> 16) as u16;
    let a: Vec<f32> = (0..64 * 32).map(|i| ((i * 7 + i / 32 * 3) % 23) as f32 - 11.0).collect();
    let b: Vec<f32> = (0..n * 32).map(|i| ((i * 5 + i / 32 * 2) % 19) as f32 - 9.0).collect();
    let want = (0..64 * n).map(|i| (0..32).map(|k| a[i / n * 32 + k] * b[i % n * 32 + k]).sum()).collect();
    let buffer = |x: &[f32]| Buffer::new(&x.iter().map(bits).collect::<Vec<u16>>());
    (buffer(&a), buffer(&b), want)
}

/// Room for both operands in rows of 128 bytes.
const SHARED: usize = (64 + 256) * 128;

#[test]
fn warpgroups_multiply_every_layout() {
    let mut kernels: Vec<String> = ["n64", "n128"].map(|n| format!("planted_warpgroup_registers_{n}")).into();
    for swizzle in ["none", "64", "128"] {
        for layout in ["kk", "mk", "kn", "mn"] {
            kernels.extend(["n64", "n128"].map(|n| format!("planted_warpgroup_{swizzle}_{layout}_{n}")));
        }
    }
    kernels.push("planted_warpgroup_128_kk_n256".into());
    for kernel in &kernels {
        let n = kernel.rsplit_once('n').and_then(|(_, n)| n.parse().ok()).unwrap();
        let (a, b, want) = operands(n);
        let d = Buffer::poisoned::<f32>(64 * n);
        launch(kernel, 1, 128, SHARED, args![&a, &b, &d]).unwrap_or_else(|fault| panic!("{fault}"));
        assert!(d.read::<f32>().unwrap() == want, "{kernel}");
    }
}

#[test]
fn products_used_wrongly_are_named() {
    let (a, b, _) = operands(64);
    let d = Buffer::poisoned::<f32>(64 * 64);
    let args = args![&a, &b, &d];
    for (mistake, what) in [
        ("read", "touched before it was waited for"),
        ("fence", "touched since the last fence"),
        ("commit", "leaves the product"),
        ("operand", "changed in shared memory"),
        ("partial", "thread 100 has returned"),
        ("outside", "outside of shared memory"),
        ("lost", "given up"),
        ("hidden", "have not shown their stores"),
        ("early", "have not shown their stores"),
    ] {
        finds(&format!("planted_warpgroup_mistake_{mistake}"), 128, SHARED, args, what);
    }
    let fault = launch("planted_warpgroup_mistake_torn", 1, 128, SHARED, args).unwrap_err();
    assert!(matches!(fault, Fault::PartialBarrier { .. }), "{fault}");
    finds("planted_warpgroup_128_kk_n64", 96, SHARED, args, "less than four warps");
}

/// Copies may overtake each other: the one that somebody waits for comes first.
#[test]
fn copies_that_overtake_expose_a_missing_wait() {
    let (x, y) = (Buffer::new(&ramp(256)), Buffer::poisoned::<u32>(256));
    launch("planted_pair", 1, 32, 0, args![&x, &y]).unwrap();
    assert_eq!(y.read::<u32>().unwrap(), ramp(256));
    races("planted_pair_wait", 32, args![&x, &y]);
}

#[test]
fn registers_are_moved_within_what_a_block_has() {
    let y = Buffer::poisoned::<f32>(384);
    launch("planted_registers", 1, 384, 0, args![&y]).unwrap();
    let all = launch("planted_registers_all", 1, 384, 0, args![&y]).unwrap_err().to_string();
    assert!(all.contains("together more than"), "{all}");
    for (mistake, what) in [("give", "a warp of 168 registers a thread gives 240"), ("take", "takes 24")] {
        let fault = launch(&format!("planted_registers_{mistake}"), 1, 384, 0, args![&y]).unwrap_err().to_string();
        assert!(fault.contains(what) && fault.contains("hopper.cuh:"), "{fault}");
    }
}

#[test]
fn numbered_barriers_hand_over() {
    let y = Buffer::poisoned::<f32>(32);
    launch("planted_named", 1, 64, 0, args![&y]).unwrap();
    assert_eq!(y.read::<f32>().unwrap(), (1..=32).map(|i| i as f32).collect::<Vec<_>>());
    finds("planted_named_missing", 64, 0, args![&y], "32 of 64 threads");
    finds("planted_named_count", 96, 0, args![&y], "others expect");
}
