"use strict";
// Figures: lines with intervals, told apart by dashes and marks as well as colours.

const LIGHT = { lines: ["#0b62b8", "#c2410c", "#0f7b5f", "#9333a8", "#8a6100", "#4b5563"], ink: "#4d5663", grid: "#e3e6ea", paper: "#ffffff" };
const DARK = { lines: ["#6cb2ff", "#ff9a5c", "#52d1a8", "#d99bf0", "#e5c158", "#b6bec9"], ink: "#aab3bf", grid: "#2e343c", paper: "#14171b" };
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2], [1, 2]];
const drawn = [];
let printing = false;
let smoothing = 0.6;

const theme = () => (!printing && matchMedia("(prefers-color-scheme: dark)").matches ? DARK : LIGHT);

// Exponential mean over the values there are.
function smooth(values, weight) {
  let sum = 0;
  let whole = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    whole = weight * whole + (1 - weight);
    return sum / whole;
  });
}

// A line's mark at a point: circle, square, triangle, diamond.
function mark(context, shape, x, y, size) {
  context.beginPath();
  if (shape % 4 === 0) context.arc(x, y, size, 0, 2 * Math.PI);
  else if (shape % 4 === 1) context.rect(x - size, y - size, 2 * size, 2 * size);
  else if (shape % 4 === 2) [[0, -1.2], [1.1, 0.9], [-1.1, 0.9]].forEach(([a, b], i) => context[i ? "lineTo" : "moveTo"](x + a * size, y + b * size));
  else [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]].forEach(([a, b], i) => context[i ? "lineTo" : "moveTo"](x + a * size, y + b * size));
  context.closePath();
  context.fill();
}

// Which colour, dash and mark a line has.
const styleOf = (line, i) => (line.style ?? i) % 6;

const ratio = () => window.devicePixelRatio || 1;

// Bands of the intervals of drawn lines, beneath them.
function bands(figure, colours, u) {
  figure.lines.forEach((line, i) => {
    if (!line.interval || (figure.points && !line.band) || !u.series[seriesOf(figure, i)].show) return;
    const some = line.interval.map((ends, k) => [figure.at[k], ends]).filter(([, ends]) => ends);
    if (some.length < 2) return;
    u.ctx.save();
    u.ctx.fillStyle = colours.lines[styleOf(line, i)];
    u.ctx.globalAlpha = 0.14;
    u.ctx.beginPath();
    some.forEach(([x, ends], k) => u.ctx[k ? "lineTo" : "moveTo"](u.valToPos(x, "x", true), u.valToPos(ends[1], "y", true)));
    some.reverse().forEach(([x, ends]) => u.ctx.lineTo(u.valToPos(x, "x", true), u.valToPos(ends[0], "y", true)));
    u.ctx.fill();
    u.ctx.restore();
  });
}

// Marks and bars of measured points, side by side, and dates.
function measured(figure, colours, u) {
  const { ctx } = u;
  const { left, top, width, height } = u.bbox;
  ctx.save();
  ctx.beginPath();
  ctx.rect(left - 8 * ratio(), top - 8 * ratio(), width + 16 * ratio(), height + 16 * ratio());
  ctx.clip();
  for (const date of figure.marks || []) {
    const x = u.valToPos(date.x, "x", true);
    if (x < left || x > left + width) continue;
    ctx.strokeStyle = colours.ink;
    ctx.globalAlpha = 0.55;
    ctx.lineWidth = ratio();
    ctx.setLineDash([4 * ratio(), 4 * ratio()]);
    ctx.beginPath();
    ctx.moveTo(x, top);
    ctx.lineTo(x, top + height);
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.globalAlpha = 1;
    ctx.fillStyle = colours.ink;
    ctx.font = `${11 * ratio()}px system-ui, sans-serif`;
    ctx.fillText("S", x + 3 * ratio(), top + 11 * ratio());
  }
  if (figure.points) {
    const solid = figure.lines.filter((line, i) => line.interval && u.series[seriesOf(figure, i)].show && !line.band).length;
    let place = 0;
    figure.lines.forEach((line, i) => {
      if (!u.series[seriesOf(figure, i)].show || line.band) return;
      ctx.strokeStyle = ctx.fillStyle = colours.lines[styleOf(line, i)];
      ctx.setLineDash([]);
      ctx.globalAlpha = line.thin ? 0.75 : 1;
      ctx.lineWidth = 1.5 * ratio();
      const shift = line.interval && solid > 1 ? (place++ - (solid - 1) / 2) * 5 * ratio() : 0;
      line.values.forEach((value, k) => {
        if (value === null) return;
        const x = u.valToPos(figure.at[k], "x", true) + shift;
        const ends = line.interval && line.interval[k];
        if (ends) {
          const [low, high] = ends.map((end) => u.valToPos(end, "y", true));
          ctx.beginPath();
          ctx.moveTo(x, low);
          ctx.lineTo(x, high);
          [low, high].forEach((y) => (ctx.moveTo(x - 3 * ratio(), y), ctx.lineTo(x + 3 * ratio(), y)));
          ctx.stroke();
        }
        if (line.labels && line.labels[k]) {
          ctx.save();
          ctx.fillStyle = colours.ink;
          ctx.textAlign = "center";
          ctx.font = `${11 * ratio()}px system-ui, sans-serif`;
          ctx.fillText(line.labels[k], x, u.valToPos(ends ? ends[1] : value, "y", true) - 6 * ratio());
          ctx.restore();
        }
        mark(ctx, styleOf(line, i), x, u.valToPos(value, "y", true), (line.thin ? 2.4 : 3.6) * ratio());
      });
    });
  }
  ctx.restore();
}

// uPlot's number of a figure's line: a smoothed figure has the raw line before each.
const isSmoothed = (figure) => !figure.points && figure.at.length > 12;
const seriesOf = (figure, i) => (isSmoothed(figure) ? 2 * i + 2 : i + 1);

// Ends of the y axis over what is shown.
function range(figure, u) {
  if (figure.range) return figure.range[1] === 1 ? [figure.range[0] - 0.02, 1.02] : figure.range;
  let [low, high] = [Infinity, -Infinity];
  const [from, to] = [u.scales.x.min ?? -Infinity, u.scales.x.max ?? Infinity];
  figure.lines.forEach((line, i) => {
    const series = u.series[seriesOf(figure, i)];
    if (series && series.show === false) return;
    line.values.forEach((value, k) => {
      if (value === null || figure.at[k] < from || figure.at[k] > to) return;
      const ends = (line.interval && line.interval[k]) || [value, value];
      low = Math.min(low, value, ends[0]);
      high = Math.max(high, value, ends[1]);
    });
  });
  if (!Number.isFinite(low)) return [0, 1];
  const pad = high > low ? 0.06 * (high - low) : Math.max(0.1 * Math.abs(low), 0.5);
  return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}

function options(figure, width, colours) {
  const whole = figure.at.every(Number.isInteger);
  const smoothed = isSmoothed(figure);
  const series = [{ label: figure.x, value: (u, x) => (x === null ? "" : number(x)) }];
  figure.lines.forEach((line, i) => {
    const style = styleOf(line, i);
    const stroke = colours.lines[style];
    if (smoothed) series.push({ label: `${line.name}, raw`, stroke: stroke + "55", width: 1, points: { show: false }, show: !line.hidden, spanGaps: true, class: "raw" });
    series.push({
      label: line.name,
      stroke,
      width: line.dots ? 0 : line.thin ? 1 : 2,
      dash: DASHES[style],
      show: !line.hidden,
      spanGaps: true,
      points: { show: figure.points ? false : figure.at.length === 1, size: 7, fill: stroke },
      value: (u, y) => number(y),
    });
  });
  const axis = (label, extra) => ({ label, labelSize: 22, labelFont: "12px system-ui, sans-serif", font: "11px system-ui, sans-serif", stroke: colours.ink, grid: { stroke: colours.grid, width: 1 }, ticks: { stroke: colours.grid, width: 1 }, ...extra });
  const steps = [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000];
  return {
    width,
    height: figure.wide ? 330 : 240,
    series,
    axes: [axis(figure.x, { size: 34, ...(whole ? { incrs: steps } : {}) }), axis(figure.y || "value", { size: 58, values: (u, ticks) => ticks.map(number) })],
    scales: {
      x: { time: false, range: (u, low, high) => (figure.points || low === high ? [low - 0.03 * (high - low || 10), high + 0.03 * (high - low || 10)] : [low, high]) },
      y: { range: (u) => range(figure, u) },
    },
    pxAlign: 0,
    cursor: { points: { size: 6 } },
    hooks: { setCursor: [(u) => u.cursor.idx === null && u.setLegend({ idx: figure.at.length - 1 })], drawAxes: [(u) => bands(figure, colours, u)], draw: [(u) => measured(figure, colours, u)] },
  };
}

// A line as the legend shows it: its dash, and its mark where points are measured.
function swatch(figure, line, i, colours) {
  const style = styleOf(line, i);
  const make = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
    return made;
  };
  const all = make("svg", { viewBox: "0 0 30 12", width: 30, height: 12, class: "swatch", "aria-hidden": "true" });
  const colour = colours.lines[style];
  if (!line.dots) all.append(make("line", { x1: 0, y1: 6, x2: 30, y2: 6, stroke: colour, "stroke-width": line.thin ? 1.2 : 2.2, "stroke-dasharray": DASHES[style].join(" ") }));
  const marks = [
    ["circle", { cx: 15, cy: 6, r: 3.6 }],
    ["rect", { x: 11.6, y: 2.6, width: 6.8, height: 6.8 }],
    ["path", { d: "M15 1.6L19 9.4H11Z" }],
    ["path", { d: "M15 1.2L19.8 6L15 10.8L10.2 6Z" }],
  ];
  if (figure.points && !line.band) all.append(make(marks[style % 4][0], { ...marks[style % 4][1], fill: colour }));
  return all;
}

// What the figure shows, as a table.
function valuesOf(figure) {
  const cell = (line, k) => {
    const ends = line.interval && line.interval[k];
    return number(line.values[k]) + (ends && line.values[k] !== null ? ` [${number(ends[0])}, ${number(ends[1])}]` : "");
  };
  const rows = figure.at.map((x, k) => [number(x), ...figure.lines.map((line) => cell(line, k))]);
  return table([figure.x, ...figure.lines.map((line) => line.name)], rows);
}

// Draws a figure into `parent`, and again whenever its size, the theme or the smoothing changes.
function draw(figure, parent) {
  // A curve that comes with points beside it has its interval as a band.
  if (figure.lines.some((line) => line.dots)) figure.lines.forEach((line) => (line.band = !line.dots));
  const canvas = element("div", { class: "canvas" });
  const values = element("details", { class: "values" }, element("summary", null, "values"));
  values.addEventListener("toggle", () => values.open && values.childElementCount === 1 && values.append(element("div", { class: "scroll" }, valuesOf(figure))));
  const caption = element("figcaption", null, element("strong", null, figure.title), figure.note ? element("span", { class: "facts" }, " ", figure.note) : null);
  parent.append(element("figure", { "aria-label": figure.title }, caption, canvas, values));
  let plot = null;
  const data = () => {
    const lines = figure.lines.flatMap((line) => (isSmoothed(figure) ? [line.values, smooth(line.values, smoothing)] : [line.values]));
    return [figure.at, ...lines];
  };
  const paint = () => {
    // A page of paper is narrower than most windows.
    const width = Math.min(Math.max(canvas.clientWidth, 240), printing ? (figure.wide ? 660 : 310) : Infinity);
    const hidden = plot ? plot.series.map((s) => !s.show) : null;
    if (plot) plot.destroy();
    plot = new uPlot(options(figure, width, theme()), data(), canvas);
    hidden && hidden.forEach((is, i) => i > 0 && plot.setSeries(i, { show: !is }));
    const rows = plot.root.querySelectorAll(".u-legend .u-series");
    figure.lines.forEach((line, i) => rows[seriesOf(figure, i)].querySelector(".u-marker").replaceWith(swatch(figure, line, i, theme())));
    plot.setLegend({ idx: figure.at.length - 1 });
  };
  paint();
  drawn.push({ paint, smooth: () => isSmoothed(figure) && plot.setData(data(), false) });
  new ResizeObserver(() => {
    const width = Math.max(canvas.clientWidth, 240);
    if (canvas.clientWidth > 0 && Math.abs(width - plot.width) > 1) plot.setSize({ width, height: plot.height });
  }).observe(canvas);
}

function drawAll(figures, parent) {
  figures.forEach((figure) => draw({ ...figure, wide: parent.classList.contains("wide") }, parent));
}

function drawSubject(subject, parent) {
  if (parent.childElementCount) return;
  const figures = element("div", { class: "figures" });
  parent.append(figures);
  drawAll(subject.figures, figures);
  if (subject.constant.length) {
    const told = subject.constant.map(([name, value]) => `${name} = ${number(value)}`).join(", ");
    parent.append(element("p", { class: "facts" }, `Constant throughout: ${told}.`));
  }
}

function repaint() {
  drawn.forEach((figure) => figure.paint());
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
for (const [event, is] of [["beforeprint", true], ["afterprint", false]]) {
  window.addEventListener(event, () => {
    printing = is;
    if (is) document.querySelectorAll("#curves > details").forEach((details) => (details.open = true));
    repaint();
  });
}
