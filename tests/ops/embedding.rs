//! Embedding against a plain gather and scatter.

use crate::common;

use common::numeric::{added, assert_close, assert_gradient, below, dot, values, wide};
use uncouple::ops::embedding;

#[test]
fn gathers_rows_and_scatters_their_gradients() {
    for (seed, (tokens, vocab, hidden)) in [(1, 1, 1), (1, 7, 8), (257, 50, 24), (40, 3, 17)].into_iter().enumerate() {
        let seed = seed as u64 * 10;
        let ids: Vec<u32> = (0..tokens).map(|i| below(seed, i, vocab) as u32).collect();
        let table = values(seed, vocab * hidden, 1.0);
        let mut y = vec![f32::NAN; tokens * hidden];
        embedding::forward(&ids, &table, hidden, &mut y);
        for (t, id) in ids.iter().enumerate() {
            assert_eq!(y[t * hidden..][..hidden], table[*id as usize * hidden..][..hidden]);
        }

        let dy = values(seed + 1, tokens * hidden, 1.0);
        let before = values(seed + 2, table.len(), 0.1);
        let mut d_table = before.clone();
        embedding::backward(&ids, &dy, hidden, &mut d_table);
        let mut want = vec![0.0; table.len()];
        for (t, id) in ids.iter().enumerate() {
            (0..hidden).for_each(|j| want[*id as usize * hidden + j] += f64::from(dy[t * hidden + j]));
        }
        assert_close("d_table", &added(&d_table, &before), &want, 1e-6);
        let objective = |table: &[f64]| -> f64 {
            let rows = ids.iter().flat_map(|id| &table[*id as usize * hidden..][..hidden]);
            rows.zip(&dy).map(|(y, g)| y * f64::from(*g)).sum()
        };
        assert_gradient("table", objective, &wide(&table), &want);
        assert!(dot(&want, &want) > 0.0);
    }
}
