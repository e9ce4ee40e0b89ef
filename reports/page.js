"use strict";
// Puts the page together: reads the embedded data, draws what is in sight first, follows the theme.

function readJson(id) {
  const found = document.getElementById(id);
  return found ? JSON.parse(found.textContent) : null;
}

/** Colours of text and grid, for the figures that Python laid out. */
function themed(layout) {
  const text = colourOf("--text"), grid = colourOf("--grid");
  const done = { ...layout, font: { ...layout.font, color: text } };
  for (const key of Object.keys(done)) {
    if (/^[xy]axis/.test(key)) done[key] = { ...done[key], color: text, gridcolor: grid, zerolinecolor: grid, linecolor: grid };
  }
  return done;
}

/** The traces with blue lines that are read on a dark page too. */
function readable(data) {
  const accent = colourOf("--line-accent");
  const painted = (part) => (part?.color === ACCENT ? { ...part, color: accent } : part);
  return data.map((trace) => {
    const done = { ...trace };
    for (const key of ["line", "marker"]) if (trace[key]) done[key] = painted(trace[key]);
    return done;
  });
}

const ACCENT = "#0072B2";
const charts = new Map();

function drawChart(box, figure) {
  charts.set(box, figure);
  const narrow = box.clientWidth < 600;
  const layout = { ...themed(figure.layout), width: box.clientWidth };
  if (narrow) layout.margin = { ...layout.margin, l: 48, r: layout.yaxis2 ? 48 : 8 };
  return Plotly.react(box, readable(figure.data), layout, { displayModeBar: false });
}

function drawCurve(data) {
  const box = document.getElementById("curve-plot"), choice = document.getElementById("curve-choice");
  if (!box || !data.curves.length) return;
  data.curves.forEach(({ name }, i) => { const option = element("option", name); option.value = i; choice.append(option); });
  choice.addEventListener("change", () => drawChart(box, data.curves[choice.value].figure));
  drawChart(box, data.curves[0].figure);
}

function legend(box, entries) {
  box.replaceChildren(...entries.map(([name, colour]) => {
    const item = element("li"), swatch = element("span", undefined, "swatch");
    swatch.style.background = colour;
    item.append(swatch, name);
    return item;
  }));
}

function followTheme(timeline) {
  const redraw = () => { timeline.schedule(); for (const [box, figure] of charts) drawChart(box, figure); };
  const button = document.getElementById("theme");
  const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || (dark() ? "dark" : "light");
    document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.getElementById("print").addEventListener("click", () => print());
  let theme;
  addEventListener("beforeprint", () => { theme = document.documentElement.dataset.theme ?? ""; fit("180mm", "light"); });
  addEventListener("afterprint", () => fit("", theme));
  const fit = (width, scheme) => {
    document.body.style.width = width;
    document.documentElement.dataset.theme = scheme;
    timeline.draw();
    for (const [box, figure] of charts) drawChart(box, figure);
  };
  addEventListener("resize", () => { clearTimeout(followTheme.timer); followTheme.timer = setTimeout(redraw, 150); });
}

async function main() {
  const data = readJson("report-data");
  const runs = [];
  for (const run of data.runs) runs.push(await readRun(run));
  const box = document.getElementById("timeline-box");
  const timeline = new Timeline(box, runs, data.palette);
  legend(box.querySelector(".legend"), data.palette.categories);
  const kinds = box.querySelector(".kinds");
  if (timeline.memory) legend(kinds, data.palette.kinds); else kinds.remove();
  await timeline.draw();
  timeline.follow();
  window.npusimTimeline = timeline;
  const jump = (name) => {
    const search = box.querySelector(".search");
    search.value = name;
    timeline.find(name, 1);
    box.scrollIntoView({ block: "start" });
    search.focus({ preventScroll: true });
  };
  const table = document.getElementById("layer-table");
  if (table) new LayerTable(table, data.layers, jump);
  for (const [id, figure] of Object.entries(data.figures)) {
    const plot = document.getElementById(id);
    if (plot) await drawChart(plot, figure);
  }
  drawCurve(data);
  followTheme(timeline);
  window.npusimDrawnMs = performance.now();
  document.documentElement.dataset.ready = "yes";
}

main().catch((error) => {
  const note = document.getElementById("failed");
  note.hidden = false;
  note.textContent = `The figures could not be drawn: ${error.message}. The tables are complete.`;
  throw error;
});
