//! The embedding's cases.

use super::cuda::{self, Moves, Tokens};
use crate::device::Result;
use crate::ops::case::{BF16, Bf16s, Case, HIDDEN, OpCase, PEERS_ROWS, Size, Sizes, Trial, Work, matrices};
use crate::ops::philox::block;
use half::bf16;

pub const CASES: &[&dyn Case] = &[&FORWARD, &PLACE, &BACKWARD];

const FORWARD: OpCase<Sizes<2>> = OpCase { op: "embedding", pass: "forward", shapes, run: forward };
const PLACE: OpCase<Sizes<2>> = OpCase { pass: "place", run: place, ..FORWARD };
const BACKWARD: OpCase<Sizes<2>> = OpCase { pass: "backward", run: backward, ..FORWARD };

fn shapes(size: Size) -> Vec<Sizes<2>> {
    matrices(size, HIDDEN)
}

/// A vocabulary, the peers' a whole one, and tokens of it: of a small one low ones often, most of the others never.
fn tokens(rows: usize) -> (usize, Vec<u32>) {
    let vocab = if rows < PEERS_ROWS { 37 } else { 151_936 };
    let token = |i: u64| {
        let t = u64::from(block(3, 0, i)[0]) % vocab;
        (t * t / vocab) as u32
    };
    (vocab as usize, (0..rows as u64).map(token).collect())
}

fn forward(Sizes([rows, hidden]): &Sizes<2>, t: &mut Trial<'_>) -> Result<()> {
    let (n, (vocab, tokens)) = (rows * hidden, tokens(*rows));
    let (table, mut want) = (Bf16s::randoms(1, vocab * hidden), vec![0.0; n]);
    t.cpu(Work::Bytes(8 * n), || super::forward(&tokens, table.wide(), *hidden, &mut want));
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (tokens, table, y) = (Tokens::new(gpu, &tokens, vocab)?, table.on(gpu)?, gpu.uninit::<bf16>(n)?);
    t.cuda(gpu, Work::Bytes(4 * n), || cuda::forward(gpu, &tokens, &table, *hidden, &y))?;
    t.equal("y", &y, &want)
}

/// Every other row of a table, from the last row on.
fn place(Sizes([rows, hidden]): &Sizes<2>, t: &mut Trial<'_>) -> Result<()> {
    let (y, table) = (Bf16s::randoms(1, rows * hidden), Bf16s::randoms(2, 2 * rows * hidden));
    let moves: Vec<(u32, u32)> = (0..*rows as u32).map(|i| (*rows as u32 - 1 - i, 2 * i + 1)).collect();
    let mut want = vec![0.0; 2 * rows * hidden];
    t.cpu_before(|| want.copy_from_slice(table.wide()));
    t.cpu(Work::Bytes(8 * rows * hidden), || {
        for (from, to) in &moves {
            let (from, to) = (*from as usize * hidden, *to as usize * hidden);
            want[to..to + hidden].copy_from_slice(&y.wide()[from..from + hidden]);
        }
    });
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (y, table, moves) = (y.on(gpu)?, table.on(gpu)?, Moves::new(gpu, &moves, [*rows, 2 * rows])?);
    t.cuda(gpu, Work::Bytes(4 * rows * hidden), || cuda::place(gpu, &y, &moves, *hidden, &table))?;
    t.equal("the table", &table, &want)
}

fn backward(Sizes([rows, hidden]): &Sizes<2>, t: &mut Trial<'_>) -> Result<()> {
    let (n, (vocab, tokens)) = (rows * hidden, tokens(*rows));
    let (dy, d_table) = (Bf16s::randoms(1, n), Bf16s::randoms(2, vocab * hidden));
    let mut want = d_table.wide().to_vec();
    t.cpu(Work::Bytes(4 * n), || super::backward(&tokens, dy.wide(), *hidden, &mut want));
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (tokens, dy) = (Tokens::new(gpu, &tokens, vocab)?, dy.on(gpu)?);
    let (d_wide, d_narrow) = (gpu.tensor(d_table.wide())?, d_table.on(gpu)?);
    t.cuda(gpu, Work::Bytes(2 * n), || cuda::backward(gpu, &tokens, &dy, *hidden, &d_wide))?;
    cuda::backward(gpu, &tokens, &dy, *hidden, &d_narrow)?;
    // The same sums in the same order.
    t.equal("f32", &d_wide, &want)?;
    t.close("bf16", &d_narrow, &want, BF16)
}
