"use strict";
// What the page's scripts share: unpacking, elements made of untrusted text, numbers, tables.

// Characters that nobody sees, or that reorder what is around them, are shown by their numbers.
const shown = (text) =>
  String(text).replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, (c) => (c === "\n" || c === "\t" ? c : `\\u{${c.codePointAt(0).toString(16)}}`));

// An element; texts among its children become text and nothing else.
function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value === true ? "" : shown(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    made.append(child instanceof Node ? child : shown(child));
  }
  return made;
}

// A packed text: base64 of gzip of JSON.
async function unpack(id) {
  const text = document.getElementById(id).textContent;
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

const MINUS = "−";
const signed = (text) => text.replace("-", MINUS);

// Three significant digits; powers of ten when very small or large.
function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return signed(value.toExponential(1));
  if (Number.isInteger(value)) return signed(value.toLocaleString("en-US"));
  return signed(size >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3))));
}

const percent = (value) => (value === null || value === undefined ? "–" : signed((100 * value).toFixed(1)));
const estimate = (e) => (e ? `${percent(e.value)} [${percent(e.ci[0])}, ${percent(e.ci[1])}]` : "–");
const plural = (count, one, many) => `${count.toLocaleString("en-US")} ${count === 1 ? one : many || one + "s"}`;

function table(headings, rows, attributes) {
  const head = element("tr", null, headings.map((heading) => element("th", { scope: "col" }, heading)));
  const body = rows.map((row) => element("tr", null, row.map((cell) => (cell instanceof HTMLTableCellElement ? cell : element("td", null, cell)))));
  return element("table", { class: "numbers", ...attributes }, element("thead", null, head), element("tbody", null, body));
}

const place = (selector, fill) => document.querySelectorAll(selector).forEach(fill);

// Mean cosines: the deeper the colour the larger, the number in every cell.
function heatTable(heat) {
  const values = heat.rows.flatMap((row) => row[1]).filter((value) => value !== null);
  const most = Math.max(...values.map(Math.abs), 1e-9);
  const cell = (value) => {
    const made = element("td", { class: "heat" }, value === null ? "–" : signed(value.toFixed(3)));
    if (value !== null) {
      made.style.setProperty("--strength", String(Math.abs(value) / most));
      made.classList.add(value >= 0 ? "positive" : "negative");
    }
    return made;
  };
  const rows = heat.rows.map(([name, of]) => [element("th", { scope: "row" }, name), ...of.map(cell)]);
  return [table(["", "pp", "nn", "pn"], rows), element("p", { class: "facts" }, `Mean cosine ${heat.when}; deepest colour ±${most.toFixed(3)}.`)];
}

function typeTable(types) {
  const bar = (e) => element("td", null, element("meter", { min: 0, max: 1, value: e ? e.value : 0 }));
  const rows = types.map((t) => [t.split, t.kind, String(t.games), estimate(t.first), estimate(t.last), bar(t.last || t.first)]);
  return table(["split", "task type", "games", "first, success %", "last, success %", ""], rows, { class: "numbers left2" });
}

// Labels against verdicts, of the evaluation or iteration that the slider says.
function confusionView(counts) {
  const key = (c) => `${c.phase} ${c.iteration}`;
  const view = element("div", { class: "confusion" });
  const phases = [...new Set(counts.map((c) => c.phase))];
  const names = { grpo: "in training", eval: "in evaluations" };
  const select = element("select", { "aria-label": "where" }, phases.map((p) => element("option", { value: p }, names[p] || p)));
  const slider = element("input", { type: "range", min: 0, step: 1, "aria-label": "iteration" });
  const label = element("output");
  const matrix = element("div", { class: "scroll" });
  const times = () => [...new Set(counts.filter((c) => c.phase === select.value).map((c) => c.iteration))].sort((a, b) => a - b);
  const draw = () => {
    const iteration = times()[slider.value];
    const of = counts.filter((c) => c.phase === select.value && c.iteration === iteration);
    const count = (l, v) => of.filter((c) => c.label === l && (c.verdict || "unreadable") === v).reduce((sum, c) => sum + c.count, 0);
    const verdicts = ["good", "bad", "unreadable"];
    label.textContent = `iteration ${iteration}`;
    const rows = ["good", "bad"].map((l) => {
      const total = verdicts.reduce((sum, v) => sum + count(l, v), 0);
      const cells = verdicts.map((v) => {
        const made = element("td", { class: "heat " + (v === l ? "right" : "wrong") }, total ? `${count(l, v)}  (${percent(count(l, v) / total)} %)` : "0");
        made.style.setProperty("--strength", String(total ? count(l, v) / total : 0));
        return made;
      });
      return [element("th", { scope: "row" }, `labelled ${l}`), ...cells];
    });
    matrix.replaceChildren(table(["", ...verdicts.map((v) => (v === "unreadable" ? v : `judged ${v}`))], rows, { "data-key": key({ phase: select.value, iteration }) }));
  };
  const reset = () => {
    slider.max = String(times().length - 1);
    slider.value = slider.max;
    draw();
  };
  slider.addEventListener("input", draw);
  select.addEventListener("change", reset);
  view.append(element("h3", null, "Labels against verdicts"), element("p", { class: "controls" }, select, slider, label), matrix);
  reset();
  return view;
}
