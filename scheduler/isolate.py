"""One segment on its own: a small graph, plan and Program with the boundary state that it has in the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from npusim.cost import Work
from npusim.lower import lower
from npusim.scheduler.allocate import Lifetime, allocate
from npusim.scheduler.assemble import Decisions, assemble
from npusim.scheduler.pieces import Option
from npusim.scheduler.problem import Problem
from npusim.scheduler.request import Request
from npusim.scheduler.residency import Unit
from npusim.scheduler.tiles import Segment
from npusim.scheduler.units import slot_name, unit_slots
from npusim.simulate import simulate
from npusim.trace import kind_busy_ps, sram_occupancy
from npusim.units import ps_to_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A simulated tiling of one segment; `busy_ps` says how long each kind of engine works."""

    option: Option
    tile_count: int
    depth: int
    makespan_ps: int
    dram_bytes: int
    sram_bytes: int
    handover_ps: int
    busy_ps: Mapping[str, int]
    point: Mapping[str, Any]

    @property
    def score(self) -> tuple[int, int, int]:
        """What `auto` minimises: time, then DRAM bytes, then tiles."""
        return self.makespan_ps, self.dram_bytes, self.tile_count


def measure(problem: Problem, segment: Segment, option: Option, resident: frozenset[str]) -> Measured | None:
    """Simulate one tiling under the problem's policy; None if it does not fit the SRAM beside the resident tensors."""
    part = problem.part(segment.layers, resident)
    unit = Unit(
        name=segment.name, layers=segment.layers, tensors=frozenset(part.graph.tensors), options=lambda _: [], segment=segment
    )  # fmt: skip
    addresses = _addresses(part, unit, option, part.held)
    if addresses is None:
        return None
    request = Request(tiles="auto", precision=problem.precision, policy=problem.policy)
    decided = Decisions(resident=part.held, options=[option], addresses=addresses)
    plan = assemble(part, request, [unit], decided)
    program = lower(part.graph, plan, problem.fragments)
    work = Work(program, problem.npu)
    trace = simulate(program, problem.npu, problem.policy, work=work)
    times, occupied = sram_occupancy(program, trace)
    span = (times[1:] - times[:-1]) if len(times) > 1 else times[:0]
    mean = float((occupied[:-1] * span).sum() / max(1, trace.makespan_ps))
    entry = plan.segments[0]
    dram = int(work.dram_bytes.sum())
    return Measured(
        option=option,
        tile_count=entry.tile_count,
        depth=entry.depth,
        makespan_ps=trace.makespan_ps,
        dram_bytes=dram,
        sram_bytes=option.sram_bytes,
        handover_ps=int(work.handover_ps.sum()),
        busy_ps=kind_busy_ps(program, trace),
        point={
            "tile_count": entry.tile_count,
            "tiles": dict(entry.tiles),
            "depth": entry.depth,
            "latency_ms": ps_to_ms(trace.makespan_ps),
            "dram_bytes": dram,
            "peak_sram_bytes": option.sram_bytes,
            "sram_utilization": mean / problem.npu.sram.sram_bytes,
            "handover_ms": ps_to_ms(int(work.handover_ps.sum())),
        },
    )


def _addresses(
    problem: Problem, unit: Unit, option: Option, resident: frozenset[str]
) -> dict[str, int] | None:
    lives = [
        Lifetime(name=slot_name(owner, s.name, i), size_bytes=s.slot_bytes, first=0, last=0)
        for owner, specs in unit_slots(problem, unit, resident, option).items()
        for s in specs
        for i in range(s.count)
    ]
    owner = {t: problem.in_place.get(t, t) for t in resident}
    homes = sorted({o if o in resident else t for t, o in owner.items()})
    lives += [Lifetime(name=t, size_bytes=problem.tensor_bytes(t), first=0, last=0) for t in homes]
    found = allocate(lives, problem.npu.sram.sram_bytes)
    return None if found is None else {**found, **{t: found[o] for t, o in owner.items() if o in found}}
