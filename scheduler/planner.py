"""From a graph to a plan: units, residency, addresses, tile counts; the curve of each segment is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial

import npusim
from npusim.dtypes import PRECISIONS
from npusim.errors import BadInputError, HardwareError
from npusim.graph import Graph, Layer
from npusim.hardware import Npu
from npusim.layout import PLAIN
from npusim.lower import lower
from npusim.lower.slots import SlotSpec, layer_slots
from npusim.plan import LayerPlan, ModelRef, Options, Plan, SegmentPlan, Slots, TensorPlan
from npusim.program import Program
from npusim.scheduler.allocate import Lifetime, allocate
from npusim.scheduler.layouts import choose_layouts, choose_units
from npusim.scheduler.pieces import Option, all_options, largest_pieces, layer_key, undominated
from npusim.scheduler.problem import Infeasible, Policy, Problem
from npusim.scheduler.residency import Span, Unit, choose_resident, spans
from npusim.scheduler.tiles import (
    Segment,
    Tiling,
    can_fit,
    fewest_tiles,
    find_segments,
    layers_of,
    predicted,
    requested_tiling,
    slots_of,
    tile_count,
    tilings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for: tiling rule (`none`, `sram`, `auto` or a count), segment kinds, precision, policy, pins."""

    tiles: str = "auto"
    segments: str = "all"
    precision: str = "w8a16"
    policy: Policy = "decoupled"
    pins: Mapping[str, int] = field(default_factory=dict)


def check_request(npu: Npu, request: Request) -> None:
    """Refuse words that mean nothing and precisions that the hardware cannot multiply.

    Raises:
        BadInputError: an unknown rule, kind of segment, precision or policy, or fewer than one tile.
        HardwareError: no rate or energy for an operand pair of the precision.
    """
    counted = request.tiles.isdecimal() and int(request.tiles) > 0
    for what, found, allowed in (
        ("tiles", "a count" if counted else request.tiles, ("none", "sram", "auto", "a count")),
        ("segments", request.segments, ("none", "attention", "all")),
        ("precision", request.precision, tuple(PRECISIONS)),
        ("policy", request.policy, ("serial", "decoupled")),
    ):
        if found not in allowed:
            raise BadInputError(f"{what} is '{found}'; allowed are {', '.join(allowed)}")
    if any(count < 1 for count in request.pins.values()):
        raise BadInputError("a segment needs at least one tile")
    precision = PRECISIONS[request.precision]
    for pair in (precision.weight_pair, precision.activation_pair):
        for table, where in ((npu.tensor_rates, "tensor_rates"), (npu.energy.mac_pj, "energy.mac_pj")):
            if pair not in table:
                raise HardwareError(
                    f"{npu.name}: {where} has no '{pair}', which precision {request.precision} needs; "
                    "add it, or choose another precision"
                )


def make_problem(graph: Graph, npu: Npu, precision: str, policy: Policy) -> Problem:
    """Fix layouts and engines."""
    return Problem(
        graph=graph, npu=npu, precision=precision, policy=policy,
        layouts=choose_layouts(graph, npu), units=choose_units(graph, npu, precision),
    )  # fmt: skip


#: Given a segment, its resident tensors, the bytes it may use and the option chosen in closed form: a better one, or the same.
Refine = Callable[[Segment, frozenset[str], int, Option], Option]


def plan_graph(
    problem: Problem, request: Request, refine: Refine | None = None
) -> tuple[Plan, Program] | Infeasible:
    """Decide everything, lower it, and put the Program's hash into the plan."""
    found = find_segments(problem.graph, "none" if request.tiles == "none" else request.segments)
    _check_pins(found, request)
    segments = [s for s in found if s.name in request.pins or can_fit(problem, s)]
    units = _units(problem, segments, request)
    decided = _decide(problem, units)
    if isinstance(decided, Infeasible):
        return decided
    if refine is not None:
        decided = _refined(problem, units, segments, decided, refine)
    unjoined = tuple(s.name for s in found if s not in segments)
    plan = _assemble(problem, request, units, segments, decided).model_copy(update={"unjoined": unjoined})
    program = lower(problem.graph, plan)
    return plan.model_copy(update={"program_sha256": program.sha256()}), program


def _refined(
    problem: Problem, units: Sequence[Unit], segments: Sequence[Segment], decided: _Decisions, refine: Refine
) -> _Decisions:
    """The same decisions with each segment's tiling replaced by what `refine` prefers, where the addresses still fit."""
    by_name = {s.name: s for s in segments}
    used = _resident_bytes(problem, units, decided.resident)
    options = list(decided.options)
    for index, unit in enumerate(units):
        if unit.name in by_name:
            budget = problem.npu.sram.sram_bytes - used[index]
            options[index] = refine(
                by_name[unit.name], decided.resident & unit.tensors, budget, options[index]
            )
    addresses = _addresses(problem, units, decided.resident, options)
    if addresses is None:
        return decided
    return _Decisions(resident=decided.resident, options=options, addresses=addresses)


def _resident_bytes(problem: Problem, units: Sequence[Unit], resident: frozenset[str]) -> list[int]:
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


# ---- units ----------------------------------------------------------------------------------------------------------


def _units(problem: Problem, segments: Sequence[Segment], request: Request) -> list[Unit]:
    """Layers and segments in execution order; equal structures share their options."""
    ends = {s.layers[-1]: s for s in segments}
    inside = {name for s in segments for name in s.layers}
    memo: dict[object, list[Option]] = {}
    units = []
    for layer in problem.graph.layers:
        if layer.name in ends:
            units.append(_segment_unit(problem, ends[layer.name], request, memo))
        elif layer.name not in inside:
            units.append(_layer_unit(problem, layer, request))
    return units


def _layer_unit(problem: Problem, layer: Layer, request: Request) -> Unit:
    """A layer on its own. Without tiling, one whose activations exceed the SRAM streams in pieces as large as the SRAM allows."""
    activations = {*layer.reads(), layer.output} - {t.name for t in problem.graph.of_kind("weight")}
    streams = sum(problem.tensor_bytes(t) for t in activations) > problem.npu.sram.sram_bytes

    def options(resident: frozenset[str]) -> Sequence[Option]:
        found = all_options(problem, layer, resident)
        return [largest_pieces(problem, found)] if request.tiles == "none" and streams else found

    return Unit(
        name=layer.name,
        layers=(layer.name,),
        tensors=frozenset((*layer.reads(), layer.output)),
        options=cache(options),
    )


def _segment_unit(
    problem: Problem, segment: Segment, request: Request, memo: dict[object, list[Option]]
) -> Unit:
    layers = layers_of(problem.graph, segment)
    members = (layers.scores, layers.softmax, layers.values)
    internal = {layers.scores.output, layers.softmax.output}
    tensors = frozenset(t for x in members for t in (*x.reads(), x.output)) - internal

    def options(resident: frozenset[str]) -> Sequence[Option]:
        key = (
            segment.kind,
            request.pins.get(segment.name),
            *(layer_key(problem, x, resident) for x in members),
        )
        if key not in memo:
            memo[key] = _segment_options(problem, segment, request, resident)
        return memo[key]

    return Unit(name=segment.name, layers=segment.layers, tensors=tensors, options=cache(options))


def _segment_options(
    problem: Problem, segment: Segment, request: Request, resident: frozenset[str]
) -> list[Option]:
    """`sram` and counts leave one choice; `auto` all undominated ones."""
    layers = layers_of(problem.graph, segment)
    predict = partial(predicted, problem, layers, resident=resident)
    pinned = request.pins.get(segment.name)
    if pinned is not None or request.tiles.isdigit():
        tiling = requested_tiling(problem, layers, pinned if pinned is not None else int(request.tiles))
        shallow = replace(tiling, depth=1)
        return undominated([predict(tiling), predict(shallow)])
    if request.tiles == "sram":
        rule = fewest_tiles(problem, layers, problem.npu.sram.sram_bytes, frozenset())
        return (
            [predict(rule)] if rule is not None else [predict(t) for t in list(tilings(problem, layers))[-1:]]
        )
    return undominated(predict(t) for t in tilings(problem, layers))


# ---- decisions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decisions:
    resident: frozenset[str]
    options: Sequence[Option]
    addresses: Mapping[str, int]


def _decide(problem: Problem, units: Sequence[Unit]) -> _Decisions | Infeasible:
    """Residency with growing slack until the addresses fit too (greedy placement needs a few percent)."""
    capacity = problem.npu.sram.sram_bytes
    for percent in (0, 2, 4, 7, 10, 15, 20, 30, 50, 100):
        found = choose_resident(problem, units, capacity, slack_bytes=capacity * percent // 100)
        if isinstance(found, int):
            return _infeasible(problem, units[found])
        resident, options = found
        addresses = _addresses(problem, units, resident, options)
        if addresses is not None:
            return _Decisions(resident=resident, options=options, addresses=addresses)
    raise AssertionError("slots of a single unit always fit, since their sum was checked")


def _infeasible(problem: Problem, unit: Unit) -> Infeasible:
    best = min(unit.options(frozenset()), key=lambda o: o.sram_bytes)
    specs = _specs(problem, unit, frozenset(), best)
    largest = sorted(((s.name, s.total_bytes) for s in specs), key=lambda c: -c[1])
    levers = (
        ("give --tiles a larger count", "or --tiles auto")
        if isinstance(best.tile, Tiling)
        else ("use an NPU with more SRAM", "a narrower precision")
    )
    return Infeasible(
        where=f"'{unit.name}' on {problem.npu.name}",
        demand_bytes=best.sram_bytes,
        capacity_bytes=problem.npu.sram.sram_bytes,
        contributors=tuple((f"slot {n}", size) for n, size in largest[:3]),
        levers=tuple(x.removeprefix("or ") for x in levers),
    )


def _specs(problem: Problem, unit: Unit, resident: frozenset[str], option: Option) -> list[SlotSpec]:
    if isinstance(option.tile, Tiling):
        layers = layers_of(problem.graph, Segment(unit.name, "attention", unit.layers))
        return slots_of(problem, layers, option.tile, resident)
    layer = next(x for x in problem.graph.layers if x.name == unit.layers[0])
    assert option.pieces is not None
    return layer_slots(problem.storage(resident), layer, option.pieces)


def _addresses(
    problem: Problem, units: Sequence[Unit], resident: frozenset[str], options: Sequence[Option]
) -> dict[str, int] | None:
    """One address per resident tensor and per slot. Slots of weights are free one unit early, so that they can be prefetched."""
    owner = _place_owners(problem, resident)
    fixed = _shared_lifetimes([s for s in spans(problem, units) if s.tensor in resident], owner)
    early, late = [], []
    for index, (unit, option) in enumerate(zip(units, options, strict=True)):
        for spec in _specs(problem, unit, resident, option):
            for number in range(spec.count):
                name = f"{unit.name}/{spec.name}/{number}"
                late.append(Lifetime(name=name, size_bytes=spec.slot_bytes, first=index, last=index))
                ahead = (
                    index - 1
                    if index and problem.policy == "decoupled" and spec.name in ("w", "params", "k", "v")
                    else index
                )
                early.append(Lifetime(name=name, size_bytes=spec.slot_bytes, first=ahead, last=index))
    capacity = problem.npu.sram.sram_bytes
    found = allocate([*fixed, *early], capacity) or allocate([*fixed, *late], capacity)
    return None if found is None else {**found, **{t: found[o] for t, o in owner.items()}}


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


# ---- the plan -------------------------------------------------------------------------------------------------------


def _assemble(
    problem: Problem,
    request: Request,
    units: Sequence[Unit],
    segments: Sequence[Segment],
    decided: _Decisions,
) -> Plan:
    placed = {u.name: _slots(problem, u, decided, o) for u, o in zip(units, decided.options, strict=True)}
    chosen = {u.name: o for u, o in zip(units, decided.options, strict=True)}
    return Plan(
        npusim_version=npusim.__version__,
        model=ModelRef(name=problem.graph.name, sha256=problem.graph.model_sha256),
        options=Options(
            tiles=request.tiles, segments=request.segments, precision=request.precision, policy=request.policy
        ),
        npu=problem.npu,
        tensors=tuple(
            tensor_plan(problem, t, resident=decided.resident, addresses=decided.addresses, load_inputs=True)
            for t in problem.graph.tensors
        ),
        layers=tuple(_layer_plans(problem, request, segments, chosen, placed)),
        segments=tuple(_segment_plan(problem, s, chosen[s.name], placed[s.name]) for s in segments),
    )


def _slots(problem: Problem, unit: Unit, decided: _Decisions, option: Option) -> tuple[Slots, ...]:
    specs = _specs(problem, unit, decided.resident, option)
    return tuple(
        Slots(
            name=s.name, slot_bytes=s.slot_bytes,
            addresses=tuple(decided.addresses[f"{unit.name}/{s.name}/{i}"] for i in range(s.count)),
        )
        for s in specs
    )  # fmt: skip


def _layer_plans(
    problem: Problem,
    request: Request,
    segments: Sequence[Segment],
    chosen: Mapping[str, Option],
    placed: Mapping[str, tuple[Slots, ...]],
) -> list[LayerPlan]:
    owner = {name: s.name for s in segments for name in s.layers}
    vector = (problem.npu.vector_engine.kind, problem.npu.vector_engine.count)
    plans = []
    for layer in problem.graph.layers:
        unit, count = problem.units.get(layer.name, vector)
        segment = owner.get(layer.name, "")
        plans.append(
            LayerPlan(
                name=layer.name, precision=request.precision, unit=unit, engines=tuple(range(count)), segment=segment,
                pieces=None if segment else chosen[layer.name].pieces, slots=() if segment else placed[layer.name],
            )
        )  # fmt: skip
    return plans


def _segment_plan(
    problem: Problem, segment: Segment, option: Option, slots: tuple[Slots, ...]
) -> SegmentPlan:
    assert isinstance(option.tile, Tiling)
    return segment_plan(problem.graph, segment, option.tile, slots)


def segment_plan(graph: Graph, segment: Segment, tiling: Tiling, slots: tuple[Slots, ...]) -> SegmentPlan:
    """The plan entry of a segment."""
    by_heads, by_rows = tile_count(layers_of(graph, segment), tiling)
    return SegmentPlan(
        name=segment.name, kind=segment.kind, layers=segment.layers, tiles={"heads": by_heads, "rows": by_rows},
        tile_count=by_heads * by_rows, heads_per_tile=tiling.heads, rows_per_tile=tiling.rows, depth=tiling.depth,
        in_place=tiling.in_place, requested=tiling.requested, slots=slots,
    )  # fmt: skip


def tensor_plan(
    problem: Problem, name: str, *, resident: frozenset[str], addresses: Mapping[str, int], load_inputs: bool
) -> TensorPlan:
    """The plan entry of a tensor; resident inputs are loaded first, or (in an isolated segment) are there already."""
    layout = problem.layouts.get(name, PLAIN)
    before = problem.in_place.get(name, "")
    return TensorPlan(
        name=name, home="sram" if name in resident else "dram", block=layout.block, padded=layout.padded,
        element_bytes=problem.element_bytes[name], address=addresses.get(name, 0), size_bytes=problem.tensor_bytes(name),
        in_place_of=before if name in resident and before in resident else "",
        loaded=load_inputs and name in resident and problem.graph.tensors[name].kind == "input",
    )  # fmt: skip
