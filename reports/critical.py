"""The critical path: the chain of commands, each waiting for the one before, that makes the run as long as it is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from npusim.program import Program
from npusim.trace import Trace

Ints = npt.NDArray[np.int64]


def critical_path(program: Program, trace: Trace) -> Ints:
    """Commands of one critical path, in order.

    From the command that ends last, step back to whichever of its dependencies and queue predecessors ended last (it is
    the one that released it), until a command that waited for nothing.
    """
    if not len(program):
        return np.zeros(0, dtype=np.int64)
    before = _releasing(program, trace).tolist()
    command = int(np.argmax(trace.end_ps))
    path = []
    while command >= 0:
        path.append(command)
        command = before[command]
    return np.asarray(path[::-1], dtype=np.int64)


def _releasing(program: Program, trace: Trace) -> Ints:
    """[n] of each command's dependencies and queue predecessors the one that ended last, or -1 if it waited for none."""
    commands, end = program.commands, trace.end_ps
    found = np.full(len(program), -1, dtype=np.int64)
    latest = np.full(len(program), -1, dtype=np.int64)
    owner = np.repeat(np.arange(len(program)), np.diff(commands.dep_ptr))
    np.maximum.at(latest, owner, end[commands.dep_idx])
    released = end[commands.dep_idx] == latest[owner]
    found[owner[released]] = commands.dep_idx[released]
    for queued in _queue_predecessors(program, trace).T:
        later = (queued >= 0) & (end[queued] > latest)
        found[later], latest[later] = queued[later], end[queued][later]
    return np.where(latest <= trace.start_ps, found, -1)


def _queue_predecessors(program: Program, trace: Trace) -> Ints:
    """[n, engines] the command before in each engine's queue, or -1; under `serial` the command before."""
    count, lanes = len(program), program.gang_lanes()
    if trace.policy == "serial":
        return np.arange(-1, count - 1, dtype=np.int64)[:, None]
    width = max((len(lane) for lane in lanes), default=1)
    found = np.full((count, width), -1, dtype=np.int64)
    for lane in range(len(program.lanes)):
        users = [g for g, engines in enumerate(lanes) if lane in engines]
        queue = np.flatnonzero(np.isin(program.commands.gang, users))
        for gang in users:
            mine = np.flatnonzero(program.commands.gang[queue[1:]] == gang)
            found[queue[1:][mine], lanes[gang].index(lane)] = queue[mine]
    return found


def critical_ps(program: Program, trace: Trace) -> Ints:
    """[n] picoseconds that each command holds the critical path; they add up to the makespan.

    A wait before a command that nothing explains counts as its own.
    """
    path = critical_path(program, trace)
    held = np.zeros(len(program), dtype=np.int64)
    held[path] = np.diff(trace.end_ps[path], prepend=0)
    return held
