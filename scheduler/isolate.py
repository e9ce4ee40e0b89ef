"""One segment on its own: a small graph, plan and Program with the boundary state that it has in the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import npusim
from npusim.cost import Work
from npusim.graph import Coverage, Graph
from npusim.lower import lower
from npusim.plan import LayerPlan, ModelRef, Options, Plan, Slots
from npusim.scheduler.allocate import Lifetime, allocate
from npusim.scheduler.planner import segment_plan, tensor_plan
from npusim.scheduler.problem import Problem
from npusim.scheduler.tiles import Segment, Tiling, layers_of, slots_of
from npusim.simulate import simulate
from npusim.trace import sram_occupancy
from npusim.units import ps_to_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A simulated tiling of one segment."""

    tiling: Tiling
    tile_count: int
    makespan_ps: int
    dram_bytes: int
    sram_bytes: int
    point: Mapping[str, Any]

    @property
    def score(self) -> tuple[int, int, int]:
        """What `auto` minimises: time, then DRAM bytes, then tiles."""
        return self.makespan_ps, self.dram_bytes, self.tile_count


def isolated_graph(graph: Graph, segment: Segment, resident: frozenset[str]) -> Graph:
    """The segment's layers with their operands as inputs and their result as output (or left in SRAM)."""
    layers = tuple(x for x in graph.layers if x.name in segment.layers)
    made = {x.output for x in layers}
    tensors = {}
    for layer in layers:
        for name in (*layer.reads(), layer.output):
            kind = graph.tensors[name].kind
            outside = name not in made and kind != "weight"
            tensors[name] = replace(graph.tensors[name], kind="input" if outside else kind)
    last = layers[-1].output
    tensors[last] = replace(tensors[last], kind="intermediate" if last in resident else "output")
    return Graph(
        name=segment.name, tensors=tensors, layers=layers, coverage=Coverage(nodes=0, modelled_nodes=0, unmodelled={}),
        model_sha256="",
    )  # fmt: skip


def measure(problem: Problem, segment: Segment, tiling: Tiling, resident: frozenset[str]) -> Measured | None:
    """Simulate one tiling under the problem's policy; None if it does not fit the SRAM beside the resident tensors."""
    graph = isolated_graph(problem.graph, segment, resident)
    plan = _plan(problem, graph, segment, tiling, resident)
    if plan is None:
        return None
    program = lower(graph, plan)
    work = Work(program, problem.npu)
    trace = simulate(program, problem.npu, problem.policy, work=work)
    times, occupied = sram_occupancy(program, trace)
    span = (times[1:] - times[:-1]) if len(times) > 1 else times[:0]
    mean = float((occupied[:-1] * span).sum() / max(1, trace.makespan_ps))
    segment_plan = plan.segments[0]
    size = sum(len(s.addresses) * s.slot_bytes for s in segment_plan.slots)
    dram = int(work.dram_bytes.sum())
    point = {
        "tile_count": segment_plan.tile_count,
        "tiles": dict(segment_plan.tiles),
        "depth": tiling.depth,
        "latency_ms": ps_to_ms(trace.makespan_ps),
        "dram_bytes": dram,
        "peak_sram_bytes": size,
        "sram_utilization": mean / problem.npu.sram.sram_bytes,
        "handover_ms": ps_to_ms(int(work.handover_ps.sum())),
    }
    return Measured(
        tiling=tiling,
        tile_count=segment_plan.tile_count,
        makespan_ps=trace.makespan_ps,
        dram_bytes=dram,
        sram_bytes=size,
        point=point,
    )


def _plan(
    problem: Problem, graph: Graph, segment: Segment, tiling: Tiling, resident: frozenset[str]
) -> Plan | None:
    layers = layers_of(graph, segment)
    specs = slots_of(problem, layers, tiling, resident)
    lives = [
        Lifetime(name=f"{s.name}/{i}", size_bytes=s.slot_bytes, first=0, last=0)
        for s in specs
        for i in range(s.count)
    ]
    homes = [
        Lifetime(name=t, size_bytes=problem.tensor_bytes(t), first=0, last=0)
        for t in sorted(resident & set(graph.tensors))
    ]
    addresses = allocate([*homes, *lives], problem.npu.sram.sram_bytes)
    if addresses is None:
        return None
    slots = tuple(
        Slots(
            name=s.name,
            slot_bytes=s.slot_bytes,
            addresses=tuple(addresses[f"{s.name}/{i}"] for i in range(s.count)),
        )
        for s in specs
    )
    return Plan(
        npusim_version=npusim.__version__,
        model=ModelRef(name=segment.name, sha256=""),
        options=Options(
            tiles="auto", segments="attention", precision=problem.precision, policy=problem.policy
        ),
        npu=problem.npu,
        tensors=tuple(
            tensor_plan(problem, t, resident=resident, addresses=addresses, load_inputs=False)
            for t in graph.tensors
        ),
        layers=tuple(_layer(problem, x.name, segment.name) for x in graph.layers),
        segments=(segment_plan(graph, segment, tiling, slots),),
    )


def _layer(problem: Problem, name: str, segment: str) -> LayerPlan:
    vector = problem.npu.vector_engine
    unit, count = problem.units.get(name, (vector.kind, vector.count))
    return LayerPlan(
        name=name, precision=problem.precision, unit=unit, engines=tuple(range(count)), segment=segment
    )
