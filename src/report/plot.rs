//! One learning curve as an SVG without words: the page around it sets titles and colours.

use plotters::prelude::*;

/// The line's colour; legible on light and dark paper. Axes and text are coloured by the page's style sheet.
const LINE: RGBColor = RGBColor(59, 130, 246);
const GRID: RGBColor = RGBColor(128, 128, 128);
/// Three units to a pixel of the page: the backend draws on whole units.
const SIZE: (u32, u32) = (1080, 540);

/// Points (x, y) as an SVG element; values that are not finite are left out. `None` without a point.
pub fn curve(points: &[(f64, f64)]) -> Option<String> {
    curve_with(points, &[])
}

/// The same with dots beside the line.
pub fn curve_with(points: &[(f64, f64)], dots: &[(f64, f64)]) -> Option<String> {
    let finite = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
    };
    let (points, dots) = (finite(points), finite(dots));
    if points.is_empty() {
        return None;
    }
    let mut svg = String::new();
    draw(&points, &dots, &mut svg).ok()?;
    Some(svg)
}

fn draw(points: &[(f64, f64)], dots: &[(f64, f64)], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let all = || points.iter().chain(dots);
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(15)
        .x_label_area_size(54)
        .y_label_area_size(150)
        .build_cartesian_2d(span(all().map(|p| p.0)), span(all().map(|p| p.1)))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.mix(0.25).stroke_width(3))
        .axis_style(GRID.mix(0.6).stroke_width(3))
        .x_labels(5)
        .y_labels(5)
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&|y| number(*y))
        .label_style(("sans-serif", 33))
        .draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), LINE.stroke_width(6)))?;
    if let [point] = points {
        chart.draw_series([Circle::new(*point, 9, LINE.filled())])?;
    }
    chart.draw_series(dots.iter().map(|dot| Circle::new(*dot, 9, GRID.filled())))?;
    root.present()?;
    Ok(())
}

/// The values' range; a constant gets room around it.
fn span(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let pad = if high > low { 0.0 } else { (0.1 * low.abs()).max(0.5) };
    low - pad..high + pad
}

/// Short: three significant digits, powers of ten when very small or large.
fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        return format!("{value:.1e}");
    }
    let decimals = if size >= 100.0 || value.fract() == 0.0 { 0 } else { 3 };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}
