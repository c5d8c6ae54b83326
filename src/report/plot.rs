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

/// A named line of means with the band of their intervals.
#[derive(Debug, Clone, PartialEq)]
pub struct Band {
    pub name: String,
    pub points: Vec<Dot>,
}

/// Told apart without colour by their names in the legend's order.
const COLOURS: [RGBColor; 6] = [
    LINE,
    RGBColor(234, 88, 12),
    RGBColor(22, 163, 74),
    RGBColor(168, 85, 247),
    RGBColor(202, 138, 4),
    RGBColor(219, 39, 119),
];

/// Several lines with their bands and a legend, as an SVG element on white; `None` without a point.
pub fn bands(bands: &[Band], axes: [&str; 2]) -> Option<String> {
    if bands.iter().all(|band| band.points.is_empty()) {
        return None;
    }
    let mut svg = String::new();
    draw_bands(bands, axes, &mut svg).ok()?;
    Some(svg)
}

fn draw_bands(bands: &[Band], axes: [&str; 2], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let ends = |dot: &Dot| dot.interval.unwrap_or([dot.y, dot.y]);
    let dots = || bands.iter().flat_map(|band| &band.points);
    let (x, y) = (span(dots().map(|dot| dot.x)), span(dots().flat_map(ends)));
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart =
        ChartBuilder::on(&root).margin(15).x_label_area_size(99).y_label_area_size(195).build_cartesian_2d(x, y)?;
    mesh(&mut chart, axes)?;
    for (band, colour) in bands.iter().zip(COLOURS.iter().cycle()) {
        let low = band.points.iter().map(|dot| (dot.x, ends(dot)[0]));
        let high = band.points.iter().rev().map(|dot| (dot.x, ends(dot)[1]));
        chart.draw_series([Polygon::new(low.chain(high).collect::<Vec<_>>(), colour.mix(0.15).filled())])?;
        let line = band.points.iter().map(|dot| (dot.x, dot.y));
        let drawn = chart.draw_series(LineSeries::new(line.clone(), colour.stroke_width(5)).point_size(6))?;
        let sample = *colour;
        drawn.label(&band.name).legend(move |(x, y)| Rectangle::new([(x, y - 6), (x + 45, y + 6)], sample.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 33))
        .legend_area_size(60)
        .draw()?;
    root.present()?;
    Ok(())
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn mesh(chart: &mut Chart<'_, '_>, [x, y]: [&str; 2]) -> Result<(), Box<dyn std::error::Error>> {
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
    Ok(())
}

fn draw(
    points: &[(f64, f64)],
    dots: &[Dot],
    axes: [&str; 2],
    svg: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let ends = |dot: &Dot| dot.interval.unwrap_or([dot.y, dot.y]).map(|y| (dot.x, y));
    let all: Vec<(f64, f64)> = points.iter().copied().chain(dots.iter().flat_map(ends)).collect();
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(15)
        .x_label_area_size(99)
        .y_label_area_size(if axes[1].is_empty() { 150 } else { 195 })
        .build_cartesian_2d(span(all.iter().map(|p| p.0)), span(all.iter().map(|p| p.1)))?;
    mesh(&mut chart, axes)?;
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

/// What is left of a 0 between labels below and above it.
const ROUNDING: f64 = 1e-12;

/// Short: three significant digits, powers of ten when very small or large.
fn number(value: f64) -> String {
    let size = value.abs();
    if size < ROUNDING {
        return "0".into();
    }
    if !(1e-3..1e5).contains(&size) {
        return format!("{value:.1e}");
    }
    let decimals = if size >= 100.0 || value.fract() == 0.0 { 0 } else { 3 };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}
