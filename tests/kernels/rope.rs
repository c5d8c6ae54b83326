use crate::*;
use kernel_emulator::{args, launch};
use uncouple::ops::rope::{Tables, rotate};

#[test]
fn forward_and_inverse() {
    for (rows, heads, kv_heads, head_dim) in [(1, 1, 1, 16), (257, 2, 1, 64), (5, 12, 2, 128), (33, 14, 2, 64)] {
        let tables = Tables::new(1e6, head_dim, 600);
        let row_len = (heads + 2 * kv_heads) * head_dim;
        let position: Vec<u32> = (0..rows as u64).map(|i| block(5, 0, i)[0] % 600).collect();
        let (positions, cos, sin) = (Buffer::new(&position), Buffer::new(&tables.cos), Buffer::new(&tables.sin));
        for inverse in [false, true] {
            let (x, mut want) = randoms_bf16(1, rows * row_len);
            rotate(&mut want, row_len, heads + kv_heads, &position, &tables, inverse);
            let x = Buffer::new(&x);
            let (turned, half) = ((heads + kv_heads) as i32, head_dim as i32 / 2);
            let grid = blocks(rows * (heads + kv_heads) * head_dim / 16);
            let args = args![&x, &positions, &cos, &sin, rows as i32, row_len as i32, turned, half, i32::from(inverse)];
            launch("rope_rotate_bf16", grid, 256, 0, args).unwrap();
            assert_close(&format!("{rows} rows of {heads} + 2 x {kv_heads} heads"), &read_bf16(&x), &want, BF16);
        }
    }
}
