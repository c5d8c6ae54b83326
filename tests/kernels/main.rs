//! Every CUDA kernel on the emulator, under all its schedules, against the CPU op; build.rs and what it made.

mod adamw;
mod advantage;
mod build;
mod embedding;
mod gradient_cosine;
mod grouped_logprob;
mod pcgrad;
mod qk_norm;
mod rmsnorm;
mod rope;
mod sampling;
mod swiglu;

use half::bf16;
use kernel_emulator::{Arg, Buffer, Fault, args, launch};
use uncouple::ops::philox::{block, normals};

/// Standard normal numbers.
fn randoms(seed: u64, n: usize) -> Vec<f32> {
    (0..n.div_ceil(4) as u64).flat_map(|i| normals(block(seed, 0, i))).take(n).collect()
}

/// The same as numbers that bf16 holds exactly: as the kernel reads them, and as the CPU op does.
fn randoms_bf16(seed: u64, n: usize) -> (Vec<bf16>, Vec<f32>) {
    let narrow: Vec<bf16> = randoms(seed, n).into_iter().map(bf16::from_f32).collect();
    let wide = widen(&narrow);
    (narrow, wide)
}

fn widen(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

fn read_bf16(buffer: &Buffer) -> Vec<f32> {
    // Through u16: bf16 is Pod of another version of the trait only by chance.
    buffer.read::<u16>().unwrap().into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect()
}

/// A result that was computed in f32 and rounded to bf16 once: half of 2⁻⁷, and the noise of f32 where terms cancel.
const BF16: f32 = 1.0 / 256.0;
/// A result in f32.
const F32: f32 = 1e-5;

/// Every `|got - want| <= relative · |want| + 1e-5`.
fn assert_close(what: &str, got: &[f32], want: &[f32], relative: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= relative * w.abs() + 1e-5, "{what}: element {i} is {g}, should be {w}");
    }
}

/// Edge cases and a few at random: 1 to 257 rows of a multiple of 8 up to 2048.
fn shapes() -> Vec<(usize, usize)> {
    let random = (0..4).map(|i| block(11, 0, i)).map(|r| (1 + r[0] as usize % 64, 8 + 8 * (r[1] as usize % 80)));
    [(1, 8), (257, 104), (3, 896), (2, 2048)].into_iter().chain(random).collect()
}

/// Blocks of 256 threads for so many threads.
fn blocks(threads: usize) -> u32 {
    threads.div_ceil(256) as u32
}

/// The host is to refuse such sizes with its own error; a kernel that is launched all the same is caught.
#[test]
fn sizes_that_do_not_fit_break_a_promise() {
    let b = &Buffer::new(&[0u32; 1024]);
    let (one, odd, eps) = (1i32, 12i32, 1e-6f32);
    let step = [0.0f32; 6];
    let refused: [(&str, u32, &[Arg]); 16] = [
        ("rmsnorm_forward_bf16", 32, args![b, b, b, b, odd, eps]),
        // More columns than the block holds.
        ("rmsnorm_forward_bf16", 32, args![b, b, b, b, 512i32, eps]),
        ("rmsnorm_forward_add_bf16", 32, args![b, b, b, b, b, b, odd, eps]),
        ("rmsnorm_backward_bf16", 32, args![b, b, b, b, b, b, one, odd]),
        ("swiglu_forward_bf16", 32, args![b, b, one, odd]),
        ("swiglu_backward_bf16", 32, args![b, b, one, odd]),
        ("embedding_forward_bf16", 32, args![b, b, b, one, odd]),
        ("embedding_backward_f32", 32, args![b, b, b, b, b, odd]),
        ("rope_rotate_bf16", 32, args![b, b, b, b, one, 64i32, one, odd, one]),
        // Two heads of 32 in rows of 32.
        ("rope_rotate_bf16", 32, args![b, b, b, b, one, 32i32, 2i32, 16i32, one]),
        ("adamw_step_bf16", 32, args![b, b, b, b, b, b, 12u64, step]),
        ("adamw_grad_norm_partial_f32", 32, args![b, b, 12u64]),
        ("pcgrad_dots_f32", 32, args![b, b, b, 12u64]),
        ("pcgrad_combine_f32", 32, args![b, b, b, 12u64]),
        ("sampling_sample_f32", 1024, args![b, b, b, b, b, b, 6i32, 6i32, [0u32; 5]]),
        // The wrong shape of block.
        ("rmsnorm_backward_dw_f32", 256, args![b, b, one, 64i32]),
    ];
    for (kernel, threads, args) in refused {
        let fault = launch(kernel, 1, threads, 0, args).unwrap_err();
        assert!(matches!(fault, Fault::BrokenPromise { .. }), "{kernel}: {fault}");
    }
}
