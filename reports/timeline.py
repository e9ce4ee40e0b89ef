"""The timeline as a plotly figure, for notebooks: one lane per engine, what is narrower than a pixel merged into blocks.

The page draws its own from `events.event_columns`, window by window; this is the same picture of one fixed window.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from npusim.program import Program
from npusim.reports.events import categories
from npusim.reports.theme import CATEGORIES, Figure, layout
from npusim.trace import Trace
from npusim.units import PS_PER_MS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def merge(start: Ints, end: Ints, category: Ints, bin_ps: int) -> tuple[Ints, Ints, Ints, Floats]:
    """Blocks (start, end, category, busy share) of one gang's commands, which are in order and do not overlap.

    Commands of at least `bin_ps` stay; neighbours narrower than that merge within a bin. A block's category is that of
    its longest command.
    """
    wide = end - start >= bin_ps
    key = np.where(wide, -1 - np.arange(len(start)), start // bin_ps)
    edges = np.flatnonzero(np.diff(key, prepend=key[:1] - 1))
    if not len(edges):
        return start, end, category, np.ones(0)
    last = np.append(edges[1:], len(start)) - 1
    busy = np.add.reduceat(end - start, edges)
    length = np.maximum(1, end[last] - start[edges])
    block = np.repeat(np.arange(len(edges)), last - edges + 1)
    order = np.lexsort((end - start, block))
    longest = order[np.searchsorted(block[order], np.arange(len(edges)), side="right") - 1]
    return start[edges], end[last], category[longest], busy / length


#: Category (index into `theme.CATEGORIES`) -> outlines of its blocks: x in ms, y in lanes, None between blocks.
Polygons = dict[int, tuple[list[float | None], list[float | None]]]


def add_blocks(
    polygons: Polygons, program: Program, trace: Trace, *, window: tuple[int, int], bin_ps: int,
    shifts_ps: Sequence[int] = (0,), lane: int = 0,
) -> None:  # fmt: skip
    """Add the blocks of a window of a run: once moved right by each of `shifts_ps`, and down by `lane` lanes."""
    lanes, category = program.gang_lanes(), categories(program)
    for index in range(len(program.gangs)):
        mine = np.flatnonzero(
            (program.commands.gang == index) & (trace.end_ps > window[0]) & (trace.start_ps < window[1])
        )
        mine = mine[np.argsort(trace.start_ps[mine], kind="stable")]
        blocks = merge(trace.start_ps[mine], trace.end_ps[mine], category[mine], bin_ps)
        for start, end, kind, share in zip(*(b.tolist() for b in blocks), strict=True):
            xs, ys = polygons.setdefault(kind, ([], []))
            for row, shift in product(lanes[index], shifts_ps):
                left, right = (start + shift) / PS_PER_MS, (end + shift) / PS_PER_MS
                _rectangle(xs, ys, left, right, row + lane, max(0.12, share))


def filled_traces(polygons: Polygons) -> list[Figure]:
    """Plotly traces of the blocks, in the order of the legend."""
    names = list(CATEGORIES)
    return [_filled(names[kind], *polygons[kind]) for kind in sorted(polygons)]


def timeline(
    program: Program, trace: Trace, *, from_ps: int = 0, to_ps: int | None = None, width_px: int = 1200
) -> Figure:
    """Plotly figure of a window of the run (by default all of it)."""
    stop = trace.makespan_ps if to_ps is None else to_ps
    polygons: Polygons = {}
    add_blocks(polygons, program, trace, window=(from_ps, stop), bin_ps=max(1, (stop - from_ps) // width_px))
    data = filled_traces(polygons)
    figure_layout = layout(x="time (ms)", y="", height=120 + 24 * len(program.lanes))
    ticks = list(range(len(program.lanes)))
    figure_layout["yaxis"] |= {
        "tickvals": ticks, "ticktext": list(program.lanes), "range": [len(ticks) - 0.4, -0.6], "fixedrange": True,
    }  # fmt: skip
    figure_layout["xaxis"] |= {"range": [from_ps / PS_PER_MS, stop / PS_PER_MS]}
    return {"data": data, "layout": figure_layout}


def _rectangle(
    xs: list[float | None], ys: list[float | None], start: float, end: float, lane: int, share: float
) -> None:
    """Append a rectangle that stands on the lane's floor and is as high as the share of time that is busy."""
    low, high = lane + 0.4, lane + 0.4 - 0.8 * min(1.0, share)
    xs += [start, start, end, end, start, None]
    ys += [low, high, high, low, low, None]


def _filled(name: str, xs: list[float | None], ys: list[float | None]) -> Figure:
    return {
        "type": "scatter", "mode": "lines", "fill": "toself", "name": name, "x": xs, "y": ys,
        "fillcolor": CATEGORIES[name], "line": {"width": 0.5, "color": CATEGORIES[name]}, "hoveron": "fills",
        "hoverinfo": "name",
    }  # fmt: skip
