"""Decisions become a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import npusim
from npusim.graph import Tensor
from npusim.layout import PLAIN, Layout, stored_bytes
from npusim.lower.context import aligned
from npusim.lower.statistics import statistics_tensor
from npusim.plan import LayerPlan, ModelRef, Options, Pieces, Plan, SegmentPlan, Slots, TensorPlan
from npusim.scheduler.kinds import KINDS, Tile
from npusim.scheduler.pieces import Option
from npusim.scheduler.problem import Problem
from npusim.scheduler.request import Request
from npusim.scheduler.residency import Unit
from npusim.scheduler.units import slot_name, unit_slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """What was decided: tensors that stay in SRAM, one option per unit, an address of every tensor and slot there."""

    resident: frozenset[str]
    options: Sequence[Option]
    addresses: Mapping[str, int]


def assemble(problem: Problem, request: Request, units: Sequence[Unit], decided: Decisions) -> Plan:
    """The plan of these decisions."""
    graph = problem.graph
    layers: dict[str, LayerPlan] = {}
    segments: list[SegmentPlan] = []
    layouts = dict(problem.layouts)
    for unit, option in zip(units, decided.options, strict=True):
        slots = _slots(problem, unit, decided, option)
        pieces: Mapping[str, Pieces] = {}
        if unit.segment is not None:
            assert isinstance(option.tile, Tile)
            kind, own = KINDS[unit.segment.kind], slots.get(unit.segment.name, ())
            segments.append(kind.plan(problem.graph, unit.segment, option.tile, own))
            pieces = kind.pieces(unit.segment, option.tile)
            layouts |= kind.layouts(problem, unit.segment, option.tile)
        elif option.pieces is not None:
            pieces = {unit.name: option.pieces}
        for name in unit.layers:
            layers[name] = _layer(problem, decided, name, unit, pieces.get(name), slots.get(name, ()))
    return Plan(
        npusim_version=npusim.__version__,
        model=ModelRef(name=graph.name, sha256=graph.model_sha256),
        options=Options(
            tiles=request.tiles, segments=request.segments, precision=request.precision, policy=request.policy
        ),
        npu=problem.npu,
        tensors=tuple(_tensor(problem, t, decided, layouts) for t in graph.tensors.values()),
        layers=tuple(layers[x.name] for x in graph.layers),
        segments=tuple(segments),
    )


def _slots(problem: Problem, unit: Unit, decided: Decisions, option: Option) -> dict[str, tuple[Slots, ...]]:
    return {
        owner: tuple(
            Slots(
                name=s.name, slot_bytes=s.slot_bytes,
                addresses=tuple(decided.addresses[slot_name(owner, s.name, i)] for i in range(s.count)),
            )
            for s in specs
        )
        for owner, specs in unit_slots(problem, unit, decided.resident, option).items()
    }  # fmt: skip


def _layer(
    problem: Problem, decided: Decisions, name: str, unit: Unit, pieces: Pieces | None, slots: tuple[Slots, ...]
) -> LayerPlan:  # fmt: skip
    sums = _early_sums(problem, decided, name)
    vector = problem.npu.vector_engine
    engines = problem.units.get(name, ((vector.kind, vector.count),))
    return LayerPlan(
        name=name, precision=problem.precision_of(name).name, engines={kind: tuple(range(count)) for kind, count in engines},
        segment=unit.name if unit.segment is not None else "", pieces=pieces, slots=(*slots, *sums),
        early_statistics=bool(sums),
    )  # fmt: skip


def _early_sums(problem: Problem, decided: Decisions, norm: str) -> tuple[Slots, ...]:
    """The place of a norm's statistics where they are taken early; nothing for other layers."""
    name = statistics_tensor(norm)
    if name not in problem.sums or name not in decided.resident:
        return ()
    size = problem.tensor_bytes(name)
    return (Slots(name="stats", slot_bytes=size, addresses=(decided.addresses[name],)),)


def _tensor(
    problem: Problem, tensor: Tensor, decided: Decisions, layouts: Mapping[str, Layout]
) -> TensorPlan:
    name, resident = tensor.name, decided.resident
    layout, size = layouts.get(name, PLAIN), problem.element_bytes[name]
    stored = aligned(stored_bytes(tensor.shape, layout, size), problem.npu.sram.alignment_bytes)
    before = problem.in_place.get(name, "")
    return TensorPlan(
        name=name, home="sram" if name in resident else "dram", block=layout.block, padded=layout.padded,
        element_bytes=size, address=decided.addresses.get(name, 0), size_bytes=stored,
        in_place_of=before if name in resident and before in resident else "",
        loaded=tensor.kind == "input" and name in resident and name not in problem.held,
    )  # fmt: skip
