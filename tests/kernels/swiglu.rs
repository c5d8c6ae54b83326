use crate::*;
use kernel_emulator::{args, launch};
use uncouple::ops::swiglu;

#[test]
fn forward_and_backward() {
    for (rows, ffn) in shapes() {
        let n = rows * ffn;
        let (gate_up, mut wide) = randoms_bf16(1, 2 * n);
        let (dy, dy_wide) = randoms_bf16(2, n);
        let mut want = vec![0.0; n];
        swiglu::forward(&wide, ffn, &mut want);
        let (dy, gate_up, y) = (Buffer::new(&dy), Buffer::new(&gate_up), Buffer::poisoned::<u16>(n));
        let sizes = (rows as i32, ffn as i32);
        launch("swiglu_forward_bf16", blocks(n / 8), 256, 0, args![&gate_up, &y, sizes.0, sizes.1]).unwrap();
        assert_close(&format!("y of {rows} x {ffn}"), &read_bf16(&y), &want, BF16);

        swiglu::backward(&dy_wide, ffn, &mut wide);
        let args = args![&dy, &gate_up, sizes.0, sizes.1];
        launch("swiglu_backward_bf16", blocks(n / 8), 256, 0, args).unwrap();
        assert_close("gradient", &read_bf16(&gate_up), &wide, BF16);
    }
}

#[test]
fn large_gates_neither_overflow_nor_vanish() {
    let gates = [-200.0f32, -90.0, -1.0, 0.0, 1.0, 90.0, 200.0, -0.0];
    let row: Vec<bf16> = gates.iter().chain(&[1.0; 8]).map(|&x| bf16::from_f32(x)).collect();
    let y = Buffer::poisoned::<u16>(8);
    launch("swiglu_forward_bf16", 1, 256, 0, args![&Buffer::new(&row), &y, 1, 8]).unwrap();
    let y = read_bf16(&y);
    assert!(y[0] == 0.0 && y[1].abs() < 1e-30 && y[3] == 0.0 && y[5] == 90.0 && y[6] == 200.0, "{y:?}");
}
