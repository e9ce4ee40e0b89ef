"""When each command ran and why not earlier: start, end, stall reason; and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npusim.program import Program

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

STALLS = ("none", "dma", "dependency", "queue")
STALL_NONE, STALL_DMA, STALL_DEPENDENCY, STALL_QUEUE = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A simulated run of one Program.

    Attributes:
        policy: `serial` or `decoupled`.
        start_ps, end_ps: [n] per command.
        stall: [n] index into STALLS: what the command waited for last before it started.
        bandwidth: [k, 2] (time_ps, bytes_per_s) steps of DRAM use, from each time on.
    """

    policy: str
    start_ps: Ints
    end_ps: Ints
    stall: Ints
    bandwidth: Ints

    @property
    def makespan_ps(self) -> int:
        """End of the last command."""
        return int(self.end_ps.max()) if len(self.end_ps) else 0


def union_ps(start: Ints, end: Ints) -> int:
    """Length of the union of intervals."""
    if not len(start):
        return 0
    order = np.argsort(start, kind="stable")
    low, high = start[order], np.maximum.accumulate(end[order])
    gaps = np.maximum(0, low[1:] - high[:-1])
    return int(high[-1] - low[0] - gaps.sum())


def kind_busy_ps(program: Program, trace: Trace, mine: Mask | None = None) -> dict[str, int]:
    """Picoseconds in which some engine of each kind works, of all commands or of some ([n] of bool)."""
    found = {}
    for kind in sorted({g.kind for g in program.gangs}):
        chosen = np.isin(program.commands.gang, [i for i, g in enumerate(program.gangs) if g.kind == kind])
        chosen = chosen if mine is None else chosen & mine
        found[kind] = union_ps(trace.start_ps[chosen], trace.end_ps[chosen])
    return found


def lane_busy_ps(program: Program, trace: Trace) -> dict[str, int]:
    """Busy time of each engine lane, picoseconds."""
    busy = dict.fromkeys(program.lanes, 0)
    duration = trace.end_ps - trace.start_ps
    for index, lanes in enumerate(program.gang_lanes()):
        total = int(duration[program.commands.gang == index].sum())
        for lane in lanes:
            busy[program.lanes[lane]] += total
    return busy


def sram_occupancy(program: Program, trace: Trace) -> tuple[Ints, Ints]:
    """Live SRAM bytes over time: (time_ps, bytes) steps.

    A buffer is live from the start of its first access to the end of its last; buffers that share addresses (a result written in
    place) count once.
    """
    from npusim.program import SRAM

    accesses, buffers = program.accesses, program.buffers
    count = len(buffers.tensor)
    first = np.full(count, np.iinfo(np.int64).max)
    last = np.full(count, -1)
    np.minimum.at(first, accesses.buffer, trace.start_ps[accesses.command])
    np.maximum.at(last, accesses.buffer, trace.end_ps[accesses.command])
    live = np.flatnonzero((buffers.space == SRAM) & (last >= 0))
    return _address_union(buffers.address[live], buffers.stored_bytes[live], first[live], last[live])


def _address_union(address: Ints, size: Ints, first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Occupied bytes over time, where ranges that overlap in address and time count once (they share a start here)."""
    if not len(address):
        return np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    order = np.lexsort((first, address))
    a, s, f, e = address[order], size[order], first[order], last[order]
    for i in range(1, len(a)):
        if a[i] == a[i - 1] and s[i] == s[i - 1] and f[i] < e[i - 1]:
            f[i] = min(e[i - 1], max(f[i], e[i - 1]))
            e[i] = max(e[i], f[i])
    times = np.concatenate([f, e])
    change = np.concatenate([s, -s])
    order = np.lexsort((change, times))
    times, change = times[order], np.cumsum(change[order])
    final = np.append(times[1:] != times[:-1], True)
    return times[final], change[final]
