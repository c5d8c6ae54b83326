//! What kernels refuse, as their headers promise.

use crate::*;
use kernel_emulator::{Fault, args, launch};

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
        ("adamw_step_bf16", 32, args![b, b, b, b, b, b, b, 0i32, 12u64, step]),
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

#[test]
fn products_of_gradients_that_do_not_fit_break_a_promise() {
    let b = &Buffer::new(&[0u32; 64]);
    for (samples, n) in [(2i32, 12u64), (65, 8), (0, 8)] {
        let fault = launch("gradient_cosine_gram_bf16", 1, 128, 32 << 10, args![b, b, samples, n]).unwrap_err();
        assert!(matches!(fault, Fault::BrokenPromise { .. }), "{samples} x {n}: {fault}");
    }
    // A pair beyond the last.
    let args = args![b, b, b, b, 1i32, 8i32, 8i32, 8i32];
    let fault = launch("gradient_cosine_ghost_bf16", 2, 256, 48 << 10, args).unwrap_err();
    assert!(matches!(fault, Fault::BrokenPromise { .. }), "{fault}");
}
