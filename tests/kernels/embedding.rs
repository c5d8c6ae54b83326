use crate::*;
use kernel_emulator::{args, launch};
use std::collections::BTreeMap;
use uncouple::ops::embedding;

const VOCAB: usize = 37;

fn tokens(n: usize) -> Vec<u32> {
    // Squared, so that low ones come often and most of the others never.
    (0..n as u64).map(|i| block(3, 0, i)[0] % VOCAB as u32).map(|t| t * t / VOCAB as u32).collect()
}

#[test]
fn forward() {
    for (rows, hidden) in shapes() {
        let (table, wide) = randoms_bf16(1, VOCAB * hidden);
        let tokens = tokens(rows);
        let mut want = vec![0.0; rows * hidden];
        embedding::forward(&tokens, &wide, hidden, &mut want);
        let (tokens, table, y) = (Buffer::new(&tokens), Buffer::new(&table), Buffer::poisoned::<u16>(rows * hidden));
        let args = args![&tokens, &table, &y, rows as i32, hidden as i32];
        launch("embedding_forward_bf16", blocks(rows * hidden / 8), 256, 0, args).unwrap();
        assert_eq!(read_bf16(&y), want, "{rows} x {hidden}");
    }
}

#[test]
fn backward() {
    for (rows, hidden) in shapes() {
        let (dy, dy_wide) = randoms_bf16(1, rows * hidden);
        let tokens = tokens(rows);
        let (d_table, mut want) = randoms_bf16(2, VOCAB * hidden);
        let d_wide = Buffer::new(&want);
        embedding::backward(&tokens, &dy_wide, hidden, &mut want);

        let mut places: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (i, &token) in tokens.iter().enumerate() {
            places.entry(token).or_default().push(i as u32);
        }
        let mut start = vec![0u32];
        places.values().for_each(|p| start.push(start[start.len() - 1] + p.len() as u32));
        let id: Vec<u32> = places.keys().copied().collect();
        let order: Vec<u32> = places.values().flatten().copied().collect();
        let (id, start, order) = (Buffer::new(&id), Buffer::new(&start), Buffer::new(&order));
        let (dy, d_table) = (Buffer::new(&dy), Buffer::new(&d_table));
        let grid = (places.len() as u32, hidden.div_ceil(1024) as u32);
        for (kernel, d_table) in [("embedding_backward_bf16", &d_table), ("embedding_backward_f32", &d_wide)] {
            launch(kernel, grid, 128, 0, args![&id, &start, &order, &dy, d_table, hidden as i32]).unwrap();
        }
        // The same sums in the same order.
        assert_eq!(d_wide.read::<f32>().unwrap(), want, "{rows} x {hidden}");
        assert_close("in bf16", &read_bf16(&d_table), &want, BF16);
    }
}
