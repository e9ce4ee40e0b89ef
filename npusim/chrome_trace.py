"""`trace.json`: the simulated run in Chrome's trace format, which Perfetto opens. Times in microseconds, one track per engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from npusim.graph import Graph
from npusim.program import OPCODES, ROLES, Program
from npusim.trace import STALLS, Trace, sram_occupancy
from npusim.units import PS_PER_US

_PID = 1


def chrome_trace(graph: Graph, program: Program, trace: Trace, *, name: str) -> Iterator[str]:
    """JSON text, piece by piece: a slice per command and engine, counters for SRAM bytes and DRAM bandwidth."""
    names = (json.dumps(e, separators=(",", ":")) for e in _names(program, name))
    before = '{"displayTimeUnit":"ms","traceEvents":[\n'
    for event in chain(names, _counters(program, trace), _slices(graph, program, trace)):
        yield before
        yield event
        before = ",\n"
    yield "\n]}\n"


def _names(program: Program, name: str) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": _PID, "name": "process_name", "args": {"name": name}}
    for number, lane in enumerate(program.lanes):
        yield {"ph": "M", "pid": _PID, "tid": number, "name": "thread_name", "args": {"name": lane}}
        yield {
            "ph": "M",
            "pid": _PID,
            "tid": number,
            "name": "thread_sort_index",
            "args": {"sort_index": number},
        }


def _slices(graph: Graph, program: Program, trace: Trace) -> Iterator[str]:
    """One JSON object per command and lane. Built as text: there are tens of thousands of them."""
    commands = program.commands
    lanes = program.gang_lanes()
    names = [json.dumps(layer.name) for layer in graph.layers]
    columns = zip(
        commands.opcode.tolist(), commands.gang.tolist(), commands.layer.tolist(), commands.role.tolist(), commands.tile.tolist(),
        trace.stall.tolist(), trace.start_ps.tolist(), trace.end_ps.tolist(), strict=True,
    )  # fmt: skip
    for index, (opcode, gang, layer, role, tile, stall, start, end) in enumerate(columns):
        event = (
            f'{{"ph":"X","pid":{_PID},"name":{names[layer]},"cat":"{OPCODES[opcode]}","ts":{start / PS_PER_US},'
            f'"dur":{(end - start) / PS_PER_US},"args":{{"command":{index},"role":"{ROLES[role]}","tile":{tile},'
            f'"waited_for":"{STALLS[stall]}"}},"tid":'
        )
        for lane in lanes[gang]:
            yield f"{event}{lane}}}"


def _counters(program: Program, trace: Trace) -> Iterator[str]:
    times, size = sram_occupancy(program, trace)
    for time, value in zip(times.tolist(), size.tolist(), strict=True):
        yield _counter("SRAM bytes", time, "bytes", value)
    for time, value in trace.bandwidth.tolist():
        yield _counter("DRAM bytes/s", time, "bytes_per_s", value)


def _counter(name: str, time_ps: int, key: str, value: int) -> str:
    return f'{{"ph":"C","pid":{_PID},"name":"{name}","ts":{time_ps / PS_PER_US},"args":{{"{key}":{value}}}}}'
