"""SRAM over time (how full, and what lies where) and DRAM bandwidth, as columns for the page and as figures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from npusim.plan import Plan
from npusim.program import SRAM, Program
from npusim.reports.events import Columns
from npusim.reports.theme import ACCENT, KINDS, LIMIT, Figure, layout
from npusim.trace import Trace, sram_occupancy
from npusim.units import MIB, PS_PER_MS

Ints = npt.NDArray[np.int64]


def live_ranges(program: Program, trace: Trace) -> tuple[Ints, Ints, Ints]:
    """(buffer, first_ps, last_ps) of each SRAM buffer in use: from its first access to the end of its last."""
    accesses, buffers = program.accesses, program.buffers
    first = np.full(len(buffers.tensor), np.iinfo(np.int64).max)
    last = np.full(len(buffers.tensor), -1)
    np.minimum.at(first, accesses.buffer, trace.start_ps[accesses.command])
    np.maximum.at(last, accesses.buffer, trace.end_ps[accesses.command])
    live = np.flatnonzero((buffers.space == SRAM) & (last >= 0))
    live = live[np.argsort(first[live], kind="stable")]
    return live, first[live], last[live]


def add_memory_columns(columns: Columns, program: Program, trace: Trace, quantum: int) -> None:
    """Add occupancy (`sram_*`), the address map (`map_*`) and DRAM bandwidth (`dram_*`); steps hold from their time on."""
    times, occupied = sram_occupancy(program, trace)
    columns.add("sram_time", times // quantum, ascending=True)
    columns.add("sram_bytes", occupied)
    live, first, last = live_ranges(program, trace)
    kinds = {name: i for i, name in enumerate(KINDS)}
    kind = np.asarray([kinds[k] for k in program.tensors.kind] or [0], dtype=np.int64)
    columns.add("map_first", first // quantum, ascending=True)
    columns.add("map_span", last // quantum - first // quantum)
    columns.add("map_address", program.buffers.address[live])
    columns.add("map_bytes", program.buffers.stored_bytes[live])
    columns.add("map_tensor", program.buffers.tensor[live])
    columns.add("kind", kind)
    columns.add("dram_time", trace.bandwidth[:, 0] // quantum, ascending=True)
    columns.add("dram_rate", trace.bandwidth[:, 1] // 10**6)


def sram(plan: Plan, program: Program, trace: Trace) -> Figure:
    """Plotly figure: live SRAM bytes over time, with the capacity as a line."""
    times, occupied = sram_occupancy(program, trace)
    capacity_mib = plan.npu.sram.sram_bytes / MIB
    figure_layout = layout(x="time (ms)", y="SRAM (MiB)", height=260)
    figure_layout["shapes"] = [_limit_line(capacity_mib)]
    curve = _steps(times, occupied / MIB, "in use", "%{y:.3f} MiB at %{x:.4f} ms")
    return {"data": [curve], "layout": figure_layout}


def bandwidth(plan: Plan, trace: Trace) -> Figure:
    """Plotly figure: DRAM bandwidth in use over time, with the shared limit as a line."""
    figure_layout = layout(x="time (ms)", y="DRAM (GB/s)", height=260)
    figure_layout["shapes"] = [_limit_line(plan.npu.dram.dram_shared_bytes_per_s / 1e9)]
    rate = trace.bandwidth[:, 1] / 1e9
    curve = _steps(trace.bandwidth[:, 0], rate, "in use", "%{y:.2f} GB/s at %{x:.4f} ms")
    return {"data": [curve], "layout": figure_layout}


def _steps(times: Ints, values: npt.NDArray[np.float64], name: str, hover: str) -> Figure:
    return {
        "type": "scattergl" if len(times) > 20_000 else "scatter",
        "mode": "lines",
        "line": {"shape": "hv", "width": 1, "color": ACCENT},
        "fill": "tozeroy",
        "name": name,
        "x": (times / PS_PER_MS).tolist(),
        "y": values.tolist(),
        "hovertemplate": hover + "<extra></extra>",
    }


def _limit_line(value: float) -> Figure:
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value,
        "line": {"color": LIMIT, "dash": "dash", "width": 2},
    }  # fmt: skip
