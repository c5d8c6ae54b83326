//! The case of group advantages.

use super::{Scale, advantages, cuda};
use crate::device::Result;
use crate::ops::case::{Case, F32, OpCase, Size, Trial, Work, randoms};
use std::fmt;

pub const CASES: &[&dyn Case] = &[&ADVANTAGES];

const ADVANTAGES: OpCase<Groups> = OpCase { op: "advantage", pass: "", shapes, run };

const EPS: f32 = 1e-4;

struct Groups {
    sizes: Vec<usize>,
    scale: Scale,
}

impl fmt::Display for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (groups, rewards) = (self.sizes.len(), self.sizes.iter().sum::<usize>());
        write!(f, "{groups} groups of {rewards} by {:?}", self.scale)
    }
}

/// Groups of one, two, constant rewards, more than a warp, none, and a constant whose mean is off in the last bit; one reward alone,
/// which has no deviation.
fn shapes(size: Size) -> Vec<Groups> {
    let groups = match size {
        Size::Ragged => vec![vec![1, 2, 8, 8, 40, 0, 7, 100], vec![1]],
        Size::Model => vec![vec![8; 512]],
        Size::Peers | Size::Task => vec![vec![8; 4096]],
    };
    let scaled = |sizes: Vec<usize>| {
        [Scale::Group, Scale::Batch, Scale::None].map(|scale| Groups { sizes: sizes.clone(), scale })
    };
    groups.into_iter().flat_map(scaled).collect()
}

fn run(Groups { sizes, scale }: &Groups, t: &mut Trial<'_>) -> Result<()> {
    let n = sizes.iter().sum::<usize>();
    let mut rewards = randoms(9, n);
    for (constant, value) in [(3..11, 1.0), (59..66, 0.1)] {
        rewards.get_mut(constant).into_iter().for_each(|group| group.fill(value));
    }
    let wide: Vec<f64> = rewards.iter().map(|&r| f64::from(r)).collect();
    let mut want = Vec::new();
    t.cpu(Work::Bytes(16 * n), || want = advantages(&wide, sizes, *scale, f64::from(EPS)));
    let Some(gpu) = t.gpu else { return Ok(()) };
    let start: Vec<u32> = (0..=sizes.len()).map(|g| sizes[..g].iter().sum::<usize>() as u32).collect();
    let (reward, start, got) = (gpu.tensor(&rewards)?, gpu.tensor(&start)?, gpu.uninit::<f32>(n)?);
    t.cuda(gpu, Work::Bytes(8 * n), || cuda::advantages(gpu, &reward, &start, *scale, EPS, &got))?;
    let want: Vec<f32> = want.into_iter().map(|a| a as f32).collect();
    t.close("advantages", &got, &want, F32)?;
    for equal in [0..1, 3..11, 59..66] {
        if let (Some(part), Some(want)) = (got.part(equal.clone()), want.get(equal)) {
            t.equal("equal rewards", &part, want)?;
        }
    }
    Ok(())
}
