"use strict";
// Mouse, keyboard, search and tooltips of the timeline.

Object.assign(Timeline.prototype, {
  listen() {
    this.plot.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.plot.addEventListener("mousemove", (event) => this.hover(event));
    this.plot.addEventListener("mouseleave", () => { this.tip.hidden = true; });
    this.plot.addEventListener("click", (event) => this.click(event));
    this.box.querySelector(".focus").addEventListener("keydown", (event) => this.key(event));
    for (const button of this.box.querySelectorAll("button[data-do]")) {
      button.addEventListener("click", () => this.act(button.dataset.do));
    }
    this.box.querySelector(".show-critical")?.addEventListener("change", () => this.schedule());
    const search = this.box.querySelector(".search");
    if (!search) return;
    search.addEventListener("input", () => this.suggest(search.value));
    search.addEventListener("keydown", (event) => { if (event.key === "Enter") this.find(search.value, event.shiftKey ? -1 : 1); });
  },

  /** Once the plot exists: follow its own panning and zooming. */
  follow() {
    this.plot.on("plotly_relayout", (change) => {
      const low = change["xaxis.range[0]"] ?? change["xaxis.range"]?.[0], high = change["xaxis.range[1]"] ?? change["xaxis.range"]?.[1];
      if (low !== undefined && high !== undefined) this.show(low, high);
    });
    this.plot.on("plotly_doubleclick", () => this.act("reset"));
  },

  act(what) {
    const actions = {
      in: () => this.zoom(0.5), out: () => this.zoom(2), left: () => this.pan(-0.25), right: () => this.pan(0.25),
      reset: () => { this.marked = null; this.show(0, this.total); },
      picture: () => Plotly.downloadImage(this.plot, { format: "png", scale: 2, filename: "npusim-timeline", width: this.plot.clientWidth, height: this.plot.clientHeight }),
      next: () => this.find(this.box.querySelector(".search").value, 1), previous: () => this.find(this.box.querySelector(".search").value, -1),
    };
    actions[what]?.();
  },

  /** Where the pointer is: time (ms), and the band with the value on its axis. */
  place(event) {
    const full = this.plot._fullLayout, box = this.plot.getBoundingClientRect();
    const x = event.clientX - box.left - full.xaxis._offset, y = event.clientY - box.top;
    if (x < 0 || x > full.xaxis._length) return null;
    for (const [name, band] of [["yaxis", "lanes"], ["yaxis2", "dram"], ["yaxis3", "sram"], ["yaxis4", "map"]]) {
      const axis = full[name];
      if (axis && y >= axis._offset && y <= axis._offset + axis._length) return { time: full.xaxis.p2d(x), band, value: axis.p2d(y - axis._offset) };
    }
    return null;
  },

  wheel(event) {
    const place = this.place(event);
    if (!place) return;
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      this.pan((event.deltaX || event.deltaY) / 1000);
    } else if (event.deltaY < 0 || this.range[1] - this.range[0] < this.total) {
      event.preventDefault();
      this.zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 300))), place.time);
    }
  },

  hover(event) {
    const place = event.buttons ? null : this.place(event);
    const facts = place ? this.facts(place) : null;
    this.tip.hidden = !facts;
    if (!facts) return;
    this.tip.replaceChildren(rowsOf(facts));
    const box = this.box.getBoundingClientRect(), width = this.tip.offsetWidth;
    const x = event.clientX - box.left;
    this.tip.style.left = `${Math.max(0, x + width + 24 > box.width ? x - width - 12 : x + 14)}px`;
    this.tip.style.top = `${event.clientY - box.top + 14}px`;
  },

  facts({ time, band, value }) {
    const run = this.runs[0], at = (time * 1e9) / run.quantum;
    if (band === "lanes") return this.laneFacts(time, Math.round(value));
    if (band === "map") {
      const i = bufferAt(run, at, value * 2 ** 20);
      if (i < 0) return [["", "free"]];
      const tensor = run.c.map_tensor[i], q = run.quantum;
      return [["tensor", run.tensors[tensor]], ["kind", this.palette.kinds[run.c.kind[tensor]][0]], ["address", whole.format(run.c.map_address[i])],
        ["size", `${whole.format(run.c.map_bytes[i])} bytes`], ["live", `${timeText(run.c.map_first[i] * q)} to ${timeText((run.c.map_first[i] + run.c.map_span[i]) * q)}`]];
    }
    const [times, values] = band === "dram" ? [run.c.dram_time, run.c.dram_rate] : [run.c.sram_time, run.c.sram_bytes];
    const found = values[above(times, at, 0, times.length) - 1] ?? 0;
    return [["time", timeText(time * 1e9)], band === "dram" ? ["DRAM", `${fixed(found / 1e3, 2)} GB/s`] : ["SRAM", `${whole.format(found)} bytes`]];
  },

  laneFacts(time, row) {
    const lane = this.lanes[row];
    if (!lane) return null;
    const { run } = lane, at = (time * 1e9) / run.quantum;
    if (lane.path) return pathFacts(run, lane.path, at);
    const half = (((this.range[1] - this.range[0]) / this.width) * 1e9) / run.quantum;
    for (const gang of run.gangs) {
      if (!gang.lanes.includes(lane.lane)) continue;
      const { count, share, at: index } = busyIn(run, gang, at - half, at + half);
      if (count === 1) return describe(run, index);
      if (count > 1) return [["", `${whole.format(count)} events, busy ${fixed(100 * share, 0)} %`], ["one is", run.layers[run.c.class_layer[run.c.class[index]]]], ["", "zoom in to tell them apart"]];
    }
    return null;
  },

  click(event) {
    const place = this.place(event);
    if (place?.band !== "lanes") return;
    const row = Math.round(place.value), lane = this.lanes[row];
    if (!lane) return;
    if (lane.path) { this.showStretch(lane, place.time); return; }
    const at = (place.time * 1e9) / lane.run.quantum;
    const half = (((this.range[1] - this.range[0]) / this.width) * 1e9) / lane.run.quantum;
    for (const gang of lane.run.gangs.filter((g) => g.lanes.includes(lane.lane))) {
      const { count, at: index } = busyIn(lane.run, gang, at - half, at + half);
      if (count) this.select(lane.run, index, row);
    }
  },

  /** Zoom to the block or layer of a row of names. */
  showStretch({ run, path }, time) {
    const q = run.quantum / 1e9, i = above(path.end, time / q, 0, path.end.length - 1);
    const low = path.start[i] * q, high = path.end[i] * q, margin = (high - low) * 0.05 || 1e-6;
    this.show(low - margin, high + margin);
  },

  select(run, index, row) {
    this.selected = { run, index, row };
    const detail = this.box.querySelector(".detail");
    detail.replaceChildren(rowsOf([["engine", this.lanes[row].name], ...describe(run, index)]));
    const q = run.quantum / 1e9, start = run.start[index] * q, end = run.end[index] * q;
    const [low, high] = this.range;
    if (start < low || end > high) this.show(start - (high - low) / 2, start + (high - low) / 2);
    this.schedule();
  },

  /** Move the selection: along its lane by `step` commands, or `lanes` lanes down. */
  move(step, lanes) {
    const rows = this.lanes.length;
    let row = this.selected ? (this.selected.row + lanes + rows) % rows : 0;
    for (let tries = 0; tries < rows; tries++, row = (row + (lanes || 1) + rows) % rows) {
      const { run, lane } = this.lanes[row];
      if (lane === undefined) continue;
      const gang = run.gangs.find((g) => g.lanes.includes(lane) && g.commands);
      if (!gang) continue;
      const same = this.selected && !lanes;
      const time = this.selected ? this.selected.run.start[this.selected.index] : (this.range[0] * 1e9) / run.quantum;
      const index = same ? this.selected.index + step : above(run.end, time, gang.first, gang.last - 1);
      this.select(run, Math.max(gang.first, Math.min(gang.last - 1, index)), row);
      return;
    }
  },

  key(event) {
    const keys = {
      "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), ArrowLeft: () => this.pan(-0.2), ArrowRight: () => this.pan(0.2),
      Home: () => this.act("reset"), ".": () => this.move(1, 0), ",": () => this.move(-1, 0), ArrowDown: () => this.move(0, 1), ArrowUp: () => this.move(0, -1),
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  },

  suggest(text) {
    const wanted = text.toLowerCase();
    const list = this.box.querySelector("datalist");
    const names = [...new Set(this.runs.flatMap((run) => run.layers))].filter((name) => name.toLowerCase().includes(wanted)).slice(0, 40);
    list.replaceChildren(...names.map((name) => { const option = element("option"); option.value = name; return option; }));
  },

  /** Jump to the next layer (in time) whose name holds the text. */
  find(text, step) {
    const wanted = text.toLowerCase(), status = this.box.querySelector(".found");
    const spans = this.spans ??= this.layerSpans();
    const exact = spans.filter((s) => s.name.toLowerCase() === wanted);
    const matches = exact.length ? exact : spans.filter((s) => s.name.toLowerCase().includes(wanted));
    if (!wanted || !matches.length) { status.textContent = wanted ? "no layer has this in its name" : ""; return; }
    this.match = text === this.wanted ? (this.match + step + matches.length) % matches.length : 0;
    this.wanted = text;
    const { name, first, last, commands } = matches[this.match], margin = (last - first) * 0.1 || 1e-6;
    status.textContent = `${this.match + 1} of ${matches.length}: ${name}, ${whole.format(commands)} commands`;
    this.marked = [first, last];
    this.show(first - margin, last + margin);
  },

  layerSpans() {
    const spans = [];
    this.runs.forEach((run, r) => {
      const found = run.layers.map((name) => ({ name, first: Infinity, last: 0, commands: 0, run: r }));
      const layer = run.c.class_layer, q = run.quantum / 1e9;
      for (let i = 0; i < run.start.length; i++) {
        const span = found[layer[run.c.class[i]]];
        span.first = Math.min(span.first, run.start[i] * q);
        span.last = Math.max(span.last, run.end[i] * q);
        span.commands += 1;
      }
      spans.push(...found.filter((span) => span.commands));
    });
    return spans.sort((a, b) => a.first - b.first);
  },
});

function rowsOf(facts) {
  const list = element("dl", undefined, "facts");
  for (const [label, value] of facts) list.append(element("dt", label || "\u00a0"), element("dd", String(value)));
  return list;
}

/** What there is to say about one command. */
function describe(run, index) {
  const c = run.c, k = c.class[index], q = run.quantum, layer = c.class_layer[k];
  const opcode = run.opcodes[c.class_opcode[k]], tile = c.tile[index], slices = run.slices[layer];
  const shape = [c.class_batch[k], c.class_m[k], c.class_n[k], c.class_k[k]];
  const facts = [["layer", run.layers[layer]], ["does", `${opcode}, ${run.roles[c.class_role[k]].replaceAll("_", " ")}`]];
  if (c.class_segment[k] >= 0) facts.push(["segment", run.segments[c.class_segment[k]]]);
  if (tile >= 0) facts.push([c.class_segment[k] >= 0 ? "tile" : "piece", `${tile + 1} of ${slices}`]);
  if (opcode === "product") facts.push(["shape", `${shape[0] > 1 ? `${shape[0]} × ` : ""}[${shape[1]}, ${shape[3]}] × [${shape[3]}, ${shape[2]}]`], ["precision", run.pairs[c.class_pair[k]].replace("x", " × ")]);
  else if (opcode === "vector") facts.push(["function", run.functions[c.class_function[k]] ?? ""], ["elements", whole.format(shape[1])]);
  else facts.push(["tensor", run.tensors[c.class_tensor[k]] ?? ""], ["box", shape.join(" × ")], ["bytes", `${whole.format(c.class_bytes[k])} of DRAM`]);
  if (opcode === "product" || opcode === "vector") facts.push(["bytes", `${whole.format(c.class_bytes[k])} read and written in SRAM`]);
  if (opcode !== "product") facts.push(["precision", run.precisions[layer]]);
  facts.push(["time", `${timeText(run.start[index] * q)} to ${timeText(run.end[index] * q)}`], ["takes", timeText((run.end[index] - run.start[index]) * q)]);
  facts.push(["waited for", run.stalls[c.stall[index]]]);
  if (c.critical[index]) facts.push(["", "on the critical path"]);
  return facts;
}
