//! A measurement as files: JSON for programs, safetensors for matrices, a page of heat maps for eyes.

use super::gram::Grams;
use super::measure::Measurement;
use super::strata::Means;
use crate::files::{self, FileError};
use crate::report::heatmap::{self, Map};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use std::path::Path;

/// The part of a run folder that holds the probe set and the measurements.
pub const FOLDER: &str = "coupling";

/// Writes `STEM.json`, `STEM.safetensors` and `STEM.html` into `folder`.
///
/// # Errors
/// If a file cannot be written.
pub fn write(folder: &Path, stem: &str, title: &str, grams: &Grams, m: &Measurement) -> Result<(), FileError> {
    let file = |extension: &str| folder.join(format!("{stem}.{extension}"));
    let json = format!("{:#}\n", serde_json::json!(m));
    files::write_file(&file("json"), |w| w.write_all(json.as_bytes()))?;
    let failed = |e| FileError::new("write", file("safetensors"), std::io::Error::other(e));
    let tensors = tensors(grams, m).map_err(failed)?;
    files::write_file(&file("safetensors"), |w| w.write_all(&tensors))?;
    let page = page(title, grams, m);
    files::write_file(&file("html"), |w| w.write_all(page.as_bytes()))
}

/// The matrices `cosine` and `inner` `[samples, samples]` of a measurement that [`write()`] left.
///
/// # Errors
/// If the file cannot be read, or lacks a matrix.
pub fn read(folder: &Path, stem: &str) -> Result<[Vec<f64>; 2], FileError> {
    let file = folder.join(format!("{stem}.safetensors"));
    let bytes = files::read(&file, files::MOST_KEPT).map_err(|e| FileError::new("read", &file, e))?;
    let failed = |e: SafeTensorError| FileError::new("read", &file, std::io::Error::other(e));
    let tensors = SafeTensors::deserialize(&bytes).map_err(failed)?;
    let matrix = |name: &str| -> Result<Vec<f64>, FileError> {
        let data = tensors.tensor(name).map_err(failed)?.data();
        Ok(data.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
    };
    Ok([matrix("cosine")?, matrix("inner")?])
}

/// The matrices, f64: `inner`, `cosine`, `projection`, `state` `[samples, samples]`, and `inner.NAME` of each tensor with A = 1.
fn tensors(grams: &Grams, m: &Measurement) -> Result<Vec<u8>, SafeTensorError> {
    let bytes = |matrix: &[f64]| matrix.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut all = vec![
        ("inner".to_string(), bytes(&m.inner_matrix)),
        ("cosine".into(), bytes(&m.cosine_matrix)),
        ("projection".into(), bytes(&m.projection_matrix)),
        ("state".into(), bytes(&grams.state)),
    ];
    all.extend(grams.tensors.iter().map(|t| (format!("inner.{}", t.name), bytes(&t.gram))));
    let view = |(name, bytes)| -> Result<_, SafeTensorError> {
        Ok((name, TensorView::new(Dtype::F64, vec![m.samples, m.samples], bytes)?))
    };
    let views = all.iter().map(|(name, bytes)| view((name, &bytes[..]))).collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize(views, None)
}

fn page(title: &str, grams: &Grams, m: &Measurement) -> String {
    // Positive samples first, then negative ones; within a class neighbours are alike in state.
    let order: Vec<usize> =
        [&m.positive, &m.negative].into_iter().flat_map(|c| by_state(c, &grams.state, m.samples)).collect();
    let square = |title: &str, matrix: &[f64]| Map {
        title: title.into(),
        rows: order.iter().map(|i| format!("{}{i}", if m.positive.contains(i) { "+" } else { "−" })).collect(),
        columns: order.iter().map(usize::to_string).collect(),
        values: order.iter().flat_map(|i| order.iter().map(move |j| matrix[i * m.samples + j])).collect(),
    };
    let groups = |title: &str, groups: &[super::ParameterGroup]| Map {
        title: title.into(),
        rows: groups.iter().map(|g| g.name.clone()).collect(),
        columns: ["pp", "nn", "pn"].map(String::from).to_vec(),
        values: groups.iter().flat_map(|g| three(&g.cosine)).collect(),
    };
    heatmap::page(
        title,
        &[
            square("Gradient cosine, samples by class and state", &m.cosine_matrix),
            square("State cosine", &grams.state),
            groups("Gradient cosine by layer", &m.layers),
            groups("Gradient cosine by kind of weight", &m.kinds),
        ],
    )
}

fn three(m: &Means) -> [f64; 3] {
    [m.pp.mean, m.nn.mean, m.pn.mean]
}

/// Each sample is followed by the one whose state is most like its own, of those left.
fn by_state(class: &[usize], state: &[f64], n: usize) -> Vec<usize> {
    let mut left = class.to_vec();
    let mut order: Vec<usize> = Vec::new();
    while !left.is_empty() {
        let alike = |i: usize| order.last().map_or(0.0, |last| state[last * n + i]);
        let at = (0..left.len()).rev().max_by(|a, b| alike(left[*a]).total_cmp(&alike(left[*b]))).unwrap_or(0);
        order.push(left.remove(at));
    }
    order
}
