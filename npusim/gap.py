"""From the lower bound to the simulated time, cause by cause: the causes add up to the gap, to the picosecond.

One resource is followed through the run: the one whose bound is the largest (for the critical path: the busier kind of compute
engine). While it works, it does what the bound counts, or more; while it stands idle, what it waits for is found by walking back from
the command that ends the wait, along dependencies and queues, to the moment at which the wait began.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from npusim.cost import Work, arrays_of, product_ps
from npusim.dtypes import PRECISIONS
from npusim.graph import Graph
from npusim.ops import product_of
from npusim.plan import Plan
from npusim.program import ROLE, STORE, Program
from npusim.scheduler.bounds import Bounds
from npusim.trace import Trace, union_ps
from npusim.units import PS_PER_S

Ints = npt.NDArray[np.int64]

ENGINES = "engines of other kinds that stand idle"
FILL = "tiles that do not fill the arrays"
EXTRA = "work that the bound leaves out"
HANDOVER = "hand-over"
ENDS = "fill and drain of the whole run"
WEIGHTS = "waiting for weights"
ACTIVATIONS = "waiting for activations from DRAM"
STORES = "waiting for stores"
VECTOR = "waiting for the vector engines"
TENSOR = "waiting for the tensor engines"
BARRIERS = "barriers: norms that need all of their input first"
TRAFFIC = "bytes above the bound"
SETUP = "transfers that do not fill the bandwidth"
COUNTED = "of these waits, what the bound counts too"


def gap_ps(
    graph: Graph, plan: Plan, program: Program, trace: Trace, work: Work, bound: Bounds
) -> dict[str, int]:
    """Cause -> picoseconds, largest first; they sum to the makespan less the bound."""
    kind = _followed(bound)
    mine = np.flatnonzero(np.isin(program.commands.gang, _gangs(program, kind)))
    if not len(mine):
        return {ENDS: trace.makespan_ps - bound.makespan_ps} if trace.makespan_ps else {}
    busy = union_ps(trace.start_ps[mine], trace.end_ps[mine])
    causes: Counter[str] = Counter()
    if kind == "dma":
        causes.update(_transfers(plan, work, bound, busy))
    else:
        causes.update(_computation(graph, plan, work, bound, kind, mine, busy))
    causes.update(_waits(graph, program, trace, mine))
    causes[COUNTED] -= bound.makespan_ps - bound.by_resource_ps["dram" if kind == "dma" else kind]
    return {c: n for c, n in sorted(causes.items(), key=lambda x: (-x[1], x[0])) if n}


def _followed(bound: Bounds) -> str:
    """The kind of engine that is followed."""
    parts = {k: v for k, v in bound.by_resource_ps.items() if k != "critical path"}
    compute = {k: v for k, v in parts.items() if k != "dram"}
    largest = max(parts, key=lambda k: parts[k])
    if bound.by_resource_ps["critical path"] > parts[largest]:
        return max(compute, key=lambda k: compute[k])
    return "dma" if largest == "dram" else largest


def _gangs(program: Program, kind: str) -> list[int]:
    return [i for i, g in enumerate(program.gangs) if g.kind == kind]


# ---- while it works ---------------------------------------------------------------------------------------------------------


def _transfers(plan: Plan, work: Work, bound: Bounds, busy: int) -> dict[str, int]:
    npu = plan.npu
    rate = min(npu.dram.dram_shared_bytes_per_s, npu.dma.channels * npu.dma.channel_bytes_per_s)
    least = int(work.dram_bytes.sum()) * PS_PER_S // rate
    return {TRAFFIC: least - bound.by_resource_ps["dram"], SETUP: busy - least}


def _computation(
    graph: Graph, plan: Plan, work: Work, bound: Bounds, kind: str, mine: Ints, busy: int
) -> dict[str, int]:
    handover = int(work.handover_ps[mine].sum())
    ideal = bound.by_resource_ps[kind]
    if kind == "vector":
        return {HANDOVER: handover, EXTRA: busy - handover - ideal}
    whole = _uncut_ps(graph, plan)
    return {HANDOVER: handover, ENGINES: whole - ideal, FILL: busy - handover - whole}


def _uncut_ps(graph: Graph, plan: Plan) -> int:
    """Time of all products, each in one piece on the engines that the plan gives it."""
    planned = {p.name: p for p in plan.layers}
    total = 0
    for layer in graph.layers:
        product = product_of(graph, layer)
        if product is not None:
            chosen = planned[layer.name]
            precision = PRECISIONS[chosen.precision]
            pair = precision.activation_pair if product.activations else precision.weight_pair
            extents = (product.batch, product.m, product.n, product.k)
            engines = tuple((kind, len(numbers)) for kind, numbers in chosen.engines.items())
            total += int(
                product_ps(
                    plan.npu, arrays_of(plan.npu, engines), extents, pair, activations=product.activations
                )
            )
    return total


# ---- while it waits ---------------------------------------------------------------------------------------------------------


def _waits(graph: Graph, program: Program, trace: Trace, mine: Ints) -> Counter[str]:
    """What the followed engines wait for."""
    found: Counter[str] = Counter()
    start, end = trace.start_ps.tolist(), trace.end_ps.tolist()
    before = _before(program, trace.policy)
    names = _names(graph, program)
    ordered = mine[np.argsort(trace.start_ps[mine], kind="stable")]
    high = np.maximum.accumulate(trace.end_ps[ordered])
    found[ENDS] = int(trace.start_ps[ordered[0]]) + trace.makespan_ps - int(high[-1])
    idle = np.flatnonzero(trace.start_ps[ordered[1:]] > high[:-1])
    for i in idle.tolist():
        began, at, command = int(high[i]), start[ordered[i + 1]], int(ordered[i + 1])
        while at > began:
            command = max(before(command), key=lambda c: end[c])
            since = max(began, start[command])
            found[names[command]] += at - since
            at = since
    return found


def _before(program: Program, policy: str) -> Callable[[int], Sequence[int]]:
    """Command -> those that it may have waited for: its dependencies, and the one before it in each queue."""
    if policy == "serial":
        return lambda command: (command - 1,)
    pointers, indices = program.commands.dep_ptr.tolist(), program.commands.dep_idx.tolist()
    queued: list[list[int]] = [[] for _ in range(len(program))]
    for _, queue in program.queues():
        for first, second in pairwise(queue):
            queued[second].append(first)
    return lambda command: [*indices[pointers[command] : pointers[command + 1]], *queued[command]]


def _names(graph: Graph, program: Program) -> list[str]:
    """What waiting for each command is called."""
    kinds = [program.gangs[g].kind for g in program.commands.gang.tolist()]
    norms = [x.op == "group_norm" for x in graph.layers]
    columns = zip(
        kinds, program.commands.layer.tolist(), program.commands.role.tolist(), program.commands.opcode.tolist(), strict=True
    )  # fmt: skip
    found = []
    for kind, layer, role, opcode in columns:
        if kind == "tensor":
            found.append(TENSOR)
        elif kind == "vector":
            found.append(BARRIERS if norms[layer] else VECTOR)
        elif opcode == STORE:
            found.append(STORES)
        else:
            found.append(WEIGHTS if role == ROLE["weight"] else ACTIVATIONS)
    return found
