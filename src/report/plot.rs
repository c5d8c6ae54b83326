//! One curve as an SVG whose only words name its axes: the page around it sets titles and colours.

use plotters::prelude::*;

/// The line's colour; legible on light and dark paper. Axes and text are coloured by the page's style sheet.
const LINE: RGBColor = RGBColor(59, 130, 246);
const GRID: RGBColor = RGBColor(128, 128, 128);
/// Three units to a pixel of the page: the backend draws on whole units.
const SIZE: (u32, u32) = (1080, 540);

/// A mean, and its interval where it has one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dot {
    pub x: f64,
    pub y: f64,
    pub interval: Option<[f64; 2]>,
}

/// A line through points (x, y) with dots beside it, as an SVG element; values that are not finite are left out. `None` without a point.
/// `axes` are what x and y are, with their units.
pub fn curve_with(points: &[(f64, f64)], dots: &[Dot], axes: [&str; 2]) -> Option<String> {
    let points: Vec<_> = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let dots: Vec<_> = dots.iter().copied().filter(|dot| dot.x.is_finite() && dot.y.is_finite()).collect();
    if points.is_empty() {
        return None;
    }
    let mut svg = String::new();
    draw(&points, &dots, axes, &mut svg).ok()?;
    Some(svg)
}

fn draw(
    points: &[(f64, f64)],
    dots: &[Dot],
    [x, y]: [&str; 2],
    svg: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let ends = |dot: &Dot| dot.interval.unwrap_or([dot.y, dot.y]).map(|y| (dot.x, y));
    let all: Vec<(f64, f64)> = points.iter().copied().chain(dots.iter().flat_map(ends)).collect();
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(15)
        .x_label_area_size(99)
        .y_label_area_size(if y.is_empty() { 150 } else { 195 })
        .build_cartesian_2d(span(all.iter().map(|p| p.0)), span(all.iter().map(|p| p.1)))?;
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
        .axis_desc_style(("sans-serif", 36))
        .x_desc(x)
        .y_desc(y)
        .draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), LINE.stroke_width(6)))?;
    if let [point] = points {
        chart.draw_series([Circle::new(*point, 9, LINE.filled())])?;
    }
    let spread = dots.iter().filter(|dot| dot.interval.is_some());
    chart.draw_series(spread.map(|dot| PathElement::new(ends(dot).to_vec(), GRID.stroke_width(3))))?;
    chart.draw_series(dots.iter().map(|dot| Circle::new((dot.x, dot.y), 9, GRID.filled())))?;
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
