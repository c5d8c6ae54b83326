//! AdamW's two moments of what is trained: in f32, or as codes of 8 bits ([`crate::ops::adamw_8bit`]).

use super::TrainError;
use crate::config::MomentDtype;
use crate::model::Params;
use crate::model::checkpoint::{self, SaveDtype};
use crate::model::params::Layout;
use crate::ops::adamw_8bit::BLOCK;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

const FILES: [&str; 2] = ["adamw_m.safetensors", "adamw_v.safetensors"];

/// First and second moments.
#[derive(Debug, Clone, PartialEq)]
pub enum Moments {
    /// In f32.
    F32([Params; 2]),
    /// As codes.
    Dynamic8([Codes; 2]),
}

/// A moment as codes, and the scales of their blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    /// Where each tensor lies.
    pub layout: Arc<Layout>,
    /// A code for each element.
    pub codes: Vec<u8>,
    /// A scale for each block, tensor by tensor.
    pub absmax: Vec<f32>,
}

/// Where the scales of each of the layout's tensors are.
pub(super) fn scales(layout: &Layout) -> Vec<Range<usize>> {
    let mut at = 0;
    let of = |entry: &crate::model::params::TensorEntry| {
        let start = at;
        at += entry.range.len().div_ceil(BLOCK);
        start..at
    };
    layout.entries.iter().map(of).collect()
}

impl Codes {
    fn zeros(layout: &Arc<Layout>) -> Codes {
        let blocks = scales(layout).last().map_or(0, |last| last.end);
        Codes { layout: layout.clone(), codes: vec![0; layout.len], absmax: vec![0.0; blocks] }
    }
}

impl Moments {
    /// Moments of 0.
    pub fn zeros(dtype: MomentDtype, layout: &Arc<Layout>) -> Moments {
        match dtype {
            MomentDtype::F32 => Moments::F32([(); 2].map(|()| Params::zeros(layout.clone()))),
            MomentDtype::Dynamic8 => Moments::Dynamic8([(); 2].map(|()| Codes::zeros(layout))),
        }
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        match self {
            Moments::F32(both) => both.iter_mut().for_each(|m| m.flat.fill(0.0)),
            // A scale of 0 makes every code 0.
            Moments::Dynamic8(both) => both.iter_mut().for_each(|m| m.absmax.fill(0.0)),
        }
    }

    /// Writes the files of a checkpoint into `dir`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), TrainError> {
        for (i, file) in FILES.iter().map(|name| dir.join(name)).enumerate() {
            match self {
                Moments::F32(both) => checkpoint::save_params(&file, &both[i], SaveDtype::F32)?,
                Moments::Dynamic8(both) => {
                    let Codes { layout, codes, absmax } = &both[i];
                    checkpoint::save_codes(&file, layout, codes, absmax)?;
                }
            }
        }
        Ok(())
    }

    /// Reads them back.
    ///
    /// # Errors
    /// If a file is missing, damaged, or holds moments of another kind or size.
    pub fn load(dir: &Path, dtype: MomentDtype, layout: &Arc<Layout>) -> Result<Moments, TrainError> {
        let files = FILES.map(|name| dir.join(name));
        Ok(match dtype {
            MomentDtype::F32 => {
                let [m, v] = files.map(|file| checkpoint::load_params(&file, layout));
                Moments::F32([m?, v?])
            }
            MomentDtype::Dynamic8 => {
                let [m, v] = files.map(|file| {
                    let mut of = Codes::zeros(layout);
                    checkpoint::load_codes(&file, layout, &mut of.codes, &mut of.absmax).map(|()| of)
                });
                Moments::Dynamic8([m?, v?])
            }
        })
    }
}
