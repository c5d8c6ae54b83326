use crate::*;
use kernel_emulator::{Arg, args, launch};
use uncouple::ops::attention::Shape;
use uncouple::ops::qk_norm;

const EPS: f32 = 1e-6;

fn shapes() -> [(usize, Shape); 5] {
    let shape = |heads, kv_heads, head_dim| Shape { heads, kv_heads, head_dim };
    [(1, shape(1, 1, 16)), (37, shape(2, 1, 64)), (5, shape(12, 2, 128)), (3, shape(3, 3, 256)), (33, shape(7, 1, 32))]
}

#[test]
fn forward() {
    for (rows, shape) in shapes() {
        let ((qkv, mut want), (w, w_wide)) =
            (randoms_bf16(1, rows * shape.qkv_dim()), randoms_bf16(2, 2 * shape.head_dim));
        let heads = rows * (shape.heads + shape.kv_heads);
        let mut want_raw = vec![0.0; heads * shape.head_dim];
        qk_norm::forward(&mut want, shape, &w_wide, EPS, Some(&mut want_raw));
        let (w, raw) = (Buffer::new(&w), Buffer::poisoned::<u16>(want_raw.len()));
        let sizes = [rows, shape.heads, shape.kv_heads, shape.head_dim].map(|n| n as i32);
        for keep in [true, false] {
            let qkv = Buffer::new(&qkv);
            let [tall, q, kv, wide] = sizes;
            let grid = blocks(heads * shape.head_dim / 8);
            let launched = match keep {
                true => launch("qk_norm_forward_bf16", grid, 256, 0, args![&qkv, &raw, &w, tall, q, kv, wide, EPS]),
                false => {
                    launch("qk_norm_forward_bf16", grid, 256, 0, args![&qkv, Arg::Null, &w, tall, q, kv, wide, EPS])
                }
            };
            launched.unwrap();
            assert_close(&format!("{rows} rows of {shape:?}"), &read_bf16(&qkv), &want, BF16);
        }
        assert_eq!(read_bf16(&raw), want_raw);
    }
}

#[test]
fn backward() {
    for ((rows, shape), grid) in shapes().into_iter().zip([1, 2, 3, 1, 7]) {
        let (d, heads) = (shape.head_dim, rows * (shape.heads + shape.kv_heads));
        let ((dy, mut want), (raw, raw_wide)) = (randoms_bf16(1, rows * shape.qkv_dim()), randoms_bf16(2, heads * d));
        let ((w, w_wide), mut want_dw) = (randoms_bf16(3, 2 * d), vec![0.0; 2 * d]);
        qk_norm::backward(&mut want, shape, &raw_wide, &w_wide, EPS, &mut want_dw);
        let (dy, raw, w) = (Buffer::new(&dy), Buffer::new(&raw), Buffer::new(&w));
        let (partial, dw) = (Buffer::poisoned::<f32>(grid * 2 * d), Buffer::new(&vec![0.0f32; 2 * d]));
        let [tall, q, kv, wide] = [rows, shape.heads, shape.kv_heads, d].map(|n| n as i32);
        let args = args![&dy, &raw, &w, &partial, tall, q, kv, wide, EPS];
        launch("qk_norm_backward_bf16", grid as u32, 256, 0, args).unwrap();
        assert_close(&format!("{rows} rows of {shape:?}"), &read_bf16(&dy), &want, BF16);
        let add = args![&partial, &dw, grid as i32, 2 * d as i32];
        launch("rmsnorm_backward_dw_f32", (2 * d).div_ceil(64) as u32, (8, 32), 0, add).unwrap();
        assert_close("dw", &dw.read::<f32>().unwrap(), &want_dw, F32 * heads as f32);
    }
}
