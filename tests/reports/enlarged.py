"""A profile repeated in time until it has as many commands as a test wants."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from npusim.cost import Work
from npusim.program import Program
from npusim.reports.source import Profiled
from npusim.trace import Trace


@dataclass(frozen=True)
class Enlarged:
    """A profile whose figures are those of the original, with `copies` times its commands."""

    graph: Any
    plan: Any
    program: Program
    traces: dict[str, Trace]
    work: Work
    summary: dict[str, Any]


def _tiled(table: Any, copies: int, shifts: dict[str, int]) -> Any:
    columns = {}
    for column in fields(table):
        values = getattr(table, column.name)
        repeated = np.tile(values, (copies, 1)) if values.ndim > 1 else np.tile(values, copies)
        if column.name in shifts:
            repeated = repeated + np.repeat(np.arange(copies), len(values)) * shifts[column.name]
        columns[column.name] = repeated
    return type(table)(**columns)


def _commands(commands: Any, copies: int) -> Any:
    count = len(commands.opcode)
    bare = replace(commands, dep_ptr=np.zeros(0, dtype=np.int64), dep_idx=np.zeros(0, dtype=np.int64))
    tiled = _tiled(bare, copies, {"step": count})
    lengths = np.tile(np.diff(commands.dep_ptr), copies)
    indices = np.tile(commands.dep_idx, copies) + np.repeat(np.arange(copies), len(commands.dep_idx)) * count
    return replace(tiled, dep_ptr=np.concatenate([[0], np.cumsum(lengths)]), dep_idx=indices)


def _trace(trace: Trace, copies: int) -> Trace:
    shift = np.arange(copies) * trace.makespan_ps
    steps = np.tile(trace.bandwidth, (copies, 1))
    steps[:, 0] += np.repeat(shift, len(trace.bandwidth))
    moved = np.repeat(shift, len(trace.start_ps))
    return Trace(
        policy=trace.policy,
        start_ps=np.tile(trace.start_ps, copies) + moved,
        end_ps=np.tile(trace.end_ps, copies) + moved,
        stall=np.tile(trace.stall, copies),
        bandwidth=steps,
    )


def enlarge(profile: Profiled, commands: int) -> Enlarged:
    """The profile repeated until it has at least `commands` commands."""
    program = profile.program
    copies = -(-commands // len(program))
    larger = replace(
        program,
        commands=_commands(program.commands, copies),
        buffers=_tiled(program.buffers, copies, {}),
        accesses=_tiled(
            program.accesses, copies, {"command": len(program), "buffer": len(program.buffers.tensor)}
        ),
    )
    traces = {policy: _trace(trace, copies) for policy, trace in profile.traces.items()}
    summary = dict(profile.summary) | {"latency_ms": profile.summary["latency_ms"] * copies}
    return Enlarged(
        graph=profile.graph,
        plan=profile.plan,
        program=larger,
        traces=traces,
        work=Work(larger, profile.plan.npu),
        summary=summary,
    )
