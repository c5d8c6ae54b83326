//! The cases of the inner products of per-sample gradients. Errors are in units of the gradients' lengths.

use super::{GramMethod, add_parts, cuda, flops, gram, slab, slab_tiles};
use crate::device::{Result, Slice};
use crate::ops::case::{BF16, Bf16s, Case, HIDDEN, OpCase, PEERS_ROWS, Size, Sizes, Trial, Work};
use crate::ops::linear::{self, WeightGrad};
use std::fmt;
use std::ops::Range;

pub const CASES: &[&dyn Case] = &[&BOTH_METHODS, &SLAB];

const BOTH_METHODS: OpCase<SampleShape> = OpCase { op: "gradient_cosine", pass: "", shapes, run: both_methods };
const SLAB: OpCase<Sizes<2>> = OpCase { op: "gradient_cosine", pass: "slab", shapes: slabs, run: slab_gram };

/// What no product is off by where nothing was rounded.
const EXACT: f64 = 1e-5;

/// Tokens of the samples, inputs, and which columns of how many outputs.
struct SampleShape {
    lengths: Vec<usize>,
    n_in: usize,
    columns: Range<usize>,
    out: usize,
}

impl fmt::Display for SampleShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, samples) = (self.lengths.iter().sum::<usize>(), self.lengths.len());
        write!(f, "{samples} samples of {rows}x{}x{}", self.n_in, self.columns.len())
    }
}

/// No tokens among them; one sample; more tiles of ghost products than blocks.
fn shapes(size: Size) -> Vec<SampleShape> {
    let batch = |lengths: &[usize], n_in, columns, out| SampleShape { lengths: lengths.to_vec(), n_in, columns, out };
    match size {
        Size::Ragged => vec![
            batch(&[3, 0, 140], 24, 8..24, 40),
            batch(&[1], 8, 0..16, 16),
            batch(&[130, 0, 5], 40, 16..24, 24),
            batch(&[&[260, 129, 3][..], &[1; 13]].concat(), 8, 0..8, 8),
        ],
        Size::Model => vec![batch(&[512; 16], 896, 0..896, 1152)],
        Size::Peers => vec![batch(&[PEERS_ROWS / 32; 32], HIDDEN[1], 0..HIDDEN[1], HIDDEN[1])],
        // `uncouple bench gradient-cosine` times it.
        Size::Task => Vec::new(),
    }
}

fn both_methods(b: &SampleShape, t: &mut Trial<'_>) -> Result<()> {
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (n_in, columns, out) = (b.n_in, &b.columns, b.out);
    let (samples, rows) = (b.lengths.len(), b.lengths.iter().sum::<usize>());
    let ends: Vec<usize> = (1..=samples).map(|i| b.lengths[..i].iter().sum()).collect();
    let (x, dy, mut want) =
        (Bf16s::randoms(1, rows * n_in), Bf16s::randoms(2, rows * out), vec![0.0; samples * samples]);
    t.cpu(Work::Flops(flops(GramMethod::Materialized, rows, samples, n_in, columns.len())), || {
        let wide = WeightGrad { dy: dy.wide(), out, first: 0, x: x.wide(), in_features: n_in };
        slab_tiles(columns.clone(), n_in, samples)
            .for_each(|tile| add_parts(&mut want, samples, &slab(wide, tile, &ends)));
    });
    let (x, dy, batch) = (x.on(gpu)?, dy.on(gpu)?, cuda::Samples::new(gpu, ends)?);
    let g = linear::cuda::WeightGrad { dy: &dy, out, first: 0, x: &x, in_features: n_in };
    let found = gpu.tensor(&vec![1.0f64; samples * samples])?;
    let work = Work::Flops(flops(GramMethod::Ghost, rows, samples, n_in, columns.len()));
    t.cuda(gpu, work, || batch.add(gpu, GramMethod::Ghost, g, columns.clone(), &found))?;
    compare("ghost products", &found, &want, EXACT, t)?;
    if t.compares() {
        let found = gpu.tensor(&vec![1.0f64; samples * samples])?;
        batch.add(gpu, GramMethod::Materialized, g, columns.clone(), &found)?;
        compare("slabs", &found, &want, f64::from(BF16), t)?;
    }
    Ok(())
}

/// Samples, and elements of each. The most samples there are; the last has more steps than blocks.
fn slabs(size: Size) -> Vec<Sizes<2>> {
    let shapes = match size {
        Size::Ragged => vec![[1, 8], [5, 200], [16, 1096], [33, 72], [64, 640], [2, 70_008]],
        Size::Model => vec![[16, 896 * 896]],
        Size::Peers => vec![[32, HIDDEN[1] * HIDDEN[1]]],
        Size::Task => vec![[16, 1 << 14]],
    };
    shapes.into_iter().map(Sizes).collect()
}

fn slab_gram(Sizes([samples, n]): &Sizes<2>, t: &mut Trial<'_>) -> Result<()> {
    let (g, mut parts) = (Bf16s::randoms(7, samples * n), Vec::new());
    t.cpu(Work::Flops((samples * samples * n) as f64), || parts = gram(g.wide(), *samples));
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (g, found) = (g.on(gpu)?, gpu.tensor(&vec![1.0f64; samples * samples])?);
    t.cuda(gpu, Work::Bytes(2 * samples * n), || cuda::slab_gram(gpu, &g, *samples, &found))?;
    let mut want = vec![0.0; samples * samples];
    add_parts(&mut want, *samples, &parts);
    compare("products", &found, &want, EXACT, t)
}

/// `got` has been added to a matrix of ones.
fn compare(what: &str, got: &Slice<f64>, want: &[f64], allowed: f64, t: &mut Trial<'_>) -> Result<()> {
    let Some(gpu) = t.gpu.filter(|_| t.compares()) else { return Ok(()) };
    let samples = want.len().isqrt();
    for (at, (got, want_at)) in gpu.read(got)?.iter().zip(want).enumerate() {
        let unit = (want[at / samples * (samples + 1)] * want[at % samples * (samples + 1)]).sqrt();
        let error = (got - 1.0 - want_at).abs() / (allowed * unit.max(1.0));
        t.note(error, || format!("{what}: element {at} is {got}, should be {want_at} more than 1"));
    }
    Ok(())
}
