"use strict";
// The layer table: sorted, filtered, rolled up by block, with a cumulative share of the latency.

const COLUMNS = [
  ["name", "layer", "text"], ["critical_ps", "latency (ms)", "ms"], ["share", "share", "share"], ["running", "cumulative", "share"],
  ["busy_ps", "busy (ms)", "ms"], ["dram_bytes", "DRAM", "bytes"], ["spill_bytes", "of it intermediates", "bytes"],
  ["macs", "MACs", "macs"], ["mac_share", "MAC use", "share"], ["slices", "tiles or pieces", "count"],
  ["sqnr_db", "SQNR", "db"], ["op", "operator", "text"], ["shape", "output", "text"], ["precision", "precision", "text"],
];
const SUMMED = ["critical_ps", "busy_ps", "macs", "dram_bytes", "spill_bytes"];
const SHOWN = { ms: (v) => fixed(v / 1e9, 4), share: (v) => `${fixed(100 * v, 1)} %`, macs: macsText, bytes: bytesText, count: (v) => whole.format(v), db: (v) => `${fixed(v, 1)} dB`, text: (v) => v };

class LayerTable {
  constructor(box, layers, jump) {
    this.columns = COLUMNS.filter(([key]) => key !== "sqnr_db" || layers.sqnr_db);
    Object.assign(this, { box, jump, sort: "critical_ps", down: true, open: new Set(), limit: 150 });
    this.rows = layers.name.map((_, i) => Object.fromEntries(Object.keys(layers).map((key) => [key, layers[key][i]])));
    this.total = sumUp(this.rows);
    for (const row of this.rows) row.share = row.critical_ps / Math.max(1, this.total.critical_ps);
    this.filter = box.querySelector(".filter");
    this.group = box.querySelector(".group");
    this.filter.addEventListener("input", () => this.draw());
    this.group.addEventListener("change", () => { this.open.clear(); this.draw(); });
    box.querySelector(".more").addEventListener("click", () => { this.limit = Infinity; this.draw(); });
    box.querySelector(".csv").addEventListener("click", () => this.save());
    this.head();
    this.draw();
  }

  /** The layers that pass the filter, in the table's order, as a CSV file (RFC 4180); times in ms. */
  save() {
    const keys = ["name", "op", "block", "part", "shape", "precision", "slices", "critical_ps", "busy_ps", "macs", "mac_share", "dram_bytes", "spill_bytes"];
    if (this.columns.some(([key]) => key === "sqnr_db")) keys.push("sqnr_db");
    const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
    const field = (row, key) => quoted(String((key.endsWith("_ps") ? row[key] / 1e9 : key === "shape" ? row[key].replaceAll(" × ", "x") : row[key]) ?? ""));
    const lines = [keys.map((key) => key.replace("_ps", "_ms")).join(","), ...this.ordered(this.filtered()).map((row) => keys.map((key) => field(row, key)).join(","))];
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" }));
    link.download = "npusim-layers.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  filtered() {
    const wanted = this.filter.value.toLowerCase();
    return this.rows.filter((r) => !wanted || `${r.name} ${r.op}`.toLowerCase().includes(wanted));
  }

  head() {
    const row = element("tr");
    for (const [key, label, kind] of this.columns) {
      const cell = element("th", undefined, kind === "text" ? "" : "number");
      cell.scope = "col";
      const button = element("button", label);
      button.addEventListener("click", () => {
        this.down = this.sort === key ? !this.down : kind !== "text";
        this.sort = key === "running" ? "critical_ps" : key;
        this.draw();
      });
      cell.append(button);
      cell.dataset.key = key;
      row.append(cell);
    }
    this.box.querySelector("thead").replaceChildren(row);
  }

  draw() {
    for (const cell of this.box.querySelectorAll("thead th")) {
      if (cell.dataset.key === this.sort) cell.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    const wanted = this.filter.value.toLowerCase();
    const rows = this.filtered();
    const lines = this.group.value === "none" ? this.ordered(rows).map((row) => ({ row })) : this.grouped(rows, wanted);
    let running = 0;
    const drawn = [];
    for (const line of lines) {
      if (!line.member) running += line.row.share;
      line.row.running = line.member ? undefined : running;
      if (drawn.length < this.limit) drawn.push(this.line(line));
    }
    this.box.querySelector("tbody").replaceChildren(...drawn);
    const more = this.box.querySelector(".more");
    more.hidden = lines.length <= this.limit;
    more.textContent = `show all ${whole.format(lines.length)} rows`;
    const total = sumUp(rows);
    total.share = total.critical_ps / Math.max(1, this.total.critical_ps);
    const foot = this.line({ row: { ...total, name: `${whole.format(rows.length)} layers`, block: "", op: "", shape: "", precision: "" } });
    this.box.querySelector("tfoot").replaceChildren(foot);
  }

  ordered(rows) {
    const sign = this.down ? -1 : 1, key = this.sort;
    return [...rows].sort((a, b) => sign * (typeof a[key] === "string" ? a[key].localeCompare(b[key]) : (a[key] ?? 0) - (b[key] ?? 0)));
  }

  grouped(rows, wanted) {
    const blocks = new Map();
    for (const row of rows) {
      const name = row[this.group.value];
      if (!blocks.has(name)) blocks.set(name, []);
      blocks.get(name).push(row);
    }
    const groups = [...blocks].map(([name, members]) => {
      const sum = sumUp(members);
      return { ...sum, name, op: members.length === 1 ? "1 layer" : `${members.length} layers`, shape: "", precision: "", slices: members.reduce((n, m) => n + m.slices, 0), share: sum.critical_ps / Math.max(1, this.total.critical_ps), members };
    });
    return this.ordered(groups).flatMap((row) => {
      const open = this.open.has(row.name) || (wanted && rows.length <= 60);
      return [{ row, group: true, open }, ...(open ? this.ordered(row.members).map((member) => ({ row: member, member: true })) : [])];
    });
  }

  line({ row, group, member, open }) {
    const line = element("tr", undefined, group ? "block" : member ? "member" : "");
    for (const [key, , kind] of this.columns) {
      const value = row[key];
      const cell = key === "name" ? this.nameCell(row, group, open) : element("td", undefined, kind === "text" ? "" : "number");
      if (key !== "name" && value !== undefined && value !== null) {
        cell.textContent = SHOWN[kind](value);
        if (SUMMED.includes(key)) cell.dataset.value = String(kind === "ms" ? value / 1e9 : value);
        if (key === "share" && row.block !== "") cell.style.setProperty("--part", `${100 * Math.min(1, value)}%`), cell.classList.add("part");
      }
      line.append(cell);
    }
    return line;
  }

  nameCell(row, group, open) {
    const cell = element("th");
    cell.scope = "row";
    if (row.block === "") { cell.textContent = row.name; return cell; }
    const button = element("button", group ? `${open ? "▾" : "▸"} ${row.name}` : row.name);
    button.addEventListener("click", () => {
      if (!group) { this.jump(row.name); return; }
      if (!this.open.delete(row.name)) this.open.add(row.name);
      this.draw();
      [...this.box.querySelectorAll("tbody th button")].find((b) => b.textContent.slice(2) === row.name)?.focus();
    });
    if (group) button.setAttribute("aria-expanded", String(Boolean(open)));
    else button.title = "show on the timeline";
    cell.append(button);
    return cell;
  }
}

function sumUp(rows) {
  const total = {};
  for (const key of SUMMED) total[key] = rows.reduce((sum, row) => sum + row[key], 0);
  total.mac_share = rows.reduce((sum, row) => sum + row.mac_share * row.busy_ps, 0) / Math.max(1, total.busy_ps);
  return total;
}
