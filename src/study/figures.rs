//! Learning curves as SVG files.

use super::StudyError;
use super::curves::Curve;
use crate::files;
use crate::report::plot::{self, Band};
use std::path::Path;

/// Draws every curve of two points or more into `folder`: (what it shows, file name).
///
/// # Errors
/// If the folder or a file cannot be written.
pub fn write(folder: &Path, curves: &[Curve]) -> Result<Vec<(String, String)>, StudyError> {
    let mut written = Vec::new();
    for curve in curves {
        let bands: Vec<Band> = curve.lines.iter().map(band).collect();
        let drawn = bands.iter().any(|band| band.points.len() > 1);
        let Some(svg) = plot::bands(&bands, ["GRPO iteration", curve.y]).filter(|_| drawn) else { continue };
        let name =
            if curve.start.is_empty() { curve.title.clone() } else { format!("{}, {}", curve.start, curve.title) };
        let file = format!("{}.svg", file_name(&name));
        files::write_file(&folder.join(&file), |w| w.write_all(svg.as_bytes()))?;
        written.push((name, file));
    }
    Ok(written)
}

fn band(line: &super::curves::CurveLine) -> Band {
    let point =
        |p: &super::curves::CurvePoint| plot::Dot { x: p.iteration as f64, y: p.value.value, interval: p.value.ci };
    Band { name: line.variant.clone(), points: line.points.iter().map(point).collect() }
}

/// Lower case, with `-` for all that is no letter or digit.
fn file_name(title: &str) -> String {
    let words = title.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}
