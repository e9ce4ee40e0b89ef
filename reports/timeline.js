"use strict";
// The timeline: one lane per engine and DMA channel; DRAM bandwidth, SRAM occupancy and address map on the same axis.

const LANE = 24, GAP = 44, BANDS = { dram: 110, sram: 120, map: 180 };
const MAP_ROWS = 96;

class Timeline {
  /** `runs`: one run (with memory), or several to compare (lanes only). Times are picoseconds / 1e9 = ms on the axis. */
  constructor(box, runs, palette) {
    Object.assign(this, { box, runs, palette });
    this.plot = box.querySelector(".plot");
    this.tip = box.querySelector(".tip");
    this.memory = runs.length === 1;
    this.lanes = runs.flatMap((run, r) => {
      const rows = [...pathRows(run).map((path) => ({ run, path, name: path.name })), ...run.lanes.map((name, lane) => ({ run, lane, name }))];
      return this.memory ? rows : rows.map((row) => ({ ...row, name: `${"AB"[r]} · ${row.name}` }));
    });
    this.total = Math.max(...runs.map((run) => run.makespan * run.quantum)) / 1e9;
    this.range = [0, this.total];
    this.selected = null;
    this.marked = null;
    this.listen();
  }

  get margins() { return { l: this.plot.clientWidth < 600 ? 66 : 90, r: 12, t: 8, b: 46 }; }

  get width() { return Math.max(200, this.plot.clientWidth - this.margins.l - this.margins.r); }

  bands() {
    const names = this.memory ? ["dram", "sram", "map"] : [];
    const lanes = this.lanes.length * LANE;
    const height = lanes + names.reduce((sum, name) => sum + GAP + BANDS[name], 0);
    const domains = { lanes: [1 - lanes / height, 1] };
    let at = lanes;
    for (const name of names) {
      at += GAP;
      domains[name] = [Math.max(0, 1 - (at + BANDS[name]) / height), 1 - at / height];
      at += BANDS[name];
    }
    return { height: height + this.margins.t + this.margins.b, domains };
  }

  /** The lanes in [from, to) ms as a picture: it costs pixels, where SVG would cost outlines. */
  laneImage(from, to, bin) {
    const scale = Math.min(2, Math.max(1, devicePixelRatio)), perMs = (1.5 * scale) / bin;
    const canvas = this.canvas ??= document.createElement("canvas");
    Object.assign(this, { imageFrom: from, imagePerMs: perMs });
    canvas.width = Math.max(1, Math.round((to - from) * perMs));
    canvas.height = this.lanes.length * LANE * scale;
    const pen = canvas.getContext("2d"), text = colourOf("--text");
    const showPath = this.box.querySelector(".show-critical").checked;
    pen.font = `${11 * scale}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    const view = { pen, scale, perMs, from, to, bin, text, showPath };
    this.lanes.forEach((lane, row) => (lane.path ? this.drawPath(lane, row, view) : this.drawLane(lane, row, view)));
    return {
      source: canvas.toDataURL(), xref: "x", yref: "y", x: from, y: -0.5, sizex: to - from, sizey: this.lanes.length,
      xanchor: "left", yanchor: "top", sizing: "stretch", layer: "above",
    };
  }

  drawLane({ run, lane }, row, { pen, scale, perMs, from, to, bin, text, showPath }) {
    const q = run.quantum / 1e9, height = LANE * scale, floor = Math.round((row + 0.9) * height), tall = 0.8 * height;
    for (const gang of run.gangs) {
      if (!gang.lanes.includes(lane)) continue;
      eachBlock(run, gang, from / q, to / q, bin / q, (start, end, category, share, count, critical, index) => {
        const left = (start * q - from) * perMs, width = Math.max(1, (end - start) * q * perMs - (count === 1 ? 0.4 : 0));
        const high = Math.max(2, tall * Math.min(1, share)), colour = this.palette.categories[category][1];
        pen.fillStyle = colour;
        pen.fillRect(left, floor - high, width, high);
        if (critical && showPath) { pen.fillStyle = text; pen.fillRect(left, floor + scale, width, 1.5 * scale); }
        if (count === 1) this.label(pen, run.layers[run.c.class_layer[run.c.class[index]]], left, width, floor - tall / 2, scale, inkOn(colour));
      });
    }
  }

  /** A row of names: neighbours alternate in shade, so that colours keep their meaning. */
  drawPath({ run, path }, row, { pen, scale, perMs, from, to, bin }) {
    const q = run.quantum / 1e9, height = LANE * scale, shades = [colourOf("--band"), colourOf("--band2")], ink = colourOf("--text");
    eachStretch(path, from / q, to / q, (2 * bin) / q, (start, end, name, count, index) => {
      const left = (start * q - from) * perMs, width = (end - start) * q * perMs;
      pen.fillStyle = count === 1 ? shades[index % 2] : shades[0];
      pen.fillRect(left, (row + 0.08) * height, width, 0.84 * height);
      if (count === 1) this.label(pen, name, left, width, (row + 0.5) * height, scale, ink);
    });
  }

  /** A name inside a bar, where it fits; it stays in sight while any of the bar is. */
  label(pen, name, left, width, middle, scale, ink) {
    const seen = ((this.range[0] - this.imageFrom) * this.imagePerMs), pad = 4 * scale;
    const at = Math.max(left, Math.min(seen, left + width)), room = left + width - at - 2 * pad;
    if (room < 16 * scale) return;
    const text = fitted(pen, name, room);
    if (!text) return;
    pen.fillStyle = ink;
    pen.fillText(text, at + pad, middle);
  }

  memoryTraces(from, to) {
    const run = this.runs[0], q = run.quantum / 1e9, bins = Math.round(this.width);
    const scaled = (steps, factor) => ({ x: steps.x.map((t) => t * q), y: steps.y.map((v) => v * factor) });
    const area = (steps, yaxis) => ({
      type: "scatter", mode: "lines", ...steps, yaxis, fill: "tozeroy", hoverinfo: "skip",
      line: { shape: "hv", width: 1, color: colourOf("--line-accent"), simplify: false },
    });
    const columns = Math.min(800, bins), left = Math.max(0, from), right = Math.min(this.total, to);
    const kinds = this.palette.kinds;
    const scale = kinds.flatMap(([, colour], i) => [[i / kinds.length, colour], [(i + 1) / kinds.length, colour]]);
    return [
      area(scaled(stepsIn(run.c.dram_time, run.c.dram_rate, left / q, right / q, bins, false), 1e-3), "y2"),
      area(scaled(stepsIn(run.c.sram_time, run.c.sram_bytes, left / q, right / q, bins, true), 1 / 2 ** 20), "y3"),
      {
        type: "heatmap", yaxis: "y4", showscale: false, hoverinfo: "skip", zmin: 0.5, zmax: kinds.length + 0.5, colorscale: scale,
        z: mapIn(run, left / q, right / q, columns, MAP_ROWS), x0: left + (right - left) / columns / 2, dx: (right - left) / columns,
        y0: run.capacity / 2 ** 20 / MAP_ROWS / 2, dy: run.capacity / 2 ** 20 / MAP_ROWS,
      },
    ];
  }

  layout() {
    const { height, domains } = this.bands();
    const text = colourOf("--text"), grid = colourOf("--grid");
    const axis = { color: text, gridcolor: grid, zerolinecolor: grid, fixedrange: true };
    const narrow = this.plot.clientWidth < 600;
    const layout = {
      height, width: this.plot.clientWidth, margin: this.margins, showlegend: false, hovermode: false, dragmode: "pan",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", size: narrow ? 11 : 12, color: text },
      xaxis: { ...axis, fixedrange: false, range: this.range.slice(), title: { text: "time (ms)" }, anchor: this.memory ? "y4" : "y", exponentformat: "none", nticks: narrow ? 5 : 12 },
      yaxis: { ...axis, domain: domains.lanes, range: [this.lanes.length - 0.5, -0.5], tickvals: this.lanes.map((_, i) => i), ticktext: this.lanes.map((l) => l.name), showgrid: false, zeroline: false },
      shapes: this.shapes(text),
      annotations: [],
    };
    if (!this.memory) return layout;
    const run = this.runs[0], capacity = run.capacity / 2 ** 20, limit = run.dram_limit / 1e9;
    Object.assign(layout, {
      yaxis2: { ...axis, domain: domains.dram, range: [0, limit * 1.15], nticks: 4 },
      yaxis3: { ...axis, domain: domains.sram, range: [0, capacity * 1.15], nticks: 4 },
      yaxis4: { ...axis, domain: domains.map, range: [0, capacity], nticks: 5, showgrid: false },
      annotations: [
        ["y2 domain", narrow ? "DRAM, GB/s" : `DRAM bandwidth (GB/s); the dashed line is the limit, ${fixed(limit, 1)} GB/s`],
        ["y3 domain", narrow ? "SRAM in use, MiB" : `SRAM in use (MiB); the dashed line is the capacity, ${fixed(capacity, 2)} MiB`],
        ["y4 domain", narrow ? "SRAM address, MiB" : "SRAM address (MiB), coloured by what lies there"],
      ].map(([yref, label]) => ({ xref: "paper", x: 0, xanchor: "left", yref, y: 1, yanchor: "bottom", text: label, showarrow: false, font: { color: text } })),
    });
    return layout;
  }

  shapes(text) {
    const shapes = this.runs.slice(1).map((run) => {
      const y = this.lanes.findIndex((l) => l.run === run) - 0.5;
      return { type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: y, y1: y, line: { color: text, width: 1.5 } };
    });
    if (this.memory) {
      const line = { color: this.palette.limit, dash: "dash", width: 2 };
      shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, yref: "y2", y0: this.runs[0].dram_limit / 1e9, y1: this.runs[0].dram_limit / 1e9, line });
      shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, yref: "y3", y0: this.runs[0].capacity / 2 ** 20, y1: this.runs[0].capacity / 2 ** 20, line });
    }
    if (this.marked) shapes.push({ type: "rect", yref: "paper", y0: 0, y1: 1, x0: this.marked[0], x1: this.marked[1], fillcolor: text, opacity: 0.12, line: { width: 0 }, layer: "below" });
    if (this.selected) {
      const { run, index, row } = this.selected, q = run.quantum / 1e9;
      shapes.push({ type: "rect", yref: "y", y0: row + 0.45, y1: row - 0.45, x0: run.start[index] * q, x1: run.end[index] * q, line: { color: text, width: 2.5 } });
    }
    return shapes;
  }

  draw() {
    const [low, high] = this.range, span = high - low;
    const from = Math.max(0, low - span / 2), to = Math.min(this.total, high + span / 2);
    const traces = [{ type: "scatter", mode: "none", x: [0], y: [0], hoverinfo: "skip" }];
    if (this.memory) traces.push(...this.memoryTraces(low, high));
    const layout = this.layout();
    layout.images = [this.laneImage(from, to, (1.5 * span) / this.width)];
    const config = { displaylogo: false, scrollZoom: false, doubleClick: false, displayModeBar: false };
    return Plotly.react(this.plot, traces, layout, config);
  }

  /** Show [low, high] ms, kept inside the run and wider than a nanosecond. */
  show(low, high) {
    const span = Math.min(this.total, Math.max(1e-6, high - low));
    const left = Math.max(0, Math.min(low, this.total - span));
    this.range = [left, left + span];
    this.schedule();
  }

  zoom(factor, at) {
    const [low, high] = this.range, centre = at ?? (low + high) / 2;
    this.show(centre - (centre - low) * factor, centre + (high - centre) * factor);
  }

  pan(share) {
    const [low, high] = this.range, step = (high - low) * share;
    this.show(low + step, high + step);
  }

  schedule() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.draw(); });
  }
}

/** Black or white, whichever is read more easily on a colour (relative luminance, WCAG 2). */
function inkOn(colour) {
  const [r, g, b] = [1, 3, 5].map((i) => (parseInt(colour.slice(i, i + 2), 16) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000" : "#fff";
}
