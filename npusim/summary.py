"""`summary.json`: the figures that scripts read. Keys are stable; every figure follows from the Program and its traces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from npusim.cost import Work, energy_pj
from npusim.gap import gap_ps
from npusim.graph import Graph, Layer
from npusim.plan import Plan, SegmentPlan, Slots
from npusim.precisions import common_precision
from npusim.program import DRAM, LOAD, ROLE, STORE, TABLE6_ROLES, Program
from npusim.scheduler.bounds import Bounds
from npusim.trace import Trace, kind_busy_ps, lane_busy_ps, sram_occupancy, union_ps
from npusim.units import ps_to_ms

SUMMARY_SCHEMA = 1
Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def summarize(
    graph: Graph, plan: Plan, program: Program, traces: Mapping[str, Trace], work: Work, *,
    bounds: Bounds, curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:  # fmt: skip
    """All figures of one run.

    Args:
        traces: by policy; both are needed.
        bounds: of the network on this NPU.
        curves: segment name -> points of its tile-count curve.
    """
    trace = traces[plan.options.policy]
    serial = traces["serial"]
    times, occupied = sram_occupancy(program, trace)
    capacity = plan.npu.sram.sram_bytes
    read, written = _dram_bytes(program, work)
    busy = lane_busy_ps(program, trace)
    energy = sum(energy_pj(program, plan.npu).values())
    return {
        "schema_version": SUMMARY_SCHEMA,
        "model": plan.model.name,
        "npu": plan.npu.name,
        "tiles": plan.options.tiles,
        "segments_kinds": plan.options.segments,
        "precision": plan.options.precision,
        "precisions": dict(sorted(Counter(plan.precisions.values()).items())),
        "policy": plan.options.policy,
        "latency_ms": ps_to_ms(trace.makespan_ps),
        "serial_latency_ms": ps_to_ms(serial.makespan_ps),
        "decoupled_latency_ms": ps_to_ms(traces["decoupled"].makespan_ps),
        "dram_read_bytes": read,
        "dram_write_bytes": written,
        "spill_bytes": spill_bytes(program, work),
        "dram_bound_bytes": bounds.dram_bytes,
        "macs": int(program.commands.macs.sum() - program.commands.recomputed_macs.sum()),
        "peak_sram_bytes": int(occupied.max(initial=0)),
        "sram_utilization": _average(times, occupied) / capacity,
        "handover_ms": ps_to_ms(int(work.handover_ps.sum())),
        "energy_mj": energy / 1e9,
        "lower_bound_ms": ps_to_ms(bounds.makespan_ps),
        "bound_by": bounds.binding,
        "gap": [
            {"cause": cause, "ms": ps_to_ms(time)}
            for cause, time in gap_ps(graph, plan, program, trace, work, bounds).items()
        ],
        "coverage": _coverage(graph, program, work),
        "assumptions": assumptions(plan),
        "engine_busy": {lane: t / max(1, trace.makespan_ps) for lane, t in busy.items()},
        "segments": [_segment(plan, program, trace, work, i, curves) for i in range(len(plan.segments))],
        "attention": attention_blocks(graph, program, trace),
        "layer_dram_bytes": layer_dram_bytes(program, work),
        "commands": len(program),
    }


def _dram_bytes(program: Program, work: Work) -> tuple[int, int]:
    opcode = program.commands.opcode
    return int(work.dram_bytes[opcode == LOAD].sum()), int(work.dram_bytes[opcode == STORE].sum())


def layer_dram_bytes(program: Program, work: Work) -> dict[str, int]:
    """DRAM bytes of each layer that moves any, in the order of the Program."""
    moved = np.zeros(len(program.layers), dtype=np.int64)
    np.add.at(moved, program.commands.layer, work.dram_bytes)
    return {name: size for name, size in zip(program.layers, moved.tolist(), strict=True) if size}


def intermediate_transfers(program: Program) -> Mask:
    """[n] whether a command moves an intermediate through DRAM."""
    accesses, buffers = program.accesses, program.buffers
    kinds = np.asarray([k == "intermediate" for k in program.tensors.kind], dtype=bool)
    chosen = (buffers.space[accesses.buffer] == DRAM) & kinds[buffers.tensor[accesses.buffer]]
    found = np.zeros(len(program), dtype=bool)
    found[accesses.command[chosen]] = True
    return found


def spill_bytes(program: Program, work: Work) -> int:
    """DRAM bytes of intermediates, written and read."""
    return int(work.dram_bytes[intermediate_transfers(program)].sum())


def _average(times: Ints, values: Ints) -> float:
    """Time-weighted mean of a step function that starts at time 0."""
    if len(times) < 2:
        return 0.0
    return float((values[:-1] * np.diff(times)).sum() / max(1, times[-1]))


def _coverage(graph: Graph, program: Program, work: Work) -> dict[str, Any]:
    unknown = [i for i, layer in enumerate(graph.layers) if layer.op == "unknown"]
    odd = np.isin(program.commands.layer, unknown)
    total = int(work.dram_bytes.sum())
    known = int(program.commands.macs.sum() - program.commands.recomputed_macs.sum())
    missed = sum(_possible_macs(graph, graph.layers[i]) for i in unknown)
    nodes = graph.coverage
    return {
        "nodes": nodes.modelled_nodes / nodes.nodes if nodes.nodes else 1.0,
        "macs": known / (known + missed) if missed else 1.0,
        "bytes": 1.0 - float(work.dram_bytes[odd].sum()) / total if total else 1.0,
        "unmodelled": {op: list(names) for op, names in nodes.unmodelled.items()},
    }


def _possible_macs(graph: Graph, layer: Layer) -> int:
    """What an unknown operator may multiply: each row of x by each of its matrices (our estimate, rather high than zero)."""
    x, *others = (graph.tensors[p.tensor] for o in layer.operands for p in o.parts)
    rows = x.elements // x.shape[3]
    return sum(rows * t.elements for t in others if t.elements > t.shape[3])


def assumptions(plan: Plan) -> list[str]:
    """What the figures rest on besides published facts, in sentences."""
    kinds = list(plan.npu.sources.values())
    assumed = sum(1 for s in kinds if s.startswith("assumed"))
    fitted = sum(1 for s in kinds if s.startswith("fitted"))
    found = [
        f"{assumed} hardware figures are assumed and {fitted} fitted to published measurements (npusim npu show {plan.npu.name})",
        "bias and requantization cost nothing: they are part of the tensor engine's output stage",
        "model inputs and outputs lie in DRAM, images channels last",
    ]
    axes = "heads and query rows" if plan.options.tiles.isdecimal() else "heads, query rows and keys"
    found += [
        f"segment {name} is not joined: no tiling of its {axes} fits the SRAM" for name in plan.unjoined
    ]
    found += [
        f"segment {s.name}: {s.requested} tiles were asked for, {s.tile_count} are possible"
        for s in plan.segments
        if s.requested
    ]
    return found


def _segment(
    plan: Plan,
    program: Program,
    trace: Trace,
    work: Work,
    index: int,
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    segment = plan.segments[index]
    mine = program.commands.segment == index
    return {
        "name": segment.name,
        "kind": segment.kind,
        "layers": list(segment.layers),
        "tile_count": segment.tile_count,
        "tiles": dict(segment.tiles),
        "latency_ms": ps_to_ms(_added_ps(trace, mine)),
        "busy_ms": {kind: ps_to_ms(time) for kind, time in kind_busy_ps(program, trace, mine).items()},
        "handover_ms": ps_to_ms(int(work.handover_ps[mine].sum())),
        "dram_bytes": int(work.dram_bytes[mine].sum()),
        "peak_sram_bytes": sum(len(s.addresses) * s.slot_bytes for s in _slots(plan, segment)),
        "precision": common_precision({n: plan.precisions[n] for n in segment.layers}),
        "tile_curve": [dict(p) for p in curves.get(segment.name, ())],
    }


def _added_ps(trace: Trace, mine: Mask) -> int:
    """By how much later the run is done because of these commands: from the end of all that was issued before them to their own end.

    What they prefetch while others compute takes no time of its own, so that the segments of a run never add up to more than it.
    """
    issued = np.flatnonzero(mine)
    if not len(issued):
        return 0
    before = int(trace.end_ps[: issued[0]].max(initial=0))
    begin = max(before, int(trace.start_ps[mine].min()))
    return max(0, int(trace.end_ps[mine].max()) - begin)


def _slots(plan: Plan, segment: SegmentPlan) -> list[Slots]:
    """SRAM slots of a segment and of the layers in it."""
    members = set(segment.layers)
    return [*segment.slots, *(s for layer in plan.layers if layer.name in members for s in layer.slots)]


def attention_blocks(graph: Graph, program: Program, trace: Trace) -> list[dict[str, Any]]:
    """Table 6's rows of every attention: for each role the union of the intervals in which it runs, in ms."""
    members: dict[str, list[int]] = {}
    for index, layer in enumerate(graph.layers):
        if layer.group:
            members.setdefault(layer.group, []).append(index)
    blocks = []
    for name, indices in members.items():
        if len(indices) != 3:
            continue
        mine = np.isin(program.commands.layer, indices)
        rows = {r: ps_to_ms(_role_ps(program, trace, mine, r)) for r in TABLE6_ROLES}
        whole = ps_to_ms(union_ps(trace.start_ps[mine], trace.end_ps[mine]))
        scores, values = graph.layers[indices[0]], graph.layers[indices[-1]]
        shape = graph.tensors[scores.output].shape
        heads = int(scores.attributes["heads"])
        blocks.append({
            "name": name, "heads": heads, "queries": shape[2], "keys": shape[3],
            "head_dim": graph.tensors[values.output].shape[3] * graph.tensors[values.output].shape[1] // heads,
            "rows": rows, "other_ms": whole - sum(rows.values()),
        })  # fmt: skip
    return blocks


def _role_ps(program: Program, trace: Trace, mine: Mask, role: str) -> int:
    chosen = mine & (program.commands.role == ROLE[role])
    return union_ps(trace.start_ps[chosen], trace.end_ps[chosen])
