"""From a graph to a plan: units, residency, addresses, and the Program that they lower to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from npusim.errors import BadInputError
from npusim.graph import Graph
from npusim.hardware import Npu
from npusim.lower import lower
from npusim.plan import Plan
from npusim.precisions import Precisions
from npusim.program import Program
from npusim.scheduler.allocate import Lifetime, allocate, spread
from npusim.scheduler.assemble import Decisions, assemble
from npusim.scheduler.layouts import choose_layouts, choose_units
from npusim.scheduler.pieces import Option
from npusim.scheduler.problem import Infeasible, Policy, Problem
from npusim.scheduler.request import Request
from npusim.scheduler.residency import Span, Unit, choose_resident, spans
from npusim.scheduler.tiles import Segment
from npusim.scheduler.units import attention_segments, chain_segments, make_units, slot_name, unit_slots

#: Slots of operands that do not depend on the unit before: they may be filled while it runs.
PREFETCHED = ("w", "params", "k", "v")


def make_problem(
    graph: Graph,
    npu: Npu,
    precision: str,
    policy: Policy,
    precisions: Precisions | None = None,
    *,
    shared: bool = False,
    sums_early: bool = False,
) -> Problem:
    """Fix layouts and engines; `precisions` of single layers override `precision`.

    Args:
        shared: whether tensor engines of two kinds may share a product.
        sums_early: whether the sums of norms may be taken where their input is made.
    """
    each = {x.name: precision for x in graph.layers} | dict(precisions or {})
    return Problem(
        graph=graph, npu=npu, precision=precision, policy=policy, precisions=precisions or {}, shared=shared, sums_early=sums_early,
        layouts=choose_layouts(graph, npu), units=choose_units(graph, npu, each, shared=shared),
    )  # fmt: skip


def without(problem: Problem, **means: bool) -> Problem:
    """The same network with some means (`shared`, `sums_early`) switched; nothing that was remembered of it is kept."""
    chosen = {"shared": problem.shared, "sums_early": problem.sums_early, **means}
    found = make_problem(
        problem.graph, problem.npu, problem.precision, problem.policy, problem.precisions, **chosen
    )
    return replace(found, apart=problem.apart)


#: Given a segment, its resident tensors, the bytes it may use and the option chosen in closed form: a better one, or the same.
Refine = Callable[[Problem, Segment, frozenset[str], int, Option], Option]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan with its Program and what it was made of."""

    problem: Problem
    units: Sequence[Unit]
    decided: Decisions
    plan: Plan
    program: Program


def plan_graph(
    problem: Problem, request: Request, refine: Refine | None = None, chains: Sequence[tuple[str, ...]] = ()
) -> Planned | Infeasible:
    """Decide everything, lower it, and put the Program's hash into the plan.

    Args:
        chains: layers to be joined row by row; the attention segments are joined whenever they fit and no chain has their layers.
    """
    problem = replace(problem, chains=tuple(chains))
    attention, unjoined = attention_segments(problem, request)
    chained = {name for chain in chains for name in chain}
    segments = [s for s in attention if not chained & set(s.layers)] + chain_segments(problem.graph, chains)
    _check_pins(segments, request)
    units = make_units(problem, segments, request)
    decided = _decide(problem, request, units, refine)
    if isinstance(decided, Infeasible):
        return decided
    left = tuple(s.name for s in unjoined if not chained & set(s.layers))
    return lowered(problem, request, units, decided, left)


def lowered(
    problem: Problem, request: Request, units: Sequence[Unit], decided: Decisions, unjoined: tuple[str, ...]
) -> Planned:
    """The plan of some decisions, and its Program."""
    plan = assemble(problem, request, units, decided).model_copy(update={"unjoined": unjoined})
    program = lower(problem.graph, plan, problem.fragments)
    plan = plan.model_copy(update={"program_sha256": program.sha256()})
    return Planned(problem=problem, units=units, decided=decided, plan=plan, program=program)


def resident_bytes(problem: Problem, units: Sequence[Unit], resident: frozenset[str]) -> list[int]:
    """SRAM bytes of resident tensors while each unit runs."""
    used = [0] * len(units)
    owner = _place_owners(problem, resident)
    for life in _shared_lifetimes([s for s in spans(problem, units) if s.tensor in resident], owner):
        for index in range(life.first, life.last + 1):
            used[index] += life.size_bytes
    return used


def _check_pins(segments: Sequence[Segment], request: Request) -> None:
    names = {s.name for s in segments}
    for name, count in request.pins.items():
        if name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise BadInputError(f"--tiles {name}={count}: there is no such segment; segments are: {known}")


# ---- decisions ------------------------------------------------------------------------------------------------------


def _decide(
    problem: Problem, request: Request, units: Sequence[Unit], refine: Refine | None
) -> Decisions | Infeasible:
    """Residency with growing slack until the addresses fit too (greedy placement needs a few percent)."""
    capacity = problem.npu.sram.sram_bytes
    for percent in (0, 2, 4, 7, 10, 15, 20, 30, 50, 100):
        found = choose_resident(problem, units, capacity, slack_bytes=capacity * percent // 100)
        if isinstance(found, int):
            return _infeasible(problem, units[found])
        resident, options = found
        tried = (
            [options]
            if refine is None
            else [_refined(problem, request, units, resident, options, refine), options]
        )
        for chosen in tried:
            placed = addresses(problem, units, resident, chosen)
            if placed is not None:
                return Decisions(resident=resident, options=chosen, addresses=placed)
    raise AssertionError("slots of a single unit always fit, since their sum was checked")


def _refined(
    problem: Problem, request: Request, units: Sequence[Unit], resident: frozenset[str], options: Sequence[Option],
    refine: Refine,
) -> list[Option]:  # fmt: skip
    """The options with each segment's tiling replaced by what `refine` prefers in the space that is left."""
    used = resident_bytes(problem, units, resident)
    return [
        refine(
            problem, unit.segment, resident & unit.tensors, problem.npu.sram.sram_bytes - used[index], option
        )
        if unit.segment is not None and request.count(unit.name) is None
        else option
        for index, (unit, option) in enumerate(zip(units, options, strict=True))
    ]


def _infeasible(problem: Problem, unit: Unit) -> Infeasible:
    best = min(unit.options(frozenset()), key=lambda o: o.sram_bytes)
    owned = unit_slots(problem, unit, frozenset(), best)
    sizes = [(s.name, s.total_bytes) for specs in owned.values() for s in specs]
    largest = sorted(sizes, key=lambda c: -c[1])
    levers = (
        ("give --tiles a larger count", "or --tiles auto")
        if unit.segment is not None
        else ("use an NPU with more SRAM", "a narrower precision")
    )
    return Infeasible(
        where=f"'{unit.name}' on {problem.npu.name}",
        demand_bytes=best.sram_bytes,
        capacity_bytes=problem.npu.sram.sram_bytes,
        contributors=tuple((f"slot {n}", size) for n, size in largest[:3]),
        levers=tuple(x.removeprefix("or ") for x in levers),
    )


def addresses(
    problem: Problem, units: Sequence[Unit], resident: frozenset[str], options: Sequence[Option]
) -> dict[str, int] | None:
    """One address per resident tensor and per slot. Slots of weights are free one unit early, so that they can be prefetched."""
    owner = _place_owners(problem, resident)
    fixed = _shared_lifetimes([s for s in spans(problem, units) if s.tensor in resident], owner)
    early, late, movable = [], [], set()
    for index, (unit, option) in enumerate(zip(units, options, strict=True)):
        for life, prefetched in _slot_lifetimes(problem, unit, index, resident, option):
            late.append(life)
            ahead = index and problem.policy == "decoupled" and prefetched
            early.append(replace(life, first=index - 1) if ahead else life)
            movable.update([life.name] if ahead else [])
    capacity = problem.npu.sram.sram_bytes
    for lives in ([*fixed, *early], [*fixed, *late]):
        found = allocate(lives, capacity)
        if found is not None:
            found = spread(lives, found, movable, capacity)
            return {**found, **{t: found[o] for t, o in owner.items()}}
    return None


def _slot_lifetimes(
    problem: Problem, unit: Unit, index: int, resident: frozenset[str], option: Option
) -> Iterator[tuple[Lifetime, bool]]:
    """Lifetimes of a unit's slots; the flag says whether they can be filled before it starts."""
    for owner, specs in unit_slots(problem, unit, resident, option).items():
        for spec in specs:
            for number in range(spec.count):
                name = slot_name(owner, spec.name, number)
                life = Lifetime(name=name, size_bytes=spec.slot_bytes, first=index, last=index)
                yield life, spec.name in PREFETCHED


def _place_owners(problem: Problem, resident: frozenset[str]) -> dict[str, str]:
    """Resident tensor -> the first tensor of the chain that hands its place on to it (itself, mostly)."""
    owner: dict[str, str] = {}
    for layer in problem.graph.layers:
        for name in layer.reads():
            if name in resident:
                owner.setdefault(name, name)
        if layer.output in resident:
            before = problem.in_place.get(layer.output)
            owner[layer.output] = owner.get(before or "", layer.output)
    owner.update({name: name for name in problem.sums if name in resident})
    return owner


def _shared_lifetimes(lives: Sequence[Span], owner: Mapping[str, str]) -> list[Lifetime]:
    """One lifetime per place."""
    found: dict[str, Lifetime] = {}
    for span in lives:
        name = owner[span.tensor]
        known = found.get(name)
        first, last = (
            (min(known.first, span.first), max(known.last, span.last)) if known else (span.first, span.last)
        )
        found[name] = Lifetime(name=name, size_bytes=span.size_bytes, first=first, last=last)
    return list(found.values())
