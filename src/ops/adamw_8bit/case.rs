//! The cases of AdamW with 8-bit moments.

use super::cuda::{self, Kept, Tensor8};
use super::{BLOCK, Quantized, Stochastic, maps, quantize, step};
use crate::device::{Gpu, Result, Tensor};
use crate::ops::adamw::AdamW;
use crate::ops::case::{Bf16s, Case, F32, OpCase, Size, Trial, Work, randoms};
use half::bf16;
use std::fmt;

pub const CASES: &[&dyn Case] = &[&MASTER, &STOCHASTIC];

const MASTER: OpCase<Length> = OpCase { op: "adamw_8bit", pass: "", shapes: lengths, run: master };
const STOCHASTIC: OpCase<Length> = OpCase { pass: "stochastic", run: stochastic, ..MASTER };

const OPTIMIZER: AdamW =
    AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.5, step: 3 };
const ROUNDING: Stochastic = Stochastic { seed: 77 << 33, stream: 5, first: 1024 };

/// So many parameters.
struct Length(usize);

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A part of a block, some of them, more than a thread block has.
fn lengths(size: Size) -> Vec<Length> {
    let lengths = match size {
        Size::Ragged => vec![8, 256, 1000, 20_008],
        Size::Model | Size::Task => vec![1 << 24],
        Size::Peers => vec![494_000_000],
    };
    lengths.into_iter().map(Length).collect()
}

/// Codes and scales.
struct Codes {
    codes: Vec<u8>,
    absmax: Vec<f32>,
}

impl Codes {
    fn of(x: &[f32], map: &[f32; 256]) -> Codes {
        let mut to = Codes { codes: vec![0; x.len()], absmax: vec![0.0; x.len().div_ceil(BLOCK)] };
        quantize(map, x, to.mutable());
        to
    }

    fn mutable(&mut self) -> Quantized<'_> {
        Quantized { codes: &mut self.codes, absmax: &mut self.absmax }
    }

    fn on(&self, gpu: &Gpu) -> Result<(Tensor<u8>, Tensor<f32>)> {
        Ok((gpu.tensor(&self.codes)?, gpu.tensor(&self.absmax)?))
    }
}

fn master(length: &Length, t: &mut Trial<'_>) -> Result<()> {
    run(length.0, None, t)
}

fn stochastic(length: &Length, t: &mut Trial<'_>) -> Result<()> {
    run(length.0, Some(ROUNDING), t)
}

fn run(n: usize, rounding: Option<Stochastic>, t: &mut Trial<'_>) -> Result<()> {
    let (g, start) = (randoms(2, n), Bf16s::randoms(1, n));
    let [signed, unsigned] = maps();
    let squares: Vec<f32> = randoms(4, n).iter().map(|v| v * v).collect();
    let (before_m, before_v) = (Codes::of(&randoms(3, n), signed), Codes::of(&squares, unsigned));
    let (mut p, mut m, mut v) =
        (start.wide().to_vec(), Codes::of(&randoms(3, n), signed), Codes::of(&squares, unsigned));
    let bytes = Work::Bytes(if rounding.is_some() { 12 } else { 18 } * n);
    t.cpu(bytes, || step(&OPTIMIZER, true, &mut p, &g, [m.mutable(), v.mutable()], rounding));
    let Some(gpu) = t.gpu else { return Ok(()) };
    let (on_m, on_v, maps) = (before_m.on(gpu)?, before_v.on(gpu)?, gpu.tensor(maps().as_flattened())?);
    let (weights, copy) = (gpu.tensor(start.wide())?, start.on(gpu)?);
    let (g, scale) = (gpu.tensor(&g)?, gpu.tensor(&[OPTIMIZER.grad_scale])?);
    let kept = rounding.map_or(Kept::Master(&weights), Kept::Copy);
    let of = Tensor8 { copy: &copy, kept, g: &g, maps: &maps, scale: &scale };
    let moments = [&on_m, &on_v].map(|(codes, absmax)| cuda::Quantized { codes, absmax });
    t.cuda(gpu, bytes, || cuda::step(gpu, &OPTIMIZER, true, of, moments))?;
    if !t.compares() {
        return Ok(());
    }
    match rounding {
        None => {
            t.close("weights", &weights, &p, F32)?;
            let nearest: Vec<f32> = gpu.read(&weights)?.iter().map(|p| bf16::from_f32(*p).to_f32()).collect();
            t.equal("the copy", &copy, &nearest)?;
        }
        // Where the weight itself differs in its last bit, it may be rounded to the other side.
        Some(_) => t.close("weights", &copy, &p, 1.0 / 128.0)?,
    }
    for (what, (codes, absmax), want) in [("m", &on_m, &m), ("v", &on_v, &v)] {
        t.close(&format!("scales of {what}"), absmax, &want.absmax, F32)?;
        let found = gpu.read(&**codes)?;
        // Next to the middle between two codes, the last bit decides.
        let off = found.iter().zip(&want.codes).map(|(a, b)| u32::from(a.abs_diff(*b)));
        let (most, others) = (off.clone().max().unwrap_or(0), off.filter(|off| *off > 0).count());
        t.note(f64::from(most), || format!("a code of {what} is off by {most}"));
        t.note(others as f64 / (1.0 + 0.01 * n as f64), || format!("{others} of {n} codes of {what} are others"));
    }
    Ok(())
}
