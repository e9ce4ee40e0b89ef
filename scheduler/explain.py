"""Why a segment is tiled as it is: what binds it, what other tile counts would cost, what more hardware would buy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from npusim.hardware import Npu, with_values
from npusim.scheduler.isolate import Measured, measure
from npusim.scheduler.kinds import KINDS, predicted
from npusim.scheduler.pieces import Option
from npusim.scheduler.planner import Planned, make_problem, resident_bytes
from npusim.scheduler.problem import Problem
from npusim.scheduler.tiles import Segment
from npusim.units import format_bytes, ps_to_ms

#: What is doubled, and the keys of the hardware description that this changes.
LEVERS: Mapping[str, tuple[str, ...]] = {
    "2 x SRAM": ("sram.sram_bytes",),
    "2 x DRAM bandwidth": ("dram.dram_shared_bytes_per_s", "dma.channel_bytes_per_s"),
}
#: How many other tile counts are told.
NEXT_BEST = 3
#: How many tilings are simulated for a lever.
TRIED = 2


def doubled(npu: Npu, lever: str) -> Npu:
    """The NPU with twice as much of something."""
    data = npu.model_dump()
    changes = {}
    for path in LEVERS[lever]:
        table, key = path.split(".")
        changes[path] = 2 * data[table][key]
    return with_values(npu, changes)


@dataclass(frozen=True, slots=True)
class _Case:
    """A segment of the plan with its boundary state and what else takes up SRAM while it runs."""

    segment: Segment
    option: Option
    resident: frozenset[str]
    others_bytes: int


def explain(planned: Planned) -> list[dict[str, Any]]:
    """For each segment of the plan, in its order: `alone_ms`, `bound_by`, `next_best`, `levers`.

    All times are of the segment simulated on its own with the boundary state that it has in the network; equal structures are
    simulated once.
    """
    problem = planned.problem
    variants = {
        lever: make_problem(
            problem.graph,
            doubled(problem.npu, lever),
            problem.precision,
            problem.policy,
            problem.precisions,
            shared=problem.shared,
            sums_early=problem.sums_early,
        )
        for lever in LEVERS
    }
    known: dict[object, dict[str, Any]] = {}
    found = []
    for case in _cases(planned):
        key = (
            case.segment.kind,
            KINDS[case.segment.kind].key(problem, case.segment, case.resident),
            case.option.tile,
            case.others_bytes,
        )
        if key not in known:
            known[key] = _why(problem, case, variants)
        found.append(known[key])
    return found


def _cases(planned: Planned) -> list[_Case]:
    used = resident_bytes(planned.problem, planned.units, planned.decided.resident)
    return [
        _Case(unit.segment, option, planned.decided.resident & unit.tensors, used[i])
        for i, (unit, option) in enumerate(zip(planned.units, planned.decided.options, strict=True))
        if unit.segment is not None
    ]


def _why(problem: Problem, case: _Case, variants: Mapping[str, Problem]) -> dict[str, Any]:
    chosen = measure(problem, case.segment, case.option, case.resident)
    if chosen is None:
        return {}
    return {
        "alone_ms": ps_to_ms(chosen.makespan_ps),
        "bound_by": _bound_by(chosen),
        "next_best": _next_best(problem, case, chosen),
        "levers": [
            {"change": lever, "latency_ms": ps_to_ms(_best_ps(variant, case, chosen))}
            for lever, variant in variants.items()
        ],
    }


def _bound_by(point: Measured) -> str:
    """The kind of engine that is busy longest."""
    kind = max(point.busy_ps, key=lambda k: point.busy_ps[k])
    names = {"tensor": "tensor engines", "vector": "vector engines", "dma": "DRAM transfers"}
    return f"{names[kind]}, {point.busy_ps[kind] / max(1, point.makespan_ps):.0%} busy"


def _options(problem: Problem, case: _Case) -> list[Option]:
    """All tilings, by predicted time."""
    kind = KINDS[case.segment.kind]
    tiles = list(dict.fromkeys(kind.tilings(problem, case.segment)))
    return sorted(predicted(problem, case.segment, tiles, case.resident), key=lambda o: o.cost_ps)


def _next_best(problem: Problem, case: _Case, chosen: Measured) -> list[dict[str, Any]]:
    """The tile counts that come closest, each in its best tiling, and the largest tile that does not fit."""
    room = problem.npu.sram.sram_bytes - case.others_bytes
    points: dict[int, Measured] = {}
    too_large: Option | None = None
    for option in _options(problem, case):
        count = _count(problem, case, option)
        if option.sram_bytes > room:
            if count < chosen.tile_count and (too_large is None or option.sram_bytes < too_large.sram_bytes):
                too_large = option
        elif count != chosen.tile_count and count not in points and len(points) < NEXT_BEST:
            point = measure(problem, case.segment, option, case.resident)
            if point is not None:
                points[count] = point
    found = [
        {"tile_count": p.tile_count, "latency_ms": ps_to_ms(p.makespan_ps), "reason": _reason(chosen, p)}
        for p in sorted(points.values(), key=lambda p: p.score)
    ]
    if too_large is not None:
        found.append({
            "tile_count": _count(problem, case, too_large), "latency_ms": None,
            "reason": f"needs {format_bytes(too_large.sram_bytes)} of SRAM, {format_bytes(room)} are free",
        })  # fmt: skip
    return found


def _count(problem: Problem, case: _Case, option: Option) -> int:
    return KINDS[case.segment.kind].plan(problem.graph, case.segment, option.tile, ()).tile_count  # type: ignore[arg-type]


def _reason(chosen: Measured, other: Measured) -> str:
    """What grows most from the chosen tiling to the other one: bytes, hand-over, work of an engine, or time that nobody works."""
    if other.makespan_ps <= chosen.makespan_ps:
        return "as fast on its own; the whole network decided"
    grown = {
        f"{format_bytes(other.dram_bytes - chosen.dram_bytes)} more DRAM traffic": other.busy_ps["dma"] - chosen.busy_ps["dma"]
        if other.dram_bytes > chosen.dram_bytes else 0,
        "more set-ups of transfers": other.busy_ps["dma"] - chosen.busy_ps["dma"]
        if other.dram_bytes <= chosen.dram_bytes else 0,
        "more hand-overs between engines": other.handover_ps - chosen.handover_ps,
        "tiles that fill the tensor engines less": other.busy_ps["tensor"] - chosen.busy_ps["tensor"],
        "more work for the vector engines": other.busy_ps["vector"] - chosen.busy_ps["vector"]
        - (other.handover_ps - chosen.handover_ps),
    }  # fmt: skip
    cause = max(grown, key=lambda c: grown[c])
    if grown[cause] * 3 >= other.makespan_ps - chosen.makespan_ps:
        return cause
    if other.depth < chosen.depth:
        return "only one tile in flight: engines wait for one another"
    if other.tile_count < chosen.tile_count:
        return "a longer first load and last store: engines wait at both ends"
    return "shorter tiles: engines wait for one another more often"


def _best_ps(variant: Problem, case: _Case, chosen: Measured) -> int:
    """Simulated time of the best of a few tilings on other hardware, the chosen one among them."""
    room = variant.npu.sram.sram_bytes - case.others_bytes
    options = [o for o in _options(variant, case) if o.sram_bytes <= room][:TRIED]
    times = [measure(variant, case.segment, o, case.resident) for o in (chosen.option, *options)]
    return min((t.makespan_ps for t in times if t is not None), default=chosen.makespan_ps)
