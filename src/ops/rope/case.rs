//! The cases of rotary embeddings.

use super::{Tables, cuda, rotate};
use crate::device::Result;
use crate::ops::case::{BF16, Bf16s, Case, OpCase, PEERS_ROWS, Size, TASK_ROWS, Trial, Work};
use crate::ops::philox::block;
use std::fmt;

pub const CASES: &[&dyn Case] = &[&ROTATE];

const ROTATE: OpCase<Rotation> = OpCase { op: "rope", pass: "", shapes, run };

struct Rotation {
    rows: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    inverse: bool,
}

impl fmt::Display for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rotation { rows, heads, kv_heads, head_dim, inverse } = self;
        write!(f, "{rows}x{heads}+{kv_heads} hd{head_dim}{}", if *inverse { " inverse" } else { "" })
    }
}

fn shapes(size: Size) -> Vec<Rotation> {
    let shapes = match size {
        Size::Ragged => vec![(1, 1, 1, 16), (257, 2, 1, 64), (5, 12, 2, 128), (33, 14, 2, 64)],
        Size::Model => vec![(4096, 16, 2, 128)],
        Size::Peers => vec![(PEERS_ROWS, 16, 2, 128)],
        Size::Task => vec![(TASK_ROWS, 14, 2, 64)],
    };
    let both_ways = |(rows, heads, kv_heads, head_dim)| {
        [false, true].map(|inverse| Rotation { rows, heads, kv_heads, head_dim, inverse })
    };
    shapes.into_iter().flat_map(both_ways).collect()
}

fn run(&Rotation { rows, heads, kv_heads, head_dim, inverse }: &Rotation, t: &mut Trial<'_>) -> Result<()> {
    let (row_len, turned, tables) =
        ((heads + 2 * kv_heads) * head_dim, heads + kv_heads, Tables::new(1e6, head_dim, 600));
    let position: Vec<u32> = (0..rows as u64).map(|i| block(5, 0, i)[0] % 600).collect();
    let (x, n) = (Bf16s::randoms(1, rows * row_len), rows * turned * head_dim);
    let want = t.cpu_in_place(Work::Bytes(8 * n), &x, |x| rotate(x, row_len, turned, &position, &tables, inverse));
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (x, position, tables) = (x.on(gpu)?, gpu.tensor(&position)?, cuda::Tables::new(gpu, &tables)?);
    t.cuda(gpu, Work::Bytes(4 * n), || cuda::rotate(gpu, &x, row_len, turned, &position, &tables, inverse))?;
    t.close("rows", &x, &want, BF16)
}
