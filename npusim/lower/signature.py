"""What a unit of lowering is, without names and addresses: units of one signature have the same commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from npusim.graph import Graph, Layer
from npusim.lower.context import Lowering
from npusim.lower.statistics import statistics_tensor
from npusim.plan import SegmentPlan, Slots


@dataclass(frozen=True, slots=True)
class Signature:
    """A unit.

    Attributes:
        key: everything that decides its commands, without names and addresses.
        layers, tensors: names, in the order in which the key speaks of them.
        regions: disjoint SRAM ranges (start, end): its slots, and its tensors that live there.
    """

    key: object
    layers: tuple[str, ...]
    tensors: tuple[str, ...]
    regions: tuple[tuple[int, int], ...]


def signature(low: Lowering, layers: Sequence[Layer], segment: SegmentPlan | None) -> Signature | None:
    """The signature of a unit; None if its places overlap, which only a plan that was tampered with has."""
    tensors = tuple(dict.fromkeys(t for x in layers for t in (*x.reads(), x.output, *_statistics(low, x))))
    slots = list(segment.slots) if segment is not None else []
    slots += [s for x in layers for s in low.layer_plans[x.name].slots]
    ranges = [(a, a + s.slot_bytes) for s in slots for a in s.addresses]
    ranges += [
        (p.address, p.address + p.size_bytes)
        for p in map(low.tensor_plans.__getitem__, tensors)
        if p.home == "sram"
    ]
    regions = sorted(set(ranges))
    if any(a[1] > b[0] for a, b in pairwise(regions)):
        return None
    number = {r: i for i, r in enumerate(dict.fromkeys(ranges))}
    index = {t: i for i, t in enumerate(tensors)}
    key = (
        _segment_key(segment),
        tuple(_layer_key(low, x, index) for x in layers),
        tuple(_tensor_key(low, t, index) for t in tensors),
        _roles_key(low.graph, layers),
        tuple(number[r] for r in ranges),
    )
    return Signature(key, tuple(x.name for x in layers), tensors, tuple(number))


def _statistics(low: Lowering, layer: Layer) -> Iterator[str]:
    """Sums that are taken early and that a layer adds to, or reads."""
    yield from (s.tensor for s in low.shares.get(layer.output, ()))
    if low.layer_plans[layer.name].early_statistics:
        yield statistics_tensor(layer.name)


def _segment_key(segment: SegmentPlan | None) -> object:
    if segment is None:
        return None
    return (
        segment.kind, tuple(sorted(segment.tiles.items())), segment.heads_per_tile, segment.rows_per_tile,
        segment.keys_per_tile, segment.depth, segment.in_place, _slots_key(segment.slots),
    )  # fmt: skip


def _slots_key(slots: Sequence[Slots]) -> object:
    return tuple((s.name, s.slot_bytes, len(s.addresses)) for s in slots)


def _layer_key(low: Lowering, layer: Layer, index: Mapping[str, int]) -> object:
    plan = low.layer_plans[layer.name]
    pieces = plan.pieces
    return (
        layer.op, bool(layer.group), tuple(sorted((k, repr(v)) for k, v in layer.attributes.items())),
        tuple((e.function, e.operand, e.value, e.parameters) for e in layer.epilogue),
        tuple((o.role, *((index[p.tensor], p.start, p.size) for p in o.parts)) for o in layer.operands),
        index[layer.output], layer.output in low.read_outside(plan.segment, layer),
        plan.precision, tuple(plan.engines.items()), _slots_key(plan.slots), plan.early_statistics,
        tuple((index[s.tensor], s.first, s.width, s.tensor in low.homes) for s in low.shares.get(layer.output, ())),
        (pieces.rows, pieces.cols, pieces.order, pieces.depth) if pieces is not None else None,
    )  # fmt: skip


def _tensor_key(low: Lowering, name: str, index: Mapping[str, int]) -> object:
    plan = low.tensor_plans[name]
    before = index.get(plan.in_place_of, -1) if plan.in_place_of else None
    shape = low.shape(name)
    return shape, plan.home, plan.block, plan.padded, plan.element_bytes, plan.size_bytes, before


def _roles_key(graph: Graph, layers: Sequence[Layer]) -> object:
    """Kinds of the tensors after which commands are named: a load of weights, a spill, or other."""
    named = [t for x in layers if not x.group for t in (*x.reads(), x.output)]
    named += [
        x.operands[e.operand].parts[0].tensor
        for x in layers if x.group for e in x.epilogue if e.operand >= 0
    ]  # fmt: skip
    return tuple(graph.tensors[t].kind for t in named)
