"use strict";
// Level of detail: what of a run to draw in a window of time, so that the drawing costs pixels and not events.

/** Call `emit(start, end, category, busy share, commands, critical, first command)` for what one gang does in [from, to). */
function eachBlock(run, gang, from, to, bin, emit) {
  const { start, end, c } = run;
  const category = c.class_category;
  const weights = new Float64Array(run.categories);
  let i = above(end, from, gang.first, gang.last);
  while (i < gang.last && start[i] < to) {
    if (end[i] - start[i] >= bin) {
      emit(start[i], end[i], category[c.class[i]], 1, 1, c.critical[i], i);
      i += 1;
      continue;
    }
    const stop = start[i] + bin;
    let busy = 0, critical = 0, j = i;
    weights.fill(0);
    for (; j < gang.last && start[j] < stop && end[j] - start[j] < bin; j++) {
      const length = end[j] - start[j];
      busy += length;
      critical += c.critical[j] ? length : 0;
      weights[category[c.class[j]]] += length + 1e-9;
    }
    let most = 0;
    for (let k = 1; k < weights.length; k++) if (weights[k] > weights[most]) most = k;
    emit(start[i], end[j - 1], most, busy / Math.max(1, end[j - 1] - start[i]), j - i, critical * 2 > busy ? 1 : 0, i);
    i = j;
  }
}

/** How many commands of a gang run in [from, to), what share of that time they take, and the one at the middle. */
function busyIn(run, gang, from, to) {
  const { start, end } = run;
  const middle = (from + to) / 2;
  let count = 0, busy = 0, at = -1;
  for (let i = above(end, from, gang.first, gang.last); i < gang.last && start[i] < to; i++) {
    count += 1;
    busy += Math.min(end[i], to) - Math.max(start[i], from);
    if (at < 0 || start[i] <= middle) at = i;
  }
  return { count, share: busy / Math.max(1, to - from), at };
}

/** A step function in [from, to), as points of a line; many steps become one mean (or maximum) per bin. */
function stepsIn(times, values, from, to, bins, most) {
  const low = Math.max(0, above(times, from, 0, times.length) - 1);
  const high = above(times, to, 0, times.length);
  const x = [], y = [];
  if (high - low <= 2 * bins) {
    for (let i = low; i < high; i++) { x.push(times[i]); y.push(values[i]); }
    x.push(to); y.push(high ? values[high - 1] : 0);
    return { x, y };
  }
  const width = (to - from) / bins;
  let i = low;
  for (let bin = 0; bin < bins; bin++) {
    const left = from + bin * width, right = left + width;
    let sum = 0, peak = 0;
    for (; i < high; i++) {
      const begin = Math.max(left, times[i]);
      const finish = Math.min(right, i + 1 < times.length ? times[i + 1] : to);
      if (finish > begin) sum += values[i] * (finish - begin);
      if (finish >= begin && values[i] > peak) peak = values[i];
      if (i + 1 >= times.length || times[i + 1] >= right) break;
    }
    x.push(left); y.push(most ? peak : sum / width);
  }
  x.push(to); y.push(y[y.length - 1]);
  return { x, y };
}

/** Grid of the address map in [from, to): `rows` x `columns` cells, each 1 + the kind of tensor that lies there. */
function mapIn(run, from, to, columns, rows) {
  const { map_first, map_span, map_address, map_bytes, map_tensor, kind } = run.c;
  const grid = Array.from({ length: rows }, () => new Float32Array(columns).fill(NaN));
  const perColumn = (to - from) / columns, perRow = run.capacity / rows;
  for (let i = 0; i < map_first.length && map_first[i] < to; i++) {
    const last = map_first[i] + map_span[i];
    if (last <= from) continue;
    const left = Math.max(0, Math.floor((map_first[i] - from) / perColumn));
    const right = Math.min(columns - 1, Math.floor((last - from) / perColumn - 1e-9));
    const bottom = Math.floor(map_address[i] / perRow);
    const top = Math.min(rows - 1, Math.floor((map_address[i] + map_bytes[i] - 1) / perRow));
    const value = 1 + kind[map_tensor[i]];
    for (let row = bottom; row <= top; row++) grid[row].fill(value, left, Math.max(left, right) + 1);
  }
  return grid;
}

/** The buffer at a time and an address, or -1. */
function bufferAt(run, time, address) {
  const { map_first, map_span, map_address, map_bytes } = run.c;
  for (let i = 0; i < map_first.length && map_first[i] <= time; i++) {
    if (time < map_first[i] + map_span[i] && address >= map_address[i] && address < map_address[i] + map_bytes[i]) return i;
  }
  return -1;
}
