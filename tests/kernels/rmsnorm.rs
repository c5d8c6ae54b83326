use crate::*;
use kernel_emulator::{args, launch};
use uncouple::ops::rmsnorm;

const EPS: f32 = 1e-6;

fn threads(hidden: usize) -> u32 {
    (hidden / 8).next_multiple_of(32) as u32
}

#[test]
fn forward() {
    for (rows, hidden) in shapes() {
        let ((x, x_wide), (w, w_wide)) = (randoms_bf16(1, rows * hidden), randoms_bf16(2, hidden));
        let (mut want, mut want_rstd) = (vec![0.0; rows * hidden], vec![0.0; rows]);
        rmsnorm::forward(&x_wide, &w_wide, EPS, &mut want, &mut want_rstd);
        let (y, rstd) = (Buffer::poisoned::<u16>(rows * hidden), Buffer::poisoned::<f32>(rows));
        let (x, w) = (Buffer::new(&x), Buffer::new(&w));
        let args = args![&x, &w, &y, &rstd, hidden as i32, EPS];
        launch("rmsnorm_forward_bf16", rows as u32, threads(hidden), 0, args).unwrap();
        assert_close(&format!("y of {rows} x {hidden}"), &read_bf16(&y), &want, BF16);
        assert_close("rstd", &rstd.read::<f32>().unwrap(), &want_rstd, F32);
    }
}

#[test]
fn forward_with_the_residual_added() {
    for (rows, hidden) in shapes() {
        let n = rows * hidden;
        let ((x, x_wide), (delta, delta_wide), (w, w_wide)) =
            (randoms_bf16(1, n), randoms_bf16(2, n), randoms_bf16(3, hidden));
        // The stream is kept in bf16, and what is kept is what is normalised.
        let want_sum: Vec<f32> = x_wide.iter().zip(&delta_wide).map(|(x, d)| bf16::from_f32(x + d).to_f32()).collect();
        let (mut want, mut want_rstd) = (vec![0.0; n], vec![0.0; rows]);
        rmsnorm::forward(&want_sum, &w_wide, EPS, &mut want, &mut want_rstd);
        let (x, delta, w) = (Buffer::new(&x), Buffer::new(&delta), Buffer::new(&w));
        let (sum, y, rstd) = (Buffer::poisoned::<u16>(n), Buffer::poisoned::<u16>(n), Buffer::poisoned::<f32>(rows));
        for sum in [&sum, &x] {
            let args = args![&x, &delta, &w, sum, &y, &rstd, hidden as i32, EPS];
            launch("rmsnorm_forward_add_bf16", rows as u32, threads(hidden), 0, args).unwrap();
            assert_eq!(read_bf16(sum), want_sum, "sum of {rows} x {hidden}");
            assert_close("y", &read_bf16(&y), &want, BF16);
            assert_close("rstd", &rstd.read::<f32>().unwrap(), &want_rstd, F32);
        }
    }
}

#[test]
fn backward() {
    for ((rows, hidden), grid) in shapes().into_iter().zip([1, 7, 5, 1, 2, 3, 16, 40]) {
        let n = rows * hidden;
        let ((dy, dy_wide), (x, x_wide), (w, w_wide)) =
            (randoms_bf16(1, n), randoms_bf16(2, n), randoms_bf16(3, hidden));
        let ((dx, mut want_dx), (dw, mut want_dw)) = (randoms_bf16(4, n), randoms_bf16(5, hidden));
        let dw_wide = Buffer::new(&want_dw);
        let mut rstd = vec![0.0; rows];
        rmsnorm::forward(&x_wide, &w_wide, EPS, &mut vec![0.0; n], &mut rstd);
        rmsnorm::backward(&dy_wide, &x_wide, &w_wide, &rstd, &mut want_dx, &mut want_dw);

        let (dx, dw, partial) = (Buffer::new(&dx), Buffer::new(&dw), Buffer::poisoned::<f32>(grid * hidden));
        let (dy, x, w, rstd) = (Buffer::new(&dy), Buffer::new(&x), Buffer::new(&w), Buffer::new(&rstd));
        let args = args![&dy, &x, &w, &rstd, &dx, &partial, rows as i32, hidden as i32];
        launch("rmsnorm_backward_bf16", grid as u32, threads(hidden), 0, args).unwrap();
        assert_close(&format!("dx of {rows} x {hidden}"), &read_bf16(&dx), &want_dx, BF16);
        // Sums over the rows: in units of their largest term.
        let noise = F32 * rows as f32;
        for (kernel, dw) in [("rmsnorm_backward_dw_bf16", &dw), ("rmsnorm_backward_dw_f32", &dw_wide)] {
            let columns = hidden.div_ceil(64) as u32;
            launch(kernel, columns, (8, 32), 0, args![&partial, dw, grid as i32, hidden as i32]).unwrap();
        }
        assert_close("dw in bf16", &read_bf16(&dw), &want_dw, BF16 + noise);
        assert_close("dw in f32", &dw_wide.read::<f32>().unwrap(), &want_dw, noise);
    }
}
