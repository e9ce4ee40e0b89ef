"use strict";
// Typed columns, as `events.Columns.text` writes them, and the wording and numbers that all sections share.

const ARRAYS = {
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array,
  int8: Int8Array, int16: Int16Array, int32: Int32Array, float64: Float64Array,
};

async function inflate(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function readColumns(index, text) {
  const buffer = await inflate(text);
  const columns = {};
  let offset = 0;
  for (const [name, kind, length, differences] of index) {
    const stored = new ARRAYS[kind](buffer, offset, length);
    offset += stored.byteLength;
    columns[name] = differences ? runningSum(stored) : stored;
  }
  return columns;
}

function runningSum(steps) {
  const sums = new Float64Array(steps.length);
  let sum = 0;
  for (let i = 0; i < steps.length; i++) sums[i] = sum += steps[i];
  return sums;
}

/** A run as the timeline wants it: absolute times, and for each gang the range of its commands. */
async function readRun(data) {
  const run = Object.assign({}, data);
  run.c = await readColumns(data.index, data.text);
  delete run.text;
  const count = run.c.gap.length;
  run.start = new Float64Array(count);
  run.end = new Float64Array(count);
  let at = 0;
  for (const gang of run.gangs) {
    gang.first = at;
    let time = 0;
    for (const last = at + gang.commands; at < last; at++) {
      time += run.c.gap[at];
      run.start[at] = time;
      time += run.c.span[at];
      run.end[at] = time;
    }
    gang.last = at;
  }
  return run;
}

/** First index in [low, high) whose value is greater than `value`; `values` ascends there. */
function above(values, value, low, high) {
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] > value) high = middle; else low = middle + 1;
  }
  return low;
}

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

function fixed(value, digits) {
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function bytesText(value) {
  for (const [limit, unit] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (value >= limit) return `${fixed(value / limit, 2)} ${unit}`;
  }
  return `${whole.format(value)} B`;
}

function macsText(value) {
  for (const [limit, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= limit) return `${fixed(value / limit, 2)} ${unit}`;
  }
  return whole.format(value);
}

/** Milliseconds or microseconds of a number of picoseconds. */
function timeText(ps) {
  return ps >= 1e9 ? `${fixed(ps / 1e9, 4)} ms` : `${fixed(ps / 1e6, 3)} µs`;
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function colourOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
