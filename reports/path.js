"use strict";
// What holds the critical path over time: its layers, and the blocks that they belong to. Two rows above the engines.

/** Stretches of one layer (or block) on the critical path: `start` and `end` ascend and touch, `item` indexes `names`. */
function stretches(run, itemOf) {
  const order = run.path ??= pathOrder(run);
  const start = [], end = [], item = [];
  let time = 0;
  for (const i of order) {
    const at = itemOf[run.c.class_layer[run.c.class[i]]];
    if (item.length && item[item.length - 1] === at) end[end.length - 1] = run.end[i];
    else { start.push(time); end.push(run.end[i]); item.push(at); }
    time = run.end[i];
  }
  return { start, end, item };
}

/** Commands of the critical path in order of time. */
function pathOrder(run) {
  const { critical } = run.c;
  let count = 0;
  for (let i = 0; i < critical.length; i++) count += critical[i] ? 1 : 0;
  const order = new Uint32Array(count);
  for (let i = 0, at = 0; i < critical.length; i++) if (critical[i]) order[at++] = i;
  return order.sort((a, b) => run.end[a] - run.end[b]);
}

/** The two rows of a run. */
function pathRows(run) {
  return [
    { name: "block", names: run.blocks, ...stretches(run, run.block_of) },
    { name: "layer", names: run.layers, ...stretches(run, run.layers.map((_, i) => i)) },
  ];
}

/** Call `emit(start, end, name, count)` for a row's stretches in [from, to); those narrower than `bin` in a row become one. */
function eachStretch(row, from, to, bin, emit) {
  const { start, end, item, names } = row;
  let i = above(end, from, 0, end.length);
  while (i < end.length && start[i] < to) {
    let j = i + 1, longest = i;
    if (end[i] - start[i] < bin) {
      const stop = start[i] + bin;
      for (; j < end.length && end[j] <= stop; j++) if (end[j] - start[j] > end[longest] - start[longest]) longest = j;
    }
    emit(start[i], end[j - 1], names[item[longest]], j - i, i);
    i = j;
  }
}

/** What there is to say about a row at a time: the stretch there, and what it takes of the run. */
function pathFacts(run, row, at) {
  const i = above(row.end, at, 0, row.end.length - 1), q = run.quantum, takes = row.end[i] - row.start[i];
  return [
    [row.name, row.names[row.item[i]]], ["holds the critical path", `${timeText(row.start[i] * q)} to ${timeText(row.end[i] * q)}`],
    ["for", `${timeText(takes * q)}, ${fixed((100 * takes) / Math.max(1, run.makespan), 2)} % of the run`],
  ];
}

/** The end of a module path, as much of it as fits: `attn1.qk` of `down_blocks.0.attentions.0.attn1.qk`, `…cks.1` of `down_blocks.1`. */
function fitted(pen, name, width) {
  const fits = (text) => pen.measureText(text).width <= width;
  if (fits(name)) return name;
  for (let cut = name.indexOf("."); cut >= 0; cut = name.indexOf(".", cut + 1)) {
    const short = name.slice(cut + 1);
    if (/^\D/.test(short) && fits(short)) return short;
  }
  for (let cut = Math.max(1, name.length - 24); cut <= name.length - 4; cut++) {
    if (fits(`…${name.slice(cut)}`)) return `…${name.slice(cut)}`;
  }
  return "";
}
