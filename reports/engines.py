"""What every engine does with its time: busy, waiting (and for what), idle."""

from __future__ import annotations

import numpy as np

from npusim.program import Program
from npusim.reports.theme import STATES, Figure, layout
from npusim.trace import STALL_DEPENDENCY, STALL_DMA, Trace
from npusim.units import PS_PER_MS


def engine_states(program: Program, trace: Trace) -> dict[str, dict[str, int]]:
    """Lane -> state (a key of `theme.STATES`) -> picoseconds. The states of a lane add up to the makespan.

    The gap before a command counts as what that command waited for last; time after a lane's last command is idle.
    """
    lanes = program.gang_lanes()
    states = {}
    for lane, name in enumerate(program.lanes):
        users = [g for g, engines in enumerate(lanes) if lane in engines]
        mine = np.flatnonzero(np.isin(program.commands.gang, users))
        mine = mine[np.argsort(trace.start_ps[mine], kind="stable")]
        start, end, stall = trace.start_ps[mine], trace.end_ps[mine], trace.stall[mine]
        gap = start - np.concatenate([[0], end[:-1]]) if len(mine) else start
        dma, dependency = int(gap[stall == STALL_DMA].sum()), int(gap[stall == STALL_DEPENDENCY].sum())
        states[name] = {
            "busy": int((end - start).sum()),
            "waiting for DMA": dma,
            "waiting for a dependency": dependency,
            "waiting for its turn": int(gap.sum()) - dma - dependency,
            "idle": trace.makespan_ps - int(end[-1]) if len(mine) else trace.makespan_ps,
        }
    return states


def engines(program: Program, trace: Trace) -> Figure:
    """Plotly figure: one stacked bar per engine, in milliseconds."""
    states = engine_states(program, trace)
    lanes = list(states)[::-1]
    bars = []
    for state, colour in STATES.items():
        values = [states[lane][state] / PS_PER_MS for lane in lanes]
        bars.append({
            "type": "bar", "orientation": "h", "name": state, "x": values, "y": lanes,
            "marker": {"color": colour},
            "hovertemplate": "%{y}: " + state + " %{x:.4f} ms<extra></extra>",
        })  # fmt: skip
    figure_layout = layout(x="time (ms)", y="", height=120 + 24 * len(lanes), barmode="stack", bargap=0.25)
    figure_layout["xaxis"] |= {"range": [0, trace.makespan_ps / PS_PER_MS]}
    return {"data": bars, "layout": figure_layout}
